"""What is measured after training: uncertainty, frames, entropy, masks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from datasets import entropy as estimators
from dreamerv2_base.errors import UserError
from dreamerv2_base.store import open_store
from dreamerv2_base.tf import tf
from semopo_tf import penalties, registry, settings
from semopo_tf.experiments import (
    action_entropy,
    grid,
    measure,
    quantities,
    streams,
)
from tests.helpers import make_folder, run

PRESETS = {'semopo': ('debug',), 'joint': ('offline_dv2', 'debug'),
           'lompo': ('lompo_debug',)}


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp('data') / 'd', 3, rows=24)
    return open_store([folder])


def config_of(kind, *flags):
    return settings.resolve(['--configs', *PRESETS[kind], *flags])[0]


@pytest.fixture(scope='module')
def models():
    """Untrained models, made when asked for."""
    made = {}

    def get(kind):
        if kind not in made:
            config = config_of(kind)
            method = registry.method_class(config)(
                config, None, action_size=6)
            made[kind] = streams.model_of(method, config)
        return made[kind]
    return get


# Which states.


def test_places_are_late_enough_and_have_a_next_row():
    rows = np.array([12, 5, 40])
    found = streams.places(rows, 500, 0, 'x')
    assert set(found[:, 0]) == {0, 2}
    assert set(found[found[:, 0] == 0, 1]) == {10}
    assert set(found[found[:, 0] == 2, 1]) == set(range(10, 39))
    np.testing.assert_array_equal(found, streams.places(rows, 500, 0, 'x'))
    assert (found != streams.places(rows, 500, 1, 'x')).any()
    with pytest.raises(UserError, match='at least 12 rows, found at most 11'):
        streams.places(np.array([11, 5]), 3, 0, 'x')


@pytest.mark.parametrize(('kind', 'acting'), [
    ('semopo', 'endogenous'), ('joint', 'joint'), ('lompo', 'joint')])
def test_action_information_is_of_streams_that_see_actions(
        models, store, kind, acting):
    filtered = streams.Filter(models(kind), 0, 'x')
    found = quantities.action_information(filtered, store, 30, 0)
    assert set(found) == {
        'action_information/index', f'action_information/{acting}'}
    values = found[f'action_information/{acting}']
    assert values.shape == (30,)
    assert values.any()


def test_action_information_is_what_the_next_action_saves(models, store):
    """KL of a foreign action less KL of the own one, the one in row t + 1."""
    filtered = streams.Filter(models('semopo'), 0, 'x')
    stream = filtered.streams[0]
    found = quantities.action_information(filtered, store, 5, 0)
    index = found['action_information/index']
    before, after = (
        streams.states_at(filtered, store, index + shift)[stream.name]
        for shift in ([0, 0], [0, 1]))
    action = np.stack([store.slice(number, 0, 24)['action'][row + 1]
                       for number, row in index])

    def surprise(i, taken):
        one = slice(i, i + 1)
        return float(stream.rssm.surprise(
            {key: value[one] for key, value in before.items()},
            tf.constant(action[taken][None]),
            {key: value[one] for key, value in after.items()})[0])
    # The foreign action is that of the sample before, the last one's first.
    expected = [surprise(i, i - 1) - surprise(i, i) for i in range(5)]
    assert np.abs(expected).min() > 1e-4
    np.testing.assert_allclose(
        found['action_information/endogenous'], expected, atol=2e-6)


def test_no_action_information_where_all_actions_are_the_same(models, store):
    class Same:
        rows = store.rows

        def slice(self, *where):
            found = store.slice(*where)
            return {**found, 'action': np.full_like(found['action'], 0.5)}
    found = quantities.action_information(
        streams.Filter(models('semopo'), 0, 'x'), Same(), 30, 0)
    assert not found['action_information/endogenous'].any()
    with pytest.raises(UserError, match='at least 2 samples, found 1'):
        quantities.action_information(
            streams.Filter(models('semopo'), 0, 'x'), store, 1, 0)


class Rows:
    """A store whose reward is 1000 · episode + row."""

    rows = np.array([70, 20])

    def slice(self, number, start, length):
        at = 1000 * number + start + np.arange(length)
        return {'image': np.zeros((length, 1, 1, 3), np.uint8),
                'action': np.ones((length, 1), np.float32),
                'reward': np.float32(at), 'is_first': at == 1000 * number,
                'is_terminal': np.zeros(length, bool)}


def test_chunks_end_at_the_wanted_row_or_start_with_the_episode():
    batch, last = streams.chunks_ending_at(
        Rows(), np.array([[0, 60], [0, 69], [1, 13]]))
    np.testing.assert_array_equal(last, [49, 49, 13])
    assert batch['reward'][:, 0].tolist() == [11, 20, 1000]
    assert batch['reward'][[0, 1, 2], last].tolist() == [60, 69, 1013]
    assert batch['reward'].shape == (3, 50)
    assert not batch['action'][2, 20:].any()
    assert batch['action'][2, :20].all()
    assert batch['is_first'].sum() == 3
    assert batch['is_first'][:, 0].all()


def test_a_state_depends_on_no_later_row(models, store):
    filtered = streams.Filter(models('semopo'), 0, 'x')
    batch, last = streams.chunks_ending_at(store, np.array([[1, 15], [2, 9]]))
    other = {key: value.copy() for key, value in batch.items()}
    for row, t in enumerate(last):
        other['image'][row, t + 1:] = 0
        other['action'][row, t + 1:] = 0
    one, two = (filtered(x, 0)['endogenous']['deter'] for x in (batch, other))
    for row, t in enumerate(last):
        np.testing.assert_array_equal(one[row, :t + 1], two[row, :t + 1])
        assert (one[row, t + 2] != two[row, t + 2]).numpy().any()


def test_whole_episodes_of_different_lengths(models, store):
    filtered = streams.Filter(models('lompo'), 0, 'x')
    found = streams.whole_episodes(
        filtered, [store.slice(0, 0, 24), store.slice(1, 0, 20)])
    assert [one['joint']['deter'].shape for one in found] == [(24, 8), (20, 8)]
    rows = streams.rows_of(found, np.array([[1, 19], [0, 3]]))['joint']
    np.testing.assert_array_equal(
        rows['stoch'][0], found[1]['joint']['stoch'][19])


def test_only_the_endogenous_stream_sees_actions(models, store):
    filtered = streams.Filter(models('semopo'), 0, 'x')
    batch, _ = streams.chunks_ending_at(store, np.array([[0, 23], [1, 23]]))
    other = {**batch, 'action': -batch['action']}
    one, two = filtered(batch, 0), filtered(other, 0)
    same = {name: np.allclose(one[name]['deter'], two[name]['deter'])
            for name in one}
    assert same == {'endogenous': False, 'exogenous': True}


# Uncertainty.


def test_md_and_vlp_are_the_golden_penalties(S):
    """G4: K = 3, two latents of three classes; classes 0 and 2 drawn."""
    stats = {'logit': tf.constant(S((3, 1, 2, 3), .6, .2, 1.5))}
    stoch = tf.constant([[[1., 0, 0], [0, 0, 1]]])
    found = quantities.judged(stats, stoch, 'disagreement')
    np.testing.assert_allclose(found['md'], [0.355410], atol=2e-6)
    np.testing.assert_allclose(
        found['u'], penalties.disagreement(stats, stoch), rtol=1e-6)
    np.testing.assert_allclose(found['vlp'], [1.106919], atol=2e-6)
    np.testing.assert_allclose(
        found['log_prob'], [[-3.893997, -1.259623, -3.132483]], atol=2e-6)


def test_md_and_vlp_of_gaussian_heads(S):
    """G7, LOMPO: `mean` and `log_prob`."""
    stats = {'mean': tf.constant(S((3, 1, 4), .6, .2)),
             'std': tf.constant(.1 + np.abs(S((3, 1, 4), .9, .5)))}
    found = quantities.judged(
        stats, tf.constant(S((1, 4), 1.7, .1)), 'mean_disagreement')
    np.testing.assert_allclose(found['md'], [1.329903], atol=2e-5)
    np.testing.assert_allclose(found['vlp'], [29.174295], rtol=1e-5)
    np.testing.assert_allclose(
        found['log_prob'], [[-66.560448, -3.116153, -6.355947]], rtol=1e-5)


@pytest.mark.parametrize(('kind', 'names'), [
    ('semopo', ('endogenous', 'exogenous')), ('joint', ('joint',)),
    ('lompo', ('joint',))])
def test_uncertainty_of_each_method(models, store, kind, names):
    model = models(kind)
    found = quantities.uncertainty(
        streams.Filter(model, 0, 'x'), store, 30, 0)
    assert {key.split('/')[1] for key in found} - {
        'index', 'penalty'} == set(names)
    assert found['uncertainty/penalty'] == 'mean_disagreement'
    for name in names:
        np.testing.assert_array_equal(
            found[f'uncertainty/{name}/u'], found[f'uncertainty/{name}/md'])
        md, vlp, log_prob = (found[f'uncertainty/{name}/{key}']
                             for key in ('md', 'vlp', 'log_prob'))
        assert md.shape == vlp.shape == (30,)
        assert log_prob.shape == (30, model.rssm.ensemble)
        assert {md.dtype, vlp.dtype, log_prob.dtype} == {np.dtype('float32')}
        assert (md > 0).all()
        np.testing.assert_allclose(vlp, log_prob.std(1), rtol=2e-3, atol=1e-5)
        prior = found[f'uncertainty/{name}/log_prob_prior']
        assert prior.shape == log_prob.shape
        assert not np.array_equal(prior, log_prob)
        np.testing.assert_allclose(
            found[f'uncertainty/{name}/vlp_prior'], prior.std(1), rtol=2e-3,
            atol=1e-5)
    index = found['uncertainty/index']
    np.testing.assert_array_equal(
        index, streams.places(store.rows, 30, 0, 'uncertainty'))


def test_u_is_the_penalty_of_the_run(store):
    """At `paper` the sum of squared deviations, equation (2)."""
    config = config_of('semopo', '--offline_penalty_type', 'disagreement')
    method = registry.method_class(config)(config, None, action_size=6)
    filtered = streams.Filter(streams.model_of(method, config), 0, 'x')
    found = quantities.uncertainty(filtered, store, 5, 0)
    shown = quantities.frames(filtered, store, 0)
    index = {'uncertainty': found['uncertainty/index'] + quantities.NEXT,
             'frames': shown['frames/index']}
    # A frame, too, is the one that its transition leads to.
    np.testing.assert_array_equal(index['frames'] - (0, 1), streams.places(
        store.rows, quantities.FRAMES, 0, 'frames'))
    for kind, arrays in (('uncertainty', found), ('frames', shown)):
        assert arrays[f'{kind}/penalty'] == 'disagreement'
        states = streams.states_at(filtered, store, index[kind])
        for stream in filtered.streams:
            state = states[stream.name]
            stats = stream.rssm.ensemble_stats(tf.constant(state['deter']))
            means = tf.nn.softmax(stats['logit']).numpy()
            squares = ((means - means.mean(0)) ** 2).sum((-2, -1))
            np.testing.assert_allclose(
                arrays[f'{kind}/{stream.name}/u'], squares.sum(0), rtol=1e-4)


@pytest.mark.parametrize(('given', 'measured'), [
    ('meandis', 'mean_disagreement'), ('none', 'mean_disagreement'),
    ('log_prob_ens', 'log_prob'), ('max_pairwise', 'max_pairwise')])
def test_the_measured_penalty_by_its_name(given, measured):
    config = config_of('semopo', '--offline_penalty_type', given)
    assert quantities.penalty_of(config) == measured


def test_a_sample_of_a_head_is_one_of_its_own():
    """Heads that are sure: each state's sample is what one of them says."""
    rng = np.random.default_rng(0)
    logit = tf.constant(1e3 * np.eye(3, dtype=np.float32)[:, None, None])
    found = quantities.head_sample(
        {'logit': tf.tile(logit, (1, 300, 2, 1))}, rng)
    assert found.shape == (300, 2, 3)
    assert (found.sum(-1) == 1).all()
    assert (found[:, 0] == found[:, 1]).all()
    assert found[:, 0].mean(0) == pytest.approx([1 / 3] * 3, abs=0.1)
    mean = tf.tile(tf.constant([[[-5.0]], [[5.0]]]), (1, 2000, 1))
    found = quantities.head_sample(
        {'mean': mean, 'std': tf.fill(mean.shape, 0.5)}, rng)
    assert found.shape == (2000, 1)
    assert np.abs(found).mean() == pytest.approx(5, abs=0.1)
    assert np.abs(found).std() == pytest.approx(0.5, abs=0.05)
    assert (found > 0).mean() == pytest.approx(0.5, abs=0.05)


