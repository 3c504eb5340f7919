"""Soft actor-critic on simulator states as a behaviour policy, in rounds.

A round collects some episodes with one policy and then makes some updates
from all episodes so far; everything in it is a pure function of the seed and
the round's number. After each round a checkpoint is written, so a build that
was killed goes on with the round it was in, and ends in the same files.

Training stops at the policy whose episodes lie around the middle of the band
of the medium level (baselines 6.6); that policy is frozen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets import state_episodes
from datasets.behaviour import TRIES, lies, within
from datasets.recipes import Recipe
from datasets.state_episodes import Actor, Arrays, EpisodeFolder
from dreamerv2_base.checkpoint import Checkpoints, restore
from dreamerv2_base.config import Config
from dreamerv2_base.envs.rollout import episode_seed
from dreamerv2_base.errors import UserError
from dreamerv2_base.files import write_json
from dreamerv2_base.logger import Progress
from dreamerv2_base.nets import Scope, values_by_name, variables_by_name
from dreamerv2_base.noise import CounterDraws, fold, generator
from dreamerv2_base.tf import tf
from semopo_tf.sac import SAC

SHOWN = ('q_mean', 'alpha', 'entropy')


class Learner:
    """SAC with the graphs that act and learn.

    Args:
      config: the resolved configuration (groups `sac`, `behaviour`; seed).
      state_size, action_size: S and A.
    """

    def __init__(self, config: Config, state_size: int, action_size: int):
        self._seed = config.seed
        self._size = action_size
        self.agent = SAC(config.sac, state_size, action_size,
                         Scope(config.seed, 'sac'))
        self._sample = tf.function(self.agent.sample)
        self._updates = tf.function(self._several)

    def actor(self, rng: np.random.Generator, noise: bool = True) -> Actor:
        """Actions drawn from the policy; its modes without `noise`."""
        share = float(noise)

        def act(rows: Arrays) -> np.ndarray:
            drawn = share * rng.standard_normal(
                (len(rows['state']), self._size))
            return self._sample(
                tf.constant(rows['state'], tf.float32),
                tf.constant(drawn, tf.float32))[0].numpy()

        return act

    def learn(self, batches: Mapping[str, np.ndarray],
              first: int) -> dict[str, float]:
        """Updates number `first` and on, one per batch.

        batches: `state`, `action`, `reward`, `next_state`, `terminal`,
        [updates, N, ...]. Returns metrics of the last update.
        """
        found = self._updates(
            {key: tf.constant(value, tf.float32)
             for key, value in batches.items()}, tf.constant(first, tf.int64))
        return {key: float(found[key]) for key in SHOWN}

    def _several(self, batches, first):
        metrics = self._one(batches, first, 0)
        for number in tf.range(1, tf.shape(batches['reward'])[0]):
            metrics = self._one(batches, first, number)
        return metrics

    def _one(self, batches, first, number):
        draws = CounterDraws(self._seed, 'behaviour',
                             first + tf.cast(number, tf.int64))
        return self.agent.update(
            {key: value[number] for key, value in batches.items()}, draws)

    def state(self) -> Arrays:
        """Weights, targets and optimizers, by name."""
        return values_by_name(self.agent)

    def load(self, arrays: Mapping[str, np.ndarray], where: str) -> None:
        """Restore `state()`. Raises UserError when it is of another agent."""
        restore(variables_by_name(self.agent), arrays, where)


class Replay:
    """All transitions so far, in the order of collection."""

    def __init__(self) -> None:
        self._parts: list[Arrays] = []
        self._rows: Arrays = {}

    def add(self, episode: Arrays) -> None:
        """Append an episode's transitions; an end by time is no terminal."""
        self._parts.append({
            'state': episode['state'][:-1], 'action': episode['action'][1:],
            'reward': episode['reward'][1:],
            'next_state': episode['state'][1:],
            'terminal': episode['is_terminal'][1:].astype(np.float32)})

    def sample(self, rng: np.random.Generator, shape: tuple[int, int],
               ) -> Arrays:
        """Rows drawn uniformly with replacement, [*shape, ...]."""
        if self._parts:
            parts = [self._rows, *self._parts] if self._rows else self._parts
            self._rows = {key: np.concatenate([part[key] for part in parts])
                          for key in self._parts[0]}
            self._parts = []
        places = rng.integers(len(self._rows['reward']), size=shape)
        return {key: value[places] for key, value in self._rows.items()}


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes: `reached`: the last policy lies in the band; `rounds` of
    collection; `returns` of the last round's episodes.
    """

    reached: bool
    rounds: int
    returns: list[float]


class Training:
    """The training run of one task (`datasets.behaviour.Behaviour`).

    Args:
      recipe: its task, and the band of the policy that is looked for (goal).
      config: the resolved configuration.
      folder: of the buffer; `episodes/` and `ckpt/` are made in it.
      identity: text that stands for everything the episodes depend on.
    """

    def __init__(self, recipe: Recipe, config: Config, folder: Path,
                 identity: str):
        self._config, self._folder = config, folder
        self._task, self._goal = recipe.task, recipe.goal
        self._path = folder / 'trained.json'
        self._episodes = EpisodeFolder(folder / 'episodes', identity)
        self._frozen = EpisodeFolder(folder / 'frozen', f'{identity}/frozen')
        self._checkpoints = Checkpoints(folder / 'ckpt')
        self.outcome: dict[str, Any] | None = None

    def train(self) -> Outcome:
        """Train to the end, or go on; nothing if there is nothing to do."""
        if not self._path.exists():
            write_json(self._path, vars(self._rounds()))
        self.outcome = json.loads(self._path.read_text())
        path = self._folder / 'states.hdf5'
        if not path.exists():
            state_episodes.write_transitions(self._episodes.files(), path)
        return Outcome(**self.outcome)

    def episodes(self, count: int) -> list[Path]:
        """Those of the run: they are as many as they are."""
        return self._episodes.files()

    def _rounds(self) -> Outcome:
        """Rounds until the policy is one of the band, or there are enough."""
        tasks = self._tasks()
        learner = self._learner(tasks)
        start, replay = self._resume(learner)
        limit = self._config.behaviour.max_rounds
        bar = Progress(limit, start, 'rounds at most')
        for number in range(start, limit):
            found = self._collect(tasks, learner, number)
            returns = [state_episodes.total(episode) for episode in found]
            if within(returns, self._goal) or number + 1 == limit:
                break
            for episode in found:
                replay.add(episode)
            metrics = self._learn(learner, replay, number)
            self._checkpoints.save(number + 1, learner.state(), {})
            bar.update(1)
            bar.show({'reward_mean': float(np.mean(returns)), **metrics})
        bar.close()
        for task in tasks:
            task.close()
        return Outcome(within(returns, self._goal), number + 1, returns)

    def frozen(self, count: int, band: Sequence[float]) -> list[Path]:
        """Episodes of the last policy, see `datasets.behaviour.Behaviour`."""
        outcome = self.train()
        if not outcome.reached:
            raise UserError(
                f'{self._folder}: expected a policy with returns in '
                f'{list(self._goal)} within {outcome.rounds} rounds, found '
                f'a mean of {np.mean(outcome.returns):.1f} at the end; give '
                'a new --buffer with more --behaviour.max_rounds, or another '
                '--seed')
        waves = self._config.behaviour.round_episodes
        done = self._frozen.files()
        inside = [path for path in done if lies(path, band)]
        if len(inside) >= count:
            return inside
        tasks = self._tasks()
        learner = self._learner(tasks)
        self._load(learner, self._checkpoints.positions()[-1:])
        bar = Progress(count, len(inside), 'episodes of the frozen policy')
        number = len(done) // waves  # a torn wave is run again
        while len(inside) < count and number * waves < TRIES * count:
            found = self._wave(tasks, learner, 'frozen', number)
            for i, episode in enumerate(found):
                path = self._frozen.write(number * waves + i, episode)
                if path not in inside and lies(path, band):
                    inside.append(path)
                    bar.update(1)
            number += 1
        bar.close()
        for task in tasks:
            task.close()
        return inside

    def _collect(self, tasks, learner: Learner, number: int) -> list[Arrays]:
        found = self._wave(tasks, learner, 'collect', number)
        for i, episode in enumerate(found):
            self._episodes.write(number * len(found) + i, episode)
        return found

    def _wave(self, tasks, learner: Learner, purpose: str,
              number: int) -> list[Arrays]:
        seed = fold(self._config.seed, 'behaviour', purpose, number)
        noise = purpose == 'collect' or self._config.behaviour.frozen_noise
        return state_episodes.run(
            tasks, learner.actor(np.random.default_rng(seed), noise),
            [episode_seed(seed, i) for i in range(len(tasks))])

    def _learn(self, learner: Learner, replay: Replay,
               number: int) -> dict[str, float]:
        count = self._config.behaviour.round_updates
        rng = generator(self._config.seed, 'behaviour', 'batches', number)
        return learner.learn(replay.sample(
            rng, (count, self._config.sac.batch)), number * count)

    def _resume(self, learner: Learner) -> tuple[int, Replay]:
        """The round to go on with, and the episodes before it."""
        positions = self._checkpoints.positions()
        self._load(learner, positions[-1:])
        start = positions[-1] if positions else 0
        known = start * self._config.behaviour.round_episodes
        replay = Replay()
        for path in self._episodes.files(known):
            replay.add(state_episodes.read(path))
        return start, replay

    def _load(self, learner: Learner, positions: list[int]) -> None:
        if positions:
            arrays, _ = self._checkpoints.load(positions[0])
            learner.load(arrays, str(self._checkpoints.folder))

    def _tasks(self) -> list[state_episodes.StateTask]:
        return state_episodes.make_tasks(
            self._config, self._task, self._config.behaviour.round_episodes)

    def _learner(self, tasks) -> Learner:
        size = len(tasks[0].reset(0)['state'])
        return Learner(self._config, size, tasks[0].action_size)
