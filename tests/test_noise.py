"""Draws: repeatable, one stream per site, recorded ones replayed."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.noise import (
    CounterDraws,
    RecordedDraws,
    RecordingDraws,
    fold,
    generator,
)
from dreamerv2_base.tf import tf

SITES = ('endo/posterior', 'endo/prior', 'exo/posterior', 'imagine/action')


def draw(seed, purpose, step, site):
    return CounterDraws(seed, purpose, tf.constant(step, tf.int64)).uniform(
        site, (64,)).numpy()


def test_same_arguments_same_numbers():
    np.testing.assert_array_equal(
        draw(0, 'model', 5, 'a'), draw(0, 'model', 5, 'a'))


def test_no_two_draws_share_numbers():
    seen = [draw(seed, purpose, step, site)
            for seed in (0, 1) for purpose in ('model', 'agent')
            for step in (0, 1, 2 ** 40) for site in SITES]
    firsts = {float(array[0]) for array in seen}
    assert len(firsts) == len(seen)
    # No array is a shifted copy of another either.
    values = np.concatenate(seen)
    assert len(np.unique(values)) > len(values) - 3


def test_graph_and_eager_agree():
    compiled = tf.function(lambda step: CounterDraws(3, 's', step).normal(
        'x', (5,)))
    step = tf.constant(7, tf.int64)
    np.testing.assert_array_equal(
        compiled(step), CounterDraws(3, 's', step).normal('x', (5,)))


def test_a_site_is_used_once_per_update():
    draws = CounterDraws(0, 's', tf.constant(0, tf.int64))
    draws.scope('a').uniform('x', (2,))
    with pytest.raises(ValueError, match='drawn twice'):
        draws.uniform('a/x', (2,))


def test_uniforms_leave_the_gumbel_finite():
    u = CounterDraws(0, 's', tf.constant(0, tf.int64)).uniform('x', (10 ** 6,))
    gumbel = -np.log(-np.log(u.numpy().astype(np.float64)))
    assert np.isfinite(gumbel).all()
    assert u.numpy().max() < 1.0


def test_integers_are_uniform():
    found = CounterDraws(0, 's', tf.constant(0, tf.int64)).integers(
        'x', (70000,), 7).numpy()
    counts = np.bincount(found, minlength=7)
    assert counts.shape == (7,)
    assert abs(counts - 10000).max() < 500


def test_recorded_draws_are_checked():
    draws = RecordedDraws({'a/x': np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(
        draws.scope('a').normal('x', (2, 3)), np.ones((2, 3)))
    with pytest.raises(ValueError, match='shape'):
        draws.normal('a/x', (3, 2))
    with pytest.raises(KeyError, match='a/y'):
        draws.normal('a/y', (2,))


def test_recording_keeps_what_was_drawn():
    keep = RecordingDraws(CounterDraws(0, 's', tf.constant(0, tf.int64)))
    value = keep.scope('a').uniform('x', (3,))
    np.testing.assert_array_equal(keep.arrays['a/x'], value)


def test_fold_and_generator_depend_on_every_name():
    assert len({fold(0, 'a'), fold(1, 'a'), fold(0, 'b'),
                fold(0, 'a', 'b')}) == 4
    assert generator(0, 'a').random() == generator(0, 'a').random()
    assert generator(0, 'a').random() != generator(0, 'b').random()
