"""LOMPO's rings and sequences (baselines 2.3, 2.4)."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from semopo_tf.baselines import lompo_buffers
from semopo_tf.baselines.lompo_buffers import Ring, RowSampler, SequenceSampler


def rows_of(numbers, feat=3, actions=2):
    numbers = np.asarray(numbers, np.float32)
    return {'obs': np.tile(numbers[:, None], feat),
            'next_obs': np.tile(numbers[:, None] + 0.5, feat),
            'actions': np.tile(-numbers[:, None], actions),
            'rewards': numbers, 'terminals': 0 * numbers}


def test_a_ring_keeps_the_newest_rows():
    ring = Ring(5, 3, 2)
    ring.append(rows_of([1, 2, 3]))
    assert len(ring) == 3
    ring.append(rows_of([4, 5, 6, 7]))
    assert len(ring) == 5
    assert sorted(ring.rows['rewards']) == [3, 4, 5, 6, 7]
    assert ring.rows['rewards'].tolist() == [6, 7, 3, 4, 5]


@pytest.mark.parametrize('before', [0, 1, 3])
def test_more_rows_than_fit_at_once(before):
    ring, plain = Ring(4, 3, 2), Ring(4, 3, 2)
    for numbers in (range(before), range(10, 21)):
        ring.append(rows_of(list(numbers)))
        for number in numbers:  # one by one, as in a plain formulation
            plain.append(rows_of([number]))
    for name in lompo_buffers.FIELDS:
        np.testing.assert_array_equal(ring.rows[name], plain.rows[name])


def test_sampling_keeps_transitions_together_and_reads_filled_rows():
    ring = Ring(100, 3, 2)
    ring.append(rows_of([1, 2, 3]))
    found = ring.sample(np.array([0, .34, .67, .999999]))
    assert found['rewards'].tolist() == [1, 2, 3, 3]
    np.testing.assert_array_equal(found['obs'][:, 0], found['rewards'])
    np.testing.assert_array_equal(found['next_obs'][:, 2],
                                  found['rewards'] + 0.5)
    np.testing.assert_array_equal(found['actions'][:, 1], -found['rewards'])


def test_a_restored_ring_goes_on_where_it_was():
    ring, other = Ring(5, 3, 2), Ring(5, 3, 2)
    ring.append(rows_of([1, 2, 3, 4, 5, 6]))
    other.load(ring.state(), 'x')
    for one in (ring, other):
        one.append(rows_of([7]))
    for name in lompo_buffers.FIELDS:
        np.testing.assert_array_equal(ring.rows[name], other.rows[name])


def test_state_is_a_copy():
    ring = Ring(3, 3, 2)
    ring.append(rows_of([1, 2, 3]))
    state = ring.state()
    ring.append(rows_of([4]))
    assert state['rewards'].tolist() == [1, 2, 3]


def test_a_ring_of_other_data_is_a_user_error():
    ring = Ring(5, 3, 2)
    ring.append(rows_of([1, 2, 3, 4, 5]))
    with pytest.raises(UserError, match='buffer/real/obs: expected shape'):
        Ring(4, 3, 2).load(ring.state(), 'buffer/real')
    state = ring.state()
    del state['written']
    with pytest.raises(UserError, match='written'):
        Ring(5, 3, 2).load(state, 'buffer/real')


def test_trap_12_action_and_reward_come_from_the_next_row():
    feat = np.array([[10., 10], [11, 11], [12, 12]], np.float32)
    action = np.array([[0.], [.1], [.2]], np.float32)
    reward = np.array([0, 1, 2], np.float32)
    found = lompo_buffers.episode_transitions(feat, action, reward)
    assert found['obs'].tolist() == [[10, 10], [11, 11]]
    assert found['next_obs'].tolist() == [[11, 11], [12, 12]]
    assert found['actions'].tolist() == action[1:].tolist()
    assert found['rewards'].tolist() == [1, 2]
    assert found['terminals'].tolist() == [0, 0]


def test_rows_that_start_at_padding_are_left_out():
    rows = {name: np.arange(12, dtype=np.float32).reshape(2, 6)
            for name in lompo_buffers.FIELDS}  # H 2, B·T 6
    mask = np.array([[True, True, True], [True, False, False]])
    found = lompo_buffers.imagined_transitions(rows, mask)
    assert found['obs'].tolist() == [0, 1, 2, 3, 6, 7, 8, 9]


class Episodes:
    """A store of episodes whose reward tells episode and row."""

    def __init__(self, *rows):
        self.rows = np.array(rows)

    def slice(self, number, start, length):
        row = np.arange(start, start + length)
        assert row[-1] < self.rows[number]
        return {'image': np.full((length, 2, 2, 3), number + 1, np.uint8),
                'action': np.ones((length, 1), np.float32),
                'reward': (100 * (number + 1) + row).astype(np.float32),
                'is_first': row == 0}


def sampler(store, length=5, batch=64, phase='model', **changes):
    settings = {'drop_last_start': True, 'cache_episodes': 1000,
                'cache_sequences': 100000, **changes}
    return SequenceSampler(store, Config({
        'seed': 0, 'lompo': settings,
        'offline_model_dataset': {'batch': batch, 'length': length}}), phase)


@pytest.mark.parametrize(('drop', 'last'), [(True, 2), (False, 3)])
def test_the_last_start_is_never_used_as_released(drop, last):
    # 8 rows, 5 drawn: starts 0 … 3 are possible, [0, 3) is released.
    source = sampler(Episodes(8, 8), drop_last_start=drop)
    starts = np.concatenate([source.indices(i)[1] for i in range(20)])
    assert set(starts) == set(range(last + 1))


def test_a_batch_is_a_function_of_seed_phase_and_step():
    first, again = sampler(Episodes(8, 9)), sampler(Episodes(8, 9))
    other = sampler(Episodes(8, 9), phase='start')
    again.batch(3)
    for key, value in first.batch(7).items():
        np.testing.assert_array_equal(value, again.batch(7)[key])
    assert (first.batch(7)['reward'] != first.batch(8)['reward']).any()
    assert (first.batch(7)['reward'] != other.batch(7)['reward']).any()


def test_short_episodes_are_padded_and_masked():
    batch = sampler(Episodes(3, 9)).batch(0)
    assert batch['image'].shape == (64, 5, 2, 2, 3)
    short = batch['reward'][:, 0] == 100
    assert short.any()
    assert not short.all()
    assert batch['mask'][~short].all()
    assert (batch['mask'][short] == [True] * 3 + [False] * 2).all()
    assert (batch['reward'][short] == [100, 101, 102, 0, 0]).all()
    assert not batch['image'][short][:, 3:].any()
    assert sampler(Episodes(3, 9)).describe()['padded_episodes'] == 1


def test_sequences_come_from_a_cache_that_is_redrawn():
    source = sampler(Episodes(*[9] * 50), batch=16, cache_episodes=4,
                     cache_sequences=160)
    caches = [set(np.concatenate([source.indices(i)[0] for i in
                                  range(10 * c, 10 * c + 10)]))
              for c in range(5)]
    assert all(len(cache) == 4 for cache in caches)
    assert len(set.union(*caches)) > 8


def test_every_episode_is_drawn_equally_often():
    source = sampler(Episodes(*[9] * 10), batch=100)
    found = np.concatenate([source.indices(i)[0] for i in range(100)])
    counts = np.bincount(found, minlength=10)
    assert abs(counts - 1000).max() < 150  # five standard deviations


def test_rows_are_drawn_by_step_alone():
    source = RowSampler(0, 6, {'note': 1})
    left, right = source.batch(4), RowSampler(0, 6, {}).batch(4)
    np.testing.assert_array_equal(left['real'], right['real'])
    assert (left['real'] != left['latent']).all()
    assert (left['real'] != source.batch(5)['real']).all()
    assert source.describe() == {'note': 1}


def test_padding_nothing():
    full = lompo_buffers.padded({'reward': np.ones(3)}, 3)
    assert full['mask'].all()
    assert full['reward'].tolist() == [1, 1, 1]
