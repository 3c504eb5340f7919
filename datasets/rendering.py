"""The files of a set, from the episodes that were chosen for it.

A rendered episode is what the environment would have shown while it was
collected: the same simulator states, and the background that its seed starts
at, one frame on per row. Episodes that were kept as frames are copied. Never
imports TensorFlow: children are started here.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets import manifest, state_episodes
from dreamerv2_base.envs.dmc import DMC, default_camera
from dreamerv2_base.envs.rollout import Rollout, episode_seed
from dreamerv2_base.episodes import KEYS, write_episode
from dreamerv2_base.errors import UserError
from dreamerv2_base.logger import Progress
from semopo_tf.backgrounds import first_difference, video_order
from semopo_tf.environments import (
    Distracted,
    EnvSpec,
    background_of,
    is_car_racing,
)

# Settings that frames depend on with and without a background.
EVERYWHERE = ('task', 'size', 'action_repeat', 'time_limit')
# … and with keys of configs.yaml, those that data and evaluation share.
COMPARED = {'camera': 'dmc_camera', 'scene': 'scene', 'shadows': 'shadows',
            'action_repeat': 'action_repeat', 'video_alpha': 'video_alpha'}
KEPT = ('action', 'reward', 'is_first', 'is_last', 'is_terminal', 'state')


class Stage(DMC):
    """A task whose rows are given: actions are not looked at."""

    rows = np.zeros((0, 0))  # simulator states [L, P] of the next episode
    _row = 0

    def reset(self, seed: int) -> dict[str, Any]:
        """Show row 0; the seed sets what is not simulated (goals)."""
        self._random.seed(seed % 2 ** 32)
        self._env.reset()
        self._row = 0
        return self._shown()

    def step(self, action: np.ndarray) -> dict[str, Any]:
        """Show the next row."""
        self._row += 1
        return self._shown()

    def _shown(self) -> dict[str, Any]:
        self.set_state(self.rows[self._row])
        return {'image': self.render(), 'reward': 0.0,
                'is_first': self._row == 0,
                'is_last': self._row == len(self.rows) - 1,
                'is_terminal': False}


class Replayed:
    """State episodes as an environment of frames.

    Args:
      spec: of the frames; its `task` is a plain one, as 'walker_walk'.
      files: the episode to show, by the seed given to `reset`.
    """

    def __init__(self, spec: EnvSpec, files: Mapping[int, Path]):
        self._files = files
        self._stage = Stage(
            spec.task, spec.size, spec.action_repeat, spec.camera, spec.scene,
            spec.shadows)
        video = background_of(spec)
        self._env = (self._stage if video is None
                     else Distracted(self._stage, video))
        self.action_size = self._stage.action_size

    def reset(self, seed: int) -> dict[str, Any]:
        episode = state_episodes.read(self._files[seed])
        self._stage.rows = episode['physics']
        # Its own seed, so that the video does not depend on the order here.
        return self._env.reset(int(episode['seed']))

    def step(self, action: np.ndarray) -> dict[str, Any]:
        return self._env.step(action)

    def close(self) -> None:
        self._env.close()


def render(spec: EnvSpec, files: Sequence[Path], folder: Path,
           identity: str, workers: int) -> list[Path]:
    """Render episodes into `folder`, those that are not there yet.

    Args:
      spec: of the frames, see `Replayed`.
      files: state episodes, in the order that the set shall have.
      identity: text for everything else that the set depends on.
      workers: processes.

    Returns the set's files. Raises UserError when the folder has others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [_name(spec, identity, path) for path in files]
    done = _done(folder, names)
    missing = [number for number in range(len(names)) if number not in done]
    waves = [missing[i:i + workers] for i in range(0, len(missing), workers)]
    sources = {episode_seed(wave, place): files[number]
               for wave, numbers in enumerate(waves)
               for place, number in enumerate(numbers)}
    assert len(sources) == len(missing)  # two alike would show one episode
    bar = Progress(len(names), len(done), 'episodes rendered')
    if missing:
        factory = functools.partial(Replayed, spec, sources)
        with Rollout(factory, workers, workers) as rollout:
            still = np.zeros((workers, rollout.action_size), np.float32)
            for wave, numbers in enumerate(waves):
                shown = rollout.run(lambda seen, state: (still, None),
                                    len(numbers), seed=wave, keep=('image',))
                for number, episode in zip(numbers, shown, strict=True):
                    _write(files[number], episode.arrays['image'], folder,
                           number, names[number])
                bar.update(len(numbers))
                bar.show({})
    bar.close()
    return sorted(folder.glob('*.npz'))


