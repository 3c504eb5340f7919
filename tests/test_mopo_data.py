"""What MOPO reads, draws and acts in: data, order, pool, environments."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from dreamerv2_base.episodes import write_episode
from dreamerv2_base.errors import UserError
from dreamerv2_base.store import open_store
from semopo_tf import settings
from semopo_tf.baselines import mopo_data
from semopo_tf.baselines.mopo_data import EpochPlan, Pool
from semopo_tf.environments import EnvSpec
from tests.helpers import make_episode, make_folder

STATES, ACTIONS = 3, 2


def configured(*names, **changes):
    presets = settings.presets()
    config = presets.apply(presets.defaults, names or ['mopo_debug'])
    return settings.check(config.update(changes))


def write_states(folder, count=3, rows=30, states=STATES):
    """Episodes of noise with states; the last one ends by a terminal."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        episode = make_episode(number, rows, ACTIONS, size=4)
        state = rng.standard_normal((rows, states)).astype(np.float32)
        episode['is_terminal'][-1] = number == count - 1
        write_episode(folder, {**episode, 'state': state}, number,
                      f'{number:032x}')
    return folder


def linear_system(tmp_path, rows=600, noise=0.1):
    """Transitions s' = s + M (s, a) + noise·N, r = w (s, a), in hdf5."""
    import h5py
    rng = np.random.default_rng(1)
    state = rng.standard_normal((rows, STATES))
    action = rng.uniform(-1, 1, (rows, ACTIONS))
    inputs = np.concatenate([state, action], 1)
    matrix = 0.5 * rng.standard_normal((STATES + ACTIONS, STATES))
    change = inputs @ matrix + noise * rng.standard_normal((rows, STATES))
    path = tmp_path / 'linear.hdf5'
    ends = np.zeros(rows, bool)
    ends[99::100] = True
    with h5py.File(path, 'w') as file:
        for key, value in {
                'observations': state, 'actions': action,
                'rewards': inputs.sum(1), 'next_observations': state + change,
                'terminals': np.zeros(rows, bool), 'timeouts': ends}.items():
            file[key] = value
    return path


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    folder = write_states(tmp_path_factory.mktemp('data') / 'episodes')
    return mopo_data.open_states(configured(offline_dir=[str(folder)]))


def test_transitions_of_episodes(store):
    data = mopo_data.transitions(store)
    assert data['reward'].shape == (3 * 29,)
    first, last = store.episode(0), store.episode(2)
    np.testing.assert_array_equal(data['state'][0], first['state'][0])
    np.testing.assert_array_equal(data['action'][0], first['action'][1])
    assert data['reward'][0] == first['reward'][1]
    np.testing.assert_array_equal(data['next_state'][28], first['state'][29])
    np.testing.assert_array_equal(data['state'][-1], last['state'][28])
    assert data['terminal'].sum() == 1
    assert data['terminal'][-1] == 1


def test_data_without_states_is_a_user_error(tmp_path):
    store = open_store([make_folder(tmp_path / 'x', 2, rows=6)])
    with pytest.raises(UserError, match='expected the key state'):
        mopo_data.transitions(store)
    config = configured(offline_dir=[str(tmp_path / 'x')], skip_broken=True)
    with pytest.raises(UserError, match=r'\.npz: expected the key state'):
        mopo_data.open_states(config)


def test_hdf5_files(tmp_path):
    path = linear_system(tmp_path, rows=250)
    store = mopo_data.open_states(configured(offline_dir=[str(path)]))
    assert store.rows.tolist() == [101, 101, 51]
    assert (store.action_size, len(store.digest)) == (ACTIONS, 64)
    data = mopo_data.transitions(store)
    np.testing.assert_allclose(
        store.returns.sum(), data['reward'].sum(), rtol=1e-4)
    assert data['state'].dtype == np.float32


@pytest.mark.parametrize(('key', 'value', 'message'), [
    ('rewards', None, 'missing rewards'),
    ('rewards', np.zeros(3), 'as many rows'),
    ('observations', np.full((20, 3), np.nan), 'observations: expected fin'),
    ('actions', np.full((20, 2), 2.0), 'actions: expected values')])
def test_broken_hdf5_files_are_user_errors(tmp_path, key, value, message):
    import h5py
    path = linear_system(tmp_path, rows=20)
    with h5py.File(path, 'a') as file:
        del file[key]
        if value is not None:
            file[key] = value
    with pytest.raises(UserError, match=message):
        mopo_data.open_states(configured(offline_dir=[str(path)]))


def without_successors(tmp_path, **arrays):
    """A file as D4RL's first ones: row i in state (i, i, i), reward i."""
    import h5py
    path = tmp_path / 'v0.hdf5'
    number = np.arange(8)
    with h5py.File(path, 'w') as file:
        for key, value in {
                'observations': np.tile(number[:, None], 3),
                'actions': np.zeros((8, 2)), 'rewards': number,
                'terminals': number == 2, **arrays}.items():
            file[key] = value
    return path


def test_hdf5_files_without_successors(tmp_path, capsys):
    path = without_successors(tmp_path, timeouts=np.arange(8) == 5)
    store = mopo_data.open_states(configured(offline_dir=[str(path)]))
    data = mopo_data.transitions(store)
    # Row 5 was cut by time, row 7 by the end of the file; row 2 is terminal.
    assert data['state'][:, 0].tolist() == [0, 1, 2, 3, 4, 6]
    assert data['next_state'][:, 2].tolist() == [1, 2, 2, 4, 5, 7]
    assert data['reward'].tolist() == [0, 1, 2, 3, 4, 6]
    assert data['terminal'].tolist() == [0, 0, 1, 0, 0, 0]
    assert data['action'].shape == (6, 2)
    assert store.rows.tolist() == [4, 3, 2]
    assert store.returns.tolist() == [3, 7, 6]
    said, = capsys.readouterr().err.splitlines()
    assert '2 of 8 rows' in said
    assert '1 terminal' in said


