"""Slices of frames: the same numbers, fewer of them at once."""

import numpy as np
import pytest

from dreamerv2_base.nets import ConvDecoder, Scope
from dreamerv2_base.slices import in_slices
from dreamerv2_base.tf import tf


def test_gradients_reach_inputs_and_weights():
    decoder = ConvDecoder(Scope(0, 'x'), 5, 3, 2, [5, 5, 6, 6])
    rng = np.random.default_rng(0)
    feat = tf.constant(rng.standard_normal((3, 4, 5)), tf.float32)
    image = tf.constant(rng.standard_normal((3, 4, 64, 64, 3)), tf.float32)

    def error(feat, image):
        return tf.reduce_sum(tf.square(decoder(feat) - image), [-3, -2, -1])

    @tf.function(autograph=False)
    def gradients(frames):
        value = in_slices(error, frames, feat, image)
        targets = [feat, image, *decoder.trainable_variables]
        return value, tf.gradients(tf.reduce_mean(value), targets)

    value, found = gradients(0)
    for frames in (1, 5, 6):  # 5: slices of 4, the largest that fit
        again, other = gradients(frames)
        assert again.shape == (3, 4)
        np.testing.assert_allclose(again, value, rtol=1e-6)
        for g, h in zip(found, other, strict=True):
            np.testing.assert_allclose(g, h, rtol=1e-5, atol=1e-6)
    assert max(np.abs(g).max() for g in found[2:]) > 0.01


@pytest.mark.parametrize('frames', [0, 12, 100])
def test_all_at_once_is_the_function_itself(frames):
    x = tf.ones((3, 4, 5))
    seen = []
    in_slices(lambda x: seen.append(x) or x, frames, x)
    assert seen[0] is x