def test_uncertainty_is_that_of_the_arriving_state(models, store):
    """Its statistics are those of the heads on deter of row t + 1."""
    model = models('semopo')
    filtered = streams.Filter(model, 0, 'x')
    found = quantities.uncertainty(filtered, store, 25, 0)
    index = found['uncertainty/index']
    batch, last = streams.chunks_ending_at(store, index + quantities.NEXT)
    state = filtered(batch, 0)['endogenous']
    stats = model.rssm.ensemble_stats(state['deter'])
    every = penalties.mean_disagreement(stats, state['stoch']).numpy()
    np.testing.assert_allclose(
        found['uncertainty/endogenous/md'], every[np.arange(25), last],
        rtol=1e-4)
    assert (last == index[:, 1] + 1).all()


def test_same_seed_same_numbers_and_same_states_for_all_methods(
        models, store):
    def made(kind, seed):
        return quantities.frames(
            streams.Filter(models(kind), seed, 'x'), store, seed)
    one, again, other = made('semopo', 0), made('semopo', 0), made('joint', 0)
    for key, value in one.items():
        np.testing.assert_array_equal(value, again[key])
    for key in ('frames/index', 'frames/image'):
        np.testing.assert_array_equal(one[key], other[key])
    assert one['frames/index'].shape == (8, 2)
    assert one['frames/image'].dtype == np.uint8
    assert (made('semopo', 1)['frames/index'] != one['frames/index']).any()
    number, row = one['frames/index'][0]
    np.testing.assert_array_equal(
        one['frames/image'][0], store.slice(number, row, 1)['image'][0])


