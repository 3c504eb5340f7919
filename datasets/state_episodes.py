"""Episodes as simulator states: collected fast, rendered later if at all.

An episode is a dict of equally long arrays [L, ...] whose row t holds what was
seen at t and the action and reward that led to it (docs/design.md), with
`physics` (float64, what the simulator needs to stand there again) and `state`
(float32, the task's own observation) in place of `image`, and `seed`, int64
[], with which the episode was started. Never imports TensorFlow.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dreamerv2_base.config import Config
from dreamerv2_base.envs.dmc import DMC, Observation
from dreamerv2_base.episodes import write_episode
from dreamerv2_base.errors import UserError
from dreamerv2_base.files import whole

Arrays = dict[str, np.ndarray]
# Observations by name [N, ...] -> actions [N, A] in [-1, 1].
Actor = Callable[[Arrays], np.ndarray]


class StateTask(DMC):
    """A DM Control task whose rows hold states instead of frames."""

    def _observation(self, reward: float, first: bool = False) -> Observation:
        over = self._last.last()
        return {
            'physics': self.get_state().copy(), 'state': self.state(),
            'reward': np.float32(reward), 'is_first': np.bool_(first),
            'is_last': np.bool_(over or self._over()),
            'is_terminal': np.bool_(over and self._last.discount == 0)}


def make_tasks(config: Config, task: str, count: int) -> list[StateTask]:
    """`count` environments of `task` as the configuration says."""
    return [StateTask(task, action_repeat=config.action_repeat,
                      time_limit=config.time_limit) for _ in range(count)]


def run(tasks: Sequence[StateTask], actor: Actor,
        seeds: Sequence[int]) -> list[Arrays]:
    """Run an episode in each environment, in lockstep.

    The actor gets the newest row of every environment, of those that have
    ended too; what it answers for them is dropped.
    """
    still = np.zeros(tasks[0].action_size, np.float32)
    rows = [[{**task.reset(seed), 'action': still}]
            for task, seed in zip(tasks, seeds, strict=True)]
    while not all(found[-1]['is_last'] for found in rows):
        newest = [found[-1] for found in rows]
        actions = np.asarray(actor({
            key: np.stack([row[key] for row in newest])
            for key in newest[0]}), np.float32)
        for task, found, action in zip(tasks, rows, actions, strict=True):
            if not found[-1]['is_last']:
                found.append({**task.step(action), 'action': action})
    return [{**{key: np.stack([row[key] for row in found])
                for key in found[0]}, 'seed': np.array(seed, np.int64)}
            for found, seed in zip(rows, seeds, strict=True)]


class EpisodeFolder:
    """A folder of episodes, numbered in the order of collection.

    `identity`: text that tells them from those of other folders.
    """

    def __init__(self, path: Path, identity: str):
        self.path, self._identity = Path(path), identity
        self.path.mkdir(parents=True, exist_ok=True)

    def write(self, number: int, episode: Arrays) -> Path:
        """Whole or not at all; the same content gives the same bytes."""
        return write_episode(self.path, episode, number, self.name(number))

    def name(self, number: int) -> str:
        """32 hex digits that stand for an episode of this folder."""
        text = f'{self._identity}/{number}'.encode()
        return hashlib.sha256(text).hexdigest()[:32]

    def files(self, count: int | None = None) -> list[Path]:
        """The first `count` files (or all), in order.

        Raises UserError for a folder with gaps, or files of others.
        """
        found = sorted(self.path.glob('*.npz'))[:count]
        for number, path in enumerate(found):
            if self.name(number) not in path.name:
                raise UserError(
                    f'{path}: expected episode {number} of this buffer, found '
                    'a file of another; remove the folder, it is made anew')
        return found


def load(path: Path, keys: Sequence[str] | None = None) -> Arrays:
    """Arrays of a stored episode, all of them or those named.

    Raises UserError for a broken file or one without them.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in keys or file.files}
    except (OSError, ValueError, EOFError, KeyError,
            zipfile.BadZipFile) as error:
        raise UserError(
            f'{path}: expected an episode of this buffer, found a broken '
            f'file ({error}); remove its folder, it is made anew') from None


def read(path: Path) -> Arrays:
    """A state episode. Raises UserError for a file that is none."""
    found = load(path)
    missing = {'physics', 'state', 'action', 'reward', 'seed'} - set(found)
    if missing:
        raise UserError(
            f'{path}: expected simulator states, found no '
            f'{", ".join(sorted(missing))}; give another --buffer')
    return found


def total(episode: Arrays) -> float:
    """The return: the sum of rewards, in float64."""
    return float(episode['reward'].sum(dtype=np.float64))


def total_of(path: Path) -> float:
    """The return of a stored episode; reads nothing else of it."""
    return total(load(path, ('reward',)))


def write_transitions(files: Sequence[Path], path: Path) -> None:
    """State episodes as one D4RL-style hdf5 file, which MOPO reads.

    Rows of transitions, episodes end to end: `observations`, `actions`,
    `rewards`, `next_observations`, `terminals`, `timeouts`.
    """
    import h5py
    parts: dict[str, list[np.ndarray]] = {}
    for episode in map(read, files):
        ends = np.zeros(len(episode['reward']) - 1, bool)
        ends[-1] = not episode['is_terminal'][-1]
        for key, rows in {
                'observations': episode['state'][:-1],
                'actions': episode['action'][1:],
                'rewards': episode['reward'][1:],
                'next_observations': episode['state'][1:],
                'terminals': episode['is_terminal'][1:],
                'timeouts': ends}.items():
            parts.setdefault(key, []).append(rows)
    with whole(path) as partial, h5py.File(partial, 'w') as file:
        for key, values in parts.items():
            file.create_dataset(key, data=np.concatenate(values),
                                compression='gzip')
