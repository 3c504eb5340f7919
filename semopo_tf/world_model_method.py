"""A world model phase, then a policy phase: what the Dreamers share.

Spec section 9. With two streams it is SeMOPO (`semopo_tf.semopo`), with one
Offline DV2 (`semopo_tf.baselines.offline_dv2`); DreamerV2 and TIA do both in
turns with their environment (`semopo_tf.online`).
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreamerv2_base.checkpoint import Checkpoints, Live, is_weight, restore
from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import values_by_name, variables_by_name
from dreamerv2_base.noise import CounterDraws, fold
from dreamerv2_base.online import EpisodeBuffer
from dreamerv2_base.replay import ChunkSampler
from dreamerv2_base.store import EpisodeStore
from dreamerv2_base.tf import CountedGraph, tensors, tf
from semopo_tf import export, starts
from semopo_tf.agent import PenalizedAgent
from semopo_tf.conservative import (
    RELEASED_PLANNED,
    Schedule,
    schedule_from,
)
from semopo_tf.embeddings import (
    EmbeddedSource,
    compiled_encoder,
    encoder_stamp,
)
from semopo_tf.method import (
    Batch,
    Phase,
    expect_frames,
    size_of_actions,
)
from semopo_tf.settings import model_updates, sampling_of, several_starts
from semopo_tf.starts import Starts


class WorldModelMethod:
    """A policy learned inside a world model of one stream or two.

    Args:
      config: the resolved configuration.
      store: the episodes; None for acting only.
      action_size: A, where there is no store.
    """

    agent_type: type[PenalizedAgent] = PenalizedAgent

    def __init__(self, config: Config,
                 store: EpisodeStore | EpisodeBuffer | None = None,
                 action_size: int | None = None):
        self.config = config
        self._store: Any = store
        image = (config.image_size, config.image_size, 3)
        self._shapes = image, size_of_actions(store, action_size)
        self.agent = self.agent_type(config, *self._shapes)
        self._starts: Starts | None = None
        self._updates: dict[str, Any] = {
            'model': self._graph('model', self.agent.model_train),
            'agent': self._graph('agent', self.agent.agent_train),
            'joint': self._graph('joint', self.agent.train)}
        if several_starts(config):
            self._starts = Starts(
                config.model_starts, config.model_start_updates,
                config.model_start_worth, self._fresh_weights,
                variables_by_name(self.agent), self._updates['model'],
                self._graph(
                    'judge', lambda *inputs: (None, self.agent.world_model
                                              .action_information(*inputs))))

    def phases(self) -> list[Phase]:
        """Model updates in whole blocks, then policy updates."""
        config = self.config
        first = [self._starts.phase(self._starts_source, tensors)] if (
            self._starts) else []
        return [
            *first,
            Phase('model', model_updates(config), self._updates['model'],
                  self._model_source,
                  video_every=config.offline_video_every,
                  start=self._first_update, prepare=tensors),
            Phase('agent', config.steps, self._updates['agent'],
                  self._agent_source, config.agent_train_steps,
                  video_every=config.offline_video_every, prepare=tensors),
        ]

    def policy(self, observation: Batch, state: Any, key: int,
               ) -> tuple[np.ndarray, Any]:
        """Actor mode from a sampled posterior (spec section 9)."""
        expect_frames(observation, self.config.image_size)
        return self.agent.policy(observation, state, key)

    def state(self) -> Mapping[str, np.ndarray]:
        """Weights, slow critic, optimizers, normaliser: all variables."""
        live = Live(variables_by_name(self.agent))
        if not self._starts:
            return live
        return ChainMap(
            # The stub wants to be able to write; nobody does.
            live,  # type: ignore[arg-type]
            self._starts.state())

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        if self._starts:
            self._starts.load(state)
            state = {name: value for name, value in state.items()
                     if not name.startswith(starts.PREFIX)}
        restore(variables_by_name(self.agent), state, 'checkpoint')

    def acting(self) -> dict[str, Any]:
        """The variables that `policy` reads, by name."""
        model = self.agent.world_model
        return variables_by_name(
            model.encoder, model.rssm, self.agent.behavior.actor)

    def load_world_model(self, state: Mapping[str, np.ndarray]) -> None:
        """Take only the world model of another run's state."""
        mine = variables_by_name(self.agent.world_model)
        restore(mine, {k: v for k, v in state.items() if k in mine},
                'offline_model_loaddir')

    def parameters(self) -> dict[str, int]:
        """Weights per module, without optimizers and single numbers."""
        counts: dict[str, int] = {}
        for name, variable in variables_by_name(self.agent).items():
            if not is_weight(name) or not variable.shape.rank:
                continue
            parts = name.split('/')
            depth = 3 if parts[1] in ('heads', 'exo_heads') else 2
            module = '/'.join(parts[:depth])
            counts[module] = counts.get(module, 0) + int(
                np.prod(variable.shape))
        return counts

    def videos(self, batch: Batch, key: int) -> dict[str, np.ndarray]:
        """Reconstructions and open-loop predictions of a few chunks."""
        batch = tensors({k: v[:6] for k, v in batch.items()})
        filtered = min(5, batch['image'].shape[1] - 1)
        draws = CounterDraws(
            fold(self.config.seed, 'videos'), 'videos', tf.constant(key))
        video = self.agent.world_model.video(batch, draws, filtered)
        return {name: np.clip(value.numpy(), 0, 1)
                for name, value in video.items()}

    # Data.

    def schedule(self) -> Schedule:
        """Which trajectories may be drawn (paper section 3.4)."""
        return schedule_from(self.config, sampling_of(self.config),
                             self._store)

    def _model_source(self, store: EpisodeStore) -> ChunkSampler:
        size, schedule = self.config.offline_model_dataset, self.schedule()
        notes = schedule.describe(model_updates(self.config))
        return self._sampler(store, 'model', size, schedule, notes)

    def _starts_source(self, store: EpisodeStore) -> ChunkSampler:
        return self._sampler(
            store, starts.PHASE, self.config.offline_model_dataset,
            self.schedule())

    def _agent_source(self, store: EpisodeStore,
                      ) -> ChunkSampler | EmbeddedSource:
        # The policy phase keeps the window that the model phase ended with;
        # with a given world model, the one a whole model phase ends with.
        size = self.config.offline_train_dataset
        updates = model_updates(self.config) or RELEASED_PLANNED
        schedule = self.schedule().frozen(updates)
        sampler = self._sampler(store, 'agent', size, schedule)
        if not self.config.cache_embeddings:
            return sampler
        numbers = np.sort(schedule.order[:schedule.window(0)])
        encoder = self.agent.world_model.encoder
        return EmbeddedSource(
            sampler, store,
            compiled_encoder(encoder, self.agent.world_model.dtype),
            Path(self.config.logdir).expanduser() / 'cache',
            encoder_stamp(encoder, store.digest, numbers), numbers)

    def _sampler(self, store: EpisodeStore, phase, size, schedule,
                 notes=None) -> ChunkSampler:
        return ChunkSampler(
            store, size.batch, size.length, self.config.seed, phase,
            schedule.order, schedule.window,
            self.config.replay.prioritize_ends, notes)

    # Updates.

    def _fresh_weights(self, start: int) -> dict[str, np.ndarray]:
        """Initial values of everything, drawn for another seed."""
        seed = fold(self.config.seed, starts.PHASE, start)
        return values_by_name(self.agent_type(
            self.config.update({'seed': seed}), *self._shapes))

    def _first_update(self) -> None:
        """The released joint update at start; then a given world model.

        In this order: the released update makes the variables that a model
        is loaded into, and does not touch what is given.
        """
        if self.config.initial_joint_step:
            size = self.config.offline_train_dataset
            source = self._sampler(
                self._store, 'joint', size, self.schedule())
            self._updates['joint'](source.batch(0), 0)
        if self.config.offline_model_loaddir != 'none':
            self._load_given_model()

    def _load_given_model(self) -> None:
        folder = Path(self.config.offline_model_loaddir) / 'ckpt'
        if not folder.is_dir():
            raise UserError(
                f'offline_model_loaddir: expected a run folder of this '
                f'package, found no checkpoints in {folder}; convert released '
                'ones with run.py convert-checkpoint')
        arrays, state = Checkpoints(folder).load()
        export.expect_whole(folder.parent, state)
        self.load_world_model(arrays)

    def _graph(self, phase: str, update) -> CountedGraph:
        """`update(batch, step) -> metrics` as one graph."""
        seed = self.config.seed

        def train(batch, step):
            draws = CounterDraws(seed, phase, step)
            _, metrics = update(batch, draws)
            return metrics

        return CountedGraph(train, self.config.jit)
