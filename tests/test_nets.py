"""Initial values of layers. Spec section 2: Keras's defaults."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.nets import MLP, Conv, ConvTranspose, Dense, Scope


# Made in the test, not here: a variable would take a GPU while pytest collects.
@pytest.mark.parametrize(('kind', 'sizes', 'shape', 'fans'), [
    (Dense, (300, 40), (300, 40), 300 + 40),
    (Conv, (24, 40, 4), (4, 4, 24, 40), 16 * (24 + 40)),
    (ConvTranspose, (24, 40, 6), (6, 6, 40, 24), 36 * (24 + 40)),
])
def test_kernels_are_glorot_uniform_and_biases_zero(kind, sizes, shape, fans):
    layer = kind(Scope(0, 'layer'), *sizes)
    kernel, limit = layer.kernel.numpy(), np.sqrt(6 / fans)
    assert kernel.shape == shape
    assert 0.98 * limit < np.abs(kernel).max() <= limit * (1 + 1e-6)
    assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.03)
    assert kernel.mean() == pytest.approx(0, abs=0.05 * limit)
    assert layer.bias.shape == (40,)
    assert not layer.bias.numpy().any()


def test_layers_start_differently_and_by_the_seed():
    first, same, other = (
        MLP(Scope(seed, 'm'), 8, 2, 8) for seed in (0, 0, 1))
    kernels = [[layer.kernel.numpy() for layer in net._hidden]
               for net in (first, same, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert (kernels[0][0] != kernels[0][1]).all()
    assert (np.array(kernels[0]) != np.array(kernels[2])).all()