def test_successors_of_terminal_rows_are_not_looked_for(tmp_path):
    number = np.arange(8)
    path = without_successors(
        tmp_path, timeouts=np.isin(number, (2, 3, 7)),
        terminals=np.isin(number, (2, 7)))
    store = mopo_data.open_states(configured(offline_dir=[str(path)]))
    data = mopo_data.transitions(store)
    # Of the trajectory that is row 3 alone nothing is left.
    assert data['state'][:, 0].tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert data['next_state'][:, 0].tolist() == [1, 2, 2, 5, 6, 7, 7]
    assert store.rows.tolist() == [4, 5]


@pytest.mark.parametrize(('arrays', 'message'), [
    ({}, 'next_observations, or timeouts.*missing both'),
    ({'timeouts': np.ones(8, bool), 'terminals': np.zeros(8, bool)},
     'successor, found none among 8'),
    ({'timeouts': np.zeros(3, bool)}, 'timeouts: expected 1 axes')])
def test_successors_that_cannot_be_known(tmp_path, arrays, message):
    path = without_successors(tmp_path, **arrays)
    with pytest.raises(UserError, match=message):
        mopo_data.open_states(configured(offline_dir=[str(path)]))


def test_no_hdf5_file_and_mixed_data_are_user_errors(tmp_path):
    path = tmp_path / 'x.hdf5'
    path.write_bytes(b'no')
    with pytest.raises(UserError, match='expected an hdf5 file'):
        mopo_data.open_states(configured(offline_dir=[str(path)]))
    with pytest.raises(UserError, match='found both'):
        mopo_data.open_states(
            configured(offline_dir=[str(path), str(tmp_path)]))


def test_epochs():
    group = configured(**{'mopo.batch': 10}).mopo
    plan = EpochPlan(group, 0, 48)
    assert len(plan.holdout) == 9  # 20 %
    assert not set(plan.holdout) & set(plan.training)
    epochs = [np.concatenate(plan.batches(i), 1) for i in (0, 1, 0)]
    np.testing.assert_array_equal(epochs[0], epochs[2])
    assert [b.shape for b in plan.batches(0)][-1] == (3, 9)
    assert (epochs[0] != epochs[1]).any()
    # The sets stay, one for each network, drawn with replacement.
    np.testing.assert_array_equal(np.sort(epochs[0]), np.sort(epochs[1]))
    assert len(set(epochs[0][0])) < 39
    assert (np.sort(epochs[0][0]) != np.sort(epochs[0][1])).any()
    assert set(epochs[0].ravel()) <= set(plan.training)
    large = EpochPlan(configured('mopo').mopo, 0, 8000)
    assert len(large.holdout) == 1000
    with pytest.raises(UserError, match='give more data'):
        EpochPlan(group, 0, 3)


def test_a_policy_batch_is_5_percent_data():
    config = configured('mopo')
    places = mopo_data.MixedPlaces(0, config.sac.batch,
                                   config.mopo.real_share, 100)
    batch = places.batch(7)
    assert (len(batch['real']), len(batch['model'])) == (12, 244)
    np.testing.assert_array_equal(batch['model'], places.batch(7)['model'])
    assert (batch['model'] != places.batch(8)['model']).any()


def test_the_pool_keeps_the_newest_rounds():
    def round_(number, count):
        return {name: np.full((count, 1), number, np.float32)
                for name in mopo_data.FIELDS}

    pool = Pool(2)
    for number, count in enumerate((3, 2, 4)):
        pool.add(round_(number, count))
    assert len(pool) == 6
    every = pool.sample(np.linspace(0, 1, 60, endpoint=False))
    assert sorted(set(every['reward'].ravel())) == [1, 2]
    other = Pool(2)
    other.load(pool.state(), 'pool')
    other.add(round_(3, 1))
    assert len(other) == 5
    with pytest.raises(UserError, match='pool: expected sizes'):
        other.load({'sizes': np.array([2])}, 'pool')


# Environments.


def test_state_environments():
    env = mopo_data.make_state_env(EnvSpec('state_walker_walk', time_limit=6))
    first = env.reset(3)
    assert first['state'].shape == (24,)
    assert first['state'].dtype == np.float32
    assert 'image' not in first
    rows = [env.step(np.full(env.action_size, 0.5)) for _ in range(3)]
    assert [row['is_last'] for row in rows] == [False, False, True]
    assert not rows[-1]['is_terminal']
    np.testing.assert_array_equal(env.reset(3)['state'], first['state'])
    env.close()
    with pytest.raises(UserError, match='expected state_TASK'):
        mopo_data.make_state_env(EnvSpec('dmc_walker_walk'))


def test_gymnasium_environments():
    pytest.importorskip('gymnasium')
    env = mopo_data.make_state_env(EnvSpec(
        'state_gym_Hopper-v4', action_repeat=2, time_limit=4))
    first = env.reset(3)
    assert first['state'].shape == (11,)
    assert env.action_size == 3
    rows = [env.step(np.zeros(3)) for _ in range(2)]
    assert [row['is_last'] for row in rows] == [False, True]
    assert not rows[-1]['is_terminal']
    np.testing.assert_array_equal(env.reset(3)['state'], first['state'])
    with pytest.raises(UserError, match='expected a task of gymnasium'):
        mopo_data.make_state_env(EnvSpec('state_gym_Hoper-v4'))


def test_missing_gymnasium_is_a_user_error(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gymnasium', None)
    with pytest.raises(UserError, match='pip install gymnasium'):
        mopo_data.make_state_env(EnvSpec('state_gym_Hopper-v4'))
