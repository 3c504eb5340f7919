"""Online DreamerV2 as a method of the loop: it collects its own data.

One phase, `online`. Before update u the decisions are made that the plan puts
before it (`dreamerv2_base.online.Plan`); then world model, actor and critic
are updated together on a batch of chunks from all episodes so far. Batch u is
a pure function of the seed, u and the buffer. The loop, its checkpoints,
evaluation and records are those of offline training (`semopo_tf.training`).

In the run folder: `episodes/`, every episode of the training run in the order
in which they ended, and `snapshots/DECISIONS/`, weights every
`snapshot_every` decisions, which stay.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamerv2_base.checkpoint import Checkpoints
from dreamerv2_base.config import Config
from dreamerv2_base.envs.live import LiveRollout
from dreamerv2_base.envs.rollout import Finished, Rollout, episode_seed
from dreamerv2_base.errors import UserError
from dreamerv2_base.logger import Progress, read_record
from dreamerv2_base.noise import fold, generator
from dreamerv2_base.online import Collector, EpisodeBuffer, Plan
from dreamerv2_base.replay import ChunkSampler
from dreamerv2_base.tf import tf
from semopo_tf.environments import env_spec_from, make_env
from semopo_tf.method import Batch, Phase
from semopo_tf.world_model_method import WorldModelMethod

PHASE = 'online'
EPISODES, SNAPSHOTS = 'episodes', 'snapshots'  # folders in the run's
COLLECT = 'collect/'  # prefix of the collector's arrays in a checkpoint


class DreamerV2(WorldModelMethod):
    """DreamerV2 trained where it acts; one stream, no penalty.

    Args:
      config: the resolved configuration.
      store: the run's `EpisodeBuffer` (`open_buffer`); None for acting only.
      action_size: A, where there is no store.
    """

    def __init__(self, config: Config, store: EpisodeBuffer | None = None,
                 action_size: int | None = None):
        self.plan = plan_of(config)
        super().__init__(config, store, action_size)
        self._folder = Path(config.logdir).expanduser()
        self._given: Mapping[str, np.ndarray] | None = None
        self._collector: Collector | None = None
        self._newest: tuple[int, ChunkSampler | None] = 0, None

    # The interface of semopo_tf.method.

    def phases(self) -> list[Phase]:
        """Collecting and learning in turns."""
        config = self.config
        return [Phase(
            PHASE, self.plan.updates, self._turn, self._source,
            self.plan.within(config.eval_every) if config.eval_every else 0,
            video_every=config.offline_video_every, finish=self._finish,
            prefetch=False)]

    def state(self) -> dict[str, np.ndarray]:
        """All variables, and where the collection stands."""
        arrays = dict(super().state())
        if self._collector is not None:
            arrays.update({f'{COLLECT}{key}': value for key, value
                           in self._collector.state().items()})
        elif self._given is not None:
            arrays.update(self._given)  # loaded, and not gone on yet
        return arrays

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self._given = {key: value for key, value in state.items()
                       if key.startswith(COLLECT)}
        super().load({key: value for key, value in state.items()
                      if key not in self._given})

    # Collecting.

    def explore(self, observation: Batch, memory: Mapping[str, Any] | None,
                decision: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Sampled actions with exploration noise, [N, A].

        The next state filters with the action that was carried out. Noise:
        N(0, expl_noise²), clipped to [-1, 1], in the first `expl_until`
        decisions (0: in all).
        """
        count = len(observation['image'])
        state = self.agent.initial(
            count, fold(self.config.seed, 'explore'))
        if memory is not None:
            state = {key: tf.cast(memory[key], like.dtype)
                     for key, like in state.items()}
        action, state = self.agent.policy(observation, state, explore=True)
        until, std = self.config.expl_until, self.config.expl_noise
        if std and (not until or decision < until):
            noise = generator(
                self.config.seed, 'explore', decision).standard_normal(
                    action.shape)
            action = np.clip(action + std * noise, -1, 1).astype(np.float32)
        return action, {**state, 'action': tf.constant(action)}

    def _collecting(self) -> Collector:
        """The collector, brought to where the checkpoint was."""
        if self._collector is None:
            collector = Collector(
                live_rollout(self.config), self._store, self.explore,
                self.config.prefill, self.config.seed)
            if self._given:
                collector.load({key.removeprefix(COLLECT): value
                                for key, value in self._given.items()})
            else:
                collector.start()
            self._collector, self._given = collector, None
        return self._collector

    def _turn(self, batch: None, step: int) -> Mapping[str, Any]:
        """Decisions that are due, then one update."""
        collector = self._collecting()
        ended = self._reach(collector, self.plan.decisions(step))
        metrics = {} if not ended else {
            'collected_return': np.mean([e.total for e in ended]),
            'collected_length': np.mean([e.length - 1 for e in ended])}
        found = self._updates['joint'](self.chunks().batch(step), step)
        self._snapshot(step)
        return {**found, **metrics, 'decisions': collector.decisions,
                'episodes': len(self._store)}

    def _reach(self, collector: Collector, decisions: int) -> list[Finished]:
        if collector.decisions:
            return collector.reach(decisions)
        bar = Progress(decisions, 0, 'prefill')
        try:
            return collector.reach(decisions, bar.update)
        finally:
            bar.close()

    def _snapshot(self, step: int) -> None:
        every = self.config.snapshot_every
        due = self.plan.passes(step, every) if every else None
        if due is not None:
            Checkpoints(self._folder / SNAPSHOTS).save(
                due, super().state(), {
                    'update': step + 1, 'decisions': due,
                    'episodes': len(self._store)}, pin=True)

    def _finish(self) -> None:
        if self._collector is not None:
            self._collector.close()

    # Chunks.

    def chunks(self) -> ChunkSampler:
        """The sampler over the episodes so far.

        Episodes shorter than a chunk are not drawn, nor, beyond
        `replay.capacity` rows, are the oldest. Raises UserError when there is
        none.
        """
        self._collecting()
        count, sampler = self._newest
        if sampler is None or count != len(self._store):
            size = self.config.dataset
            sampler = ChunkSampler(
                self._store, size.batch, size.length, self.config.seed,
                PHASE, self._drawn(size.length),
                prioritize_ends=self.config.replay.prioritize_ends)
            self._newest = len(self._store), sampler
        return sampler

    def _drawn(self, length: int) -> np.ndarray:
        """Numbers of the episodes that chunks are drawn from."""
        rows = self._store.rows
        long = np.flatnonzero(rows >= length)
        recent = np.cumsum(rows[long][::-1]) <= self.config.replay.capacity
        order = long[len(long) - int(recent.sum()):]
        if not len(order):
            raise UserError(
                f'prefill: expected an episode of at least {length} rows '
                f'before the first update, found none among {len(rows)}; '
                'give a larger --prefill, or a smaller --dataset.length')
        return order

    def _source(self, store: EpisodeBuffer) -> _Source:
        return _Source(self)


