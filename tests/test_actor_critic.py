"""The actor's objectives and the reward's normaliser, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dreamerv2_base.actor_critic import ActorCritic
from dreamerv2_base.nets import Scope
from dreamerv2_base.tf import tf
from semopo_tf import settings

H, N, F, A = 4, 3, 5, 2


def make(*flags):
    config, _ = settings.resolve(['--configs', 'debug', *flags])
    return ActorCritic(config, F, A, Scope(0, 'behavior'))


@pytest.fixture
def seq():
    """Features and actions of states 0 … H; action 0 is zero."""
    rng = np.random.default_rng(0)
    action = rng.uniform(-0.9, 0.9, (H + 1, N, A))
    action[0] = 0
    return {'feat': tf.constant(rng.normal(size=(H + 1, N, F)), tf.float32),
            'action': tf.constant(action, tf.float32)}


@pytest.fixture
def target():
    """λ-returns of states 0 … H−1, far from what the critics say."""
    rng = np.random.default_rng(1)
    return tf.constant(rng.uniform(2, 5, (H, N)), tf.float32)


def log_prob(policy, action):
    """Of a normal cut off at ±1, summed over its dimensions."""
    mean, std = (np.float64(x) for x in (policy.loc, policy.scale))
    below = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)))
    inside = below((1 - mean) / std) - below((-1 - mean) / std)
    terms = (-0.5 * ((action - mean) / std) ** 2 - np.log(std)
             - 0.5 * np.log(2 * np.pi) - np.log(inside))
    return terms.sum(-1)


def score(behavior, baseline, seq, target):
    """log π(a_{t+1} | s_t) (G_{t+1} − v_t), t = 0 … H−2.

    The action at index t + 1 is the one that was taken in state t.
    """
    expected = np.zeros((H - 1, N))
    for t in range(H - 1):
        policy = behavior.actor(seq['feat'][t])
        advantage = target[t + 1] - baseline(seq['feat'][t]).mode()
        expected[t] = log_prob(
            policy, seq['action'][t + 1].numpy()) * advantage.numpy()
    return expected


def objective(behavior, seq, target):
    """The objective and its gradients by target, features and critics."""
    sources = {'target': target, 'feat': seq['feat'], **{
        v.name: v for net in (behavior.critic, behavior.slow_critic)
        for v in net.variables}}
    with tf.GradientTape() as tape:
        tape.watch([target, seq['feat']])
        found = behavior._objective(seq, target)
    return found.numpy(), tape.gradient(found, sources)


@pytest.mark.parametrize('slow', ['True', 'False'])
def test_reinforce_weighs_the_score_by_the_advantage(seq, target, slow):
    behavior = make('--actor_grad', 'reinforce', '--slow_baseline', slow)
    baseline = (behavior.slow_critic if slow == 'True' else behavior.critic)
    found, slopes = objective(behavior, seq, target)
    np.testing.assert_allclose(
        found, score(behavior, baseline, seq, target), rtol=1e-4, atol=1e-5)
    # The advantage is a number: nothing is learned through it.
    assert all(slope is None for slope in slopes.values())


def test_both_mixes_the_return_with_the_score(seq, target):
    behavior = make('--actor_grad', 'both', '--actor_grad_mix', '0.25')
    found, slopes = objective(behavior, seq, target)
    reinforce = score(behavior, behavior.slow_critic, seq, target)
    np.testing.assert_allclose(
        found, 0.25 * target[1:] + 0.75 * reinforce, rtol=1e-4, atol=1e-5)
    # The dynamics' share alone is learned through the returns.
    slope = slopes.pop('target').numpy()
    np.testing.assert_allclose(slope, [[0] * N] + [[0.25] * N] * (H - 1))
    assert all(slope is None for slope in slopes.values())


def test_lambda_mixes_values_with_returns(seq):
    """Spec section 6, step 5, with λ = 0.25 and discounts of 0.8."""
    behavior = make('--discount_lambda', '.25')
    reward = np.random.default_rng(2).normal(size=(H + 1, N))
    discount = tf.fill((H + 1, N), 0.8)
    found, _ = behavior.target(
        {**seq, 'discount': discount}, tf.constant(reward, tf.float32))
    value = behavior.slow_critic(seq['feat']).mode().numpy()
    following = value[H]
    for t in reversed(range(H)):
        mixed = 0.75 * value[t + 1] + 0.25 * following
        following = reward[t] + 0.8 * mixed
        np.testing.assert_allclose(found[t], following, rtol=1e-5, atol=1e-6)


def test_stream_norm_follows_the_mean_magnitude():
    norm = make('--reward_norm.momentum', '.75', '--reward_norm.scale', '2',
                '--reward_norm.eps', '.5').reward_norm
    # Mean magnitudes 4 and 8: 0.75 · 1 + 0.25 · 4 = 1.75, then 3.3125. The
    # new magnitude divides, eps beside it.
    first = norm(tf.constant([2.0, -6.0]))
    np.testing.assert_allclose(norm.magnitude, 1.75)
    np.testing.assert_allclose(first, [2 * 2 / 2.25, -6 * 2 / 2.25])
    second = norm(tf.constant([-16.0, 0.0]))
    np.testing.assert_allclose(norm.magnitude, 3.3125)
    np.testing.assert_allclose(second, [-16 * 2 / 3.8125, 0])
