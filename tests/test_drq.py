"""DrQ+BC, DrQ+CQL and BC: golden numbers, traps, recordings, the method."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import Scope, variables_by_name
from dreamerv2_base.noise import CounterDraws, RecordedDraws, RecordingDraws
from dreamerv2_base.store import open_store
from dreamerv2_base.tf import tf
from semopo_tf import parity_drq, settings
from semopo_tf.baselines.bc import BC, BCAgent, cloning_loss
from semopo_tf.baselines.drq_bc import (
    DrQAgent,
    DrQBC,
    cloning_actor_loss,
    squared_errors,
)
from semopo_tf.baselines.drq_cql import (
    DrQCQL,
    DrQCQLAgent,
    conservative_term,
)
from semopo_tf.baselines.drq_data import upscale
from semopo_tf.baselines.drq_nets import (
    Linear,
    PixelEncoder,
    Trunk,
    conv_sizes,
    drq_layers,
    noisy_action,
    random_shift,
    schedule,
)
from semopo_tf.baselines.infogating_nets import gating_layers, mask_sizes
from semopo_tf.baselines.torch_adam import TorchAdam
from semopo_tf.parity import Trace
from tests.helpers import make_folder

# Trimmed recordings; TRACES names another folder, for instance the originals.
DATA = Path(__file__).parent / 'parity' / 'data'
TRACES = Path(os.environ.get('TRACES', DATA))
METHODS = {'drq_bc': DrQBC, 'drq_cql': DrQCQL, 'bc': BC}


def recording(name: str) -> Trace:
    path = TRACES / f'{name}.npz'
    if not path.exists():
        pytest.skip(f'no {path.name} here; TRACES=FOLDER names another place')
    return Trace(path)


def configured(*names, **changes):
    presets = settings.presets()
    config = presets.apply(presets.defaults, names or ['drq_bc', 'drq_debug'])
    return settings.check(config.update(changes))


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'episodes'
    return open_store([make_folder(folder, 3, rows=12, actions=2)])


def batch_of(rows=4, size=36, actions=2):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, rows, size, size, 9), np.uint8)
    return {key: tf.constant(value) for key, value in {
        'obs': images[0], 'next_obs': images[1],
        'action': rng.uniform(-.9, .9, (rows, actions)).astype(np.float32),
        'reward': rng.uniform(0, 2, rows).astype(np.float32),
        'discount': np.full(rows, .99, np.float32)}.items()}


def draws(counter=0):
    return CounterDraws(0, 'test', tf.constant(counter, tf.int64))


# Golden numbers.


def test_g9_conservative_term(S):
    data = tf.constant(S((2,), .7, .4, 2))
    values = [tf.constant(S((2, 3), a, b, 2))
              for a, b in ((.5, .1), (.9, .2), (1.3, .3))]
    found = conservative_term(data, [data[:, None], *values], 10.0)
    assert float(found) == pytest.approx(21.686584, rel=1e-6)
    target = tf.constant(S((2,), 1.1, .9))
    assert float(squared_errors([data], target)) == pytest.approx(
        .381177, rel=2e-6)


def test_the_conservative_term_at_another_temperature():
    found = conservative_term(
        tf.constant([1.0, 3.0]), [tf.constant([[0.0, 2.0], [2.0, 4.0]])],
        10.0, 2.0)
    # 2 ln(1 + e) = 2.626523 and 2 + 2.626523; their mean less 2.
    np.testing.assert_allclose(found, 10 * (3.626523 - 2), rtol=1e-6)


def test_g10_cloning_actor_loss(S):
    q, action, data = (tf.constant(x) for x in (
        S((2,), .7, .4, 2), S((2, 3), .7, .3, .5), S((2, 3), .4, 1.0, .5)))
    loss, cloning = cloning_actor_loss(q, action, data, 2.5)
    assert float(loss) == pytest.approx(-2.452984, rel=1e-6)
    weight = (float(cloning) - float(loss)) / float(tf.reduce_mean(q))
    assert weight == pytest.approx(1.952171, rel=1e-6)


def test_no_gradient_passes_through_the_weight_of_q():
    q = tf.Variable([1.0, 3.0])
    with tf.GradientTape() as tape:
        loss, _ = cloning_actor_loss(q, tf.zeros((2, 1)), tf.zeros((2, 1)), 2.)
    np.testing.assert_allclose(tape.gradient(loss, q), [-.5, -.5])


@pytest.mark.parametrize(('std', 'floor'), [
    (1.0, .0758), (.5, .0623), (.1, .00995)])
def test_g12_an_oracle_meets_the_noise_floor(std, floor):
    # Trap 9: μ equal to the data's action still has this loss.
    drq = configured().drq
    data = tf.zeros((200000, 1))
    loss, _ = cloning_loss(data, tf.constant(std), data, drq, draws())
    assert float(loss) == pytest.approx(floor, rel=.01)
    plain = configured(**{'drq.bc_noise': False}).drq
    assert float(cloning_loss(
        data, tf.constant(std), data, plain, draws())[0]) == 0


def test_g13_sizes():
    assert conv_sizes(84, drq_layers(32)) == [41, 39, 37, 35]
    assert conv_sizes(84, gating_layers(128)) == [14, 14, 12, 5]
    assert mask_sizes(84) == [84, 42, 21, 10, 5]
    agent = BCAgent(configured('bc'), 2, Scope(0))
    assert agent.encoder.size == 39200


def test_kernels_are_orthogonal_and_those_of_convolutions_longer():
    encoder = PixelEncoder(Scope(0, 'e'), (84, 9), drq_layers(8))
    dense = Linear(Scope(0, 'd'), 40, 8)
    # Squares of lengths: a convolution's gain is √2, for its ReLU.
    for kernel, square in ((dense.kernel, 1), *(
            (kernel, 2) for kernel in encoder._kernels)):
        flat = kernel.numpy().reshape(-1, 8)
        np.testing.assert_allclose(
            flat.T @ flat, square * np.eye(8), atol=1e-5)


# Traps.


def test_trap_5_layer_norm_has_pytorchs_epsilon():
    trunk = Trunk(Scope(0, 'trunk'), 8, 8)
    variables_by_name(trunk)['trunk/kernel'].assign(tf.eye(8))
    # A constant offset, and a variance far below Keras's epsilon of 1e-3.
    x = (5 + .003 * np.arange(8))[None].astype(np.float32)
    centred = x - x.mean()
    found = {eps: np.tanh(centred / np.sqrt(centred.var() + eps))
             for eps in (1e-5, 1e-3)}
    np.testing.assert_allclose(trunk(tf.constant(x)), found[1e-5], atol=1e-3)
    assert np.abs(found[1e-5] - found[1e-3]).max() > .3


@pytest.mark.parametrize('steps', [1, 2, 5])
def test_trap_5_adam_adds_epsilon_after_the_bias_correction(steps):
    variable = tf.Variable(0.0, name='x')
    adam = TorchAdam(Scope(0, 'a'), 'x', {'x': variable}, lr=.1, eps=1e-8)
    value, first, second = 0.0, 0.0, 0.0
    for t in range(1, steps + 1):
        grad = 1e-8 * t
        adam.apply({'x': tf.constant(grad)})
        first = .9 * first + .1 * grad
        second = .999 * second + .001 * grad ** 2
        value -= .1 * (first / (1 - .9 ** t)) / (
            np.sqrt(second / (1 - .999 ** t)) + 1e-8)
    # At this size of gradient Keras's place of ε would give a tenth of it.
    assert float(variable) == pytest.approx(value, rel=1e-4)


def test_trap_6_iterations_and_updates(store):
    config = configured('drq_bc')
    assert (config.steps, config.drq.update_every_steps) == (550000, 2)
    assert float(schedule(config.drq.stddev_schedule, 125000)) == (
        pytest.approx(.55))
    method = DrQBC(configured(
        'drq_bc', 'drq_debug', jit='eager', steps=550000), store)
    phase = method.phases()[0]
    assert phase.updates == 550000
    metrics = phase.train(phase.source(store).batch(0), 62500)
    assert float(metrics['stddev']) == pytest.approx(.55)
    # One call, one step of each optimizer: the counters end at `steps`.
    assert float(method.agent.encoder_opt.count) == 1


@pytest.mark.parametrize(('text', 'iteration', 'value'), [
    ('0.2', 9e9, .2), ('linear(1.0,0.1,250000)', 0, 1.0),
    ('linear(1.0,0.1,250000)', 1e6, .1)])
def test_schedules(text, iteration, value):
    assert float(schedule(text, iteration)) == pytest.approx(value)


@pytest.mark.parametrize('gpus', [[], ['one']])
def test_trap_8_shifts_are_integer_crops(gpus, monkeypatch):
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda _: gpus)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (81, 12, 12, 9), np.uint8)
    images[..., 3:] = np.tile(images[..., :3], 2)
    offsets = np.stack(np.meshgrid(range(9), range(9)), -1).reshape(-1, 2)
    found = random_shift(images, tf.constant(offsets, tf.int32)).numpy()
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), 'edge')
    for i, (x, y) in enumerate(offsets):
        assert np.array_equal(found[i], padded[i, y:y + 12, x:x + 12])
    # Frames of a stack move together.
    assert np.array_equal(found[..., :3], found[..., 6:])


def test_trap_8_obs_and_next_obs_are_shifted_independently():
    spy = RecordingDraws(draws())
    agent = DrQAgent(configured(), 2, Scope(0))
    agent.train(batch_of(), tf.constant(0.0), spy)
    mine, theirs = (spy.arrays[f'shift/{key}'].numpy()
                    for key in ('obs', 'next_obs'))
    assert mine.shape == (4, 2)
    assert not np.array_equal(mine, theirs)
    many = draws().integers('x', (4000, 2), 9).numpy()
    assert (many.min(), many.max()) == (0, 8)


def test_actions_keep_the_gradient_at_the_bounds():
    mean = tf.Variable([[.95, -.99]])
    with tf.GradientTape() as tape:
        action = noisy_action(mean, tf.constant(1.0), .3,
                              tf.constant([[9.0, -9.0]]))
    np.testing.assert_allclose(action, [[1 - 1e-6, 1e-6 - 1]])
    np.testing.assert_allclose(tape.gradient(action, mean), [[1, 1]])


def conservative(**changes):
    config = configured('drq_cql', 'drq_debug', **changes)
    agent = DrQCQLAgent(config, 2, Scope(0))
    batch = batch_of()
    features, following = (agent.encoder(batch[key])
                           for key in ('obs', 'next_obs'))
    return agent, batch, features, following


@pytest.mark.parametrize(('importance', 'own', 'values'), [
    (False, True, 31), (False, False, 30), (True, True, 30)])
def test_trap_10_the_set_has_31_values(importance, own, values):
    agent, batch, features, following = conservative(**{
        'drq.cql_samples': 10, 'drq.cql_importance_sample': importance,
        'drq.cql_dataset_action': own})
    head = agent.head
    sets, densities = head.candidates(
        features, following, tf.constant(.5), draws())
    scores = {name: tf.zeros(actions.shape[:2])
              for name, actions in sets.items()}
    found = head.compared(batch['reward'], scores, densities)
    assert tf.concat(found, 1).shape == (4, values)
    # Policy actions for the next observation come from there …
    mean = head.actor(following)[:, None]
    assert float(tf.reduce_max(tf.abs(
        sets['next_actions'] - mean))) <= .3 + 1e-5


@pytest.mark.parametrize(('importance', 'own', 'values'), [
    (False, True, [[3, 1, 2, 5, 6]]), (False, False, [[1, 2, 5, 6]]),
    # Less the log-densities: 1 + .5, 2 − .25, 5 + 2, 6 − 1.
    (True, True, [[1.5, 1.75, 7, 5]])])
def test_the_set_holds_scores_less_their_log_densities(
        importance, own, values):
    head = conservative(**{'drq.cql_importance_sample': importance,
                           'drq.cql_dataset_action': own})[0].head
    scores = {'rand': tf.constant([[1.0, 2.0]]),
              'next_actions': tf.constant([[5.0, 6.0]])}
    densities = {'next_actions': tf.constant([[-2.0, 1.0]]),
                 'rand': tf.constant([[-.5, .25]])}
    found = head.compared(tf.constant([3.0]), scores, densities)
    np.testing.assert_allclose(tf.concat(found, 1), values)


def test_actions_come_with_the_log_density_they_were_drawn_with():
    agent, _, features, following = conservative()
    # Two dimensions, σ .5, ε 0 for one of them and .2 for the other: the
    # normal's log-density at 0 and .2 standard deviations.
    normal = np.tile(np.float32([0, .2]), (4, 2, 1))
    noise = {'random_actions': np.full((4, 2, 2), .75, np.float32),
             'current_actions': normal, 'next_actions': normal}
    sets, densities = agent.head.candidates(
        features, following, tf.constant(.5), RecordedDraws(noise))
    assert (sets['rand'].numpy() == .5).all()  # 2u − 1
    # Uniform in [−1, 1]²: a density of 1/4.
    np.testing.assert_allclose(
        densities['rand'], np.full((4, 2), -1.386294), rtol=1e-6)
    for name in ('curr_actions', 'next_actions'):
        np.testing.assert_allclose(
            densities[name], np.full((4, 2), -.471583), atol=1e-5)


def test_trap_10_all_actions_are_scored_at_the_current_observation():
    agent, batch, features, _ = conservative(**{'drq.min_q_weight': 10.0})
    # An actor that ignores its input: only scores could see next_obs.
    for name, variable in variables_by_name(agent.head.actor).items():
        if name == 'actor/policy/dense2/kernel':
            variable.assign(tf.zeros_like(variable))
    losses = [agent.head.critic_loss(
        features, following, batch['reward'], batch, tf.constant(.5),
        draws())[0].numpy() for following in (features, features + 1)]
    assert losses[0] == losses[1]


def test_the_trunk_is_tiled_not_the_encoding():
    agent, _, features, _ = conservative()
    actions = tf.random.stateless_uniform((4, 7, 2), (1, 2), -1, 1)
    critic = agent.head.critic
    wide = tf.repeat(critic.trunk(features)[:, None], 7, 1)
    small = tf.stack(critic.scores(wide, actions))
    tiled = tf.repeat(features[:, None], 7, 1)
    big = tf.stack([tf.stack([critic(tiled[:, i], actions[:, i])[q]
                              for i in range(7)], 1) for q in (0, 1)])
    np.testing.assert_allclose(small, big, rtol=1e-5, atol=1e-6)


def test_the_encoder_learns_from_the_critic_alone():
    # With a critic that already meets its target the encoder must not move.
    agent = DrQAgent(configured(**{'drq.augment': False}), 2, Scope(0))
    before = {k: v.numpy() for k, v in variables_by_name(
        agent.encoder).items()}
    for name, variable in variables_by_name(
            agent.head.critic, agent.head.critic_target).items():
        if name.endswith('dense2/kernel'):
            variable.assign(tf.zeros_like(variable))
    batch = {**batch_of(), 'reward': tf.zeros(4)}
    agent.train(batch, tf.constant(0.0), draws())
    for name, variable in variables_by_name(agent.encoder).items():
        assert np.array_equal(before[name], variable.numpy()), name
    moved = variables_by_name(agent.head.actor)['actor/policy/dense2/kernel']
    fresh = DrQAgent(configured(), 2, Scope(0)).head.actor
    assert not np.array_equal(moved.numpy(), variables_by_name(
        fresh)['actor/policy/dense2/kernel'].numpy())


def test_the_actor_sees_the_old_encoding_and_the_new_critic():
    agent = DrQAgent(configured(**{'drq.augment': False, 'drq.lr': .01}), 2,
                     Scope(0))
    batch, spy = batch_of(), RecordingDraws(draws())
    features = agent.encoder(batch['obs'])
    mean, old = agent.head.actor(features), variables_by_name(agent.encoder)
    old = {name: value.numpy() for name, value in old.items()}
    metrics = agent.train(batch, tf.constant(0.0), spy)
    action = noisy_action(
        mean, tf.constant(1.0), .3, spy.arrays['actor_action'])
    expected = -tf.reduce_mean(
        tf.minimum(*agent.head.critic(features, action)))
    assert float(metrics['actor_loss']) == pytest.approx(
        float(expected), rel=1e-5)
    # The encoder did move, so the order can be told apart.
    assert any(not np.array_equal(old[name], value.numpy()) for name, value
               in variables_by_name(agent.encoder).items())


def test_the_target_moves_by_tau():
    agent = DrQAgent(configured(), 2, Scope(0))
    pair = agent.head.critic, agent.head.critic_target
    assert sum(float(tf.reduce_sum(tf.abs(a - b))) for a, b in zip(*(
        variables_by_name(m).values() for m in pair), strict=True)) == 0
    start = {k: v.numpy() for k, v in variables_by_name(pair[0]).items()}
    agent.train(batch_of(), tf.constant(0.0), draws())
    for name, now in variables_by_name(pair[0]).items():
        slow = variables_by_name(pair[1])[
            name.replace('critic/', 'critic_target/')]
        np.testing.assert_allclose(
            slow, .01 * now + .99 * start[name], rtol=1e-5, atol=1e-7)


# Recordings of the published code.


@pytest.mark.parametrize('name', [
    'drq_cql_importance',
    # parity/test_traces.py replays these from where they lie by default.
    *(() if TRACES == DATA else ('drq_bc', 'drq_cql', 'bc'))])
def test_agrees_with_the_recording(name):
    report = parity_drq.replay(recording(name), {})
    assert set(report.errors) == {
        'losses', 'weights', 'changes', 'actions'}
    assert report.agrees, {g: report.worst(g) for g in report.errors}


@pytest.mark.parametrize(('name', 'changes'), [
    ('bc', {'drq.bc_noise': False}), ('bc', {'drq.eps': 1e-3}),
    ('drq_bc', {'drq.alpha': 2.4}), ('drq_cql', {'drq.min_q_weight': 9.9}),
    ('drq_cql', {'drq.cql_dataset_action': False}),
    ('drq_cql_importance', {'drq.cql_importance_sample': False})])
def test_a_difference_is_noticed(name, changes):
    changes = {**changes, 'jit': 'eager'}
    assert not parity_drq.replay(recording(name), changes).agrees


# As a method of the loop.


@pytest.mark.parametrize('name', METHODS)
def test_more_than_the_parameters_is_saved(name):
    # Adam's moments, too; test_battery.py stops and resumes each method.
    method = METHODS[name](configured(name, 'drq_debug'), None, action_size=2)
    assert sum(method.parameters().values()) < sum(
        value.size for value in method.state().values())


def test_updates_are_one_graph_and_equal_the_eager_ones(store):
    found = []
    for jit in ('none', 'eager'):
        method = DrQBC(configured(jit=jit), store)
        phase = method.phases()[0]
        source = phase.source(store)
        found.append([{k: float(v) for k, v in phase.train(
            source.batch(i), i).items()} for i in range(3)])
        if jit == 'none':
            assert phase.train.graph.experimental_get_tracing_count() == 1
    for compiled, eager in zip(*found, strict=True):
        assert compiled == pytest.approx(eager, rel=1e-4)


def test_the_policy_stacks_frames_and_has_no_noise(store):
    method = BC(configured('bc', 'drq_debug'), None, action_size=2)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (4, 3, 64, 64, 3), np.uint8)
    first = np.array([False, True, False])
    small = upscale(frames, 36)
    _, state = method.policy(
        {'image': frames[0], 'is_first': np.ones(3, bool)}, None, 1)
    assert np.array_equal(state, np.tile(small[0], 3))
    for t in (1, 2):
        _, state = method.policy(
            {'image': frames[t], 'is_first': np.zeros(3, bool)}, state, t)
    assert np.array_equal(state, np.concatenate(small[:3], -1))
    seen = {'image': frames[3], 'is_first': first}
    action, after = method.policy(seen, state, 1)
    assert np.array_equal(after[1], np.tile(small[3, 1], 3))
    assert np.array_equal(after[0], np.concatenate(small[1:4, 0], -1))
    assert action.shape == (3, 2)
    assert np.array_equal(action, method.policy(seen, state, 99)[0])
    np.testing.assert_allclose(
        action, method.agent.act(tf.constant(after)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('changes', 'message'), [
    ({'precision': '16'}, 'precision: expected 32'),
    ({'render_size': [84, 84]}, r'render_size: expected .*\(64\)'),
    ({'drq.stddev_schedule': 'cosine(1,2)'}, 'stddev_schedule: expected'),
    ({'drq.nstep': 0}, r'drq\.nstep: expected at least 1'),
    ({'drq.image_size': 5}, r'drq\.image_size: expected 84')])
def test_settings_that_cannot_run_are_user_errors(changes, message):
    with pytest.raises(UserError, match=message):
        BC(configured('bc', 'drq_debug', **changes), None, action_size=2)
