"""From a task name to an environment with its background. Spec section 10.

Never imports TensorFlow: environments live in child processes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamerv2_base.envs.dmc import DMC
from dreamerv2_base.errors import UserError
from semopo_tf.backgrounds import composite, faded, load_background

if TYPE_CHECKING:  # children load this module, and no more than they use
    from dreamerv2_base.config import Config

# Keys of the videos and of DM Control's scene, which not all tasks show.
VIDEO_KEYS = ('video_dir', 'video_frames', 'video_alpha',
              'background_grayscale')
SCENE_KEYS = ('scene', 'shadows', 'dmc_camera')


@dataclass(frozen=True)
class EnvSpec:
    """What makes an environment; travels to child processes.

    Attributes are the configuration keys of the same names, but for:

      size: `render_size`, (height, width).
      camera: `dmc_camera`.
      grayscale: `background_grayscale`.
      background_seed: `seed`; decides the order of the video files.
      state_key: DM Control's observations hold the simulator's `state`, too.
    """

    task: str
    size: tuple[int, int] = (64, 64)
    action_repeat: int = 2
    camera: int = -1
    time_limit: int = 0
    video_dir: str = 'none'
    video_frames: int = 1000
    video_alpha: float = 1.0
    grayscale: bool = True
    scene: str = 'stock'
    shadows: bool = True
    background_seed: int = 0
    state_key: bool = False


def env_spec_from(config: Config) -> EnvSpec:
    """The environment of a configuration."""
    return EnvSpec(
        task=config.task, size=tuple(config.render_size),
        action_repeat=config.action_repeat, camera=config.dmc_camera,
        time_limit=config.time_limit, video_dir=config.video_dir,
        video_frames=config.video_frames, video_alpha=config.video_alpha,
        grayscale=config.background_grayscale, scene=config.scene,
        shadows=config.shadows, background_seed=config.seed)


def make_env(spec: EnvSpec) -> Any:
    """`dmc_TASK` as it is, `dmcdrv_TASK` with videos behind, `car_racing`,
    `state_…` for MOPO.

    Raises UserError for another name, and when videos or OpenGL are missing.
    """
    if spec.task.startswith('state_'):
        from semopo_tf.baselines.mopo_data import make_state_env
        return make_state_env(spec)
    if is_car_racing(spec.task):
        from dreamerv2_base.envs.car_racing import CarRacing
        return CarRacing(spec.size, spec.action_repeat, spec.time_limit)
    check_name(spec.task)
    suite, _, task = spec.task.partition('_')
    env = DMC(task, spec.size, spec.action_repeat, spec.camera, spec.scene,
              spec.shadows, spec.time_limit, spec.state_key)
    if suite == 'dmc':
        return env
    frames = background_of(spec)
    return env if frames is None else Distracted(env, frames)


def unused_keys(task: str) -> tuple[str, ...]:
    """Configuration keys that `make_env` does not read for a task.

    Nothing is known of an environment of a user's own.
    """
    if task.startswith('state_'):
        return (*VIDEO_KEYS, *SCENE_KEYS, 'render_size')
    if is_car_racing(task):
        return (*VIDEO_KEYS, *SCENE_KEYS)
    return VIDEO_KEYS if task.startswith('dmc_') else ()


def check_name(task: str) -> None:
    """Raises UserError for a name that is no environment's."""
    if not is_dm_control(task) and not is_car_racing(task):
        raise UserError(
            'task: expected dmc_TASK, dmcdrv_TASK or car_racing, found '
            f'{task!r}; give --task dmcdrv_walker_walk (docs/own_data.md: '
            'data of another environment)')


def background_of(spec: EnvSpec) -> np.ndarray | None:
    """The frames behind the robot, uint8 [N, h, w, 1 or 3], or None."""
    frames = load_background(
        spec.video_dir, spec.size, spec.grayscale, spec.background_seed,
        spec.video_frames)
    return None if frames is None else faded(frames, spec.video_alpha)


def describe_env(task: str) -> dict[str, str | None]:
    """What simulates a task, with its version, for the records of data."""
    if is_car_racing(task):
        from dreamerv2_base.envs import car_racing
        return {'id': car_racing.ID, **_versions(car_racing.PACKAGES)}
    if is_dm_control(task):
        return {'id': f'dm_control {task.partition("_")[2]}',
                **_versions(('dm-control', 'mujoco'))}
    return {'id': task}  # of a user's own


def is_dm_control(task: str) -> bool:
    """Whether a task is one of DM Control, seen in whichever way."""
    return re.match('(dmc|dmcdrv|state)_.', task) is not None


def is_car_racing(task: str) -> bool:
    """Whether a task is Gym's Car Racing."""
    return task.removeprefix('gym_') in ('car_racing', 'carracing')


def _versions(packages: Sequence[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = dict.fromkeys(packages)
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


class Distracted:
    """An environment with a video in place of its background pixels.

    A uniformly random first frame is drawn at each reset; every action moves
    the video on by one frame, cyclically.
    """

    def __init__(self, env: DMC, frames: np.ndarray):
        self.env, self._frames = env, frames
        self.action_size = env.action_size
        self.background: int | None = None
        self._index = 0

    def reset(self, seed: int) -> dict[str, Any]:
        rng = np.random.default_rng([seed, 1])
        self._index = self.background = int(rng.integers(len(self._frames)))
        return self._behind(self.env.reset(seed))

    def step(self, action: np.ndarray) -> dict[str, Any]:
        self._index = (self._index + 1) % len(self._frames)
        return self._behind(self.env.step(action))

    def close(self) -> None:
        self.env.close()

    def _behind(self, observation: dict[str, Any]) -> dict[str, Any]:
        image = composite(observation['image'], self._frames[self._index])
        return {**observation, 'image': image}
