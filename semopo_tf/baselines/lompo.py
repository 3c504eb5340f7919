"""LOMPO as a method of the loop: model phase, then policy phase.

Baselines 2. The policy learns from two rings of latent
transitions, one of encoded episodes and one of imagined steps; both are
refreshed every so many updates.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamerv2_base.checkpoint import Live, restore
from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.logger import Progress
from dreamerv2_base.nets import Scope, variables_by_name
from dreamerv2_base.noise import CounterDraws, Draws, fold, generator
from dreamerv2_base.store import EpisodeStore
from dreamerv2_base.tf import CountedGraph, tensors, tf
from semopo_tf.baselines.lompo_agent import LompoAgent
from semopo_tf.baselines.lompo_buffers import (
    FIELDS,
    Ring,
    RowSampler,
    SequenceSampler,
    episode_transitions,
    imagined_transitions,
    padded,
)
from semopo_tf.baselines.lompo_model import LompoModel
from semopo_tf.method import (
    Batch,
    Phase,
    expect_frames,
    size_of_actions,
)

Arrays = dict[str, np.ndarray]


class LOMPO:
    """Latent offline model-based policy optimisation.

    Args:
      config: the resolved configuration (preset `lompo`).
      store: the episodes; None for acting only.
      action_size: A, where there is no store.

    Raises UserError for settings that the method cannot run with.
    """

    def __init__(self, config: Config, store: EpisodeStore | None = None,
                 action_size: int | None = None):
        check(config)
        self.config = config
        self._store: Any = store
        action_size = size_of_actions(store, action_size)
        root = Scope(config.seed)
        image = (config.image_size, config.image_size, 3)
        self.model = LompoModel(
            config, image, action_size, root / 'world_model')
        self.agent = LompoAgent(
            config, self.model.rssm.feat_size, action_size, root / 'behavior')
        self.rings: dict[str, Ring] = {}
        if store is not None:
            capacity = config.lompo.buffer_size or int((store.rows - 1).sum())
            self.rings = {
                name: Ring(capacity, self.model.rssm.feat_size, action_size)
                for name in ('real', 'latent')}
        self._graphs = {
            name: self._graph(name, function) for name, function in {
                'model': self._model_update, 'agent': self._agent_update,
                'encode': self._encode, 'generate': self._generate}.items()}
        self._act = self._graph('act', self._act_step)

    # The interface of semopo_tf.method.

    def phases(self) -> list[Phase]:
        """World model updates, then policy updates."""
        config = self.config
        return [
            Phase('model', config.offline_model_train_steps,
                  self._graphs['model'],
                  lambda store: SequenceSampler(store, config, 'model'),
                  video_every=config.offline_video_every, prepare=tensors),
            Phase('agent', config.steps, self.update_agent,
                  lambda store: RowSampler(
                      config.seed, config.lompo.agent_batch_size,
                      self.start_up()),
                  config.agent_train_steps, start=self.fill),
        ]

    def policy(self, observation: Batch, state: Any, key: int,
               ) -> tuple[np.ndarray, Any]:
        """Actor without noise on a sampled posterior, [N, A].

        Draws are independent for each environment.
        """
        expect_frames(observation, self.config.image_size)
        if state is None:
            count = len(observation['image'])
            state = {'counter': key % 2 ** 63, 'latent': {
                **self.model.rssm.initial(count),
                'action': tf.zeros((count, self.agent.action_size))}}
        seen = {name: observation[name] for name in ('image', 'is_first')}
        latent = self._act({**seen, **state['latent']}, state['counter'])
        following = {'counter': (state['counter'] + 1) % 2 ** 63,
                     'latent': latent}
        return latent['action'].numpy(), following

    def state(self) -> Arrays:
        """All variables, and what the rings hold."""
        arrays = dict(Live(self._variables()))
        for name, ring in self.rings.items():
            arrays.update({f'buffer/{name}/{key}': value
                           for key, value in ring.state().items()})
        return arrays

    def acting(self) -> dict[str, tf.Variable]:
        """The variables that `policy` reads, by name."""
        return variables_by_name(self.model.encoder, self.model.rssm,
                                 self.agent.actor_network)

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        restore(self._variables(), {
            name: value for name, value in state.items()
            if not name.startswith('buffer/')}, 'checkpoint')
        for name, ring in self.rings.items():
            where = f'buffer/{name}/'
            ring.load({key.removeprefix(where): value
                       for key, value in state.items()
                       if key.startswith(where)}, where[:-1])

    def parameters(self) -> dict[str, int]:
        """Weights per module, optimizers left out."""
        model, agent = self.model, self.agent
        modules: dict[str, list[Any]] = {
            'encoder': [model.encoder], 'rssm': [model.rssm],
            'decoder': [model.decoder], 'reward': [model.heads['reward']],
            'actor': [agent.actor_network], 'critics': agent.critics,
            'targets': agent.targets}
        return {name: sum(int(np.prod(v.shape)) for v in
                          variables_by_name(*found).values())
                for name, found in modules.items()}

    def videos(self, batch: Batch, key: int) -> dict[str, np.ndarray]:
        """Reconstructions and open-loop predictions of a few sequences."""
        batch = tensors({name: value[:6] for name, value in batch.items()})
        filtered = min(5, batch['image'].shape[1] - 1)
        draws = CounterDraws(
            fold(self.config.seed, 'videos'), 'videos', tf.constant(key))
        found = self.model.video(batch, draws, filtered)
        return {name: np.clip(value.numpy(), 0, 1)
                for name, value in found.items()}

    # The policy phase.

    def start_up(self) -> dict[str, Any]:
        """How the rings are filled before the first policy update.

        The released code waits for `start_training` latent rows, for ever
        where the ring is smaller; here a full ring is enough.
        """
        capacity = self.rings['latent'].capacity
        wanted = self.config.lompo.start_training
        return {'buffer_capacity': capacity, 'start_training': wanted,
                'latent_rows_at_least': min(capacity, wanted),
                'start_up_ends_with_a_full_buffer': capacity < wanted}

    def fill(self) -> None:
        """Encode every episode once, then imagine enough latent rows."""
        for ring in self.rings.values():
            ring.clear()
        count = len(self._store)
        bar = Progress(count, 0, 'encoding')
        for number in range(count):
            self.rings['real'].append(self.encode(number, 2 * number))
            bar.update(1)
        bar.close()
        latent, plan = self.rings['latent'], self.start_up()
        if plan['start_up_ends_with_a_full_buffer']:
            print(f'start-up: the data has {latent.capacity} transitions and '
                  f'the latent buffer as many rows, fewer than '
                  f'lompo.start_training {plan["start_training"]}; the policy '
                  'starts when the buffer is full', file=sys.stderr)
        source = SequenceSampler(self._store, self.config, 'start')
        calls = 0
        while len(latent) < plan['latent_rows_at_least']:
            latent.append(self.imagine(source.batch(calls), 2 * calls)[0])
            calls += 1

    def update_agent(self, batch: Batch, step: int) -> dict[str, Any]:
        """One update on real and latent rows, half each; then, after every
        `agent_iters_per_step`, a refresh of both rings.

        `batch` holds the places in the rings (see RowSampler).
        """
        parts = [self.rings[name].sample(batch[name])
                 for name in ('real', 'latent')]
        rows = {name: np.concatenate([part[name] for part in parts])
                for name in FIELDS}
        metrics = self._graphs['agent'](rows, step)
        every = self.config.lompo.agent_iters_per_step
        if (step + 1) % every == 0:
            metrics = {**metrics, **self.refresh(step // every)}
        return {**metrics, 'lambda': float(self.config.offline_lmbd)}

    def refresh(self, number: int) -> dict[str, float]:
        """Encode one episode again, imagine from one more batch."""
        rng = generator(self.config.seed, 'refresh', 'episode', number)
        episode = int(rng.integers(len(self._store)))
        self.rings['real'].append(self.encode(episode, 2 * number + 1))
        source = SequenceSampler(self._store, self.config, 'refresh')
        rows, metrics = self.imagine(source.batch(number), 2 * number + 1)
        self.rings['latent'].append(rows)
        return metrics

    def encode(self, number: int, counter: int) -> Arrays:
        """Transitions of one episode, encoded from its start.

        Padded to the longest episode: later rows change no earlier ones, and
        one graph serves all.
        """
        episode = self._store.slice(number, 0, int(self._store.rows[number]))
        rows = {key: episode[key] for key in SequenceSampler.KEYS}
        full = padded(rows, int(self._store.rows.max()))
        feat = self._graphs['encode'](
            {key: value[None] for key, value in full.items()}, counter)
        return episode_transitions(
            feat.numpy()[:len(rows['reward'])], rows['action'],
            rows['reward'])

    def imagine(self, batch: Batch, counter: int,
                ) -> tuple[Arrays, dict[str, float]]:
        """Imagined transitions from a batch of sequences, and means."""
        rows = {key: value.numpy() for key, value in
                self._graphs['generate'](batch, counter).items()}
        penalty = rows['penalties'].reshape(len(rows['penalties']), -1)
        cost = self.config.offline_lmbd * float(
            penalty[:, batch['mask'].reshape(-1)].mean())
        kept = imagined_transitions(rows, batch['mask'])
        return kept, {'penalty_mean': cost,
                      'latent_reward': float(kept['rewards'].mean()) + cost}

    # Graphs: each maps a batch and the draws of its call.

    def _model_update(self, batch, draws: Draws):
        return self.model.train(batch, draws)[1]

    def _agent_update(self, rows, draws: Draws):
        return self.agent.train(rows, draws)[1]

    def _encode(self, batch, draws: Draws):
        return self.model.rssm.get_feat(self.model.states(batch, draws))[0]

    def _generate(self, batch, draws: Draws):
        return self.model.generate(self.agent.actor, batch, draws)

    def _act_step(self, seen, draws: Draws):
        data = {
            'image': tf.cast(seen['image'], self.model.dtype) / 255.0 - 0.5,
            'action': seen['action'], 'is_first': seen['is_first']}
        before = {key: value for key, value in seen.items()
                  if key not in data}
        _, post, _ = self.model.filter(
            {key: value[:, None] for key, value in data.items()}, draws,
            before, not self.config.eval_state_mean)
        latent = {key: value[:, 0] for key, value in post.items()}
        action = self.agent.actor(self.model.rssm.get_feat(latent))
        return {**latent, 'action': action}

    def _graph(self, purpose: str, function) -> CountedGraph:
        """`function(batch, counter)` as one graph, draws for `purpose`."""
        def call(batch, counter):
            return function(
                batch, CounterDraws(self.config.seed, purpose, counter))

        return CountedGraph(call, self.config.jit)

    def _variables(self) -> dict[str, tf.Variable]:
        return variables_by_name(self.model, self.agent)


def check(config) -> None:
    """Raises UserError for settings that LOMPO cannot run with."""
    rules = {
        'precision': (config.precision, '32'),
        'rssm.discrete': (config.rssm.discrete, 0),
        'pred_discount': (config.pred_discount, False)}
    for key, (found, expected) in rules.items():
        if found != expected:
            raise UserError(
                f'method lompo: {key}: expected {expected}, found {found}; '
                'give --configs lompo (or lompo_demo) alone')
    if not {'decoder', 'reward'} <= set(config.grad_heads):
        raise UserError(
            'method lompo: grad_heads: expected decoder and reward (one loss '
            f'trains everything), found {list(config.grad_heads)}; give '
            '--configs lompo (or lompo_demo) alone')