@pytest.mark.parametrize('kind', ['semopo', 'joint', 'lompo'])
def test_reconstructions(models, store, kind):
    found = quantities.reconstruction(
        streams.Filter(models(kind), 0, 'x'), store, 0)
    names = {key.split('/')[1] for key in found}
    two = {'endogenous', 'exogenous', 'mask'} if kind == 'semopo' else set()
    assert names == {'image', 'model', 'index', *two}
    for name in names - {'index', 'mask'}:
        picture = found[f'reconstruction/{name}']
        assert picture.shape == (3, 10, 64, 64, 3)
        assert picture.dtype == np.uint8
    assert found['reconstruction/index'][..., 1].tolist() == [
        [2, 5, 7, 9, 12, 14, 16, 18, 21, 23]] * 3
    if kind == 'semopo':
        mask = found['reconstruction/mask']
        assert mask.shape == (3, 10, 64, 64, 1)
        assert mask.dtype == np.float32
        mixed = (mask * found['reconstruction/endogenous']
                 + (1 - mask) * found['reconstruction/exogenous'])
        np.testing.assert_allclose(
            mixed, found['reconstruction/model'], atol=1.01)


# Entropy of actions.


def test_entropy_estimators_agree_with_closed_forms():
    rng = np.random.default_rng(0)
    uniform = rng.uniform(-1, 1, (20000, 2))
    one = np.ones(20000, int)
    assert estimators.histogram_entropy(uniform, one) == pytest.approx(
        2 * np.log(50), abs=.01)
    assert action_entropy.nearest_entropy(uniform, 0) == pytest.approx(
        2 * np.log(2), abs=.08)
    spread = np.array([.5, .1, .2])
    normal = spread * rng.standard_normal((20000, 3))
    closed = np.sum(.5 * np.log(2 * np.pi * np.e * spread ** 2))
    assert estimators.gaussian_entropy(normal, one) == pytest.approx(
        closed, abs=.03)
    assert action_entropy.nearest_entropy(normal, 0) == pytest.approx(
        closed, abs=.12)