def copy(spec: EnvSpec, files: Sequence[Path], folder: Path, identity: str,
         workers: int) -> list[Path]:
    """The same of episodes that were kept as frames, for `render`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [_name(spec, identity, path) for path in files]
    done = _done(folder, names)
    for number, path in enumerate(files):
        if number not in done:
            write_episode(folder, state_episodes.load(path, KEYS), number,
                          names[number])
    return sorted(folder.glob('*.npz'))


def settings(spec: EnvSpec) -> dict[str, Any]:
    """What the frames depend on, as JSON holds it."""
    return {key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(spec).items()
            if key != 'state_key' and (
                key in EVERYWHERE or not is_car_racing(spec.task))}


def videos(folder: Path, video_dir: str, seed: int, count: int,
           ) -> dict[str, Any]:
    """`videos` of the recipe of a set in `folder` (`video_order`).

    Args:
      video_dir, seed: what decides them; drawn backgrounds have none.
      count: episodes of the set. A complete one, which shows none of the
        present videos, keeps what its manifest says.

    Raises UserError where the rest would show other videos.
    """
    known = manifest.load(folder)
    there = ((known or {}).get('recipe') or {}).get('videos', [])
    if known is not None and len(list(folder.glob('*.npz'))) >= count:
        here = there
    else:
        here = video_order(video_dir, seed)
    change = first_difference(there, here) if there else ''
    if change:
        raise UserError(
            f'{folder}: expected the videos of the episodes that are there, '
            f'found others in {video_dir}: {change}; restore them or give '
            'another folder for the set')
    return {'videos': here} if here else {}


def differences(frames: Mapping[str, Any], spec: EnvSpec) -> list[str]:
    """What an environment shows otherwise than a set's frames.

    Args:
      frames: of the manifest's recipe (`settings`).
      spec: of the run that is trained on them.

    Returns one note per key of configs.yaml; which videos is not compared.
    """
    here, there = settings(spec), dict(frames)
    for known in (here, there):
        if known.get('camera') == -1:
            known['camera'] = default_camera(spec.task)
    return [
        f'{key}: the data were rendered with {there[name]}, this run is '
        f'evaluated with {here[name]}; give --{key} {there[name]}'
        for name, key in COMPARED.items()
        if name in there and name in here and there[name] != here[name]]


def _write(source: Path, image: np.ndarray, folder: Path, number: int,
           name: str) -> None:
    episode = state_episodes.read(source)
    write_episode(folder, {
        **{key: episode[key] for key in KEPT}, 'image': image}, number, name)


def _name(spec: EnvSpec, identity: str, path: Path) -> str:
    """32 hex digits that name a rendered episode."""
    text = f'{identity}/{path.name}/{sorted(settings(spec).items())}'
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _done(folder: Path, names: Sequence[str]) -> set[int]:
    """Numbers of the episodes that are there."""
    numbers = {name: number for number, name in enumerate(names)}
    done = set()
    for path in sorted(folder.glob('*.npz')):
        parts = path.stem.split('-')
        number = numbers.get(parts[1] if len(parts) == 3 else '')
        if number is None:
            raise UserError(
                f'{folder}: expected an empty folder or episodes of this same '
                f'build, found {path.name}; give another --out or empty it')
        done.add(number)
    return done
