"""The recurrence, its loop and the ensemble."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.nets import Scope, variables_by_name
from dreamerv2_base.noise import CounterDraws
from dreamerv2_base.rssm import EnsembleRSSM
from dreamerv2_base.tf import tf

B, T, A, E = 3, 5, 2, 4


def make(discrete=3, loop='while', ensemble=7):
    return EnsembleRSSM(Scope(0, 'rssm'), A, E, ensemble, 2, 6, 5, discrete,
                        loop=loop)


def data(first=()):
    rng = np.random.default_rng(0)
    is_first = np.zeros((B, T), bool)
    is_first[:, 0] = True
    for row, t in first:
        is_first[row, t] = True
    return (tf.constant(rng.normal(size=(B, T, E)), tf.float32),
            tf.constant(rng.uniform(-1, 1, (B, T, A)), tf.float32),
            tf.constant(is_first))


def draws(step=0):
    return CounterDraws(0, 'test', tf.constant(step, tf.int64))


def observe(rssm, inputs, step=0):
    return tf.function(
        lambda *x: rssm.observe(*x, draws(step)))(*inputs)


def loss_and_grads(rssm, inputs):
    @tf.function
    def run(*inputs):
        with tf.GradientTape() as tape:
            post, prior = rssm.observe(*inputs, draws())
            loss, _ = rssm.kl_loss(post, prior, free=0.0)
            loss += tf.reduce_sum(rssm.get_feat(post) ** 2)
        variables = variables_by_name(rssm)
        return loss, tape.gradient(loss, variables)
    return run(*inputs)


@pytest.mark.parametrize('discrete', [0, 3])
def test_loop_and_unrolled_copies_give_the_same_gradients(discrete):
    loss, grads = loss_and_grads(make(discrete), data())
    loss2, grads2 = loss_and_grads(make(discrete, 'unroll'), data())
    np.testing.assert_allclose(loss, loss2, rtol=1e-6)
    for name in grads:
        np.testing.assert_allclose(
            grads[name], grads2[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_trap_2_one_member_learns_from_one_step():
    # T = 1: the gradient is exactly zero on all members but the drawn one.
    inputs = tuple(x[:, :1] for x in data())
    _, grads = loss_and_grads(make(), inputs)
    moved = [k for k in range(7) if np.abs(
        grads[f'rssm/img_dist_{k}/bias']).max() > 0]
    assert len(moved) == 1


def test_is_first_forgets_state_and_action():
    rssm = make()
    embed, action, first = data(first=[(1, 2)])
    post, _ = observe(rssm, (embed, action, first))
    changed = tf.concat([embed[:, :2] + 5, embed[:, 2:]], 1)
    acted = tf.concat([action[:, :3] * -1, action[:, 3:]], 1)
    other, _ = observe(rssm, (changed, acted, first))
    same = np.isclose(post['deter'], other['deter']).all((1, 2))
    np.testing.assert_array_equal(same, [False, False, False])
    np.testing.assert_allclose(  # row 1 starts anew at t = 2
        post['deter'][1, 2:], other['deter'][1, 2:], atol=1e-6)


def test_member_statistics_are_those_of_the_ensemble():
    rssm = make()
    deter = tf.random.stateless_normal((T, B, 6), (1, 2))
    every = rssm.ensemble_stats(deter)['logit']
    assert every.shape == (7, T, B, 2, 3)
    index = tf.constant([0, 6, 3, 3, 1])
    some = rssm.member_stats(deter, index)['logit']
    for t, k in enumerate(index.numpy()):
        np.testing.assert_allclose(some[t], every[k, t], atol=1e-6)


def test_every_imagined_step_has_a_member_of_its_own():
    rssm = make()
    action = tf.random.stateless_uniform((B, T, A), (3, 4), -1, 1)
    found = rssm.imagine(action, rssm.initial(B), draws())
    index = draws().integers('index', (T,), 7).numpy()
    assert len(set(index)) > 2
    for t, k in enumerate(index):
        every = rssm.ensemble_stats(found['deter'][:, t])['logit']
        np.testing.assert_allclose(
            found['logit'][:, t], every[k], atol=1e-6)


def test_state_is_carried_between_calls():
    rssm = make(discrete=0)
    embed, action, first = data()
    quiet = tf.zeros_like(first)
    whole, _ = rssm.observe(embed, action, quiet, draws(), sample=False)
    head, _ = rssm.observe(embed[:, :2], action[:, :2], quiet[:, :2],
                           draws(1), sample=False)
    last = {key: value[:, -1] for key, value in head.items()}
    tail, _ = rssm.observe(embed[:, 2:], action[:, 2:], quiet[:, 2:],
                           draws(2), last, sample=False)
    np.testing.assert_allclose(
        whole['deter'][:, 2:], tail['deter'], atol=1e-6)


@pytest.mark.parametrize(('name', 'function'), [
    ('softplus', lambda raw: np.log1p(np.exp(raw))),
    ('sigmoid', lambda raw: 1 / (1 + np.exp(-raw))),
    ('sigmoid2', lambda raw: 2 / (1 + np.exp(-raw / 2)))])
@pytest.mark.parametrize('floor', [0.1, 0.5])
def test_deviations_of_gaussian_latents(name, function, floor):
    """std = f(raw) + min_std. Spec section 2."""
    rssm = EnsembleRSSM(Scope(0, 'rssm'), A, E, 1, 2, 6, 5, 0,
                        std_act=name, min_std=floor)
    raw = np.float32([[-2.0, 0.3], [1.0, 4.0]])
    mean = np.float32([[5.0, 6.0], [7.0, 8.0]])
    found = rssm._named(rssm._stats(tf.constant(
        np.concatenate([mean, raw], 1))))
    np.testing.assert_array_equal(found['mean'], mean)
    np.testing.assert_allclose(
        found['std'], function(raw) + floor, rtol=1e-5)


def test_gaussian_std_has_its_floor():
    post, prior = observe(make(discrete=0), data())
    for state in (post, prior):
        assert state['std'].numpy().min() > 0.1
        assert state['std'].numpy().max() < 2.1
