"""Whether this machine draws a set's frames as the one that made it did.

Versions of MuJoCo, renderers and drivers draw one simulator state
differently, and a policy that learned from other pixels may fail. So a set
that is built keeps the states of a few of its rows, and `run.py doctor
--offline_dir SET` draws them again. Never imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets import state_episodes
from dreamerv2_base.envs.dmc import DMC
from dreamerv2_base.episodes import read_episode
from semopo_tf.backgrounds import is_background

COUNT = 4
# Levels of 255. A pixel may differ by one from run to run; shadows on or off
# make 2 to 8 in the paper's tasks (measured), below 1 in cartpole_swingup.
SAME = 1.0


def record(chosen: Sequence[Path], files: Sequence[Path],
           ) -> list[dict[str, Any]]:
    """Probes of a set: rows whose simulator state is known.

    Args:
      chosen: state episodes. files: the same, rendered.

    Returns for each of up to four, evenly spread over episodes and over
    their rows: `file`, `row`, `physics` [P] and the episode's `seed`.
    """
    numbers = np.unique(np.linspace(0, len(files) - 1, COUNT).astype(int))
    probes = []
    for place, number in enumerate(numbers):
        episode = state_episodes.read(chosen[number])
        row = len(episode['physics']) * (place + 1) // (len(numbers) + 1)
        probes.append({'file': files[number].name, 'row': row,
                       'seed': int(episode['seed']),
                       'physics': episode['physics'][row].tolist()})
    return probes


def differences(folder: Path, recipe: Mapping[str, Any]) -> list[float]:
    """How far frames drawn here are from the set's, one number per probe.

    Args:
      folder: the set's. recipe: of its manifest.

    Returns mean absolute differences in levels of 255, of all pixels that
    show no video; nothing for a set without probes. Raises UserError for a
    file that is missing or broken, or when there is no OpenGL.
    """
    found = recipe.get('probes', [])
    if not found:
        return []
    frames = recipe['frames']
    env = DMC(frames['task'], tuple(frames['size']), frames['action_repeat'],
              frames['camera'], frames['scene'], frames['shadows'])
    videos = frames['video_dir'] != 'none'
    try:
        return [_difference(env, folder, probe, videos) for probe in found]
    finally:
        env.close()


def _difference(env: DMC, folder: Path, probe: Mapping[str, Any],
                videos: bool) -> float:
    there = read_episode(folder / probe['file'])
    env.reset(probe['seed'])  # what is not simulated (goals)
    env.set_state(np.array(probe['physics']))
    drawn = env.render()
    seen = ~is_background(drawn) if videos else np.ones(drawn.shape[:2], bool)
    apart = np.abs(there['image'][probe['row']].astype(int) - drawn)
    return float(apart[seen].mean()) if seen.any() else 0.0
