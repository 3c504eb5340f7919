"""Statistics of final returns: literal numbers, and rliable's own."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from semopo_tf.experiments import metrics

# Two seeds' means on three sets, without ties.
X = np.array([[0.9, 0.2, 0.55], [0.7, 0.4, 0.65], [0.8, 0.1, 0.5],
              [0.6, 0.3, 0.45]])
Y = np.array([[0.5, 0.35, 0.6], [0.75, 0.15, 0.4], [0.3, 0.25, 0.7],
              [0.2, 0.05, 0.35]])


@pytest.mark.parametrize(('task', 'raw', 'expected'), [
    ('walker_walk', 5.0, 0.0), ('walker_walk', 598.0, 1.0),
    ('walker_walk', 301.5, 0.5), ('cheetah_run', 82.0, 0.2),
    ('hopper_hop', 84.9, 1.0), ('humanoid_walk', 304.7, 0.5),
    ('car_racing', -82.0, 0.0), ('car_racing', 183.95, 0.5)])
def test_normalised_return(task, raw, expected):
    assert metrics.published_range(task).mean(raw) == pytest.approx(expected)


def test_a_deviation_is_not_shifted():
    assert metrics.published_range('walker_walk').std(59.3) == (
        pytest.approx(0.1))


def test_range_without_width_is_refused():
    with pytest.raises(UserError, match='smallest return below the largest'):
        metrics.Range(3.0, 3.0)


@pytest.mark.parametrize(('task', 'system', 'raw', 'expected'), [
    ('walker_walk', 'SeMOPO', (301.5, 64.3), (0.5, 0.1)),  # (64.3 − 5)/593
    ('walker_walk', 'DrQ+BC', (301.5, 59.3), (0.5, 0.1)),
    ('cheetah_run', 'LOMPO', (82.0, 1.7), (0.2, 0.0)),
    ('hopper_hop', 'SeMOPO', (84.9, 8.49), (1.0, 0.1)),
    ('car_racing', 'BC', (230.1, 120.2), (0.5, 0.25)),  # with 10.3
    ('car_racing', 'SeMOPO', (10.3, 0.0), (0.0, 10.3 / 439.6))])
def test_published_style(task, system, raw, expected):
    found = metrics.published_style(task, system, *raw)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_published_style_needs_a_published_range():
    assert metrics.published_style('cartpole_swingup', 'BC', 1, 1) is None


def test_summary():
    found = metrics.summarise([[1.0, 3.0], [5.0, 7.0]])
    assert (found.mean, found.std, found.count) == (4.0, 2.0, '2×2')
    sample = metrics.summarise([[1.0, 3.0], [5.0, 7.0]], sample=True)
    assert sample.std == pytest.approx(2.8284271)


def test_seeds_count_alike_however_many_episodes_they_have():
    found = metrics.summarise([[0.0], [6.0, 6.0, 6.0]])
    assert (found.mean, found.count) == (3.0, '1+3')


def test_one_seed_has_no_deviation():
    assert metrics.summarise([[1.0, 2.0]]).std is None


@pytest.mark.parametrize('returns', [[], [[1.0], []]])
def test_a_run_without_episodes_is_refused(returns):
    with pytest.raises(UserError, match='final episodes of every seed'):
        metrics.summarise(returns)


def test_wins_counts_ties_half():
    x, y = np.array([[1.0], [2.0]]), np.array([[1.0], [0.0]])
    assert metrics.wins(x, y) == 0.875  # ½ + 1 + 1 + 1 of 4
    assert metrics.wins(x, x) == 0.5


def test_wins_is_the_mean_over_sets():
    x, y = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert metrics.wins(x, y) == 0.5
    assert metrics.wins(x[:, :1], y[:, :1]) == 1.0


@pytest.mark.parametrize('kind', ['without ties', 'with ties', 'the same'])
def test_improvement_and_interval_are_rliables_own(kind):
    from rliable import library
    from rliable import metrics as theirs
    x, y = X, Y
    if kind == 'with ties':
        x, y = X.round(1), Y.round(1)
    if kind == 'the same':
        y = X
    with metrics.seeded(7):
        value, interval = library.get_interval_estimates(
            {'p': [x, y]}, lambda x, y: np.array(
                [theirs.probability_of_improvement(x, y)]), reps=100)
    found = metrics.probability_of_improvement(x, y, 7, resamples=100)
    assert found.value == pytest.approx(value['p'][0], abs=1e-12)
    np.testing.assert_allclose([[found.low], [found.high]], interval['p'],
                               atol=1e-12)
    assert (found.runs, found.sets) == (4, 3)
    assert found.low <= found.value <= found.high


def test_iqm_and_interval_are_rliables_own():
    from rliable import library
    from rliable import metrics as theirs
    with metrics.seeded(3):
        value, interval = library.get_interval_estimates(
            {'x': X}, lambda x: np.array([theirs.aggregate_iqm(x)]), reps=200)
    found = metrics.iqm(X, 3, resamples=200)
    assert found.value == value['x'][0]
    np.testing.assert_array_equal([[found.low], [found.high]], interval['x'])
    # Of 12 scores the middle six: .4 .45 .5 .55 .6 .65.
    assert found.value == pytest.approx(3.15 / 6)


def test_profiles_are_rliables_own():
    from rliable import library
    thresholds = np.linspace(0, 1, 11)
    with metrics.seeded(5):
        share, band = library.create_performance_profile(
            {'x': X}, thresholds, reps=100)
    found = metrics.profiles({'x': X}, thresholds, 5, resamples=100)['x']
    np.testing.assert_allclose(found.share, share['x'], atol=1e-12)
    np.testing.assert_allclose([found.low, found.high], band['x'],
                               atol=1e-12)


def test_a_profile_does_not_depend_on_the_other_systems():
    thresholds = np.linspace(0, 1, 11)
    alone, = metrics.profiles({'x': X}, thresholds, 5, 100).values()
    beside = metrics.profiles({'y': Y, 'x': X}, thresholds, 5, 100)['x']
    np.testing.assert_array_equal(beside.low, alone.low)
    np.testing.assert_array_equal(beside.high, alone.high)


def test_a_profile_counts_scores_strictly_above():
    scores = np.array([[0.0, 0.5], [0.5, 1.0]])
    np.testing.assert_allclose(metrics.above(scores, np.array(
        [-1, 0, 0.5, 0.9, 1.0])), [1, 0.75, 0.25, 0.25, 0])


def test_same_seed_same_interval_other_seed_another():
    first, again, other = (metrics.probability_of_improvement(
        X, Y, seed, resamples=50) for seed in (0, 0, 1))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_numpys_generator_is_left_as_it_was():
    before = np.random.get_state()[1].copy(), np.random.get_state()[2]
    metrics.iqm(X, resamples=10)
    after = np.random.get_state()[1], np.random.get_state()[2]
    np.testing.assert_array_equal(before[0], after[0])
    assert before[1] == after[1]


def test_generator_is_restored_after_an_error():
    before = np.random.get_state()[1].copy()
    with pytest.raises(ZeroDivisionError), metrics.seeded(0):
        _ = np.random.random() / 0
    np.testing.assert_array_equal(before, np.random.get_state()[1])
