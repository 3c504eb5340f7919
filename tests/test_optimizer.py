"""Adam's arithmetic: epsilon, decay, clipping, loss scaling (trap 5)."""

from __future__ import annotations

import numpy as np

from dreamerv2_base.nets import Scope
from dreamerv2_base.optimizer import LossScale, Optimizer, global_norm
from dreamerv2_base.tf import tf


def step(value, grad, **settings):
    variable = tf.Variable([value], name='w')
    optimizer = Optimizer(Scope(0, 'o'), 'x', {'w': variable}, **settings)
    metrics, clipped = optimizer.apply({'w': tf.constant([grad])})
    return variable.numpy()[0], metrics, clipped


def test_epsilon_is_added_to_the_uncorrected_root():
    # Keras's form: lr·sqrt(1−β2)/(1−β1) · m/(sqrt(v) + eps).
    grad, lr, eps = 1e-6, 1e-3, 1e-5
    m, v = .1 * grad, .001 * grad ** 2
    expected = lr * np.sqrt(.001) / .1 * m / (np.sqrt(v) + eps)
    found, *_ = step(0.0, grad, lr=lr, eps=eps, clip=0.0)
    np.testing.assert_allclose(-found, expected, rtol=1e-4)
    corrected = lr * grad / (grad + eps)
    assert abs(corrected / expected - 1) > 0.5


def test_decay_multiplies_before_the_update_and_ignores_the_rate():
    found, *_ = step(3.0, 0.0, lr=1e-9, wd=0.01)
    np.testing.assert_allclose(found, 3.0 * 0.99, rtol=1e-6)


def test_decay_spares_no_variable():
    variables = {name: tf.Variable([2.0, -4.0], name=name)
                 for name in ('x/kernel', 'x/bias', 'x/norm/scale')}
    optimizer = Optimizer(Scope(0, 'o'), 'x', variables, lr=.1, wd=.25)
    optimizer.apply({name: tf.zeros(2) for name in variables})
    for name, variable in variables.items():
        np.testing.assert_allclose(variable, [1.5, -3.0], err_msg=name)


def test_norm_is_logged_before_clipping():
    _, metrics, clipped = step(0.0, 500.0, lr=1e-3, clip=100.0)
    np.testing.assert_allclose(metrics['x_grad_norm'], 500.0)
    np.testing.assert_allclose(clipped['w'], [100.0])


def test_unconnected_variables_decay_with_zero_gradient():
    variables = {'a': tf.Variable([1.0], name='a'),
                 'b': tf.Variable([1.0], name='b')}
    optimizer = Optimizer(Scope(0, 'o'), 'x', variables, lr=.1, wd=.5)
    optimizer.apply({'a': tf.constant([1.0]), 'b': None})
    np.testing.assert_allclose(variables['b'], [.5])
    assert variables['a'].numpy()[0] < .5


def test_loss_scale_grows_shrinks_and_skips():
    scale = LossScale(Scope(0, 's', tf.float16), 'model')
    start = float(scale.scale(tf.constant(1.0)))
    scale.update(tf.constant(False))
    assert float(scale.scale(tf.constant(1.0))) == start / 2
    for _ in range(scale.GROW_EVERY):
        metrics = scale.update(tf.constant(True))
    assert float(scale.scale(tf.constant(1.0))) == start
    assert float(metrics['model_skipped_updates']) == 1
    grads = scale.unscale({'w': tf.constant(start)})
    assert float(grads['w']) == 1.0


def test_the_loss_scale_doubles_after_so_many_finite_updates_again(
        monkeypatch):
    monkeypatch.setattr(LossScale, 'GROW_EVERY', 3)
    scale = LossScale(Scope(0, 's', tf.float16), 'model')
    found = [float(scale.update(tf.constant(number != 7))['model_loss_scale'])
             for number in range(11)]  # update 7 is not finite
    assert [value / scale.START for value in found] == [
        1, 1, 2, 2, 2, 4, 4, 2, 2, 2, 4]


def test_a_non_finite_update_changes_nothing():
    variable = tf.Variable([1.0], name='w')
    optimizer = Optimizer(
        Scope(0, 'o'), 'x', {'w': variable}, lr=.1, wd=.5)
    before = [v.numpy().copy() for v in optimizer.variables]
    optimizer.apply({'w': tf.constant([np.inf])}, tf.constant(False))
    for old, new in zip(before, optimizer.variables, strict=True):
        np.testing.assert_array_equal(old, new)
    assert variable.numpy()[0] == 1.0


def test_float32_needs_no_scale():
    scale = LossScale(Scope(0, 's'), 'model')
    assert not scale.variables
    assert float(scale.scale(tf.constant(2.0))) == 2.0


def test_global_norm():
    np.testing.assert_allclose(global_norm(
        {'a': tf.constant([3.0]), 'b': tf.constant([[4.0]])}), 5.0)
