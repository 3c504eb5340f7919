"""Evaluating a policy in the environment of its configuration."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamerv2_base.config import Config
from dreamerv2_base.envs.rollout import Finished, Rollout
from dreamerv2_base.errors import UserError
from dreamerv2_base.noise import fold
from semopo_tf import registry
from semopo_tf.environments import EnvSpec, env_spec_from, make_env
from semopo_tf.method import Method


@dataclass(frozen=True)
class Evaluation:
    """What was found of each episode, and a film of the first one.

    Of an episode: 'return', 'length' (rows, one more than decisions) and
    'background', the first frame of its video, if it has one.
    """

    episodes: list[dict[str, Any]]
    frames: np.ndarray | None


def evaluation_spec(config) -> EnvSpec:
    """The environment in which a configuration's policies are evaluated.

    A method that collects its data is shown other videos than it was trained
    on: its evaluation has a video buffer of its own (baselines
    6.4), the files of `video_dir` in another order. A folder with fewer
    frames than `video_frames` has no others to show, and there is but one
    drawn drive (`procedural`), so that only where it starts is new.
    """
    spec = env_spec_from(config)
    if registry.method_name(config) not in registry.ONLINE:
        return spec
    return dataclasses.replace(
        spec, background_seed=fold(config.seed, 'evaluate', 'background'))


class Evaluator:
    """Runs policies in child processes, one batched policy call per step.

    Started at the first use; `close()` (or a with-block) ends the processes.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._rollout: Rollout | None = None

    def run(self, method: Method, episodes: int, key: int,
            ) -> Evaluation:
        """Evaluate `episodes` episodes.

        The result depends on the weights, on `key` and on `eval_envs` (a
        wave's draws go by its rows), not on the number of processes.
        """
        found = self.play(method, episodes, key, keep=('image',))
        rows = [{'return': float(e.total), 'length': int(e.length),
                 'background': e.background} for e in found]
        frames = found[0].arrays.get('image') if found else None
        return Evaluation(rows, frames)

    def play(self, method: Method, episodes: int, key: int,
             keep: Sequence[str] | bool) -> list[Finished]:
        """The same, as episodes with the arrays named (True: all).

        Number j starts from `episode_seed(key % 2^31, j)`.
        """
        return self._open().run(
            _Keyed(method, key), episodes, seed=key % 2 ** 31, keep=keep)

    def check(self, action_size: int) -> None:
        """Make the environment, before hours of training rely on it.

        Raises UserError where evaluating would (no videos, no OpenGL, no
        such task), and when its actions are not of `action_size` numbers, as
        those of the data are.
        """
        found = self._open().action_size
        if found != action_size:
            folders = self._config.offline_dir
            like = ('the checkpoint' if folders == ['none']
                    else ' '.join(folders))
            raise UserError(
                f'task: expected actions of {action_size} numbers, as in '
                f'{like}, found {found} in {self._config.task}; give the '
                '--task of the data')

    def _open(self) -> Rollout:
        if self._rollout is None:
            factory = functools.partial(
                make_env, evaluation_spec(self._config))
            self._rollout = Rollout(
                factory, self._config.eval_envs, self._config.eval_workers)
        return self._rollout

    def close(self) -> None:
        if self._rollout is not None:
            self._rollout.close()
            self._rollout = None

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Keyed:
    """A policy whose draws differ between the waves of one evaluation."""

    def __init__(self, method: Method, key: int):
        self._method, self._key, self._waves = method, key, 0

    def __call__(self, observation: Mapping[str, np.ndarray], state: Any,
                 ) -> tuple[np.ndarray, Any]:
        if state is None:
            self._waves += 1
        # Far enough apart that no two waves share a draw.
        key = (self._key + self._waves * 2 ** 32) % 2 ** 63
        return self._method.policy(observation, state, key)
