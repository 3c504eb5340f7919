"""Learning a policy inside a world model. Spec section 6."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dreamerv2_base.config import Config
from dreamerv2_base.distributions import TruncatedNormal
from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import MLP, Dense, Scope, follow
from dreamerv2_base.noise import Draws
from dreamerv2_base.optimizer import LossScale
from dreamerv2_base.rssm import State
from dreamerv2_base.tf import tf
from dreamerv2_base.world_model import (
    Metrics,
    Outputs,
    WorldModel,
    apply_all,
    gradients,
    optimizer_of,
)

# See WorldModel.imagine.
Imagined = Mapping[str, tf.Tensor]
# Maps an imagined sequence to rewards [H+1, N] and metrics.
RewardFn = Callable[[Imagined], tuple[tf.Tensor, Outputs]]


class Actor(tf.Module):
    """Features -> a normal truncated to [-1, 1]. Spec section 2."""

    def __init__(self, scope: Scope, inputs: int, action_size: int,
                 layers: int, units: int, act: str = 'elu',
                 norm: str = 'none', dist: str = 'auto',
                 min_std: float = 0.1):
        super().__init__()
        if dist not in ('auto', 'trunc_normal'):
            raise UserError(
                'actor.dist: expected auto or trunc_normal (continuous '
                f'actions), found {dist!r}; set --actor.dist auto')
        self._min_std = min_std
        self._body = MLP(scope, inputs, layers, units, act, 'none', norm,
                         outputs=action_size)
        self._std = Dense(scope / 'out_std', units, action_size)

    def __call__(self, feat: tf.Tensor) -> TruncatedNormal:
        hidden = self._body.hidden(feat)
        mean = self._body.output(hidden)
        std = tf.cast(self._std(hidden), tf.float32)
        scale = 2 * tf.sigmoid(std / 2) + self._min_std
        return TruncatedNormal(tf.tanh(mean), scale)


class StreamNorm(tf.Module):
    """Divides by a running mean of absolute values plus eps.

    Momentum 1 (every published run) leaves the magnitude at 1, so rewards
    are divided by 1 + 1e-8.
    """

    def __init__(self, scope: Scope, momentum: float, scale: float,
                 eps: float):
        super().__init__()
        self._momentum, self._scale, self._eps = momentum, scale, eps
        self.magnitude = scope.constant('magnitude', (), 1.0)

    def __call__(self, value: tf.Tensor) -> tf.Tensor:
        mean = tf.reduce_mean(tf.abs(tf.stop_gradient(value)))
        self.magnitude.assign(self._momentum * self.magnitude
                              + (1 - self._momentum) * mean)
        return value / (self.magnitude + self._eps) * self._scale


def lambda_return(reward: tf.Tensor, value: tf.Tensor, discount: tf.Tensor,
                  bootstrap: tf.Tensor, lambda_: float) -> tf.Tensor:
    """λ-returns over the leading axis. Spec section 6, step 5.

    G_t = r_t + d_t [(1 − λ) v_{t+1} + λ G_{t+1}], G_H = bootstrap.

    Args:
      reward, value, discount: [H, ...], value[t] = v_t.
      bootstrap: [...], v_H.

    Returns: [H, ...].
    """
    following = tf.concat([value[1:], bootstrap[None]], 0)
    target, returns = bootstrap, []
    for t in reversed(range(reward.shape[0])):
        mixed = (1 - lambda_) * following[t] + lambda_ * target
        target = reward[t] + discount[t] * mixed
        returns.append(target)
    return tf.stack(returns[::-1])


class ActorCritic(tf.Module):
    """Actor, critic and slow critic with their optimizers."""

    def __init__(self, config: Config, feat_size: int, action_size: int,
                 scope: Scope):
        super().__init__()
        self.config = config
        self.actor = Actor(
            scope / 'actor', feat_size, action_size, **config.actor)
        self.critic = MLP(scope / 'critic', feat_size, **config.critic)
        self.slow_critic = self.critic
        if config.slow_target:
            self.slow_critic = MLP(
                scope / 'slow_critic', feat_size, **config.critic)
            self._updates = scope.constant('slow_critic_updates', ())
        self.reward_norm = StreamNorm(
            scope / 'reward_norm', **config.reward_norm)
        self.actor_opt = optimizer_of(
            scope, 'actor', [self.actor], config.actor_opt)
        self.critic_opt = optimizer_of(
            scope, 'critic', [self.critic], config.critic_opt)
        self.actor_scale = LossScale(scope / 'actor_loss_scale', 'actor')
        self.critic_scale = LossScale(scope / 'critic_loss_scale', 'critic')

    def train(self, world_model: WorldModel, start: State, reward_fn: RewardFn,
              draws: Draws, terminal: tf.Tensor | None = None,
              ) -> tuple[Outputs, Metrics]:
        """One update of actor and critic from start states [N, ...].

        The world model is not changed; gradients of the actor flow through
        its dynamics (`actor_grad` dynamics) and through the penalty.
        """
        with tf.GradientTape() as tape:
            seq = world_model.imagine(
                self.actor, start, self.config.imag_horizon,
                draws.scope('imagine'), terminal)
            raw, outputs = self.rewards(seq, reward_fn)
            reward = self.reward_norm(raw)
            target, metrics = self.target(seq, reward)
            loss, found = self.actor_loss(seq, target)
            scaled = self.actor_scale.scale(loss)
        metrics.update(found)
        grads = gradients(tape, scaled, self.actor_opt)
        with tf.GradientTape() as tape:
            critic_loss, found = self.critic_loss(seq, target)
            scaled = self.critic_scale.scale(critic_loss)
        metrics.update(found, actor_loss=loss, critic_loss=critic_loss,
                       **_moments('reward', raw),
                       **_moments('reward_normed', reward))
        critic_grads = gradients(tape, scaled, self.critic_opt)
        applied, clipped = apply_all(
            self.actor_scale, grads, [self.actor_opt])
        metrics.update(applied)
        applied, more = apply_all(
            self.critic_scale, critic_grads, [self.critic_opt])
        metrics.update(applied)
        self.update_slow_target()
        return {**outputs, 'seq': seq, 'reward': reward, 'target': target,
                'grad_clipped': {**clipped, **more}}, metrics

    def rewards(self, seq: Imagined, reward_fn: RewardFn,
                ) -> tuple[tf.Tensor, Outputs]:
        """Rewards [H+1, N] and what `reward_fn` says beside them.

        No gradient reaches states 0 (the start is given) and H (its reward
        is part of no return), so they are taken apart from the others;
        `actor_passes` twice does not.
        """
        states = {k: v for k, v in seq.items() if k != 'entropy'}
        if self.config.actor_passes == 'twice':
            return reward_fn(states)
        # Split, not sliced: a slice's gradient is padded and added up.
        parts = {k: tf.split(v, [1, v.shape[0] - 2, 1])
                 for k, v in states.items()}
        inner, found = reward_fn({k: v[1] for k, v in parts.items()})
        ends = reward_fn({
            k: tf.stop_gradient(tf.concat([v[0], v[2]], 0))
            for k, v in parts.items()})

        def whole(inner, ends):
            return tf.concat([ends[:1], inner, ends[1:]], 0)
        return whole(inner, ends[0]), {
            key: whole(found[key], ends[1][key]) for key in found}

    def target(self, seq: Imagined, reward: tf.Tensor,
               ) -> tuple[tf.Tensor, Metrics]:
        """λ-returns [H, N] of the slow critic's values."""
        value = self._values(seq['feat'])
        target = lambda_return(
            reward[:-1], value[:-1], seq['discount'][:-1], value[-1],
            self.config.discount_lambda)
        return target, {'critic_slow': tf.reduce_mean(value),
                        'critic_target': tf.reduce_mean(target)}

    def _values(self, feat):
        """Slow critic [H+1, N]; no gradient reaches state 0 (see rewards)."""
        if self.config.actor_passes == 'twice':
            return self.slow_critic(feat).mode()
        first, later = tf.split(feat, [1, feat.shape[0] - 1])
        first = self.slow_critic(tf.stop_gradient(first)).mode()
        return tf.concat([first, self.slow_critic(later).mode()], 0)

    def actor_loss(self, seq: Imagined, target: tf.Tensor,
                   ) -> tuple[tf.Tensor, Metrics]:
        """−mean over t = 0 … H−2 of sg(weight_t)(G_{t+1} + η entropy).

        The action at index t+1 leads into state t+1, which is where its
        consequences begin: the policy at t is paired with the target at t+1.
        """
        config = self.config
        objective = self._objective(seq, target)
        entropy = self._entropy(seq)
        weight = tf.stop_gradient(seq['weight'][:-2])
        loss = -tf.reduce_mean(
            weight * (objective + config.actor_ent * entropy))
        return loss, {'actor_ent': tf.reduce_mean(entropy),
                      'actor_ent_scale': tf.constant(config.actor_ent)}

    def _entropy(self, seq):
        """Entropy of the policy in states 0 … H−2, [H−1, N].

        The rollout has evaluated the actor there (`actor_passes` once); the
        released code does so again (twice).
        """
        if self.config.actor_passes == 'once':
            return seq['entropy'][:-1]
        return self.actor(tf.stop_gradient(seq['feat'][:-2])).entropy()

    def _objective(self, seq, target):
        kind = self.config.actor_grad
        if kind in ('auto', 'dynamics'):
            return target[1:]
        advantage = target[1:]
        if self.config.slow_baseline:
            advantage -= self.slow_critic(seq['feat'][:-2]).mode()
        else:
            advantage -= self.critic(seq['feat'][:-2]).mode()
        policy = self.actor(tf.stop_gradient(seq['feat'][:-2]))
        action = tf.stop_gradient(seq['action'][1:-1])
        score = policy.log_prob(action) * tf.stop_gradient(advantage)
        if kind == 'reinforce':
            return score
        if kind != 'both':
            raise UserError(
                'actor_grad: expected auto, dynamics, reinforce or both, '
                f'found {kind!r}; set --actor_grad auto')
        mix = self.config.actor_grad_mix
        return mix * target[1:] + (1 - mix) * score

    def critic_loss(self, seq: Imagined, target: tf.Tensor,
                    ) -> tuple[tf.Tensor, Metrics]:
        """−mean over t = 0 … H−1 of sg(weight_t) log N(sg(G_t); v_t, 1)."""
        dist = self.critic(tf.stop_gradient(seq['feat'][:-1]))
        weight = tf.stop_gradient(seq['weight'][:-1])
        log_prob = dist.log_prob(tf.stop_gradient(target))
        return (-tf.reduce_mean(weight * log_prob),
                {'critic': tf.reduce_mean(dist.mode())})

    def update_slow_target(self) -> None:
        """Copy the critic at update 0 and every `slow_target_update`-th.

        By `slow_target_fraction`, at update 0 whole: the two have weights of
        their own until then.
        """
        if not self.config.slow_target:
            return
        due = tf.equal(self._updates % self.config.slow_target_update, 0)
        mix = tf.where(due, float(self.config.slow_target_fraction), 0.0)
        mix = tf.where(tf.equal(self._updates, 0), 1.0, mix)
        follow([self.slow_critic], [self.critic], mix)
        self._updates.assign_add(1.0)


def _moments(name: str, value: tf.Tensor) -> Metrics:
    return {f'{name}_mean': tf.reduce_mean(value),
            f'{name}_std': tf.math.reduce_std(value)}
