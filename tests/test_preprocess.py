"""What a world model makes of a batch, and its discounts. Spec section 1."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.nets import Scope
from dreamerv2_base.tf import tf
from dreamerv2_base.world_model import WorldModel
from semopo_tf import doctor, settings

REWARDS = np.float32([[-3.0, 0.0, 0.5], [2.0, -0.1, 1.0]])


def made(*flags):
    config, _ = settings.resolve([
        '--configs', 'debug', '--discount', '0.9', *flags])
    return WorldModel(config, (64, 64, 3), 2, Scope(0, 'world_model'))


def preprocessed(*flags, **changes):
    batch = doctor.fake_batch(np.random.default_rng(0), 2, 3, 64, 2)
    batch.update(reward=REWARDS, **changes)
    return batch, made(*flags).preprocess(
        {key: tf.constant(value) for key, value in batch.items()})


def test_images_are_centred_and_actions_left_alone():
    batch, found = preprocessed()
    np.testing.assert_allclose(
        found['image'], batch['image'] / 255 - 0.5, atol=1e-6)
    for key in ('action', 'is_first'):
        np.testing.assert_array_equal(found[key], batch[key])


@pytest.mark.parametrize(('name', 'expected'), [
    ('identity', REWARDS), ('sign', np.sign(REWARDS)),
    ('tanh', np.tanh(REWARDS))])
def test_rewards_are_clipped_as_told(name, expected):
    _, found = preprocessed('--clip_rewards', name)
    np.testing.assert_allclose(found['reward'], expected, rtol=1e-6)


def test_discounts_are_gamma_while_it_goes_on():
    ends = np.array([[False, False, True], [False, False, False]])
    _, found = preprocessed(is_terminal=ends)
    np.testing.assert_allclose(
        found['discount'], [[0.9, 0.9, 0.0], [0.9, 0.9, 0.9]], rtol=1e-6)


def test_a_stored_discount_comes_first():
    stored = np.float32([[1.0, 0.5, 0.25], [0.0, 1.0, 1.0]])
    _, found = preprocessed(discount=stored, is_terminal=np.ones((2, 3), bool))
    np.testing.assert_allclose(found['discount'], 0.9 * stored, rtol=1e-6)


def test_imagined_discounts_are_predicted_but_the_first():
    model = made('--pred_discount', 'True')
    feat = tf.random.stateless_normal((4, 3, model.rssm.feat_size), (1, 2))
    found = model._discount(feat, tf.constant([False, True, False]))
    logit = model.heads['discount'](feat).logits.numpy()
    predicted = 1 / (1 + np.exp(-logit))
    # The states it starts from are of the data, which say where they end.
    np.testing.assert_allclose(found[0], [0.9, 0.0, 0.9], rtol=1e-6)
    np.testing.assert_allclose(found[1:], predicted[1:], rtol=1e-5)
    np.testing.assert_allclose(
        model._discount(feat, None), predicted, rtol=1e-5)
