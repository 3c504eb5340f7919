"""What BC, DrQ+BC, DrQ+CQL and InfoGating share as methods of the loop.

The released loop runs 1,100,000 iterations and updates on even ones. Here an
update is an update: `steps` 550,000 of them. Schedules read the iteration,
`drq.update_every_steps` times the update. Baselines 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamerv2_base.checkpoint import is_weight, restore
from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import Scope, values_by_name, variables_by_name
from dreamerv2_base.noise import CounterDraws, Draws
from dreamerv2_base.store import EpisodeStore
from dreamerv2_base.tf import CountedGraph, tensors, tf
from semopo_tf.baselines.drq_data import StackSampler, upscale
from semopo_tf.baselines.drq_nets import (
    entropy,
    log_prob,
    random_shift,
    schedule,
)
from semopo_tf.method import (
    Batch,
    Phase,
    expect_frames,
    size_of_actions,
)

Tensors = Mapping[str, tf.Tensor]
Metrics = dict[str, tf.Tensor]


def augmented(images: tf.Tensor, site: str, drq, draws: Draws) -> tf.Tensor:
    """Randomly shifted images, one offset per stack (baselines 3.2).

    `site` names the draw: integers [B, 2], (x, y).
    """
    if not drq.augment:
        return images
    offsets = draws.integers(
        f'shift/{site}', (images.shape[0], 2), 2 * drq.pad + 1)
    return random_shift(images, offsets, drq.pad)


def action_metrics(mean: tf.Tensor, std: tf.Tensor,
                   action: tf.Tensor) -> Metrics:
    """What the released code logs of a sampled action."""
    return {'actor_logprob': tf.reduce_mean(log_prob(mean, std, action)),
            'actor_ent': entropy(std, action.shape[-1]),
            'stddev': std}


class PixelMethod:
    """A model-free pixel method as the loop knows it.

    Args:
      config: the resolved configuration.
      store: the episodes; None for acting only.
      action_size: A, where there is no store.

    Raises UserError for settings that these methods cannot run with.
    """

    agent_type: Any  # its networks and their update

    def __init__(self, config: Config, store: EpisodeStore | None = None,
                 action_size: int | None = None):
        check(config)
        self.config = config
        self.agent = self.agent_type(
            config, size_of_actions(store, action_size), Scope(config.seed))
        self._update = self._graph()
        side = config.drq.image_size
        seen = tf.TensorSpec(
            (None, side, side, 3 * config.drq.frame_stack), tf.uint8)
        self._act = tf.function(self.agent.act, input_signature=[seen])

    def phases(self) -> list[Phase]:
        """One phase of `steps` updates, evaluated before every
        `agent_train_steps` of them."""
        return [Phase('train', self.config.steps, self._update, self.source,
                      self.config.agent_train_steps, prepare=tensors)]

    def source(self, store: EpisodeStore) -> StackSampler:
        """The batches of a store."""
        return StackSampler(
            store, self.config.drq, self.config.seed, 'train')

    def policy(self, observation: Batch, state: Any, key: int,
               ) -> tuple[np.ndarray, Any]:
        """The mean action [N, A]: no noise, so `key` changes nothing.

        The state holds the last frames, oldest first: three copies of the
        first one at the start of an episode.
        """
        expect_frames(observation, self.config.image_size)
        side, stack = self.config.drq.image_size, self.config.drq.frame_stack
        frame = upscale(observation['image'], side)
        fresh = np.tile(frame, stack)
        if state is not None:
            moved = np.concatenate([state[..., 3:], frame], -1)
            first = np.asarray(observation['is_first'], bool)
            fresh = np.where(first[:, None, None, None], fresh, moved)
        return self._act(tf.constant(fresh)).numpy(), fresh

    def state(self) -> dict[str, np.ndarray]:
        """Weights, targets and optimizers: all variables by name."""
        return values_by_name(self.agent)

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        restore(variables_by_name(self.agent), state, 'checkpoint')

    def acting(self) -> dict[str, tf.Variable]:
        """The variables that `policy` reads, by name, and other networks."""
        return {name: variable for name, variable
                in variables_by_name(self.agent).items() if is_weight(name)}

    def parameters(self) -> dict[str, int]:
        """Weights per module, optimizers left out."""
        counts: dict[str, int] = {}
        for name, variable in variables_by_name(self.agent).items():
            if is_weight(name):
                module = name.split('/')[0]
                counts[module] = counts.get(module, 0) + int(
                    np.prod(variable.shape))
        return counts

    def videos(self, batch: Batch, key: int) -> dict[str, np.ndarray]:
        """Nothing to show: these methods make no pictures."""
        return {}

    def _graph(self) -> CountedGraph:
        """`update(batch, step) -> metrics` as one graph."""
        seed, every = self.config.seed, self.config.drq.update_every_steps

        def train(batch, number):
            draws = CounterDraws(seed, 'train', number)
            iteration = tf.cast(every * number, tf.float32)
            return self.agent.train(batch, iteration, draws)

        return CountedGraph(train, self.config.jit)


def check(config) -> None:
    """Raises UserError for settings that the pixel methods cannot run with.
    """
    if config.precision != '32':
        raise UserError(
            f'method {config.method}: precision: expected 32, found '
            f'{config.precision}; give --precision 32')
    if config.render_size[0] != config.image_size:
        raise UserError(
            f'method {config.method}: render_size: expected the size of the '
            f'stored frames ({config.image_size}), so that training and '
            f'evaluation are brought to drq.image_size alike, found '
            f'{config.render_size[0]}; give --render_size '
            f'{config.image_size} {config.image_size}')
    schedule(config.drq.stddev_schedule, 0.0)
