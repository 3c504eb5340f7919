"""DrQ+BC: DrQ-v2 with a behaviour-cloning term. Baselines 3."""

from __future__ import annotations

from collections.abc import Callable

from dreamerv2_base.config import Config
from dreamerv2_base.nets import Scope, follow, variables_by_name
from dreamerv2_base.noise import Draws
from dreamerv2_base.sums import total
from dreamerv2_base.tf import tf
from semopo_tf.baselines.drq_nets import (
    Actor,
    Critic,
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


def cloning_actor_loss(q: tf.Tensor, action: tf.Tensor, data: tf.Tensor,
                       alpha: float) -> tuple[tf.Tensor, tf.Tensor]:
    """−λ̂ mean Q + mean (a − a_data)², λ̂ = α / mean |Q| (TD3+BC; G10).

    λ̂ passes no gradient. Returns the loss and the cloning term.
    """
    weight = alpha / tf.reduce_mean(tf.abs(tf.stop_gradient(q)))
    cloning = tf.reduce_mean(tf.square(action - data))
    return cloning - weight * tf.reduce_mean(q), cloning


class ActorCritic(tf.Module):
    """Actor, twin critic, target critic and their optimizers.

    Works on features [B, F] of any encoder; the encoder has no target copy.

    Args:
      drq: the group `drq` of the configuration.
      inputs, action_size: F and A.
    """

    def __init__(self, drq, inputs: int, action_size: int, scope: Scope):
        super().__init__()
        self.drq, self.action_size = drq, action_size
        sizes = (inputs, drq.feature_dim, drq.hidden_dim, action_size)
        self.actor = Actor(scope / 'actor', *sizes)
        self.critic = Critic(scope / 'critic', *sizes)
        self.critic_target = Critic(scope / 'critic_target', *sizes)
        follow([self.critic_target], [self.critic], 1.0)
        self.actor_opt, self.critic_opt = (
            TorchAdam(scope, name, variables_by_name(module), drq.lr, drq.eps)
            for name, module in (('actor', self.actor),
                                 ('critic', self.critic)))

    def learn(self, encode: Callable[[], tf.Tensor], following: tf.Tensor,
              batch: Tensors, std: tf.Tensor, draws: Draws,
              *encoder_opts: TorchAdam) -> Metrics:
        """Baselines 3.5, in this order: critic, encoder, actor, target.

        Args:
          encode: gives the features of obs [B, F]; called once, under the
            critic's tape, so that `encoder_opts` can train what it uses.
          following: features of next_obs [B, F], no gradient.
        """
        target = self.value_target(following, batch, std, draws)
        with tf.GradientTape() as tape:
            features = encode()
            loss, metrics = self.critic_loss(
                features, following, target, batch, std, draws)
        step(tape, loss, self.critic_opt, *encoder_opts)
        # The encoding from before the encoder's step, the critic from after.
        features = tf.stop_gradient(features)
        with tf.GradientTape() as tape:
            mean = self.actor(features)
            action = self._sample(mean, std, 'actor_action', draws)
            q = tf.minimum(*self.critic(features, action))
            actor_loss, more = self.actor_loss(q, action, batch)
        step(tape, actor_loss, self.actor_opt)
        follow([self.critic_target], [self.critic],
               self.drq.critic_target_tau)
        return {**metrics, 'critic_loss': loss, **more,
                **action_metrics(mean, std, action),
                'critic_target_q': tf.reduce_mean(target),
                'batch_reward': tf.reduce_mean(batch['reward'])}

    def value_target(self, following: tf.Tensor, batch: Tensors,
                     std: tf.Tensor, draws: Draws) -> tf.Tensor:
        """y = R_n + discount · min_i Q'_i(next, a'), [B].

        `draws`: site target_action, normal [B, A].
        """
        action = self._sample(
            self.actor(following), std, 'target_action', draws)
        value = tf.minimum(*self.critic_target(following, action))
        return tf.stop_gradient(
            batch['reward'] + batch['discount'] * value)

    def critic_loss(self, features: tf.Tensor, following: tf.Tensor,
                    target: tf.Tensor, batch: Tensors, std: tf.Tensor,
                    draws: Draws) -> tuple[tf.Tensor, Metrics]:
        """mean (Q1 − y)² + mean (Q2 − y)²."""
        q1, q2 = self.critic(features, batch['action'])
        return squared_errors((q1, q2), target), {
            'critic_q1': tf.reduce_mean(q1), 'critic_q2': tf.reduce_mean(q2)}

    def actor_loss(self, q: tf.Tensor, action: tf.Tensor,
                   batch: Tensors) -> tuple[tf.Tensor, Metrics]:
        """See `cloning_actor_loss`; the logged actor_loss is −mean Q."""
        loss, cloning = cloning_actor_loss(
            q, action, batch['action'], self.drq.alpha)
        return loss, {'actor_loss': -tf.reduce_mean(q),
                      'actor_bc_loss': cloning}

    def _sample(self, mean: tf.Tensor, std: tf.Tensor, site: str,
                draws: Draws) -> tf.Tensor:
        normal = draws.normal(site, mean.shape)
        return noisy_action(mean, std, self.drq.stddev_clip, normal)


def squared_errors(values, target: tf.Tensor) -> tf.Tensor:
    """Σ_i mean (Q_i − y)², []."""
    return total([tf.reduce_mean(tf.square(value - target))
                  for value in values])


class DrQAgent(tf.Module):
    """Encoder, trained by the critic's loss alone, and an actor-critic."""

    head_type = ActorCritic

    def __init__(self, config: Config, action_size: int, scope: Scope):
        super().__init__()
        self.drq = drq = config.drq
        self.encoder = PixelEncoder(
            scope / 'encoder', (drq.image_size, 3 * drq.frame_stack),
            drq_layers(drq.filters))
        self.head = self.head_type(
            drq, self.encoder.size, action_size, scope)
        self.encoder_opt = TorchAdam(
            scope, 'encoder', variables_by_name(self.encoder), drq.lr,
            drq.eps)

    def train(self, batch: Tensors, iteration: tf.Tensor,
              draws: Draws) -> Metrics:
        """One update; obs and next_obs are shifted independently."""
        obs, following = (augmented(batch[key], key, self.drq, draws)
                          for key in ('obs', 'next_obs'))
        std = schedule(self.drq.stddev_schedule, iteration)
        return self.head.learn(
            lambda: self.encoder(obs), self.encoder(following), batch, std,
            draws, self.encoder_opt)

    def act(self, images: tf.Tensor) -> tf.Tensor:
        """μ [N, A] for stacked frames uint8 [N, S, S, C]."""
        return self.head.actor(self.encoder(images))


class DrQBC(PixelMethod):
    """DrQ+BC; n-step returns of 3 in the published command."""

    agent_type = DrQAgent
