"""Every row of the penalty table (spec section 7)."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from dreamerv2_base.tf import tf
from semopo_tf import penalties
from semopo_tf.penalties import PENALTIES, penalty_by_name

K, B, S, C = 3, 2, 2, 3


def gaussian():
    rng = np.random.default_rng(0)
    return {'mean': tf.constant(rng.normal(size=(K, B, S)), tf.float32),
            'std': tf.constant(rng.uniform(.2, 1, (K, B, S)), tf.float32)}


def categorical():
    rng = np.random.default_rng(1)
    return {'logit': tf.constant(rng.normal(size=(K, B, S, C)), tf.float32)}


def plain(stats):
    """Means and variances as NumPy, latent entries flattened to one axis."""
    if 'mean' in stats:
        return stats['mean'].numpy(), stats['std'].numpy() ** 2
    probs = tf.nn.softmax(stats['logit']).numpy().reshape(K, B, -1)
    return probs, probs * (1 - probs)


EXPECTED = {
    'disagreement': lambda m, v: ((m - m.mean(0)) ** 2).sum((0, 2)),
    'mean_disagreement': lambda m, v: np.linalg.norm(
        m - m.mean(0), axis=-1).mean(0),
    'mixture_std': lambda m, v: np.sqrt(v.mean(0) + m.var(0)).mean(-1),
    'max_aleatoric': lambda m, v: np.linalg.norm(v, axis=-1).max(0),
    'max_pairwise': lambda m, v: np.linalg.norm(
        m[:, None] - m[None], axis=-1).max((0, 1)),
    'ensemble_variance': lambda m, v: (
        v.mean(0) + (m ** 2).mean(0) - m.mean(0) ** 2).sum(-1),
    'none': lambda m, v: np.zeros(B),
}


@pytest.mark.parametrize('make', [gaussian, categorical])
@pytest.mark.parametrize('name', sorted(EXPECTED))
def test_formula(name, make):
    stats = make()
    stoch = tf.zeros((B, S) if 'mean' in stats else (B, S, C))
    found = PENALTIES[name](stats, stoch)
    np.testing.assert_allclose(
        found, EXPECTED[name](*plain(stats)), rtol=1e-4, atol=1e-6)


def test_log_prob_gaussian():
    stats = gaussian()
    stoch = np.float32([[.1, .2], [.3, -.4]])
    mean, std = stats['mean'].numpy(), stats['std'].numpy()
    log_prob = (-.5 * ((stoch - mean) / std) ** 2 - np.log(std)
                - .5 * np.log(2 * np.pi)).sum(-1)
    np.testing.assert_allclose(
        penalties.log_prob(stats, stoch), log_prob.std(0), rtol=1e-5)


@pytest.mark.parametrize('make', [gaussian, categorical])
@pytest.mark.parametrize('name', sorted(PENALTIES))
def test_one_number_per_state(name, make):
    stats = make()
    stoch = tf.zeros((B, S) if 'mean' in stats else (B, S, C))
    found = PENALTIES[name](stats, stoch)
    assert found.shape == (B,)
    assert np.isfinite(found.numpy()).all()


@pytest.mark.parametrize('make', [gaussian, categorical])
@pytest.mark.parametrize('name', sorted(set(PENALTIES) - {'none'}))
def test_gradient_is_finite_where_all_members_agree(name, make):
    stats = {key: tf.Variable(tf.repeat(value[:1], K, 0))
             for key, value in make().items()}
    stoch = tf.zeros((B, S) if 'mean' in stats else (B, S, C))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(PENALTIES[name](stats, stoch))
    found = [grad for grad in tape.gradient(total, list(stats.values()))
             if grad is not None]  # means or deviations alone may count
    assert found
    for grad in found:
        assert np.isfinite(grad.numpy()).all()


@pytest.mark.parametrize('name', sorted(set(PENALTIES) - {'none'}))
def test_gradient_is_finite_where_all_members_are_sure(name):
    """The variance of a class that is certain is zero: √0 has no slope."""
    logit = tf.Variable(tf.tile([[[[100.0, 0.0, 0.0]]]], (K, B, S, 1)))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(PENALTIES[name](
            {'logit': logit}, tf.one_hot([[0, 1]] * B, C)))
    assert np.isfinite(tape.gradient(total, logit)).all()


def test_trap_3_doubling_deviations_doubles_mean_disagreement():
    stats = gaussian()
    centre = tf.reduce_mean(stats['mean'], 0, keepdims=True)
    wide = {**stats, 'mean': centre + 2 * (stats['mean'] - centre)}
    stoch = tf.zeros((B, S))
    np.testing.assert_allclose(
        penalties.mean_disagreement(wide, stoch),
        2 * penalties.mean_disagreement(stats, stoch), rtol=1e-5)


def test_gaussian_penalty_does_not_reduce_over_the_batch():
    stats = gaussian()
    whole = penalties.mean_disagreement(stats, tf.zeros((B, S)))
    alone = penalties.mean_disagreement(
        {key: value[:, :1] for key, value in stats.items()},
        tf.zeros((1, S)))
    np.testing.assert_allclose(whole[:1], alone, rtol=1e-6)


def test_released_names_are_accepted():
    assert penalty_by_name('meandis') is penalties.mean_disagreement
    assert penalty_by_name('log_prob_ens') is penalties.log_prob
    assert penalty_by_name('mixstd_mean') is penalties.mixture_std


def test_unknown_penalty_is_a_user_error():
    with pytest.raises(UserError, match='offline_penalty_type'):
        penalty_by_name('nonsense')
