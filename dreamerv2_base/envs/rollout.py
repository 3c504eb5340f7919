"""One batched policy in several environments, in child processes.

The environments of a wave go in lockstep: one policy call per step. Results
depend on the policy and the seed, not on the number of processes. A child
that dies or hangs is replaced, and its episodes are repeated.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamerv2_base.envs.opengl import choose_renderer
from dreamerv2_base.errors import UserError

Policy = Callable[[dict[str, np.ndarray], Any], tuple[np.ndarray, Any]]
FLAGS = ('is_first', 'is_last', 'is_terminal')


@dataclass
class Episode:
    """What one episode was.

    Attributes:
      arrays: the kept arrays, rows by time (see the episode format).
      total: sum of rewards, float64. length: rows.
      background: first frame of the background video, if there is one.
      attempts: 1, or more when a child process died.
    """

    arrays: dict[str, np.ndarray]
    total: float
    length: int
    background: int | None
    attempts: int


class Rollout:
    """Runs policies in `envs` environments spread over `workers` processes.

    Args:
      make_env: makes an environment; sent to the children, so it must
        pickle (a partial of a module's function does).
      envs: environments in lockstep, the size of the policy's batch.
      workers: processes.
      timeout: seconds after which a silent child counts as hanging.
    """

    ATTEMPTS = 3

    def __init__(self, make_env: Callable[[], Any], envs: int = 10,
                 workers: int = 2, timeout: float = 120.0):
        choose_renderer()
        self._envs = envs
        self._workers = [
            _Worker(make_env, timeout) for _ in range(min(workers, envs))]
        self._action_size: int | None = None

    @property
    def action_size(self) -> int:
        """A, asked from an environment."""
        if self._action_size is None:
            self._action_size = self._workers[0].ask(('action_size',))
        return self._action_size

    @property
    def pids(self) -> list[int]:
        """Process numbers of the children."""
        return [worker.pid for worker in self._workers]

    def run(self, policy: Policy, episodes: int, seed: int,
            keep: Sequence[str] | bool = False) -> list[Episode]:
        """Run whole episodes; number j starts from a seed of (seed, j).

        `keep` names arrays to return (True: all). `policy` gets arrays
        [envs, ...] and None as its first state; rows of idle environments
        are zero. Raises UserError when an episode fails three times.
        """
        waiting = [(number, 1) for number in range(episodes)]
        done: dict[int, Episode] = {}
        while waiting:
            wave, waiting = waiting[:self._envs], waiting[self._envs:]
            finished, lost = self._wave(policy, wave, seed, keep)
            done.update(finished)
            for number, attempt in lost:
                if attempt >= self.ATTEMPTS:
                    raise UserError(
                        f'evaluation: expected episode {number} to end, '
                        f'found its process dead {attempt} times; check the '
                        'renderer with run.py doctor')
                waiting.append((number, attempt + 1))
        return [done[number] for number in range(episodes)]

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()

    def __enter__(self) -> Rollout:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # One wave.

    def _wave(self, policy, wave, seed, keep):
        slots = dict(enumerate(wave))
        rows: dict[int, list[dict]] = {slot: [] for slot in slots}
        backgrounds: dict[int, int | None] = {}
        seeds = {slot: episode_seed(seed, number)
                 for slot, (number, _) in slots.items()}
        active, state, action = set(slots), None, None
        lost: set[int] = set()
        while active:
            if action is None:
                found, gone = self._exchange(
                    'reset', {slot: seeds[slot] for slot in active})
            else:
                found, gone = self._exchange(
                    'step', {slot: action[slot] for slot in active})
            lost |= gone
            active -= gone
            for slot, (row, background) in found.items():
                row['action'] = (np.zeros(self.action_size, np.float32)
                                 if action is None else action[slot])
                rows[slot].append(row)
                backgrounds.setdefault(slot, background)
                if row['is_last']:
                    active.discard(slot)
            if active:
                action, state = policy(self._batch(rows, active), state)
                action = np.asarray(action, np.float32)
        finished = {
            slots[slot][0]: _episode(
                rows[slot], keep, backgrounds[slot], slots[slot][1])
            for slot in slots if slot not in lost}
        return finished, [slots[slot] for slot in sorted(lost)]

    def _batch(self, rows, active) -> dict[str, np.ndarray]:
        """Observations of all slots; zeros where nothing is going on."""
        sample = rows[next(iter(active))][-1]
        batch = {}
        for key, value in sample.items():
            if key == 'action':
                continue
            value = np.asarray(value)
            dtype = np.float32 if key == 'reward' else value.dtype
            batch[key] = np.zeros((self._envs, *value.shape), dtype)
            for slot in active:
                batch[key][slot] = rows[slot][-1][key]
        return batch

    def _exchange(self, verb: str, arguments: Mapping[int, Any]):
        """Ask every worker for its slots at once; answers and lost slots."""
        asked = []
        for number, worker in enumerate(self._workers):
            mine = {slot: value for slot, value in arguments.items()
                    if slot % len(self._workers) == number}
            if mine:
                asked.append((worker, mine))
        sent = [(worker, mine, worker.send((verb, mine)))
                for worker, mine in asked]
        found: dict[int, Any] = {}
        gone: set[int] = set()
        for worker, mine, alive in sent:
            answer = worker.receive() if alive else None
            if answer is None:
                worker.restart()
                gone |= set(mine)
            else:
                found.update(answer)
        return found, gone


def episode_seed(seed: int, number: int) -> int:
    """Seed of one episode of a rollout, 31 bits."""
    digest = hashlib.blake2b(f'{seed}/{number}'.encode(), digest_size=4)
    return int.from_bytes(digest.digest(), 'little') >> 1


class _Worker:
    """A child process with some environments, restarted when it fails."""

    def __init__(self, make_env, timeout):
        self._make_env, self._timeout = make_env, timeout
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message) -> bool:
        try:
            self._pipe.send(message)
        except OSError:
            return False
        return True

    def receive(self) -> Any:
        """The answer; None when the child died or hangs.

        Raises UserError when the environment did.
        """
        deadline = time.monotonic() + self._timeout
        try:
            while not self._pipe.poll(0.5):
                if (time.monotonic() > deadline
                        or not self._process.is_alive()):
                    return None
            kind, answer = self._pipe.recv()
        except (EOFError, OSError):
            return None
        if kind == 'user error':
            raise UserError(answer)
        if kind == 'error':
            raise RuntimeError(f'environment process: {answer}')
        return answer

    def ask(self, message) -> Any:
        self.send(message)
        answer = self.receive()
        if answer is None:
            raise UserError('environment: expected it to start, found its '
                            'process dead; check with run.py doctor')
        return answer

    def restart(self) -> None:
        self._end()
        self._start()

    def stop(self) -> None:
        self.send(('close',))
        self._process.join(timeout=5)
        self._end()

    def _start(self):
        context = multiprocessing.get_context('spawn')
        self._pipe, child = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(child, self._make_env), daemon=True)
        self._process.start()
        child.close()

    def _end(self):
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe, make_env) -> None:
    """Loop of a child: makes environments as slots are asked for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    envs: dict[int, Any] = {}

    def env(slot: int):
        if slot not in envs:
            envs[slot] = make_env()
        return envs[slot]

    def answer(verb: str, *arguments):
        if verb == 'action_size':
            return env(-1).action_size
        results = {}
        for slot, value in arguments[0].items():
            row = (env(slot).reset(value) if verb == 'reset'
                   else env(slot).step(value))
            results[slot] = (row, getattr(env(slot), 'background', None))
        return results

    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            break
        if message[0] == 'close':
            break
        try:
            pipe.send(('ok', answer(*message)))
        except UserError as error:
            pipe.send(('user error', str(error)))
        except Exception as error:  # told to the parent, with its type
            pipe.send(('error', f'{type(error).__name__}: {error}'))
    for made in envs.values():
        made.close()


def _episode(rows: list[dict], keep, background, attempts) -> Episode:
    names = list(rows[0]) if keep is True else list(keep or ())
    arrays = {}
    for name in names:
        array = np.stack([np.asarray(row[name]) for row in rows])
        if name == 'reward':
            array = array.astype(np.float32)
        arrays[name] = array.astype(bool) if name in FLAGS else array
    total = float(np.sum([row['reward'] for row in rows], dtype=np.float64))
    return Episode(arrays, total, len(rows), background, attempts)
