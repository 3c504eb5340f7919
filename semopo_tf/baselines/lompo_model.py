"""LOMPO's world model and its imagined transitions.

Baselines 2.2 to 2.5: a Gaussian ensemble RSSM around
Keras's GRU, losses over the rows that are real, and short rollouts of the
policy whose rewards are lowered by the ensemble's uncertainty.
"""

from __future__ import annotations

from collections.abc import Callable

from dreamerv2_base.config import Config
from dreamerv2_base.distributions import UnitNormal
from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import Scope
from dreamerv2_base.noise import Draws
from dreamerv2_base.rssm import EnsembleRSSM, State
from dreamerv2_base.tf import tf
from dreamerv2_base.world_model import (
    CLIP_REWARDS,
    Batch,
    Metrics,
    Outputs,
    WorldModel,
    flatten_time,
)
from semopo_tf import penalties

Rows = dict[str, tf.Tensor]
Actor = Callable[[tf.Tensor], tf.Tensor]


class ResetAfterGRU(tf.Module):
    """Keras's GRU cell with its defaults (`reset_after`), on plain tf.

    With x' = x W + b₀ and s' = s R + b₁, each split into the gates keep,
    reset and candidate: k = σ(x'_k + s'_k), r = σ(x'_r + s'_r),
    c = tanh(x'_c + r s'_c), and the new state is k s + (1 − k) c.
    Baselines 2.2.
    """

    def __init__(self, scope: Scope, inputs: int, size: int):
        super().__init__()
        self._dtype = scope.dtype
        self.kernel = scope.glorot('kernel', (inputs, 3 * size))
        self.recurrent_kernel = scope.orthogonal(
            'recurrent_kernel', (size, 3 * size))
        self.bias = scope.constant('bias', (2, 3 * size))

    def __call__(self, x: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        """x [N, inputs], state [N, size] -> new state [N, size]."""
        weights, recurrent, bias = (
            tf.cast(value, self._dtype)
            for value in (self.kernel, self.recurrent_kernel, self.bias))
        first, second = tf.unstack(bias)
        mine = tf.split(tf.matmul(x, weights) + first, 3, -1)
        past = tf.split(tf.matmul(state, recurrent) + second, 3, -1)
        keep = tf.sigmoid(mine[0] + past[0])
        reset = tf.sigmoid(mine[1] + past[1])
        candidate = tf.tanh(mine[2] + reset * past[2])
        return keep * state + (1 - keep) * candidate


class SharedNoise(Draws):
    """One latent noise vector per time step for all rows of a batch.

    What the released code computes (baselines 2.2): samples are
    right for each row, and perfectly correlated across the batch. Other draws
    pass unchanged.
    """

    LATENT_SITES = ('posterior', 'prior')

    def __init__(self, inner: Draws):
        self._inner = inner

    def uniform(self, site, shape):
        return self._inner.uniform(site, shape)

    def integers(self, site, shape, high):
        return self._inner.integers(site, shape, high)

    def normal(self, site, shape):
        if site.split('/')[-1] not in self.LATENT_SITES:
            return self._inner.normal(site, shape)
        time, _, size = shape
        return tf.broadcast_to(
            self._inner.normal(site, (time, 1, size)), shape)


def max_var(stats: penalties.Stats, stoch: tf.Tensor) -> tf.Tensor:
    """max_k ‖σ_k‖₂, σ the vector of standard deviations. Golden number G7."""
    squares = tf.reduce_sum(tf.square(stats['std']), -1)
    return tf.reduce_max(tf.sqrt(squares), 0)


def log_prob_variance(stats: penalties.Stats, stoch: tf.Tensor) -> tf.Tensor:
    """Population variance over k of log p_k(stoch), as the paper says."""
    return tf.square(penalties.log_prob(stats, stoch))


# By (penalty_type, penalty_spread); the second matters for log_prob alone.
PENALTIES = {
    ('log_prob', 'std'): penalties.log_prob,
    ('log_prob', 'variance'): log_prob_variance,
    ('max_var', 'std'): max_var,
    ('max_var', 'variance'): max_var,
    ('mean', 'std'): penalties.mean_disagreement,
    ('mean', 'variance'): penalties.mean_disagreement,
}


def penalty_of(settings) -> Callable[[penalties.Stats, tf.Tensor], tf.Tensor]:
    """The penalty of `lompo.penalty_type` and `lompo.penalty_spread`.

    Raises UserError for a name that does not exist.
    """
    for number, key in enumerate(('penalty_type', 'penalty_spread')):
        known = sorted({names[number] for names in PENALTIES})
        if settings[key] not in known:
            raise UserError(
                f'lompo.{key}: expected one of {", ".join(known)}, found '
                f'{settings[key]!r}; give --lompo.{key} {known[0]}')
    return PENALTIES[settings.penalty_type, settings.penalty_spread]


class LompoModel(WorldModel):
    """World model of one stream, trained on padded sequences.

    Batches hold `image` uint8 [B, T, h, w, 3], `action`, `reward` and `mask`
    [B, T], which is True for the rows that are data.
    """

    def __init__(self, config: Config, image: tuple[int, int, int],
                 action_size: int, scope: Scope):
        super().__init__(config, image, action_size, scope)
        self._penalty = penalty_of(config.lompo)

    def preprocess(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Images to [-0.5, 0.5]. There is no `is_first`: a sequence starts
        from the zero state and its first action is fed."""
        reward = tf.cast(batch['reward'], tf.float32)
        return {
            'image': tf.cast(batch['image'], self.dtype) / 255.0 - 0.5,
            'action': batch['action'],
            'is_first': tf.zeros(reward.shape, tf.bool),
            'reward': CLIP_REWARDS[self.config.clip_rewards](reward),
            'mask': batch.get('mask', tf.ones(reward.shape, tf.bool))}

    # Learning.

    def train(self, batch: Batch, draws: Draws) -> tuple[Outputs, Metrics]:
        """One gradient step on sequences [B, T]."""
        return super().train(batch, self._latent(draws))

    def loss(self, data: Batch, draws: Draws,
             ) -> tuple[tf.Tensor, Outputs, Metrics]:
        """KL(post ‖ prior) − ℓ_img − ℓ_r, means over unmasked rows.

        No free nats and no balancing. Baselines 2.3.
        """
        embed, post, prior = self.filter(data, draws)
        kl = self.rssm.get_dist(post).kl(self.rssm.get_dist(prior))
        feat = self.rssm.get_feat(post)
        image = UnitNormal(self.decode(feat), 3).log_prob(data['image'])
        reward = self.heads['reward'](feat).log_prob(data['reward'])
        real = data['mask']
        losses = {'kl': masked_mean(kl, real),
                  'image': -masked_mean(image, real),
                  'reward': -masked_mean(reward, real)}
        metrics = {f'{name}_loss': value for name, value in losses.items()}
        outputs = {'embed': embed, 'feat': feat, 'post': post,
                   'prior': prior, 'kl': kl}
        return self.weighted(losses), outputs, metrics

    # What the buffers are filled with.

    def states(self, batch: Batch, draws: Draws) -> State:
        """Sampled posterior states of sequences, [B, T, ...].

        Draw sites: posterior [T, B, S], index [T].
        """
        _, post, _ = self.filter(self.preprocess(batch), self._latent(draws))
        return post

    def generate(self, actor: Actor, batch: Batch, draws: Draws) -> Rows:
        """`rollout` from every posterior state of sequences, N = B·T.

        Starts at padded rows are rolled out too (so that shapes are fixed);
        `lompo_buffers.imagined_transitions` leaves them out. Draw sites:
        those of `states` under observe/, those of `rollout` under imagine/.
        """
        post = self.states(batch, draws.scope('observe'))
        start = {key: flatten_time(value) for key, value in post.items()}
        return self.rollout(actor, start, draws.scope('imagine'))

    def rollout(self, actor: Actor, start: State, draws: Draws) -> Rows:
        """Penalised transitions of `imag_horizon` steps from N states.

        a = clip(actor(f) + N(0, expl_amount²), −1, 1); one member of the
        ensemble, drawn for all rows, gives the next state; the reward is the
        reward head's at the next feature, minus λ u, u by all K members.
        Baselines 2.4, 2.5.

        Args:
          actor: features [N, F] -> actions [N, A] in [-1, 1].
          start: posterior states, [N, ...].
          draws: sites action [H, N, A], index [H], prior [H, N, S].

        Returns 'obs', 'next_obs' [H, N, F], 'actions' [H, N, A], 'rewards'
        (penalised), 'terminals' (0) and 'penalties' (u) [H, N].
        """
        draws = self._latent(draws)
        count, horizon = start['deter'].shape[0], self.config.imag_horizon
        expl = draws.normal('action', (horizon, count, self.action_size))
        index = draws.integers('index', (horizon,), self.rssm.ensemble)
        noise = self.rssm.noise(draws, 'prior', (horizon, count))
        state, steps = start, []
        for t in range(horizon):
            feat = self.rssm.get_feat(state)
            action = tf.clip_by_value(
                actor(feat) + self.config.lompo.expl_amount * expl[t],
                -1.0, 1.0)
            state = self.rssm.img_step(state, action, index[t], noise[t])
            steps.append((feat, action, *self._judge(state)))
        names = ('obs', 'actions', 'next_obs', 'rewards', 'penalties')
        rows = {name: tf.stack(values) for name, values in zip(
            names, zip(*steps, strict=True), strict=True)}
        return {**rows, 'terminals': tf.zeros((horizon, count))}

    def _judge(self, state: State) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Feature, penalised reward and u of states that were reached."""
        feat = self.rssm.get_feat(state)
        stats = self.rssm.ensemble_stats(state['deter'])
        penalty = self._penalty(stats, state['stoch'])
        reward = self.heads['reward'](feat).mode()
        return feat, reward - self.config.offline_lmbd * penalty, penalty

    def _latent(self, draws: Draws) -> Draws:
        return SharedNoise(draws) if self.config.lompo.shared_noise else draws

    def _rssm(self, scope: Scope) -> EnsembleRSSM:
        return EnsembleRSSM(
            scope, self.action_size, self.encoder.size, **self.config.rssm,
            loop=self.config.scan, cell=ResetAfterGRU)


def masked_mean(x: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Mean of x over the entries where `mask` is True, []."""
    weight = tf.cast(mask, x.dtype)
    return tf.reduce_sum(x * weight) / tf.reduce_sum(weight)
