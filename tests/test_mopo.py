"""MOPO: golden number G8, the ensemble, rollouts, exact resuming."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import Scope, variables_by_name
from dreamerv2_base.noise import CounterDraws
from dreamerv2_base.tf import tf
from semopo_tf.baselines import mopo, mopo_data, mopo_model
from semopo_tf.baselines.mopo import MOPO
from semopo_tf.baselines.mopo_model import (
    DynamicsEnsemble,
    HoldOut,
    imagine,
    penalty_by_name,
)
from semopo_tf.terminations import never
from tests.test_mopo_data import (
    ACTIONS,
    STATES,
    configured,
    linear_system,
    write_states,
)


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    folder = write_states(tmp_path_factory.mktemp('data') / 'episodes')
    return mopo_data.open_states(configured(offline_dir=[str(folder)]))


# Golden numbers and traps.


@pytest.mark.parametrize(('name', 'value'), [
    ('aleatoric', 1.891872), ('covariance', 1.821871),
    ('disagreement', 2.138334), ('max_pairwise', 3.213146),
    ('total_variance', 5.407610), ('none', 0.0)])
def test_g8_penalties(name, value):
    n = np.arange(15)
    mean = np.sin(.6 * n + .2).reshape(3, 1, 5)
    std = .1 + np.abs(np.sin(.9 * n + .5)).reshape(3, 1, 5)
    found = penalty_by_name(name)(tf.constant(mean), tf.constant(std))
    assert found.dtype == tf.float64
    np.testing.assert_allclose(found, [value], rtol=0, atol=6e-7)


def test_unknown_penalty_is_a_user_error():
    with pytest.raises(UserError, match=r'mopo\.penalty: expected'):
        penalty_by_name('md')


def ensemble(**changes):
    config = configured(**{f'mopo.{k}': v for k, v in changes.items()})
    return config, DynamicsEnsemble(
        config.mopo, STATES, ACTIONS, Scope(0, 'model'))


def draws(counter=0):
    return CounterDraws(0, 'test', tf.constant(counter))


def test_trap_21_samples_of_elites_penalty_of_all():
    """A network that is no elite moves the penalty, never the states."""
    _, model = ensemble(ensemble=4, elites=2)
    model.elites.assign([1, 3])
    start = tf.zeros((50, STATES))
    actor = lambda state, site: tf.zeros((50, ACTIONS))  # noqa: E731
    aleatoric = penalty_by_name('aleatoric')

    def run():
        return imagine(model, actor, never, aleatoric, 0.5, 1, start, draws())

    before = run()
    model._logvar.bias.assign(model._logvar.bias.numpy() + np.reshape(
        [5.0, 0, 0, 0], (4, 1, 1)))
    after = run()
    np.testing.assert_array_equal(before['next_state'], after['next_state'])
    assert (after['penalty'] > before['penalty']).numpy().all()
    np.testing.assert_allclose(
        after['reward'] + 0.5 * after['penalty'],
        before['reward'] + 0.5 * before['penalty'], atol=1e-5)
    # The reward's deviation alone counts too.
    model.highest.assign([3.0] + [0.5] * STATES)
    assert (run()['penalty'] > after['penalty']).numpy().all()


def test_a_step_samples_the_gaussian_of_the_picked_elite():
    _, model = ensemble()
    model.elites.assign([2, 0])
    rng = np.random.default_rng(0)
    state, action, noise = (
        tf.constant(rng.standard_normal(shape), tf.float32)
        for shape in ((2, STATES), (2, ACTIONS), (3, 2, 1 + STATES)))
    mean, logvar = (x.numpy() for x in model(tf.concat([state, action], -1)))
    reward, following, _ = model.step(
        state, action, noise, tf.constant([1, 0]))
    for row, network in ((0, 0), (1, 2)):
        sample = mean[network, row] + np.sqrt(np.exp(
            logvar[network, row])) * noise[network, row]
        np.testing.assert_allclose(reward[row], sample[0], atol=1e-6)
        np.testing.assert_allclose(
            following[row], state[row] + sample[1:], atol=1e-6)


@pytest.mark.parametrize('name', sorted(mopo_model.PENALTIES))
def test_rollouts(name):
    _, model = ensemble()
    actor = lambda state, site: tf.tanh(  # noqa: E731
        site.normal('action', (8, ACTIONS)))
    rows = imagine(
        model, actor, lambda state: state[:, 0] > 0, penalty_by_name(name),
        1.0, 4, tf.zeros((8, STATES)), draws())
    assert {k: v.shape[1:] for k, v in rows.items()} == {
        'state': (8, STATES), 'next_state': (8, STATES),
        'action': (8, ACTIONS), 'reward': (8,), 'terminal': (8,),
        'penalty': (8,), 'alive': (8,)}
    alive, ended = rows['alive'].numpy(), rows['terminal'].numpy() > 0
    assert rows['state'].shape[0] == 4
    assert alive[0].all()
    # A transition counts while no earlier one was terminal.
    np.testing.assert_array_equal(
        alive[1:], ~np.logical_or.accumulate(ended)[:-1])
    np.testing.assert_array_equal(rows['state'][1:], rows['next_state'][:-1])


# The ensemble.


def test_weights_are_as_specified():
    _, model = ensemble(ensemble=7, elites=5, units=200)
    kernel = model._mean.kernel.numpy()
    spread = 0.5 / np.sqrt(200)
    assert kernel.shape == (7, 200, 1 + STATES)
    assert np.abs(kernel).max() <= 2 * spread
    assert kernel.std() == pytest.approx(0.88 * spread, rel=0.05)
    assert not model._mean.bias.numpy().any()
    assert model.lowest.shape == (1 + STATES,)  # shared by all networks
    assert not np.array_equal(kernel[0], kernel[1])


def test_the_loss_is_the_formula():
    decays, logvar_decay = [0.1, 0.2, 0.3], 0.4
    _, model = ensemble(layers=2, decays=decays, logvar_decay=logvar_decay)
    for layer in model._layers:  # biases do not decay
        layer.bias.assign(tf.ones_like(layer.bias))
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((3, 6, STATES + ACTIONS)).astype('f')
    targets = rng.standard_normal((3, 6, 1 + STATES)).astype('f')
    model.fit_scaler(2 * inputs[0] + 1, targets[0])
    mean, logvar = (x.numpy() for x in model(tf.constant(inputs)))
    x = (inputs - model.shift.numpy()) / model.scale.numpy()
    for k in range(3):  # each network by itself
        hidden = x[k]
        for layer in model._hidden:
            hidden = hidden @ layer.kernel[k].numpy() + 1
            hidden *= 1 / (1 + np.exp(-hidden))
        np.testing.assert_allclose(
            mean[k], hidden @ model._mean.kernel[k].numpy() + 1, atol=1e-5)
    assert logvar.max() < 0.5 + 1e-3
    expected = sum(
        np.mean((mean[k] - targets[k]) ** 2 * np.exp(-logvar[k]))
        + np.mean(logvar[k]) for k in range(3))
    expected += sum(
        decay * 0.5 * np.sum(np.square(layer.kernel))
        for decay, layer in zip(
            [*decays, logvar_decay],
            [*model._hidden, model._mean, model._logvar], strict=True))
    expected += 0.01 * (1 + STATES) * (0.5 + 10)
    found, _ = model.loss(tf.constant(inputs), tf.constant(targets))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_scaled_targets_change_the_units_of_the_networks_alone():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((40, STATES + ACTIONS)).astype('f')
    targets = (3 + 50 * rng.standard_normal((40, 1 + STATES))).astype('f')
    _, plain = ensemble()
    plain.fit_scaler(inputs, targets)
    np.testing.assert_array_equal(plain.target_scale, [1] * (1 + STATES))
    _, model = ensemble(scale_targets=True)
    model.fit_scaler(inputs, targets)
    shift, scale = targets.mean(0), targets.std(0)
    mean, logvar = (x.numpy() for x in model(tf.constant(inputs)))
    away = mean - (targets - shift) / scale
    np.testing.assert_allclose(
        model.errors(tf.constant(inputs), tf.constant(targets)),
        np.mean(away ** 2, (1, 2)), rtol=1e-5)
    # An imagined step is in the units of the data.
    state, action = inputs[:, :STATES], inputs[:, STATES:]
    noise = rng.standard_normal((3, 40, 1 + STATES)).astype('f')
    reward, following, found = model.step(
        tf.constant(state), tf.constant(action), tf.constant(noise),
        tf.zeros(40, tf.int32))
    sample = shift + scale * (mean[0] + np.exp(0.5 * logvar[0]) * noise[0])
    np.testing.assert_allclose(reward, sample[:, 0], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(
        following, state + sample[:, 1:], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found['std'], np.exp(0.5 * logvar), rtol=1e-5)


def test_log_variances_stay_between_learned_bounds():
    _, model = ensemble()
    found = model._bounded(tf.constant([[-100.] * 4, [0.] * 4, [100.] * 4]))
    np.testing.assert_allclose(found[0], -10, atol=1e-3)
    np.testing.assert_allclose(found[2], 0.5, atol=1e-3)
    before = variables_by_name(model)['model/logvar_max'].numpy().copy()
    model.train(tf.zeros((3, 4, STATES + ACTIONS)), tf.ones((3, 4, 4)))
    assert (variables_by_name(model)['model/logvar_max'] != before
            ).numpy().all()


def test_trap_5_adam_has_tensorflow_1s_epsilon():
    # Where it is added: test_optimizer.py.
    _, model = ensemble(eps=0.25)
    assert model._optimizer._eps == 0.25
    assert configured('mopo').mopo.eps == 1e-8


def test_constant_inputs_are_left_alone():
    _, model = ensemble()
    inputs = np.zeros((10, STATES + ACTIONS))
    inputs[:, 1] = np.arange(10)
    inputs[:, 2] = [-1e-5, 1e-5] * 5  # little, but no constant
    model.fit_scaler(inputs + 3, inputs[:, :1 + STATES])
    np.testing.assert_allclose(
        model.scale, [1, np.std(np.arange(10)), 1e-5, 1, 1], rtol=1e-6)


def test_it_fits_a_linear_system_and_stops(tmp_path, capsys):
    path = linear_system(tmp_path)
    config = configured(**{
        'offline_dir': [str(path)], 'mopo.units': 32,
        'mopo.max_epochs': 150, 'mopo.lr': 5e-3, 'mopo.batch': 64})
    method = MOPO(config, mopo_data.open_states(config))
    method.begin()
    start = method.holdout_errors().mean()
    history = [method.train_epoch({}, epoch) for epoch in range(150)]
    last = history[-1]
    assert last == {'stopped': 1.0, 'epochs': last['epochs']}
    assert 6 < last['epochs'] < 150
    method.choose()
    np.testing.assert_allclose(
        method.holdout_errors(), method.stopper.best.numpy(), rtol=1e-5)
    assert method.holdout_errors().mean() < 0.1 * start
    # Its deviations are the noise's, 0.1 for states, and its elites the best.
    std = tf.exp(0.5 * method.model(method._inputs[:100])[1]).numpy()
    assert np.median(std[..., 1:]) == pytest.approx(0.1, rel=0.5)
    best = method.stopper.best.numpy()
    assert method.model.elites.numpy().tolist() == (
        np.argsort(best)[:2].tolist())
    assert 'elites' in capsys.readouterr().err


def test_stopping_rule():
    config, model = ensemble(patience=2)
    stopper = HoldOut(config.mopo, model, Scope(0, 'holdout'))

    def epoch(value, errors):
        for v in model.stacked:
            v.assign(tf.fill(v.shape, float(value)))
        stopper.update(np.array(errors, np.float32))

    epoch(1, [1, 1, 1])
    epoch(2, [.995, .5, 1.2])   # less than 1 % better does not count
    np.testing.assert_allclose(stopper.best, [1, .5, 1])
    for value in (3, 4):
        epoch(value, [1, .5, 1])
        assert not stopper.over
    epoch(5, [1, .496, .991])   # third epoch without: more than 2
    assert stopper.over
    bound = model.highest.numpy().copy()
    stopper.restore()
    np.testing.assert_allclose(model._mean.bias[:, 0, 0], [1, 2, 1])
    np.testing.assert_array_equal(model.highest, bound)
    assert model.elites.numpy().tolist() == [1, 0]


def test_the_improvement_is_relative():
    config, model = ensemble()
    stopper = HoldOut(config.mopo, model, Scope(0, 'holdout'))
    # One in a hundred of each network's best: .01, .001 and .1.
    for errors in ([1.0, 0.1, 10.0], [0.985, 0.095, 9.95]):
        stopper.update(np.float32(errors))
    np.testing.assert_allclose(stopper.best, [0.985, 0.095, 10.0])


# The method.


def test_the_presets_have_the_published_numbers():
    config = configured('mopo')
    group = config.mopo
    assert (group.ensemble, group.elites, group.layers, group.units) == (
        7, 5, 4, 200)
    assert group.decays == [2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4]
    assert (group.rollout_rows, group.rollout_every, group.rollout_rounds
            ) == (50000, 1000, 5)
    assert not group.termination_quirk
    assert config.steps == 1000 * config.agent_train_steps
    table = {'halfcheetah': [(5, .5), (1, 1), (5, 1), (5, 5)],
             'hopper': [(5, 1), (5, 5), (5, 1), (5, 1)],
             'walker2d': [(1, 1), (5, 5), (1, 1), (1, 2)]}
    for task, pairs in table.items():
        for level, pair in zip(('random', 'medium', 'mixed', 'medium_expert'),
                               pairs, strict=True):
            chosen = configured(f'mopo_{task}_{level}')
            assert (chosen.mopo.horizon, chosen.offline_lmbd) == pair
            assert chosen.mopo.termination == task


@pytest.mark.parametrize(('changes', 'message'), [
    ({'precision': '16'}, 'precision: expected 32'),
    ({'mopo.horizon': 0}, r'mopo\.horizon: expected at least 1'),
    ({'mopo.real_share': 1.5}, r'mopo\.real_share: expected'),
    ({'mopo.elites': 9}, r'mopo\.elites: expected 1 to 3'),
    ({'mopo.layers': 3}, r'mopo\.decays: expected 4')])
def test_impossible_settings_are_user_errors(store, changes, message):
    with pytest.raises(UserError, match=message):
        MOPO(configured(**changes), store)


def advance(method, store, position, calls):
    """`calls` updates from a position (phase, step), as the loop makes them."""
    phases, metrics = method.phases(), []
    phase, step = position
    for _ in range(calls):
        if step == 0 and phases[phase].start:
            phases[phase].start()
        batch = phases[phase].source(store).batch(step)
        metrics.append({name: float(value) for name, value in
                        phases[phase].train(batch, step).items()})
        step += 1
        if step == phases[phase].updates:
            if phases[phase].finish:
                phases[phase].finish()
            phase, step = phase + 1, 0
    return (phase, step), metrics


@pytest.fixture(scope='module')
def whole(store):
    """12 updates without a stop."""
    method = MOPO(configured(jit='eager', **{'mopo.rollout_every': 2}), store)
    return method, *advance(method, store, (0, 0), 12)


# In the model phase, and after the pool has dropped a round.
@pytest.mark.parametrize('stop', [2, 11])
def test_resuming_is_exact(store, whole, stop):
    """12 updates; or `stop` of them, saved, loaded, and the others."""
    method, position, metrics = whole
    config = method.config
    first = MOPO(config, store)
    at, before = advance(first, store, (0, 0), stop)
    second = MOPO(config, store)
    second.load({k: np.array(v) for k, v in first.state().items()})
    end, after = advance(second, store, at, 12 - stop)
    assert end == position == (2, 0)
    assert before + after == metrics
    ours, theirs = second.state(), method.state()
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], name)


def test_a_round_comes_every_so_many_policy_updates(whole):
    _, _, metrics = whole
    rounds = ['pool_rows' in update for update in metrics[6:]]
    assert rounds == [True, False, True, False, True, False]


def test_graphs_train_both_phases_and_act(store):
    config = configured()
    method = MOPO(config, store)
    _, metrics = advance(method, store, (0, 0), 12)
    assert {'model_loss', 'holdout_mse'} <= set(metrics[0])
    assert {'q_loss', 'policy_loss', 'alpha', 'pool_rows', 'penalty_mean',
            'model_reward'} <= set(metrics[6])
    assert metrics[6]['pool_rows'] == 60  # 30 starts, 2 steps
    assert metrics[10]['pool_rows'] == 120  # 2 rounds are kept
    rewards = mopo_data.transitions(store)['reward']
    np.testing.assert_array_equal(method.data['reward'], rewards)  # unpenal.
    # For acting only, the networks come out of the checkpoint.
    again = MOPO(config, None, action_size=ACTIONS)
    again.load(method.state())
    seen = {'state': np.ones((4, STATES), np.float32)}
    action, state = again.policy(seen, None, 5)
    assert state is not None
    assert action.shape == (4, ACTIONS)
    np.testing.assert_array_equal(action, method.policy(seen, state, 6)[0])
    assert method.videos({}, 0) == {}
    assert method.parameters()['dynamics'] == sum(
        int(np.prod(v.shape)) for v in method.model.stacked)
    with pytest.raises(UserError, match='state_walker_walk'):
        again.policy({'image': seen['state']}, None, 5)


def test_inputs_are_standardised_by_the_training_rows(store):
    method = MOPO(configured(), store)
    method.data['state'][method.plan.holdout] = 100.0  # never seen
    method._inputs, method._targets = mopo._pairs(method.data)
    method.begin()
    seen = np.concatenate(
        [method.data[key][method.plan.training] for key in
         ('state', 'action')], 1)
    np.testing.assert_allclose(
        method.model.shift, seen.mean(0, dtype=np.float64), atol=1e-5)
    np.testing.assert_allclose(
        method.model.scale, seen.std(0, dtype=np.float64), rtol=1e-5)


def test_the_penalty_lowers_imagined_rewards(store):
    with_, without = (MOPO(configured(offline_lmbd=w), store)
                      for w in (2.0, 0.0))
    for method in (with_, without):
        method.begin()
    left, right = with_.rollout(0), without.rollout(0)
    assert left['penalty_mean'] > 0
    assert right['penalty_mean'] == 0
    assert left['model_reward'] == pytest.approx(
        right['model_reward'], abs=1e-5)
    ours, theirs = (m.pool.state()['reward'] for m in (with_, without))
    assert (ours < theirs).all()


def test_rollouts_are_sampled_from_the_policy(store):
    method = MOPO(configured(jit='eager'), store)
    alike = np.tile(method.data['state'][:1], (16, 1))
    action = method._rollout(
        {'state': tf.constant(alike)}, draws())['action'][0].numpy()
    mode = method.policy({'state': alike}, None, 0)[0]
    assert (mode == mode[:1]).all()
    assert len(np.unique(action, axis=0)) == 16
    assert np.abs(action - mode).max() > 0.1


def test_no_two_parts_of_a_round_share_their_draws(store, monkeypatch):
    monkeypatch.setattr(mopo, 'AT_ONCE', 10)  # of 30 starts
    method = MOPO(configured(jit='eager', **{'mopo.horizon': 1}), store)
    method.begin()
    # The same state everywhere: only the draws tell rows apart.
    method.data['state'][:] = method.data['state'][:1]
    for number in range(2):
        method.rollout(number)
    action = method.pool.state()['action']
    assert len(action) == len(np.unique(action, axis=0)) == 60


def test_rows_behind_an_end_are_not_in_the_pool(store):
    method = MOPO(configured(**{'mopo.termination': 'hopper',
                                'mopo.horizon': 2}), store)
    method.begin()
    metrics = method.rollout(0)
    ended = method.pool.state()['terminal']
    assert 0 < ended[:30].sum() < 30
    assert len(ended) == 30 + np.sum(ended[:30] == 0)
    assert metrics['model_ends'] == pytest.approx(ended.mean())