def test_entropy_counts_how_often_a_row_was_drawn():
    action = np.array([[-.9], [.9]])
    assert estimators.histogram_entropy(
        action, np.array([3, 1])) == pytest.approx(
            -.75 * np.log(.75) - .25 * np.log(.25))
    # Variance of ±0.9 with weights 3:1 is 4 · 0.81 · 3/16.
    assert estimators.gaussian_entropy(
        action, np.array([3, 1])) == pytest.approx(
            .5 * np.log(2 * np.pi * np.e * .6075))


def test_entropy_without_weights_is_that_with_equal_ones():
    actions = np.random.default_rng(0).uniform(-1.2, 1.2, (300, 3))
    for estimate in (estimators.histogram_shares,
                     estimators.histogram_entropy,
                     estimators.gaussian_entropy):
        np.testing.assert_allclose(
            estimate(actions), estimate(actions, np.full(300, 2)), 1e-12)


def test_entropy_of_a_constant_action_is_minus_infinity():
    still, one = np.zeros((5, 2)), np.ones(5, int)
    assert estimators.histogram_entropy(still, one) == 0
    assert estimators.gaussian_entropy(still, one) == -np.inf
    assert action_entropy.nearest_entropy(still, 0) == -np.inf


def test_entropy_is_of_the_rows_in_the_batches_of_the_run(store):
    config = config_of('semopo')
    sampler = action_entropy.sampler_of(config, store, 'released')
    count = action_entropy.drawn(sampler, store, range(2, 4))
    expected = np.zeros(72, int)
    for update in (2, 3):
        for number, start in zip(*sampler.indices(update), strict=True):
            expected[24 * number + start:24 * number + start + 5] += 1
    np.testing.assert_array_equal(count, expected)
    method = registry.method_class(config)(config, store)
    source = method.phases()[0].source(store)
    for mine, theirs in zip(
            sampler.indices(3), source.indices(3), strict=True):
        np.testing.assert_array_equal(mine, theirs)


