"""Small sets with rendered frames, for the tests of the data tools."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from datasets import registry
from datasets.table3 import Statistics
from semopo_tf.environments import EnvSpec, make_env
from tests.helpers import make_episode

ROWS = 501
FRAMES = 24  # rendered; they come again and again over the rows
COUNT = 4

SCENES = {
    'grayscale': EnvSpec('dmcdrv_walker_walk', video_dir='procedural',
                         video_frames=60),
    'colour': EnvSpec('dmcdrv_walker_walk', video_dir='procedural',
                      video_frames=60, grayscale=False),
    'grey_floor': EnvSpec('dmcdrv_walker_walk', video_dir='procedural',
                          video_frames=60, scene='grey_floor'),
    'plain': EnvSpec('dmc_walker_walk'),
    '84px': EnvSpec('dmcdrv_walker_walk', (84, 84), video_dir='procedural',
                    video_frames=60),
}


def render(name: str, seed: int = 0) -> np.ndarray:
    """Frames [FRAMES, H, W, 3] of random actions in a scene."""
    env = make_env(SCENES[name])
    rng = np.random.default_rng(seed)
    frames = [env.reset(seed)['image']]
    frames += [env.step(rng.uniform(-1, 1, env.action_size))['image']
               for _ in range(FRAMES - 1)]
    env.close()
    return np.stack(frames)


def tiny_set(level: str = 'random', **changes) -> registry.DataSet:
    """walker_walk's set of a level as if it had COUNT episodes."""
    return dataclasses.replace(
        registry.find(f'walker_walk_{level}'),
        **{'episodes': (COUNT,), 'statistics': Statistics(), **changes})


def write_set(folder: Path, frames: np.ndarray, count: int = COUNT,
              edit: Callable[[int, dict], dict] = lambda number, one: one,
              ) -> Path:
    """`count` episodes of 501 rows; `edit(number, episode)` changes them.

    Returns rise and fall: 10, 40, 20, 50, ...
    """
    folder.mkdir(parents=True)
    places = np.arange(ROWS) % len(frames)
    for number in range(count):
        episode = make_episode(number, ROWS, size=1)
        total = 10 * (1 + number // 2 + 3 * (number % 2))
        episode['reward'] *= total / episode['reward'].sum(dtype=np.float64)
        episode['image'] = np.roll(frames, number, 0)[places]
        # Not compressed: as good for the tests, and ten times faster.
        np.savez(folder / f'20000101T0000{number:02d}-{number:032x}-500.npz',
                 **edit(number, episode))
    return folder
