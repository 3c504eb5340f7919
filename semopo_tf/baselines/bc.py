"""Behaviour cloning from pixels (spec of the baselines, section 5), and what
the four model-free methods share as methods of the loop.

The released loop runs 1,100,000 iterations and updates on even ones. Here an
update is an update: `steps` 550,000 of them. Schedules read the iteration,
`drq.update_every_steps` times the update.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamerv2_base.checkpoint import restore
from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import Scope, variables_by_name
from dreamerv2_base.noise import CounterDraws, Draws
from dreamerv2_base.tf import compiled, tf
from semopo_tf.baselines.drq_data import StackSampler, upscale
from semopo_tf.baselines.drq_nets import (
    Actor,
    PixelEncoder,
    drq_layers,
    entropy,
    log_prob,
    noisy_action,
    random_shift,
    schedule,
)
from semopo_tf.baselines.torch_adam import TorchAdam, step
from semopo_tf.method import Batch, Phase, size_of_actions

Tensors = Mapping[str, tf.Tensor]
Metrics = dict[str, tf.Tensor]


def augmented(images: tf.Tensor, site: str, drq, draws: Draws) -> tf.Tensor:
    """Randomly shifted images, one offset per stack (spec 3.2).

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


def cloning_loss(mean: tf.Tensor, std: tf.Tensor, target: tf.Tensor, drq,
                 draws: Draws) -> tuple[tf.Tensor, Metrics]:
    """mean (a − a_data)² over batch and action dimensions (spec 5).

    a is the noisy sample, so a perfect μ keeps the loss at a floor (golden
    number G12); `drq.bc_noise` False takes μ itself.

    Args:
      draws: site actor_action, normal [B, A].
    """
    normal = draws.normal('actor_action', mean.shape)
    action = noisy_action(mean, std, drq.stddev_clip, normal)
    chosen = action if drq.bc_noise else mean
    loss = tf.reduce_mean(tf.square(chosen - target))
    return loss, action_metrics(mean, std, action)


class BCAgent(tf.Module):
    """Encoder and actor, both trained by the cloning loss."""

    def __init__(self, config, action_size: int, scope: Scope):
        super().__init__()
        self.drq = drq = config.drq
        self.encoder = PixelEncoder(
            scope / 'encoder', (drq.image_size, 3 * drq.frame_stack),
            drq_layers(drq.filters))
        self.actor = Actor(scope / 'actor', self.encoder.size,
                           drq.feature_dim, drq.hidden_dim, action_size)
        self.optimizers = [
            TorchAdam(scope, name, variables_by_name(module), drq.lr, drq.eps)
            for name, module in (('actor', self.actor),
                                 ('encoder', self.encoder))]

    def train(self, batch: Tensors, iteration: tf.Tensor,
              draws: Draws) -> Metrics:
        """One update: actor step, then encoder step."""
        obs = augmented(batch['obs'], 'obs', self.drq, draws)
        std = schedule(self.drq.stddev_schedule, iteration)
        with tf.GradientTape() as tape:
            mean = self.actor(self.encoder(obs))
            loss, metrics = cloning_loss(
                mean, std, batch['action'], self.drq, draws)
        step(tape, loss, *self.optimizers)
        return {'actor_bc_loss': loss, **metrics,
                'batch_reward': tf.reduce_mean(batch['reward'])}

    def act(self, images: tf.Tensor) -> tf.Tensor:
        """μ [N, A] for stacked frames uint8 [N, S, S, C]."""
        return self.actor(self.encoder(images))


class PixelMethod:
    """A model-free pixel method as the loop knows it.

    Args:
      config: the resolved configuration.
      store: the episodes; None for acting only.
      action_size: A, where there is no store.

    Raises UserError for settings that these methods cannot run with.
    """

    agent_type: Any = BCAgent

    def __init__(self, config, store=None, action_size: int | None = None):
        check(config)
        self.config = config
        self.agent = self.agent_type(
            config, size_of_actions(store, action_size), Scope(config.seed))
        self._update = self._compiled()
        side = config.drq.image_size
        seen = tf.TensorSpec(
            (None, side, side, 3 * config.drq.frame_stack), tf.uint8)
        self._act = tf.function(self.agent.act, input_signature=[seen])

    def phases(self) -> list[Phase]:
        """One phase of `steps` updates, evaluated before every
        `agent_train_steps` of them."""
        return [Phase('train', self.config.steps, self._update, self.source,
                      self.config.agent_train_steps)]

    def source(self, store) -> StackSampler:
        """The batches of a store."""
        return StackSampler(
            store, self.config.drq, self.config.seed, 'train', next_obs=False)

    def policy(self, observation: Batch, state: Any, key: int,
               ) -> tuple[np.ndarray, Any]:
        """The mean action [N, A]: no noise, so `key` changes nothing.

        The state holds the last frames, oldest first: three copies of the
        first one at the start of an episode.
        """
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
        return {name: variable.numpy() for name, variable
                in variables_by_name(self.agent).items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        restore(variables_by_name(self.agent), state, 'checkpoint')

    def acting(self) -> dict[str, tf.Variable]:
        """The variables that `policy` reads, by name, and other networks."""
        return {name: variable for name, variable
                in variables_by_name(self.agent).items()
                if 'optimizer' not in name.split('/')}

    def parameters(self) -> dict[str, int]:
        """Weights per module, optimizers left out."""
        counts: dict[str, int] = {}
        for name, variable in variables_by_name(self.agent).items():
            module = name.split('/')[0]
            if module != 'optimizer':
                counts[module] = counts.get(module, 0) + int(
                    np.prod(variable.shape))
        return counts

    def videos(self, batch: Batch, key: int) -> dict[str, np.ndarray]:
        """Nothing to show: these methods make no pictures."""
        return {}

    def _compiled(self):
        """`update(batch, step) -> metrics` as one graph."""
        seed, every = self.config.seed, self.config.drq.update_every_steps

        def train(batch, number):
            draws = CounterDraws(seed, 'train', number)
            iteration = tf.cast(every * number, tf.float32)
            return self.agent.train(batch, iteration, draws)

        self.graph = compiled(train, self.config.jit)
        return lambda batch, number: self.graph(
            {key: tf.convert_to_tensor(value)
             for key, value in batch.items()}, tf.constant(number, tf.int64))


class BC(PixelMethod):
    """Behaviour cloning on shifted pixels. No critic, no reward."""


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