class NoImages:
    """A store whose images must not be looked at."""

    def __init__(self, store):
        self.rows, self.offsets = store.rows, store.offsets
        self.returns, self.names = store.returns, store.names
        self._store = store

    def __len__(self):
        return len(self.rows)

    def slice(self, *place):
        return {'action': self._store.slice(*place)['action']}


def test_entropy_of_both_samplings(store):
    config = config_of('semopo', '--offline_model_train_steps', '12')
    found = action_entropy.entropy(config, NoImages(store), 0)
    for sampling in ('random', 'conservative'):
        for kind in ('histogram', 'gaussian', 'nearest'):
            assert found[f'entropy/{sampling}/{kind}'].shape == (6,)
    assert found['entropy/updates'].tolist() == [2, 4, 6, 8, 10, 12]
    assert (found['entropy/random/histogram']
            != found['entropy/conservative/histogram']).any()


@pytest.mark.parametrize(('flags', 'ends'), [
    (['--sampling', 'paper'], [*range(1, 13)]),
    # Figure 6 has 30 (baselines 10.4).
    (['--sampling', 'paper', '--offline_model_train_steps', '36'],
     [*range(1, 31)]),
    (['--sampling', 'paper', '--sampling_epoch_updates', '3'],
     [3, 6, 9, 12]),
    (['--sampling', 'random'], [2, 4, 6, 8, 10, 12])])
def test_an_epoch_is_that_of_the_scheme(store, flags, ends):
    config = config_of('semopo', '--offline_model_train_steps', '12', *flags)
    found = action_entropy.entropy(config, NoImages(store), 0)
    assert found['entropy/updates'].tolist() == ends
    if 'paper' in flags:  # a trajectory more with every epoch, of three
        assert found['entropy/open'].tolist() == [
            number >= 2 for number in range(len(found['entropy/open']))]


