"""One batched policy in several environments, in child processes.

The environments of a wave go in lockstep: one policy call per step. Results
depend on the policy and the seed, not on the number of processes, and not on
mishaps: a child that dies, hangs or fails is replaced, and its episodes are
brought back to where they were by their seeds and recorded actions.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dreamerv2_base.envs.opengl import choose_renderer
from dreamerv2_base.errors import UserError

Policy = Callable[[dict[str, np.ndarray], Any], tuple[np.ndarray, Any]]
FLAGS = ('is_first', 'is_last', 'is_terminal')
ATTEMPTS = 3  # processes that an episode may have
PAUSE = 0.5  # seconds between two looks whether a child is alive


@dataclass
class Finished:
    """What one episode was.

    Attributes:
      arrays: the kept arrays, rows by time (see the episode format).
      total: sum of rewards, float64. length: rows, one more than decisions.
      background: first frame of the background video, if there is one.
      attempts: 1, and one more for every time its process was lost.
    """

    arrays: dict[str, np.ndarray]
    total: float
    length: int
    background: int | None
    attempts: int


@dataclass
class EpisodeUnderWay:
    """What is known of an episode so far; rows[t] has the action that led to
    it.
    """

    number: int
    seed: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    background: int | None = None
    attempts: int = 1

    def order(self, row: int) -> tuple[str, Any]:
        """What brought, and brings again, the environment to a row."""
        if row == 0:
            return 'reset', self.seed
        return 'step', self.rows[row]['action']

    @property
    def ended(self) -> bool:
        return bool(self.rows) and self.rows[-1]['is_last']


class Rollout:
    """Runs policies in `envs` environments spread over `workers` processes.

    Args:
      make_env: makes an environment; sent to the children, so it must
        pickle (a partial of a module's function does).
      envs: environments in lockstep, the size of the policy's batch.
      workers: processes.
      timeout: seconds after which a silent child counts as hanging.
    """

    def __init__(self, make_env: Callable[[], Any], envs: int,
                 workers: int, timeout: float = 120.0):
        if envs < 1 or workers < 1:
            raise UserError(
                f'rollout: expected at least one environment and one process,'
                f' found {envs} and {workers}; give --eval_envs 1 '
                '--eval_workers 1')
        choose_renderer()  # once, not in every child
        self._envs = envs
        workers = min(workers, envs)
        self._workers = [
            _Worker(make_env, timeout, workers > 1) for _ in range(workers)]
        self._action_size: int | None = None

    @property
    def action_size(self) -> int:
        """A, asked from an environment."""
        if self._action_size is None:
            self._action_size = self._workers[0].action_size()
        return self._action_size

    @property
    def pids(self) -> list[int]:
        """Process numbers of the children."""
        return [worker.pid for worker in self._workers]

    def run(self, policy: Policy, episodes: int, seed: int,
            keep: Sequence[str] | bool = False,
            on_step: Callable[[int], None] | None = None) -> list[Finished]:
        """Run whole episodes; number j starts from a seed of (seed, j).

        `keep` names arrays to return (True: all). `policy` gets arrays
        [envs, ...] and None as its first state of a wave; rows of idle
        environments are zero. `on_step` hears how many environments have
        just moved. Raises UserError when the environment does or when the
        process of an episode is lost three times, RuntimeError when an
        environment cannot be brought back by its seed and actions.
        """
        done: list[Finished] = []
        while len(done) < episodes:
            numbers = range(len(done), min(len(done) + self._envs, episodes))
            wave = {number - len(done): EpisodeUnderWay(number, episode_seed(
                seed, number)) for number in numbers}
            try:
                self._wave(policy, wave, on_step)
            except BaseException:
                # Answers may be on their way; nobody must read them later.
                for worker in self._workers:
                    worker.end()
                raise
            done += [finished(run, keep) for run in wave.values()]
        return done

    def close(self) -> None:
        """End the children; again is harmless."""
        for worker in self._workers:
            worker.stop()

    def __enter__(self) -> Rollout:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wave(self, policy: Policy, wave: Mapping[int, EpisodeUnderWay],
              on_step: Callable[[int], None] | None) -> None:
        still = np.zeros(self.action_size, np.float32)
        found = self._exchange(
            wave, {slot: ('reset', run.seed) for slot, run in wave.items()})
        for slot, (row, background) in found.items():
            wave[slot].rows.append({**row, 'action': still})
            wave[slot].background = background
        state = None
        while active := [slot for slot, run in wave.items() if not run.ended]:
            action, state = policy(self._batch(wave, active), state)
            action = np.asarray(action, np.float32)
            found = self._exchange(
                wave, {slot: ('step', action[slot]) for slot in active})
            for slot, (row, _) in found.items():
                wave[slot].rows.append({**row, 'action': action[slot].copy()})
            if on_step is not None:
                on_step(len(active))

    def _batch(self, wave: Mapping[int, EpisodeUnderWay], active: list[int],
               ) -> dict[str, np.ndarray]:
        """Observations of all slots; zeros where nothing is going on."""
        batch = {}
        for key, value in wave[active[0]].rows[-1].items():
            if key == 'action':
                continue
            value = np.asarray(value)
            dtype = np.float32 if key == 'reward' else value.dtype
            batch[key] = np.zeros((self._envs, *value.shape), dtype)
            for slot in active:
                batch[key][slot] = wave[slot].rows[-1][key]
        return batch

    def _exchange(self, wave: Mapping[int, EpisodeUnderWay],
                  orders: Mapping[int, tuple[str, Any]]) -> dict[int, Any]:
        """One order per slot, to all workers at once; the answers."""
        shares = [{slot: order for slot, order in orders.items()
                   if slot % len(self._workers) == number}
                  for number in range(len(self._workers))]
        asked = [(worker, share) for worker, share
                 in zip(self._workers, shares, strict=True) if share]
        for worker, share in asked:
            worker.send(('do', share))
        found: dict[int, Any] = {}
        for worker, share in asked:
            answer = worker.receive()
            while answer is None:
                answer = self._again(
                    worker, {slot: wave[slot] for slot in share}, share)
            found.update(answer)
        return found

    def _again(self, worker: _Worker, lost: Mapping[int, EpisodeUnderWay],
               share: Mapping[int, tuple[str, Any]]) -> dict | None:
        """The answers that a worker owed, from a new process.

        None when the new one is lost too. The runs may have different
        numbers of rows (`LiveRollout`): each is brought back to its own.
        """
        for run in lost.values():
            if run.attempts >= ATTEMPTS:
                raise UserError(
                    f'rollout: expected episode {run.number} to end, lost its '
                    f'process {run.attempts} times ({worker.reason}); check '
                    'the renderer with: run.py doctor')
            run.attempts += 1
        print('warning: lost the process of episode '
              f'{", ".join(str(run.number) for run in lost.values())} '
              f'({worker.reason}); started again from its seed and actions',
              file=sys.stderr)
        worker.end()
        for row in range(max(len(run.rows) for run in lost.values())):
            there = {slot: run for slot, run in lost.items()
                     if row < len(run.rows)}
            worker.send(('do', {
                slot: run.order(row) for slot, run in there.items()}))
            answer = worker.receive()
            if answer is None:
                return None
            for slot, run in there.items():
                if answer[slot][0]['reward'] != run.rows[row]['reward']:
                    raise RuntimeError(
                        f'episode {run.number}: expected the rewards of its '
                        f'seed and actions again in a new process, found '
                        f'another at row {row}')
        worker.send(('do', share))
        return worker.receive()


def episode_seed(seed: int, number: int) -> int:
    """Seed of one episode of a rollout, 31 bits."""
    digest = hashlib.blake2b(f'{seed}/{number}'.encode(), digest_size=4)
    return int.from_bytes(digest.digest(), 'little') >> 1


class _Worker:
    """A child process with some environments, replaced when it fails."""

    def __init__(self, make_env: Callable[[], Any], timeout: float,
                 shared: bool = False):
        self._make_env, self._timeout = make_env, timeout
        self._shared = shared
        self._process: Any = None
        self.reason = ''
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: tuple[str, Any]) -> None:
        """To the child; whether it is there shows at `receive`."""
        if self._process is None:
            self._start()
        with contextlib.suppress(OSError):
            self._pipe.send(message)

    def receive(self) -> Any:
        """The answer; None, and a `reason`, when the child is lost.

        Raises UserError when the environment did.
        """
        deadline = time.monotonic() + self._timeout
        try:
            while not self._pipe.poll(PAUSE):
                if time.monotonic() > deadline:
                    self.reason = f'no answer within {self._timeout:g} s'
                    return None
            kind, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(PAUSE)
            self.reason = f'it ended with code {self._process.exitcode}'
            return None
        if kind == 'user error':
            raise UserError(answer)
        if kind == 'error':
            self.reason = answer
            return None
        return answer

    def action_size(self) -> int:
        """A of its environment. Raises UserError when the child is lost."""
        for _ in range(ATTEMPTS):
            self.send(('action_size', None))
            answer = self.receive()
            if answer is not None:
                return answer
            self.end()
        raise UserError(
            'rollout: expected the environment to start, lost its process '
            f'{ATTEMPTS} times ({self.reason}); check the renderer with: '
            'run.py doctor')

    def stop(self) -> None:
        """Let the child close its environments and end."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._pipe.send(('close', None))
            self._process.join(timeout=5)
            self.end()

    def end(self) -> None:
        """Kill the child. The next message starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None

    def _start(self) -> None:
        # Not fork: a copy of a process that rendered hangs in OpenGL.
        context = multiprocessing.get_context('spawn')
        self._pipe, child = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(child, self._make_env, self._shared),
            daemon=True)
        self._process.start()
        # The child's end must be open in the child alone, or its death
        # would not end the pipe.
        child.close()


def _serve(pipe: Any, make_env: Callable[[], Any], shared: bool) -> None:
    """Loop of a child, which lives as long as the parent's end is open."""
    if shared:
        # Mesa's software renderer draws a frame with a thread per core, which
        # costs a third more work; several processes have the cores anyway.
        os.environ.setdefault('LP_NUM_THREADS', '0')
    # Ctrl-C reaches the whole process group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    envs: dict[int, Any] = {}
    while True:
        try:
            verb, argument = pipe.recv()
        except (EOFError, OSError):
            break
        if verb == 'close':
            break
        try:
            answer = ('ok', _obey(envs, make_env, verb, argument))
        except UserError as error:
            answer = ('user error', str(error))
        except Exception as error:  # told to the parent, with its type
            answer = ('error', f'{type(error).__name__}: {error}')
        try:
            pipe.send(answer)
        except OSError:
            break
    for env in envs.values():
        env.close()


def _obey(envs: dict[int, Any], make_env: Callable[[], Any], verb: str,
          argument: Any) -> Any:
    """Carry out a message; environments are made when first asked for."""
    slots = [0] if verb == 'action_size' else list(argument)
    for slot in slots:
        if slot not in envs:
            envs[slot] = make_env()
    if verb == 'action_size':
        return envs[0].action_size
    return {slot: (getattr(envs[slot], name)(value),
                   getattr(envs[slot], 'background', None))
            for slot, (name, value) in argument.items()}


def finished(run: EpisodeUnderWay, keep: Sequence[str] | bool) -> Finished:
    """The episode with the arrays named in `keep` (True: all), [L, ...]."""
    rows = run.rows
    # Environments without pictures have none to keep.
    names = (list(rows[0]) if keep is True
             else [name for name in keep or () if name in rows[0]])
    arrays = {}
    for name in names:
        array = np.stack([np.asarray(row[name]) for row in rows])
        if name == 'reward':
            array = array.astype(np.float32)
        arrays[name] = array.astype(bool) if name in FLAGS else array
    total = float(np.sum([row['reward'] for row in rows], dtype=np.float64))
    return Finished(arrays, total, len(rows), run.background, run.attempts)
