"""SeMOPO's agent: DreamerV2 with a penalised reward in a frozen model.

Equation (2) of the paper and spec sections 6 and 7. With one stream and a
penalty it is Offline DV2 (baselines 1).
"""

from __future__ import annotations

from dreamerv2_base.actor_critic import Imagined
from dreamerv2_base.agent import Agent
from dreamerv2_base.config import Config
from dreamerv2_base.nets import Scope
from dreamerv2_base.noise import Draws
from dreamerv2_base.optimizer import Optimizer
from dreamerv2_base.tf import tf
from dreamerv2_base.world_model import Batch, Metrics, Outputs, WorldModel
from semopo_tf.penalties import penalty_by_name
from semopo_tf.separated_model import SeparatedWorldModel


class PenalizedAgent(Agent):
    """Policy learning on r̃ = R(s) − λ u(s), u the ensemble's uncertainty."""

    LAMBDA_LR = 3e-4
    KERAS_EPS = 1e-7

    def __init__(self, config: Config, image, action_size: int):
        super().__init__(config, image, action_size)
        self._penalty = penalty_by_name(config.offline_penalty_type)
        if config.offline_tune_lmbd:
            scope = Scope(config.seed, 'behavior')
            self.log_lambda = scope.constant('log_lambda', ())
            self._lambda_opt = Optimizer(
                scope, 'lambda', {'log_lambda': self.log_lambda},
                self.LAMBDA_LR, self.KERAS_EPS, clip=0.0)

    def make_world_model(self, config: Config, image: tuple[int, int, int],
                         action_size: int, scope: Scope) -> WorldModel:
        """Of two streams or of one, as `separate_wm` says."""
        kind = SeparatedWorldModel if config.separate_wm else WorldModel
        return kind(config, image, action_size, scope)

    @property
    def lambda_(self) -> tf.Tensor:
        """The weight of the penalty, []."""
        if self.config.offline_tune_lmbd:
            return tf.exp(self.log_lambda)
        return tf.constant(float(self.config.offline_lmbd))

    def uncertainty(self, seq: Imagined) -> tf.Tensor:
        """u of every imagined state, [H+1, N].

        All K heads are evaluated on deter_t: their disagreement about the
        stochastic state at t, that is about the transition into t.
        """
        stats = self.world_model.rssm.ensemble_stats(seq['deter'])
        return self._penalty(stats, seq['stoch'])

    def reward(self, seq: Imagined) -> tuple[tf.Tensor, Outputs]:
        """r̃_t = R(features_t) − λ u_t for t = 0 … H. Spec section 6."""
        reward, _ = self.model_reward(seq)
        penalty = self.uncertainty(seq)
        lambda_ = tf.stop_gradient(self.lambda_)
        return reward - lambda_ * penalty, {'penalty': penalty}

    def agent_train(self, batch: Batch, draws: Draws,
                    ) -> tuple[Outputs, Metrics]:
        """One update of actor and critic on chunks [B, T], and of λ where it
        is tuned (baselines 1.7)."""
        lambda_ = tf.identity(self.lambda_)
        outputs, metrics = super().agent_train(batch, draws)
        cost = lambda_ * tf.reduce_mean(outputs['penalty'])
        if self.config.offline_tune_lmbd:
            # Moves the mean penalty λu towards the target.
            excess = cost - float(self.config.offline_lmbd_cons)
            self._lambda_opt.apply({'log_lambda': excess})
        metrics.update({'lambda': self.lambda_, 'penalty_mean': cost})
        return outputs, metrics