class _Source:
    """Chunks of what is in the buffer at the moment they are asked for."""

    def __init__(self, method: DreamerV2):
        self._method = method

    def batch(self, step: int) -> dict[str, np.ndarray]:
        return self._method.chunks().batch(step)

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        return self._method.chunks().indices(step)

    def describe(self) -> dict[str, Any]:
        """The plan: the buffer itself grows."""
        plan, size = self._method.plan, self._method.config.dataset
        return {**asdict(plan), 'updates': plan.updates,
                'batch': size.batch, 'length': size.length}


# Pieces of a run.


def plan_of(config: Config) -> Plan:
    """How decisions and updates take turns.

    Raises UserError for numbers that make no plan, and for exploration that
    is not part of this package.
    """
    if config.expl_behavior != 'greedy':
        raise UserError('expl_behavior: expected greedy, found '
                        f'{config.expl_behavior!r}: exploration by another '
                        'policy is not part of this package; give '
                        '--expl_behavior greedy')
    return Plan(config.steps, config.prefill, config.pretrain,
                config.train_every, config.train_steps)


def open_buffer(config: Config) -> EpisodeBuffer:
    """The buffer of the run in `logdir`; nothing is read or written yet."""
    with Rollout(_factory(config), 1, 1) as rollout:
        action_size = rollout.action_size
    return EpisodeBuffer(
        Path(config.logdir).expanduser() / EPISODES,
        f'{config.task}/{config.seed}/{PHASE}', action_size)


def live_rollout(config: Config) -> LiveRollout:
    """The environments in which a run collects."""
    seed = fold(config.seed, 'collect')
    return LiveRollout(_factory(config), config.envs, config.eval_workers,
                       functools.partial(episode_seed, seed))


def _factory(config):
    return functools.partial(make_env, env_spec_from(config))


# What others take from a run (`run.py data build`).


@dataclass(frozen=True)
class Collected:
    """An episode of a training run.

    `seed` and the file's actions bring the simulator's states back:
    `env.reset(seed)`, then `env.step(action)` for the rows from 1 on.
    """

    path: Path
    seed: int
    total: float
    rows: int


def collected(logdir: Path) -> list[Collected]:
    """The episodes of a run, in the order in which they ended."""
    found = []
    for path in sorted((Path(logdir) / EPISODES).glob('*.npz')):
        with np.load(path, allow_pickle=False) as file:
            reward = file['reward']
            found.append(Collected(
                path, int(file['log_seed']),
                float(reward.sum(dtype=np.float64)), len(reward)))
    return found


def snapshots(logdir: Path) -> list[int]:
    """Decisions after which a run's weights were kept, ascending."""
    return Checkpoints(Path(logdir) / SNAPSHOTS).positions()


def snapshot_method(logdir: Path, decisions: int) -> DreamerV2:
    """The method of a run with the weights of a snapshot, for acting.

    Raises UserError when there is no such run or snapshot.
    """
    from semopo_tf import commands, registry
    config = commands.run_config(Path(logdir))
    data = read_record(Path(logdir) / 'data.json')
    method = registry.method_class(config)(
        config, None, action_size=data['action_size'])
    method.load(Checkpoints(Path(logdir) / SNAPSHOTS).load(decisions)[0])
    return method
