"""Conservative sampling: windows, orders, the released quirks."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from dreamerv2_base.replay import ChunkSampler
from semopo_tf import settings
from semopo_tf.conservative import (
    collapse_equal_returns,
    order_episodes,
    paper_window,
    released_window,
    schedule_from,
)

UPDATES = 25_100  # of the released model phase: 25,001 asked, 251 blocks


def config(**changes):
    """The released settings of the keys that matter here."""
    keys = {'sampling_epoch_updates': 1, 'sampling_start': 10,
            'sampling_grow_updates': 100, 'sampling_cap_last': True,
            'sampling_collapse_equal': True, 'sort_rewards': True,
            'reverse': False, 'offline_model_train_steps': 25_001, **changes}
    replay = SimpleNamespace(sort_rewards=keys.pop('sort_rewards'),
                             reverse=keys.pop('reverse'))
    return SimpleNamespace(replay=replay, **keys)


@dataclasses.dataclass
class Store:
    """Returns of n episodes; what ChunkSampler reads."""

    returns: np.ndarray

    def __post_init__(self):
        self.returns = np.asarray(self.returns, float)
        self.rows = np.full(len(self.returns), 501)
        self.names = [f'{i:04}.npz' for i in range(len(self.returns))]

    def __len__(self):
        return len(self.returns)


# The windows.


def test_paper_window_is_min_m_n():
    assert [paper_window(step, 4) for step in range(7)] == [
        1, 2, 3, 4, 4, 4, 4]
    assert [paper_window(step, 4, epoch_updates=3) for step in range(12)] == [
        1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


def test_released_window_of_400_episodes_reaches_260():
    # Trap 19. Spec section 8: 260 are reached.
    windows = [released_window(step, 400) for step in range(UPDATES)]
    assert (windows[0], windows[99], windows[100]) == (10, 10, 11)
    assert np.unique(np.diff(windows)).tolist() == [0, 1]
    assert max(windows) == windows[-1] == 260
    # The counter after the last block (baselines 10.6).
    assert released_window(UPDATES, 400) == 261


@pytest.mark.parametrize(('count', 'growth'), [
    (9, 1), (250, 1), (400, 1), (500, 1), (501, 2), (750, 2), (1000, 3)])
def test_released_growth(count, growth):
    # max(⌊n·100 / 25,001⌋, 1) = 1 for n up to 500 (baselines 10.6).
    grown = released_window(100, count, start=1, cap_last=False) - 1
    assert grown == growth


@pytest.mark.parametrize('count', [2, 5, 10, 11, 200])
def test_released_window_leaves_out_the_last_one(count):
    assert released_window(10 ** 6, count) == count - 1
    assert released_window(10 ** 6, count, cap_last=False) == count


def test_a_window_is_never_empty():
    assert released_window(0, 1) == 1
    assert paper_window(0, 1) == 1


# The orders.


def test_orders():
    returns = np.array([3.0, 1.0, 2.0, 1.0])
    loaded = np.arange(4)
    found = {(by_return, reverse): order_episodes(
        loaded, returns, by_return, reverse).tolist()
        for by_return in (False, True) for reverse in (False, True)}
    assert found == {(False, False): [0, 1, 2, 3],
                     (False, True): [3, 2, 1, 0],
                     (True, False): [1, 3, 2, 0],
                     (True, True): [0, 2, 3, 1]}


def test_equal_returns_stay_in_the_order_of_loading():
    loaded = np.random.default_rng(0).permutation(60)
    found = order_episodes(loaded, np.zeros(60), True, False)
    np.testing.assert_array_equal(found, loaded)


def by_dictionary(order, returns):
    """Which episodes a dictionary keyed by return holds."""
    return set({returns[i]: i for i in order}.values())


@pytest.mark.parametrize('reverse', [False, True])
def test_equal_returns_collapse_as_in_a_dictionary(reverse):
    returns = np.array([0, 5, 0, 2, 5, 0, 0, 1.0])
    found = schedule_from(config(reverse=reverse), 'released',
                          Store(returns))
    kept = by_dictionary(np.arange(8), returns)
    assert set(found.order) == kept
    assert list(returns[found.order]) == sorted(
        set(returns), reverse=reverse)
    assert found.collapsed == 4
    assert kept == {6, 7, 3, 4}  # the last of equal ones


def test_nearly_equal_returns_do_not_collapse():
    returns = np.array([1.0, np.nextafter(1.0, 2.0)])
    assert len(collapse_equal_returns(np.arange(2), returns)) == 2


# Schedules.


def test_released_schedule_counts_what_is_lost():
    # Hopper random: half of the returns are 0.
    returns = np.concatenate([np.zeros(200), np.arange(1, 201)])
    schedule = schedule_from(config(), 'released', Store(returns))
    assert schedule.describe(UPDATES) == {
        'sampling': 'released', 'episodes_loaded': 400,
        'dropped_as_equal_returns': 199, 'window_at_start': 10,
        'window_at_end': 200, 'never_drawn': 200}


def test_collapsing_can_be_switched_off_alone():
    store = Store(np.zeros(50))
    for changes in ({'sampling_collapse_equal': False},
                    {'sort_rewards': False}):
        found = schedule_from(config(**changes), 'released', store)
        assert (len(found.order), found.collapsed) == (50, 0)
        assert found.window(10 ** 6) == 49


def drawn(store, schedule, steps):
    """The distinct episodes of the batches of some steps."""
    sampler = ChunkSampler(
        store, 64, 50, 0, 'model', schedule.order, schedule.window)
    return set(np.concatenate([sampler.indices(step)[0] for step in steps]))


def test_episodes_that_are_really_drawn():
    # Trap 19's check: distinct episodes loaded, and ever sampled.
    store = Store(np.random.default_rng(0).permutation(400))
    schedule = schedule_from(config(), 'released', store)
    model = drawn(store, schedule, range(UPDATES))
    worst = set(np.argsort(store.returns)[:260])
    assert model == worst
    frozen = schedule.frozen(UPDATES)
    assert frozen.window(0) == frozen.window(10 ** 6) == 260
    assert drawn(store, frozen, range(300)) == worst
    assert schedule.describe(UPDATES)['never_drawn'] == 140


def test_last_of_a_small_set_is_never_drawn():
    store = Store(np.arange(30)[::-1])
    schedule = schedule_from(config(), 'released', store)
    assert drawn(store, schedule, range(0, UPDATES, 100)) == set(
        range(1, 30))


def test_paper_schedule():
    store = Store(np.zeros(6))
    schedule = schedule_from(config(sort_rewards=False), 'paper', store)
    assert drawn(store, schedule, [0]) == {0}
    assert drawn(store, schedule, [2]) == {0, 1, 2}
    assert drawn(store, schedule.frozen(3), [900, 901]) == {0, 1, 2}
    assert schedule.describe(25_000)['never_drawn'] == 0
    slow = schedule_from(config(
        sort_rewards=False, sampling_epoch_updates=100), 'paper', store)
    assert [slow.window(step) for step in (99, 100, 500, 600)] == [1, 2, 6, 6]


def test_random_schedule_draws_from_all_at_once():
    store = Store(np.zeros(40))
    schedule = schedule_from(config(), 'random', store)
    assert drawn(store, schedule, range(20)) == set(range(40))
    assert schedule.describe(1)['never_drawn'] == 0


def test_with_a_given_model_the_window_is_the_last_of_a_released_phase():
    store = Store(np.arange(400))
    given, trained = (schedule_from(
        config(offline_model_train_steps=steps), 'released', store)
        for steps in (0, 25001))
    assert given.frozen(25001).window(0) == 260
    assert trained.frozen(UPDATES).window(0) == 260


@pytest.mark.parametrize('key', [
    'sampling_epoch_updates', 'sampling_start', 'sampling_grow_updates'])
def test_settings_below_1(key):
    with pytest.raises(UserError, match=f'{key}: expected at least 1'):
        settings.resolve([f'--{key}', '0'])


def test_unknown_scheme():
    with pytest.raises(UserError, match="found 'greedy'"):
        schedule_from(config(), 'greedy', Store(np.arange(4)))
