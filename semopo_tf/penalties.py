"""Uncertainty of the ensemble: one function per penalty of spec section 7.

Each maps the statistics of K prior heads to u [...], one number per state.
Golden values G4 of the baselines' specification.
Statistics: {'logit': [K, ..., S, C]} for categorical latents (μ = class
probabilities), {'mean', 'std': [K, ..., S]} for Gaussian ones. `stoch` is the
state that was drawn, [..., S, C] or [..., S].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dreamerv2_base.distributions import DiagonalNormal, OneHot, safe_sqrt
from dreamerv2_base.errors import UserError
from dreamerv2_base.tf import tf

Stats = Mapping[str, tf.Tensor]


def disagreement(stats: Stats, stoch: tf.Tensor) -> tf.Tensor:
    """Σ_k ‖μ_k − μ̄‖². Paper, equation (2)."""
    return tf.reduce_sum(_squared_deviation(stats), 0)


def mean_disagreement(stats: Stats, stoch: tf.Tensor) -> tf.Tensor:
    """(1/K) Σ_k ‖μ_k − μ̄‖, the norm over all latent entries.

    The released code's `meandis` (there, Gaussian latents are reduced over the
    batch axis by mistake; here never).
    """
    return tf.reduce_mean(safe_sqrt(_squared_deviation(stats)), 0)


def log_prob(stats: Stats, stoch: tf.Tensor) -> tf.Tensor:
    """Population std over k of log p_k(stoch). The released `log_prob_ens`."""
    stoch = tf.cast(stoch, tf.float32)
    dist = (OneHot(stats['logit']) if 'logit' in stats
            else DiagonalNormal(stats['mean'], stats['std']))
    return safe_sqrt(tf.math.reduce_variance(dist.log_prob(stoch), 0))


def mixture_std(stats: Stats, stoch: tf.Tensor) -> tf.Tensor:
    """Mean over latent entries of the std of the uniform mixture.

    The released `mixstd_mean` as intended: its published form mixes members
    of unrelated states (golden value G4 tells them apart).
    """
    entry = safe_sqrt(_mean_variance(stats) + _variance_of_means(stats))
    return tf.reduce_mean(entry, _latent_axes(stats))


def max_aleatoric(stats: Stats, stoch: tf.Tensor) -> tf.Tensor:
    """max_k ‖Σ_k‖_F with Σ_k the diagonal covariance. MOPO."""
    squares = tf.reduce_sum(_variances(stats) ** 2, _latent_axes(stats))
    return tf.reduce_max(safe_sqrt(squares), 0)


def max_pairwise(stats: Stats, stoch: tf.Tensor) -> tf.Tensor:
    """max_{i,j} ‖μ_i − μ_j‖. MOPO's alternative."""
    means = _means(stats)
    axes = _latent_axes(stats)
    distances = [
        safe_sqrt(tf.reduce_sum((means[i] - means[j]) ** 2, axes))
        for i in range(means.shape[0]) for j in range(i)]
    if not distances:
        return _zeros(stats)
    return tf.reduce_max(tf.stack(distances), 0)


def ensemble_variance(stats: Stats, stoch: tf.Tensor) -> tf.Tensor:
    """Σ over entries of mean_k σ_k² + mean_k μ_k² − μ̄² (total variance)."""
    total = _mean_variance(stats) + _variance_of_means(stats)
    return tf.reduce_sum(total, _latent_axes(stats))


def none(stats: Stats, stoch: tf.Tensor) -> tf.Tensor:
    """No penalty."""
    return _zeros(stats)


PENALTIES: dict[str, Callable[[Stats, tf.Tensor], tf.Tensor]] = {
    'disagreement': disagreement,
    'mean_disagreement': mean_disagreement,
    'log_prob': log_prob,
    'mixture_std': mixture_std,
    'max_aleatoric': max_aleatoric,
    'max_pairwise': max_pairwise,
    'ensemble_variance': ensemble_variance,
    'none': none,
}

# The released code's values of --offline_penalty_type.
RELEASED_NAMES = {
    'meandis': 'mean_disagreement',
    'log_prob_ens': 'log_prob',
    'mixstd_mean': 'mixture_std',
}


def penalty_by_name(name: str) -> Callable[[Stats, tf.Tensor], tf.Tensor]:
    """The function for an `offline_penalty_type`, ours or the released one.

    Raises UserError for an unknown name.
    """
    name = RELEASED_NAMES.get(name, name)
    if name not in PENALTIES:
        known = sorted({*PENALTIES, *RELEASED_NAMES})
        raise UserError(
            f'offline_penalty_type: expected one of {", ".join(known)}, '
            f'found {name!r}; set --offline_penalty_type disagreement')
    return PENALTIES[name]


def _zeros(stats: Stats) -> tf.Tensor:
    return tf.zeros_like(tf.reduce_sum(_means(stats)[0], _latent_axes(stats)))


def _means(stats: Stats) -> tf.Tensor:
    if 'logit' in stats:
        return tf.nn.softmax(stats['logit'])
    return stats['mean']


def _variances(stats: Stats) -> tf.Tensor:
    if 'logit' in stats:
        probs = tf.nn.softmax(stats['logit'])
        return probs * (1.0 - probs)
    return stats['std'] ** 2


def _latent_axes(stats: Stats) -> list[int]:
    return [-2, -1] if 'logit' in stats else [-1]


def _squared_deviation(stats: Stats) -> tf.Tensor:
    means = _means(stats)
    deviation = means - tf.reduce_mean(means, 0, keepdims=True)
    return tf.reduce_sum(tf.square(deviation), _latent_axes(stats))


def _mean_variance(stats: Stats) -> tf.Tensor:
    return tf.reduce_mean(_variances(stats), 0)


def _variance_of_means(stats: Stats) -> tf.Tensor:
    return tf.math.reduce_variance(_means(stats), 0)
