"""Fresh episodes with the simulator's own truth: segmentation, state, video.

Importing this imports no TensorFlow: environments live in child processes.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamerv2_base.envs.rollout import Rollout
from semopo_tf.controllers import POLICIES
from semopo_tf.environments import (
    EnvSpec,
    background_of,
    env_spec_from,
    make_env,
)

if TYPE_CHECKING:  # children load this module, and no more than they use
    from dreamerv2_base.config import Config

Arrays = dict[str, np.ndarray]

EPISODES = 12


@dataclass(frozen=True)
class FreshEpisode:
    """Rows t = 0 … L − 1 of an episode that no model was trained on.

    Attributes:
      arrays: of the episode format (image, action, reward, flags).
      robot: bool [L, h, w], the pixels of moving bodies.
      state: float32 [L, D], the task's own observation.
      physics: float64 [L, P], what the simulator needs to stand there again.
      background: uint8 [L, h, w, C], the video frame behind each frame; None
        without a video.
    """

    arrays: Arrays
    robot: np.ndarray
    state: np.ndarray
    physics: np.ndarray
    background: np.ndarray | None

    def __len__(self) -> int:
        return len(self.state)


class Revealed:
    """An environment whose observations show the simulator's truth too.

    Adds `robot` bool [h, w] and `physics` float64 [P] to the observations of
    `make_env(spec)`.
    """

    def __init__(self, env: Any):
        self._env = env
        self._simulator = getattr(env, 'env', env)
        self.action_size = env.action_size

    @property
    def background(self) -> int | None:
        return getattr(self._env, 'background', None)

    def reset(self, seed: int) -> dict[str, Any]:
        return self._with_truth(self._env.reset(seed))

    def step(self, action: np.ndarray) -> dict[str, Any]:
        return self._with_truth(self._env.step(action))

    def close(self) -> None:
        self._env.close()

    def _with_truth(self, observation: dict[str, Any]) -> dict[str, Any]:
        return {**observation, 'robot': self._simulator.segmentation(),
                'physics': self._simulator.get_state().copy()}


def make_revealed(spec: EnvSpec) -> Revealed:
    """The environment of a child process."""
    return Revealed(make_env(spec))


def collect_fresh(config: Config, seed: int, episodes: int = EPISODES,
                  ) -> list[FreshEpisode]:
    """Episodes of the run's environment, driven by a scripted policy.

    The same for all methods of a task: sums of sinusoids, or for cartpole the
    disturbed swing-up, without which the pole would only hang. Results do not
    depend on `eval_workers`. The task must be one of DM Control.
    """
    # Here, because children import this module, and noise is TensorFlow's.
    from dreamerv2_base.noise import fold, generator
    spec = dataclasses.replace(env_spec_from(config), state_key=True)
    swings = config.task.endswith('cartpole_swingup')
    policy = POLICIES['cartpole_mixed' if swings else 'sinusoids']
    factory = functools.partial(make_revealed, spec)
    with Rollout(factory, episodes, config.eval_workers) as rollout:
        acts = policy(generator(seed, 'measure', 'fresh'),
                      rollout.action_size)
        found = rollout.run(acts, episodes, fold(seed, 'measure', 'fresh'),
                            keep=True)
    video = None
    if config.task.startswith('dmcdrv_'):
        video = background_of(spec)
    return [_fresh(episode, video) for episode in found]


def _fresh(episode, video: np.ndarray | None) -> FreshEpisode:
    arrays = dict(episode.arrays)
    robot, state, physics = (
        arrays.pop(key) for key in ('robot', 'state', 'physics'))
    behind = None
    if video is not None:
        # Every action moves the video on by one frame, cyclically.
        rows = (episode.background + np.arange(episode.length)) % len(video)
        behind = np.asarray(video[rows])
    return FreshEpisode(arrays, robot, state, physics, behind)
