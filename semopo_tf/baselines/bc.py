"""Behaviour cloning from pixels (baselines 5)."""

from __future__ import annotations

from dreamerv2_base.config import Config
from dreamerv2_base.nets import Scope, variables_by_name
from dreamerv2_base.noise import Draws
from dreamerv2_base.store import EpisodeStore
from dreamerv2_base.tf import tf
from semopo_tf.baselines.drq_data import StackSampler
from semopo_tf.baselines.drq_nets import (
    Actor,
    PixelEncoder,
    drq_layers,
    noisy_action,
    schedule,
)
from semopo_tf.baselines.pixel_method import (
    Metrics,
    PixelMethod,
    Tensors,
    action_metrics,
    augmented,
)
from semopo_tf.baselines.torch_adam import TorchAdam, step


def cloning_loss(mean: tf.Tensor, std: tf.Tensor, target: tf.Tensor, drq,
                 draws: Draws) -> tuple[tf.Tensor, Metrics]:
    """mean (a − a_data)² over batch and action dimensions (baselines 5).

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

    def __init__(self, config: Config, action_size: int, scope: Scope):
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


class BC(PixelMethod):
    """Behaviour cloning on shifted pixels. No critic, no reward."""

    agent_type = BCAgent

    def source(self, store: EpisodeStore) -> StackSampler:
        return StackSampler(
            store, self.config.drq, self.config.seed, 'train', next_obs=False)
