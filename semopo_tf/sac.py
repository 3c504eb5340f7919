"""Soft actor-critic on state vectors: for MOPO and for behaviour policies.

Baselines 8.3. A Gaussian policy squashed by tanh, two
critics with targets, a learned temperature. Nothing here knows where a batch
comes from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import MLP, Scope, follow, variables_by_name
from dreamerv2_base.noise import Draws
from dreamerv2_base.optimizer import Optimizer
from dreamerv2_base.sums import gradient, total
from dreamerv2_base.tf import tf

# 'state', 'next_state' [N, S], 'action' [N, A], 'reward', 'terminal' [N].
Transitions = Mapping[str, tf.Tensor]
Metrics = dict[str, tf.Tensor]

LOG_STD_RANGE = (-20.0, 2.0)
RELEASED_TARGET_ENTROPY = -3.0  # MOPO: for every task, whatever its actions


class SAC(tf.Module):
    """Policy, twin critics, their targets, temperature and optimizers.

    Args:
      settings: the configuration's group `sac` (layers, units, act, lr, eps,
        discount, tau, target_entropy).
      state_size, action_size: S and A.
      scope: place of the variables, `sac` by convention.

    Raises UserError for an unknown `target_entropy`.
    """

    def __init__(self, settings, state_size: int, action_size: int,
                 scope: Scope):
        super().__init__()
        self.settings = settings
        self.action_size = action_size
        self.target_entropy = target_entropy(settings, action_size)
        self.policy = self._network(
            scope / 'policy', state_size, 2 * action_size)
        inputs = state_size + action_size
        self.critics = [self._network(scope / f'q{i}', inputs)
                        for i in (1, 2)]
        self.targets = [self._network(scope / f'target_q{i}', inputs)
                        for i in (1, 2)]
        self.log_alpha = scope.constant('log_alpha', ())
        follow(self.targets, self.critics, 1.0)
        self._optimizers = {
            'q': self._optimizer(scope, 'q', variables_by_name(
                *self.critics)),
            'policy': self._optimizer(scope, 'policy', variables_by_name(
                self.policy)),
            'alpha': self._optimizer(scope, 'alpha', {
                'log_alpha': self.log_alpha})}

    def act(self, state: tf.Tensor, draws: Draws | None,
            deterministic: bool) -> tf.Tensor:
        """Actions [N, A] in (-1, 1) for states [N, S].

        Deterministic ones are tanh of the mean; others use the site
        `action` [N, A] (`draws` may be None where it is not read).
        """
        if deterministic:
            return tf.tanh(self._gaussian(state)[0])
        if draws is None:
            raise ValueError('act: expected draws for sampled actions, found '
                             'None')
        noise = draws.normal('action', (state.shape[0], self.action_size))
        return self.sample(state, noise)[0]

    def sample(self, state: tf.Tensor, noise: tf.Tensor,
               ) -> tuple[tf.Tensor, tf.Tensor]:
        """Actions tanh(μ + σ·noise) [N, A], log π of them [N].

        log π(a) = Σ_d log N(x_d; μ_d, σ_d) − log(1 − tanh² x_d), the last
        term as 2 (log 2 − x − softplus(−2x)), which stays finite.
        """
        mean, log_std = self._gaussian(state)
        raw = mean + tf.exp(log_std) * noise
        density = (-0.5 * tf.square(noise) - log_std
                   - 0.5 * math.log(2.0 * math.pi))
        squash = 2.0 * (math.log(2.0) - raw - tf.nn.softplus(-2.0 * raw))
        return tf.tanh(raw), tf.reduce_sum(density - squash, -1)

    def update(self, batch: Transitions, draws: Draws) -> Metrics:
        """One update of critics, policy and temperature, then the targets.

        All three gradients are taken at the weights of before; the released
        graph leaves the order open.

        Args:
          batch: see `Transitions`, float32; terminal is 0 or 1.
          draws: sites `next_action` and `action`, normal [N, A].
        """
        shape = batch['action'].shape
        after = draws.normal('next_action', shape)
        now = draws.normal('action', shape)
        losses = {}
        with tf.GradientTape(persistent=True) as tape:
            losses['q'], metrics = self.critic_loss(batch, after)
            losses['policy'], log_pi = self.policy_loss(batch['state'], now)
            losses['alpha'] = self.temperature_loss(log_pi)
        grads = {
            name: gradient(tape, losses[name], optimizer.targets)
            for name, optimizer in self._optimizers.items()}
        del tape
        metrics['alpha'] = tf.exp(self.log_alpha)
        metrics['entropy'] = -tf.reduce_mean(log_pi)
        for name, optimizer in self._optimizers.items():
            metrics.update(optimizer.apply(grads[name])[0])
            metrics[f'{name}_loss'] = losses[name]
        follow(self.targets, self.critics, self.settings.tau)
        return metrics

    def critic_loss(self, batch: Transitions, noise: tf.Tensor,
                    ) -> tuple[tf.Tensor, Metrics]:
        """Σ_i ½ mean (Q_i(s, a) − y)², with
        y = r + γ (1 − d) (min_i Q'_i(s', a') − α log π(a'|s')), a' ~ π.
        """
        action, log_pi = self.sample(batch['next_state'], noise)
        future = tf.minimum(*self._values(
            self.targets, batch['next_state'], action))
        future -= tf.exp(self.log_alpha) * log_pi
        alive = self.settings.discount * (1.0 - batch['terminal'])
        goal = tf.stop_gradient(batch['reward'] + alive * future)
        values = self._values(self.critics, batch['state'], batch['action'])
        loss = 0.5 * total([
            tf.reduce_mean(tf.square(value - goal)) for value in values])
        return loss, {'q_mean': tf.reduce_mean(values[0]),
                      'q_target': tf.reduce_mean(goal)}

    def policy_loss(self, state: tf.Tensor, noise: tf.Tensor,
                    ) -> tuple[tf.Tensor, tf.Tensor]:
        """mean (α log π(a|s) − min_i Q_i(s, a)), a ~ π; and log π [N]."""
        action, log_pi = self.sample(state, noise)
        value = tf.minimum(*self._values(self.critics, state, action))
        weight = tf.stop_gradient(tf.exp(self.log_alpha))
        return tf.reduce_mean(weight * log_pi - value), log_pi

    def temperature_loss(self, log_pi: tf.Tensor) -> tf.Tensor:
        """−log α · mean(log π + target entropy), [].

        α grows while the entropy −log π is below its target.
        """
        surplus = tf.stop_gradient(log_pi) + self.target_entropy
        return -self.log_alpha * tf.reduce_mean(surplus)

    def _gaussian(self, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        mean, log_std = tf.split(self.policy(state), 2, -1)
        return mean, tf.clip_by_value(log_std, *LOG_STD_RANGE)

    def _values(self, critics: list[MLP], state: tf.Tensor,
                action: tf.Tensor) -> list[tf.Tensor]:
        inputs = tf.concat([state, action], -1)
        return [critic(inputs) for critic in critics]

    def _network(self, scope: Scope, inputs: int,
                 outputs: int | None = None) -> MLP:
        settings = self.settings
        return MLP(scope, inputs, settings.layers, settings.units,
                   settings.act, 'none', outputs=outputs)

    def _optimizer(self, scope: Scope, name: str,
                   variables: Mapping[str, tf.Variable]) -> Optimizer:
        return Optimizer(scope, name, variables, self.settings.lr,
                         self.settings.eps, clip=0.0)


def target_entropy(settings, action_size: int) -> float:
    """The entropy that the temperature aims at, in nats.

    `released` is MOPO's −3 for every task (trap 21), `dimension` the usual
    −A. Raises UserError for another value.
    """
    known = {'released': RELEASED_TARGET_ENTROPY,
             'dimension': -float(action_size)}
    if settings.target_entropy not in known:
        raise UserError(
            f'sac.target_entropy: expected one of {", ".join(known)}, found '
            f'{settings.target_entropy!r}; give --sac.target_entropy '
            'dimension')
    return known[settings.target_entropy]
