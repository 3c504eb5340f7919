"""Behaviour policies without learning: those of `semopo_tf.controllers`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets import state_episodes
from datasets.recipes import Recipe
from datasets.state_episodes import EpisodeFolder
from dreamerv2_base.config import Config
from dreamerv2_base.envs.rollout import episode_seed
from semopo_tf import controllers


class Scripted:
    """A scripted policy (`datasets.behaviour.Behaviour`)."""

    outcome: dict[str, Any] | None = None

    def __init__(self, recipe: Recipe, config: Config, folder: Path,
                 identity: str):
        self._recipe, self._config = recipe, config
        self._episodes = EpisodeFolder(folder / 'episodes', identity)

    def train(self) -> None:
        """There is nothing to learn."""

    def episodes(self, count: int) -> list[Path]:
        """As many as wanted; those that are missing are made."""
        tasks = state_episodes.make_tasks(self._config, self._recipe.task, 1)
        seed = self._config.seed
        for number in range(len(self._episodes.files()), count):
            policy = controllers.POLICIES[self._recipe.policy](
                np.random.default_rng([seed, number]), tasks[0].action_size)
            episode, = state_episodes.run(
                tasks, _remembering(policy), [episode_seed(seed, number)])
            self._episodes.write(number, episode)
        return self._episodes.files(count)

    def frozen(self, count: int, band: Sequence[float]) -> list[Path]:
        """It is always the same policy."""
        return self.episodes(count)


def _remembering(policy: Any) -> state_episodes.Actor:
    """A policy of `controllers`, its memory kept from call to call."""
    memory = None

    def act(rows: state_episodes.Arrays) -> np.ndarray:
        nonlocal memory
        action, memory = policy(rows, memory)
        return action

    return act
