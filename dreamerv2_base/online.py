"""Online data: when to collect, how, and the buffer that grows.

A decision is one action of one environment (`action_repeat` control steps).
Which decisions are made before update u is a function of u alone (`Plan`),
each decision's draws are functions of the seed and its number, and episodes
lie on disk as they end. So a checkpoint needs counters and the actions of the
episodes under way, and a run resumed anywhere collects what it would have.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamerv2_base.envs.live import LiveRollout
from dreamerv2_base.envs.rollout import Finished
from dreamerv2_base.episodes import (
    KEYS,
    Episode,
    read_episode,
    write_episode,
)
from dreamerv2_base.errors import UserError
from dreamerv2_base.noise import fold, generator

# observation [N, ...], state, decision -> actions [N, A], state
Explorer = Callable[[dict[str, np.ndarray], Any, int],
                    tuple[np.ndarray, Any]]


@dataclass(frozen=True)
class Plan:
    """How decisions and updates take turns.

    First `prefill` decisions and `pretrain` updates; then, again and again,
    `train_every` decisions and `train_steps` updates, until a further turn
    would make more than `steps` decisions.
    """

    steps: int
    prefill: int
    pretrain: int
    train_every: int
    train_steps: int

    def __post_init__(self):
        least = {'steps': self.prefill, 'prefill': 1, 'pretrain': 0,
                 'train_every': 1, 'train_steps': 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UserError(f'{name}: expected at least {value}, found '
                                f'{getattr(self, name)}; give --{name} '
                                f'{max(value, 1)}')

    @property
    def updates(self) -> int:
        """Updates of the whole run."""
        turns = (self.steps - self.prefill) // self.train_every
        return self.pretrain + turns * self.train_steps

    def decisions(self, update: int) -> int:
        """Decisions that come before an update (numbered from 0)."""
        if update < self.pretrain:
            return self.prefill
        turn = 1 + (update - self.pretrain) // self.train_steps
        return self.prefill + turn * self.train_every

    def within(self, decisions: float) -> int:
        """Updates that so many decisions bring, at least one."""
        return max(1, round(decisions / self.train_every * self.train_steps))

    def passes(self, update: int, every: int) -> int | None:
        """The largest multiple of `every` decisions that the turn reached
        which ends with this update; None where no turn ends, or none was
        reached in it."""
        now = self.decisions(update) // every
        last = self.decisions(update + 1) > self.decisions(update) or (
            update + 1 == self.updates)
        turn = self.train_every if update >= self.pretrain else self.prefill
        before = (self.decisions(update) - turn) // every
        return now * every if last and now > before else None


class EpisodeBuffer:
    """The episodes of a run, in the order in which they ended.

    A file each (`docs/design.md`, with `log_seed`, from which the episode was
    started); frames are mapped, so a long run needs little memory. Offers
    what `ChunkSampler` asks of a store.

    Args:
      folder: of the files.
      identity: text that tells the run's files from others'.
      action_size: A.
    """

    digest = None  # of data that are given; these are made
    skipped: tuple = ()

    def __init__(self, folder: Path, identity: str, action_size: int):
        self.folder, self._identity = Path(folder), identity
        self.action_size = action_size
        self._clear()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def rows(self) -> np.ndarray:
        """Rows of each episode, [E]."""
        return np.array(self._rows, int)

    def open(self, count: int) -> None:
        """Take the first `count` files of the folder and delete later ones.

        Raises UserError when one of them is missing or broken.
        """
        self._clear()
        self.folder.mkdir(parents=True, exist_ok=True)
        found = sorted(self.folder.glob('*.npz'))
        for number in range(count):
            if number >= len(found) or self._name(number) not in (
                    found[number].name):
                raise UserError(
                    f'{self.folder}: expected episode {number} of the run, '
                    'found it missing; restore the folder, or start again '
                    'with another --logdir')
            self._append(found[number].name, read_episode(found[number]))
        for path in found[count:]:
            path.unlink()

    def add(self, finished: Finished, seed: int) -> None:
        """Write an episode and make its chunks available."""
        episode = {key: finished.arrays[key] for key in KEYS}
        number = len(self)
        path = write_episode(
            self.folder, {**episode, 'log_seed': np.array(seed, np.int64)},
            number, self._name(number))
        self._append(path.name, episode)

    def gather(self, episodes: np.ndarray, starts: np.ndarray,
               length: int) -> Episode:
        """Chunks [B, length, ...] of episodes [B] from rows [B]."""
        chunks: dict[str, list[np.ndarray]] = {key: [] for key in KEYS}
        for number, start in zip(map(int, episodes), map(int, starts),
                                 strict=True):
            begin = self._offsets[number] + start
            chunks['image'].append(self._frames[begin:begin + length])
            for key in KEYS[1:]:
                chunks[key].append(
                    self._small[number][key][start:start + length])
        return {key: np.stack(rows) for key, rows in chunks.items()}

    def _clear(self) -> None:
        self.names: list[str] = []
        self.returns: list[float] = []
        self._rows: list[int] = []
        self._offsets = [0]
        self._small: list[Episode] = []
        self._file: Any = None
        self._frames = np.zeros((0,), np.uint8)

    def _append(self, name: str, episode: Episode) -> None:
        image = np.ascontiguousarray(episode['image'])
        if self._file is None:
            # Without a name: it is made anew by every process.
            self._file = tempfile.TemporaryFile(dir=self.folder)
        self._file.write(image.data)
        self._file.flush()
        self.names.append(name)
        self._rows.append(len(image))
        self._offsets.append(self._offsets[-1] + len(image))
        self.returns.append(float(
            episode['reward'].sum(dtype=np.float64)))
        self._small.append({key: episode[key] for key in KEYS[1:]})
        self._frames = np.memmap(self._file, np.uint8, 'r', shape=(
            self._offsets[-1], *image.shape[1:]))

    def _name(self, number: int) -> str:
        """32 hex digits that stand for an episode of this run."""
        return ''.join(f'{fold(0, self._identity, number, half):016x}'
                       for half in range(2))


class Collector:
    """Fills a buffer, decision by decision.

    Args:
      rollout: the environments.
      buffer: gets the episodes that end.
      explore: the policy that acts after the first `prefill` decisions;
        before, actions are uniform.
      seed: of the uniform actions.
    """

    def __init__(self, rollout: LiveRollout, buffer: EpisodeBuffer,
                 explore: Explorer, prefill: int, seed: int):
        self._rollout, self._buffer = rollout, buffer
        self._explore, self._prefill, self._seed = explore, prefill, seed
        self.decisions = 0
        self._memory: Any = None  # the policy's

    def reach(self, decisions: int,
              on_step: Callable[[int], None] = lambda count: None,
              ) -> list[Finished]:
        """Go on until so many decisions are made; episodes ended meanwhile.

        With several environments a few more may be made: they move together.
        """
        ended = []
        while self.decisions < decisions:
            moving = self._rollout.ready
            for seed, episode in self._rollout.step(self._actions()):
                self._buffer.add(episode, seed)
                ended.append(episode)
            self.decisions += moving
            on_step(moving)
        return ended

    def state(self) -> dict[str, np.ndarray]:
        """Counters, the policy's memory and the episodes under way."""
        arrays = {'decisions': np.array(self.decisions),
                  'episodes': np.array(len(self._buffer))}
        arrays.update({f'rollout/{key}': value for key, value
                       in self._rollout.state().items()})
        arrays.update({f'memory/{key}': _plain(value) for key, value
                       in (self._memory or {}).items()})
        return arrays

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from `state()`; later episodes are deleted."""
        def below(prefix: str) -> dict[str, np.ndarray]:
            return {key[len(prefix):]: value for key, value in arrays.items()
                    if key.startswith(prefix)}

        self._buffer.open(int(arrays['episodes']))
        self.decisions = int(arrays['decisions'])
        self._memory = below('memory/') or None
        self._rollout.load(below('rollout/'))

    def start(self) -> None:
        """Begin with an empty buffer."""
        self._buffer.open(0)

    def close(self) -> None:
        """End the environments; `state()` stays what it is."""
        self._rollout.close()

    def _actions(self) -> np.ndarray:
        seen = self._rollout.observation()
        count = self._rollout.envs
        if seen is None or self.decisions < self._prefill:
            rng = generator(self._seed, 'prefill', self.decisions)
            return rng.uniform(-1, 1, (
                count, self._buffer.action_size)).astype(np.float32)
        action, self._memory = self._explore(
            seen, self._memory, self.decisions)
        return action


def _plain(value: Any) -> np.ndarray:
    """An array of a type that files hold (bfloat16 is none)."""
    array = np.asarray(value)
    return array if array.dtype.kind in 'biuf' else array.astype(np.float32)
