"""Golden numbers G1 to G6 of the baselines' specification, section 11."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.actor_critic import Actor, lambda_return
from dreamerv2_base.distributions import TruncatedNormal, UnitNormal
from dreamerv2_base.nets import GRUCell, Scope
from dreamerv2_base.rssm import EnsembleRSSM
from dreamerv2_base.tf import tf
from semopo_tf import penalties


def test_g1_gru_cell(S):
    cell = GRUCell(Scope(0), 3, 4)
    by_name = {v.name.split(':')[0].strip('/'): v for v in cell.variables}
    by_name['kernel'].assign(S((7, 12), .37, .1, .5))
    by_name['bias'].assign(S((12,), .9, .4, .2))
    out = cell(S((2, 3), .7, .3), S((2, 4), 1.1, .2))
    np.testing.assert_allclose(out, [
        [-0.040745, 0.299514, 0.314792, -0.096328],
        [-0.895388, -0.656219, 0.194238, 0.787894]], atol=2e-6)


def small_rssm(discrete=3, stoch=2, ensemble=3):
    return EnsembleRSSM(Scope(0), action_size=2, embed_size=4, hidden=5,
                        ensemble=ensemble, stoch=stoch, deter=6,
                        discrete=discrete)


@pytest.fixture
def g2(S):
    post = tf.Variable(np.concatenate([
        S((1, 1, 2, 3), .9, .1, 2.0), S((1, 1, 2, 3), .9, .1, .2)], 1))
    prior = tf.Variable(S((1, 2, 2, 3), 1.3, .5, 1.0))
    return post, prior


@pytest.mark.parametrize(('free', 'loss'), [
    (0.0, 1.031937), (1.0, 1.031937), (2.0, 2.0)])
def test_g2_kl_loss(g2, free, loss):
    post, prior = g2
    found, value = small_rssm().kl_loss(
        {'logit': post}, {'logit': prior}, free=free)
    np.testing.assert_allclose(value, [[1.525537, 0.538337]], atol=2e-6)
    np.testing.assert_allclose(found, loss, atol=2e-6)


def test_g2_clipping_per_element_differs(g2):
    post, prior = g2
    found, _ = small_rssm().kl_loss(
        {'logit': post}, {'logit': prior}, free=1.0, free_avg=False)
    np.testing.assert_allclose(found, 1.262769, atol=2e-6)


def test_g2_the_prior_is_pulled_harder(g2):
    post, prior = g2
    with tf.GradientTape() as tape:
        loss, _ = small_rssm().kl_loss(
            {'logit': post}, {'logit': prior}, free=0.0)
    norms = [float(tf.norm(g)) for g in tape.gradient(loss, [post, prior])]
    np.testing.assert_allclose(norms, [0.09123, 0.452155], atol=2e-6)


def test_g3_lambda_return(S):
    reward, value = S((4,), .8, .2), S((4,), .5, 1.0)
    target = lambda_return(
        tf.constant(reward[:-1]), tf.constant(value[:-1]),
        tf.fill((3,), .99), tf.constant(value[-1]), .95)
    np.testing.assert_allclose(
        target, [2.467267, 2.359619, 1.566335], atol=2e-6)


def test_g3_lambda_one_is_the_discounted_sum():
    reward = tf.constant([1.0, 2.0, 3.0])
    target = lambda_return(reward, tf.fill((3,), 7.0), tf.fill((3,), .5),
                           tf.constant(8.0), 1.0)
    np.testing.assert_allclose(target[0], 1 + .5 * 2 + .25 * 3 + .125 * 8)


def test_g4_mean_disagreement(S):
    stats = {'logit': tf.constant(S((3, 1, 1, 2, 3), .6, .2, 1.5))}
    stoch = tf.zeros((1, 1, 2, 3))
    found = penalties.mean_disagreement(stats, stoch)
    np.testing.assert_allclose(found, [[0.355410]], atol=2e-6)


def test_g4_log_prob(S):
    stats = {'logit': tf.constant(S((3, 1, 1, 2, 3), .6, .2, 1.5))}
    stoch = tf.one_hot([[[0, 2]]], 3)
    found = penalties.log_prob(stats, stoch)
    np.testing.assert_allclose(found, [[1.106919]], atol=2e-6)


def test_g4_mixture_std_as_intended_not_as_released(S):
    stats = {'logit': tf.constant(S((3, 2, 1, 2, 3), .6, .2, 1.5))}
    found = penalties.mixture_std(stats, tf.zeros((2, 1, 2, 3)))
    np.testing.assert_allclose(
        found[:, 0], [0.457194, 0.459121], atol=2e-6)
    assert np.abs(found[:, 0] - [0.468525, 0.468721]).max() > 1e-3


def test_g5_actor_head():
    actor = Actor(Scope(0), inputs=1, action_size=2, layers=0, units=1)
    names = {v.name.split(':')[0].strip('/'): v for v in actor.variables}
    names['out/bias'].assign([.3, -1.2])
    names['out_std/bias'].assign([.5, -.7])
    dist = actor(tf.zeros((1, 1)))
    np.testing.assert_allclose(dist.scale, [[1.224353, .926765]], atol=2e-6)
    np.testing.assert_allclose(dist.mode(), [[.291313, -.833655]], atol=2e-6)
    np.testing.assert_allclose(dist.entropy(), [1.257094], atol=2e-6)
    np.testing.assert_allclose(
        dist.log_prob(tf.constant([[.1, -.2]])), [-1.050300], atol=2e-6)


def test_g6_image_likelihood():
    image = tf.zeros((1, 64, 64, 3))
    np.testing.assert_allclose(
        -UnitNormal(image, 3).log_prob(image), [11291.93], atol=.02)


def test_truncated_normal_samples_follow_their_density():
    # Empirical frequencies of inverse-CDF draws against the log-density.
    loc, scale = tf.constant([[0.6]]), tf.constant([[0.5]])
    dist = TruncatedNormal(loc, scale)
    uniform = tf.constant((np.arange(20000) + .5) / 20000, tf.float32)
    draws = dist.sample(uniform[:, None]).numpy()[:, 0]
    assert draws.min() > -1
    assert draws.max() < 1
    counts, edges = np.histogram(draws, 40, (-1, 1))
    middle = tf.constant((edges[1:] + edges[:-1])[:, None] / 2, tf.float32)
    expected = np.exp(dist.log_prob(middle)) * 20000 * 0.05
    np.testing.assert_allclose(counts, expected, rtol=.02, atol=6)


@pytest.mark.parametrize(('loc', 'level', 'edge'), [
    (0.9, 0.9999999, 0.999999), (-0.9, 1e-7, -0.999999)])
def test_a_sample_at_the_edge_is_clipped_and_keeps_its_slope(
        loc, level, edge):
    """Spec section 2: to ±(1 − 1e-6), with a straight-through gradient."""
    dist = TruncatedNormal(tf.constant([[loc]]), tf.constant([[0.5]]))
    uniform = tf.constant([[level]])
    with tf.GradientTape() as tape:
        tape.watch(uniform)
        found = dist.sample(uniform)
    np.testing.assert_allclose(found, [[edge]], rtol=0, atol=1e-7)
    # One over the density at 1: 0.5 (Φ(0.2) − Φ(−3.8)) / φ(0.2).
    np.testing.assert_allclose(
        tape.gradient(found, uniform), [[0.740567]], rtol=1e-4)


def test_initial_layer_sizes():
    """G13: encoder 31, 14, 6, 2 and decoder 5, 13, 30, 64 pixels."""
    from dreamerv2_base.nets import ConvDecoder, Encoder
    encoder = Encoder(Scope(0), (64, 64, 3), 2, [4, 4, 4, 4])
    assert encoder.size == 2 * 2 * 8 * 2
    decoder = ConvDecoder(Scope(0), 3, 6, 2, [5, 5, 6, 6])
    assert decoder(tf.zeros((2, 3))).shape == (2, 64, 64, 6)
