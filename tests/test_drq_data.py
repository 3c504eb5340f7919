"""Stacks, n-step returns and offsets: golden number G11, traps 7 and 25."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dreamerv2_base.episodes import write_episode
from dreamerv2_base.errors import UserError
from dreamerv2_base.store import open_store
from semopo_tf import settings
from semopo_tf.baselines.drq_data import StackSampler, stacked, upscale
from tests.helpers import make_episode, make_folder


def configured(*names, **changes):
    presets = settings.presets()
    config = presets.apply(presets.defaults, names or ['bc', 'drq_debug'])
    return settings.check(config.update(changes))


def numbered(folder, rows=6, episodes=2, size=8):
    """Episodes e = 1, 2 with frame and action 10·e + t and reward t."""
    folder.mkdir()
    for e in range(1, episodes + 1):
        episode = make_episode(e, rows=rows, actions=1, size=size)
        numbers = 10 * e + np.arange(rows)
        episode['image'][:] = numbers[:, None, None, None]
        episode['action'][:, 0] = numbers / 100
        episode['reward'][:] = np.arange(rows)
        write_episode(folder, episode, e, f'{e:032x}')
    return open_store([folder])


@pytest.fixture
def golden(tmp_path):
    return numbered(tmp_path / 'episodes')


def sampler(store, nstep=1, size=8, **settings_):
    changes = {f'drq.{key}': value for key, value in settings_.items()}
    config = configured(**{'drq.nstep': nstep, 'drq.image_size': size,
                           'drq.batch_size': 400, **changes})
    return StackSampler(store, config.drq, 0, 'train')


def by_slot(found, episodes, rows):
    """Samples by the slot of the released buffer: 8 slots per episode, two
    of them further copies of the first frame."""
    slots = episodes * 8 + rows + 2
    return {int(slot): {key: value[i] for key, value in found.items()}
            for i, slot in enumerate(slots)}


def frames_of(stack):
    """The numbers of the three frames of a stack."""
    assert stack.shape[-1] == 9
    assert (stack == stack[:1, :1]).all()
    return tuple(int(n) for n in stack[0, 0, ::3])


@pytest.mark.parametrize(('nstep', 'valid'), [
    (1, [*range(3, 8), *range(11, 16)]), (3, [3, 4, 5, 11, 12, 13])])
def test_g11_valid_slots(golden, nstep, valid):
    source = sampler(golden, nstep)
    slots = by_slot(source.batch(0), *source.indices(0))
    assert sorted(slots) == valid
    assert source.describe()['transitions'] == len(valid)


def test_g11_contents(golden):
    one = sampler(golden)
    slot = by_slot(one.batch(0), *one.indices(0))[3]
    assert frames_of(slot['obs']) == (10, 10, 10)
    assert frames_of(slot['next_obs']) == (10, 10, 11)
    assert round(float(slot['action'][0]) * 100) == 11
    assert slot['reward'] == 1
    three = sampler(golden, 3)
    slots = by_slot(three.batch(0), *three.indices(0))
    assert slots[3]['reward'] == pytest.approx(5.9203, rel=1e-6)
    assert slots[3]['discount'] == pytest.approx(.970299, rel=1e-6)
    assert frames_of(slots[3]['next_obs']) == (11, 12, 13)
    assert frames_of(slots[5]['obs']) == (10, 11, 12)
    assert slots[5]['reward'] == pytest.approx(11.8605, rel=1e-6)
    assert frames_of(slots[5]['next_obs']) == (13, 14, 15)


def test_slots_are_drawn_uniformly(golden):
    source = sampler(golden, batch_size=20000)
    episodes, rows = source.indices(0)
    counts = np.unique(episodes * 8 + rows, return_counts=True)[1]
    assert np.abs(counts / 20000 - .1).max() < .01


def test_trap_7_nstep_of_each_preset(tmp_path):
    found = [configured(name).drq.nstep
             for name in ('drq_bc', 'drq_cql', 'bc', 'infogating')]
    assert found == [3, 1, 1, 1]
    store = open_store([make_folder(tmp_path / 'e', 3, rows=40, size=8)])
    rewards = [sampler(store, n).batch(0)['reward'].mean() for n in (1, 3)]
    assert 2.7 < rewards[1] / rewards[0] < 3.2


def test_a_batch_depends_on_seed_phase_and_step_alone(golden):
    first, again = sampler(golden).batch(7), sampler(golden).batch(7)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    other = sampler(golden).batch(8)
    assert not np.array_equal(first['obs'], other['obs'])


def test_stored_zero_discounts_count_as_one_unless_told(tmp_path):
    folder = tmp_path / 'terminal'
    folder.mkdir()
    episode = make_episode(1, rows=6, actions=1, size=8)
    episode['is_terminal'][-1] = True
    write_episode(folder, episode, 0, '0' * 32)
    store = open_store([folder])
    released = sampler(store).batch(0)['discount']
    np.testing.assert_allclose(released, .99, rtol=1e-6)
    strict = sampler(store, ignore_terminals=False)
    last = strict.indices(0)[1] == 5
    np.testing.assert_allclose(
        strict.batch(0)['discount'], np.where(last, 0, .99), rtol=1e-6)


@pytest.mark.parametrize('end', [False, True])
def test_the_discount_is_that_of_the_last_of_the_n_rows(tmp_path, end):
    """Stored, or 0 at a true end; never that of the rows before it."""
    folder = tmp_path / 'stored'
    folder.mkdir()
    episode = make_episode(1, rows=6, actions=1, size=8)
    if end:
        episode['is_terminal'][-1] = True
    else:
        episode['discount'] = np.float32([1, .9, .8, .7, .6, .5])
    write_episode(folder, episode, 0, '0' * 32)
    source = sampler(open_store([folder]), 3, ignore_terminals=False)
    rows, found = source.indices(0)[1], source.batch(0)['discount']
    by_row = {int(row): float(one)
              for row, one in zip(rows, found, strict=True)}
    # 0.99^3 times the number of row t + 2.
    expected = ([.970299, .970299, 0] if end else
                [.970299 * .7, .970299 * .6, .970299 * .5])
    assert by_row == pytest.approx(
        dict(zip([1, 2, 3], expected, strict=True)), rel=1e-6)


def test_the_capacity_cuts_rows(golden):
    source = sampler(golden, replay_buffer_size=9)
    episodes, rows = source.indices(0)
    assert set(zip(episodes, rows, strict=True)) == {
        (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 1), (1, 2)}
    assert source.describe()['rows_beyond_capacity'] == 3


def test_short_episodes_are_user_errors(tmp_path):
    store = open_store([make_folder(tmp_path / 'e', 1, rows=5, size=8)])
    with pytest.raises(UserError, match=r'at least 6 rows .* found 5'):
        sampler(store, 3)


# Future observations (spec 7.1).


def test_offsets_are_uniform_and_end_with_the_episode(tmp_path):
    store = numbered(tmp_path / 'long', rows=40)
    config = configured(**{'drq.image_size': 8, 'drq.batch_size': 6000})
    source = StackSampler(store, config.drq, 0, 'train', False, 15)
    found, (episodes, rows) = source.batch(0), source.indices(0)
    assert 'next_obs' not in found
    left = 39 - rows
    assert (found['k'] >= 1).all()
    assert (found['k'] <= np.maximum(np.minimum(15, left) - 1, 1)).all()
    counts = np.bincount(found['k'][left >= 15], minlength=15)[1:]
    assert (np.abs(counts / counts.sum() - 1 / 14) < .02).all()
    newest = 10 * (episodes + 1) + rows + found['k'] - 1
    assert np.array_equal(found['obs_k'][:, 0, 0, -1], newest)


# Size (trap 25).


def test_frames_are_stacked_oldest_first():
    frames = np.random.default_rng(0).integers(
        0, 256, (2, 3, 5, 5, 3), np.uint8)
    found = stacked(frames)
    assert found.shape == (2, 5, 5, 9)
    assert np.array_equal(found[..., :3], frames[:, 0])
    assert np.array_equal(found[..., 6:], frames[:, 2])


def test_trap_25_training_and_evaluation_resize_alike(tmp_path):
    store = open_store([make_folder(tmp_path / 'e', 1, rows=10)])
    source = StackSampler(store, configured('bc').drq, 0, 'train')
    assert source.batch(0)['obs'].shape == (256, 84, 84, 9)
    assert 'cubic' in source.describe()['resized']
    rows = source.indices(0)[1]
    frame = np.asarray(store.episode(0)['image'][rows[0] - 1])
    expected = cv2.resize(frame, (84, 84), interpolation=cv2.INTER_CUBIC)
    assert np.array_equal(source.batch(0)['obs'][0, ..., 6:], expected)
    assert np.array_equal(upscale(frame[None], 84)[0], expected)


def test_frames_of_the_right_size_are_left_alone():
    frames = np.zeros((2, 84, 84, 3), np.uint8)
    assert upscale(frames, 84) is frames


def test_films_are_of_consecutive_rows(golden):
    film = sampler(golden).video_batch(0)['obs'][0]
    newest = film[:, 0, 0, -1].astype(int)
    assert film.shape == (5, 8, 8, 9)
    assert (np.diff(newest) == 1).all()