def test_a_narrow_window_has_less_entropy(tmp_path):
    """The first episode is nearly still, the others are not: Figure 6."""
    from dreamerv2_base.episodes import write_episode
    from tests.helpers import make_episode
    for number in range(4):
        episode = make_episode(number, rows=20, actions=2, size=8)
        episode['reward'][-1] = number  # the still one opens the window
        if number == 0:
            episode['action'] *= .05
        write_episode(tmp_path, episode, number, f'{number:032x}')
    config = config_of(
        'semopo', '--sampling_start', '1', '--sampling_grow_updates', '20',
        '--offline_model_train_steps', '40')
    found = action_entropy.entropy(config, open_store([tmp_path]), 0)
    for kind in ('histogram', 'gaussian', 'nearest'):
        narrow = found[f'entropy/conservative/{kind}']
        assert narrow[0] < found[f'entropy/random/{kind}'][0] - 1, kind


# The command.


@pytest.mark.parametrize(('kind', 'names', 'flags', 'found'), [
    ('lompo', ['entropy'], [], 'for entropy'),
    ('joint', ['uncertainty', 'separation'], [], 'separate_wm False'),
    ('semopo', ['probe'], ['--task', 'car_racing'], 'found car_racing'),
])
def test_quantities_that_a_run_does_not_have(kind, names, flags, found):
    with pytest.raises(UserError, match=found):
        measure.check(config_of(kind, *flags), names)


def test_a_method_without_a_model_has_nothing_to_measure():
    config, _ = settings.resolve(['--configs', 'drq_bc', 'drq_debug'])
    with pytest.raises(UserError, match='found drq_bc'):
        measure.check(config, ['frames'])


def test_files_are_written_whole(tmp_path, monkeypatch):
    target = tmp_path / 'new' / 'q.npz'
    measure.write(target, {'a/b': np.arange(3)})
    before = target.read_bytes()

    def fail(file, **arrays):
        file.write(b'half')
        raise OSError('disk full')
    monkeypatch.setattr(np, 'savez_compressed', fail)
    with pytest.raises(OSError, match='disk full'):
        measure.write(target, {'a/b': np.zeros(9)})
    assert target.read_bytes() == before


def test_the_numbers_of_a_measurement_are_printed():
    found = {'probe/endogenous/pole': np.array(0.991, np.float32),
             'separation/iou': np.array([0.1, np.nan, 0.3], np.float32),
             'separation/mask': np.zeros((2, 3, 3), np.float32),
             'separation/index': np.array([1, 2]),
             'probe/joint/still': np.array(np.nan, np.float32),
             'measured': np.array('{}')}
    assert [line.split() for line in measure.headlines(found)] == [
        ['probe/endogenous/pole', '0.991'],
        ['separation/iou', '0.200', '±', '0.100', '(n=2', 'of', '3)'],
        ['probe/joint/still', 'nan']]


@pytest.mark.slow
def test_measuring_a_real_run(tmp_path):
    """Collects, trains and measures everything, twice with equal bytes."""
    data, logdir = tmp_path / 'data', tmp_path / 'run'
    flags = ['--configs', 'debug', '--offline_dir', data, '--time_limit', 60,
             '--eval_envs', 2]
    assert run('collect', *flags).returncode == 0
    assert run('train', *flags, '--logdir', logdir).returncode == 0
    files = []
    for number in range(2):
        files.append(tmp_path / f'{number}.npz')
        done = run('measure', logdir, '--names', *grid.QUANTITIES, '--out',
                   files[-1], '--samples', 20, timeout=500)
        assert done.returncode == 0, done.stderr
        assert 'separation/iou' in done.stdout
    assert files[0].read_bytes() == files[1].read_bytes()
    with np.load(files[0], allow_pickle=False) as found:
        assert found['separation/iou'].shape == (20,)
        truth = found['separation/truth']
        assert .005 < truth.mean() < .3  # a robot, not the whole frame
        note = json.loads(str(found['measured']))
        assert note['names'] == list(grid.QUANTITIES)
        for name in grid.QUANTITIES:
            assert any(key.startswith(f'{name}/') for key in found.files)
