"""LOMPO's policy: a deterministic actor under twin critics.

Baselines 2.6. The paper says SAC; there is no entropy,
no log-probability and no noise on target actions.
"""

from __future__ import annotations

from collections.abc import Mapping

from dreamerv2_base.config import Config
from dreamerv2_base.nets import MLP, Scope, follow, variables_by_name
from dreamerv2_base.noise import Draws
from dreamerv2_base.optimizer import Optimizer
from dreamerv2_base.sums import total
from dreamerv2_base.tf import tf
from dreamerv2_base.world_model import Metrics, gradients

# 'obs', 'next_obs' [N, F], 'actions' [N, A], 'rewards', 'terminals' [N].
Rows = Mapping[str, tf.Tensor]
CRITICS = ('q1', 'q2')


class LompoAgent(tf.Module):
    """Actor, two critics, their targets and two optimizers.

    Args:
      config: the resolved configuration.
      feat_size, action_size: F and A.
      scope: `behavior` by convention.
    """

    def __init__(self, config: Config, feat_size: int, action_size: int,
                 scope: Scope):
        super().__init__()
        self.config, self.action_size = config, action_size
        self.actor_network = _network(
            scope / 'actor', feat_size, config.actor, action_size)
        inputs = feat_size + action_size
        self.critics = [_network(scope / name, inputs, config.critic)
                        for name in CRITICS]
        self.targets = [_network(scope / f'target_{name}', inputs,
                                 config.critic) for name in CRITICS]
        if not config.lompo.random_targets:
            follow(self.targets, self.critics, 1.0)
        self._critic_opt = Optimizer(
            scope, 'q', variables_by_name(*self.critics), **config.critic_opt)
        self._actor_opt = Optimizer(
            scope, 'actor', variables_by_name(self.actor_network),
            **config.actor_opt)

    def actor(self, feat: tf.Tensor) -> tf.Tensor:
        """The action in [-1, 1] for features [..., F]: [..., A]."""
        return tf.tanh(self.actor_network(feat))

    def train(self, rows: Rows, draws: Draws,
              ) -> tuple[dict[str, dict[str, tf.Tensor]], Metrics]:
        """One update; the first half of the rows is data, the rest imagined.

        Both gradients are taken before either step, so the actor's sees the
        critics as they were. Then critics, actor, targets.

        Args:
          draws: site uniform_action [C, N, A], read where `lompo.alpha` > 0.

        Returns the clipped gradients by optimizer (q, actor) and metrics.
        """
        uniform = None
        if self.config.lompo.alpha:
            shape = (self.config.lompo.cql_samples, *rows['actions'].shape)
            uniform = 2.0 * draws.uniform('uniform_action', shape) - 1.0
        with tf.GradientTape() as tape:
            q_loss, metrics = self.critic_loss(rows, uniform)
        q_grads = gradients(tape, q_loss, self._critic_opt)
        with tf.GradientTape() as tape:
            actor_loss = self.actor_loss(rows['obs'])
        actor_grads = gradients(tape, actor_loss, self._actor_opt)
        q_metrics, q_clipped = self._critic_opt.apply(q_grads)
        actor_metrics, actor_clipped = self._actor_opt.apply(actor_grads)
        follow(self.targets, self.critics, self.config.lompo.tau)
        return {'q': q_clipped, 'actor': actor_clipped}, {
            'q_loss': q_loss, 'actor_loss': actor_loss, **metrics,
            **q_metrics, **actor_metrics}

    def critic_loss(self, rows: Rows, uniform: tf.Tensor | None,
                    ) -> tuple[tf.Tensor, Metrics]:
        """Σ_i mean (Q_i − y)² + α CQL_i, with
        y = r + γ (1 − d) min_i Q'_i(s', actor(s')).

        `uniform` are the actions [C, N, A] of the CQL term; None leaves it
        out (α = 0, as released).
        """
        following = self.actor(rows['next_obs'])
        future = _lowest(self.targets, rows['next_obs'], following)
        target = tf.stop_gradient(
            rows['rewards'] + self.config.discount
            * (1.0 - rows['terminals']) * future)
        values = [score(critic, rows['obs'], rows['actions'])
                  for critic in self.critics]
        errors = [tf.reduce_mean(tf.square(v - target)) for v in values]
        loss = total(errors)
        metrics = {'q_mean': tf.reduce_mean(values[0]),
                   'target_mean': tf.reduce_mean(target)}
        if uniform is not None:
            metrics['cql'] = total([
                self._conservative(critic, rows['obs'], value, uniform)
                for critic, value in zip(self.critics, values, strict=True)])
            loss += self.config.lompo.alpha * metrics['cql']
        return loss, metrics

    def actor_loss(self, feat: tf.Tensor) -> tf.Tensor:
        """−mean min_i Q_i(s, actor(s)), []."""
        return -tf.reduce_mean(
            _lowest(self.critics, feat, self.actor(feat)))

    def _conservative(self, critic: MLP, feat: tf.Tensor, value: tf.Tensor,
                      uniform: tf.Tensor) -> tf.Tensor:
        """mean logsumexp Q over uniform and policy actions − mean Q on data.

        The published weight of this term is 0.
        """
        policy = tf.stop_gradient(self.actor(feat))[None]
        actions = tf.concat([uniform, policy], 0)
        count = actions.shape[0]
        values = score(critic, tf.repeat(feat[None], count, 0), actions)
        data = value[:value.shape[0] // 2]
        return (tf.reduce_mean(tf.reduce_logsumexp(values, 0))
                - tf.reduce_mean(data))


def score(critic: MLP, feat: tf.Tensor, action: tf.Tensor) -> tf.Tensor:
    """Q of features [..., F] and actions [..., A], shape [...]."""
    return critic(tf.concat([feat, action], -1))


def _lowest(critics: list[MLP], feat: tf.Tensor,
            action: tf.Tensor) -> tf.Tensor:
    """min_i Q_i, [...]."""
    return tf.reduce_min(
        tf.stack([score(critic, feat, action) for critic in critics]), 0)


def _network(scope: Scope, inputs: int, settings,
             outputs: int | None = None) -> MLP:
    return MLP(scope, inputs, settings.layers, settings.units, settings.act,
               'none', settings.norm, outputs)
