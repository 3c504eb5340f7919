"""DrQ+CQL: DrQ-v2 with a conservative critic. Baselines 4."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dreamerv2_base.noise import Draws
from dreamerv2_base.tf import tf
from semopo_tf.baselines.drq_bc import (
    ActorCritic,
    DrQAgent,
    DrQBC,
    squared_errors,
)
from semopo_tf.baselines.drq_nets import log_prob
from semopo_tf.baselines.pixel_method import Metrics, Tensors

# By source of the actions: rand, curr_actions, next_actions.
Scores = Mapping[str, tf.Tensor]


def conservative_term(data: tf.Tensor, values: Sequence[tf.Tensor],
                      weight: float, temperature: float = 1.0) -> tf.Tensor:
    """weight · (mean_b T·logsumexp(Q/T) − mean_b Q(s_b, a_b)), [] (G9).

    Args:
      data: Q of the dataset's actions [B].
      values: what the log-sum-exp runs over, each [B, n].
    """
    scores = tf.concat(list(values), 1) / temperature
    soft_maximum = temperature * tf.reduce_logsumexp(scores, 1)
    return weight * (tf.reduce_mean(soft_maximum) - tf.reduce_mean(data))


class ConservativeActorCritic(ActorCritic):
    """Twin critic with the CQL term; actor on −mean min Q alone."""

    def critic_loss(self, features: tf.Tensor, following: tf.Tensor,
                    target: tf.Tensor, batch: Tensors, std: tf.Tensor,
                    draws: Draws) -> tuple[tf.Tensor, Metrics]:
        """Squared errors plus one conservative term per critic (baselines 4).

        All actions are scored at the current observation. Its encoding goes
        through the trunk once; the trunk's output is repeated per action.
        """
        bottleneck = self.critic.trunk(features)
        data = self.critic.scores(bottleneck, batch['action'])
        sets, densities = self.candidates(features, following, std, draws)
        scored = {name: self._several(bottleneck, actions)
                  for name, actions in sets.items()}
        loss = squared_errors(data, target)
        metrics: Metrics = {}
        for i, q in enumerate(data):
            found = {name: pair[i] for name, pair in scored.items()}
            term = conservative_term(
                q, self.compared(q, found, densities), self.drq.min_q_weight,
                self.drq.cql_temperature)
            loss += term
            label = f'critic_q{i + 1}'
            metrics |= {label: tf.reduce_mean(q), f'cql_{label}_loss': term}
            metrics |= {f'cql_{label}_{name}': tf.reduce_mean(value)
                        for name, value in found.items()}
        return loss, metrics

    def actor_loss(self, q: tf.Tensor, action: tf.Tensor,
                   batch: Tensors) -> tuple[tf.Tensor, Metrics]:
        """−mean min Q: no cloning, no normalisation, no entropy."""
        loss = -tf.reduce_mean(q)
        return loss, {'actor_loss': loss}

    def candidates(self, features: tf.Tensor, following: tf.Tensor,
                   std: tf.Tensor, draws: Draws) -> tuple[Scores, Scores]:
        """Actions [B, n, A] by source and their log-densities [B, n].

        Sites: random_actions (uniform), current_actions and next_actions
        (normal), each [B, n, A]. No gradient passes.
        """
        count = self.drq.cql_samples
        shape = (features.shape[0], count, self.action_size)
        places = {'curr': (features, 'current_actions'),
                  'next': (following, 'next_actions')}
        uniform = 2.0 * draws.uniform('random_actions', shape) - 1.0
        sets = {'rand': uniform}
        densities = {'rand': tf.fill(
            shape[:2], self.action_size * math.log(0.5))}
        for name, (place, site) in places.items():
            mean = tf.repeat(self.actor(place)[:, None], count, 1)
            action = self._sample(mean, std, site, draws)
            sets[f'{name}_actions'] = tf.stop_gradient(action)
            densities[f'{name}_actions'] = tf.stop_gradient(
                log_prob(mean, std, action))
        return sets, densities

    def _several(self, bottleneck: tf.Tensor,
                 actions: tf.Tensor) -> list[tf.Tensor]:
        """[Q1, Q2], each [B, n], of n actions per row."""
        wide = tf.repeat(bottleneck[:, None], actions.shape[1], 1)
        return self.critic.scores(wide, actions)

    def compared(self, data: tf.Tensor, found: Scores,
                 densities: Scores) -> list[tf.Tensor]:
        """What the log-sum-exp runs over: 3 n + 1 values per row (trap 10),
        or 3 n, each less its log-density, with importance sampling."""
        if self.drq.cql_importance_sample:
            return [value - densities[name] for name, value in found.items()]
        own = [data[:, None]] if self.drq.cql_dataset_action else []
        return [*own, *found.values()]


class DrQCQLAgent(DrQAgent):
    """An encoder under a conservative actor-critic."""

    head_type = ConservativeActorCritic


class DrQCQL(DrQBC):
    """DrQ+CQL; n-step returns of 1, `drq.min_q_weight` 10 as published."""

    agent_type = DrQCQLAgent
