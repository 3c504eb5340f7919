"""SAC: densities, targets, signs of the updates; the termination rules."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import Scope, variables_by_name
from dreamerv2_base.noise import CounterDraws, RecordedDraws
from dreamerv2_base.tf import tf
from semopo_tf import settings
from semopo_tf.sac import SAC
from semopo_tf.terminations import termination


def make(state_size=3, action_size=2, **changes):
    group = settings.presets().defaults.sac.update(
        {'units': 16, **changes})
    return SAC(group, state_size, action_size, Scope(0, 'sac'))


def transitions(rng, count, state_size=3, action_size=2):
    normal = lambda *shape: rng.standard_normal(shape)  # noqa: E731
    arrays = {'state': normal(count, state_size),
              'next_state': normal(count, state_size),
              'action': np.tanh(normal(count, action_size)),
              'reward': normal(count), 'terminal': rng.random(count) < 0.3}
    return {key: tf.constant(value, tf.float32)
            for key, value in arrays.items()}


def values_of(*modules):
    return {name: v.numpy().copy()
            for name, v in variables_by_name(*modules).items()}


def test_the_density_is_that_of_tanh_of_a_normal():
    agent = make(action_size=1)
    state = tf.constant([[0.3, -1.0, 0.5]])
    mean, log_std = agent._gaussian(state)
    raw = np.linspace(-12, 12, 200001, dtype=np.float32)
    noise = (raw[:, None] - mean.numpy()) / np.exp(log_std.numpy())
    action, log_pi = agent.sample(
        tf.repeat(state, len(raw), 0), tf.constant(noise))
    np.testing.assert_allclose(action[:, 0], np.tanh(raw), atol=1e-6)
    # A density over actions: ∫ π da = ∫ π (1 − tanh² x) dx = 1.
    slope = 1 / np.cosh(np.float64(raw)) ** 2
    total = np.sum(np.exp(log_pi.numpy().astype(float)) * slope) * 24 / 2e5
    assert total == pytest.approx(1, abs=1e-4)


def test_the_density_is_finite_far_out():
    agent = make()
    _, log_pi = agent.sample(
        tf.zeros((2, 3)), tf.constant([[1e3, -1e3], [40., -40.]]))
    assert np.isfinite(log_pi).all()


def test_the_critics_regress_on_the_lower_target():
    agent = make()
    rng = np.random.default_rng(0)
    batch, noise = transitions(rng, 5), tf.constant(
        rng.standard_normal((5, 2)), tf.float32)
    agent.log_alpha.assign(-0.7)
    for v in variables_by_name(*agent.targets).values():  # unlike the critics
        v.assign(v + 0.1)
    action, log_pi = agent.sample(batch['next_state'], noise)
    inputs = tf.concat([batch['next_state'], action], -1)
    low = np.minimum(*(net(inputs).numpy() for net in agent.targets))
    goal = batch['reward'] + 0.99 * (1 - batch['terminal']) * (
        low - np.exp(-0.7) * log_pi)
    seen = tf.concat([batch['state'], batch['action']], -1)
    expected = sum(0.5 * np.mean((net(seen).numpy() - goal) ** 2)
                   for net in agent.critics)
    loss, _ = agent.critic_loss(batch, noise)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_the_policy_is_judged_by_the_lower_critic_and_its_entropy():
    agent = make()
    rng = np.random.default_rng(0)
    state, noise = transitions(rng, 8)['state'], tf.constant(
        rng.standard_normal((8, 2)), tf.float32)
    agent.log_alpha.assign(-0.7)
    action, log_pi = agent.sample(state, noise)
    inputs = tf.concat([state, action], -1)
    values = np.stack([net(inputs).numpy() for net in agent.critics])
    assert set(values.argmin(0)) == {0, 1}  # each is the lower one somewhere
    expected = np.mean(np.exp(-0.7) * log_pi.numpy() - values.min(0))
    with tf.GradientTape() as tape:
        loss, found = agent.policy_loss(state, noise)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(found, log_pi, rtol=1e-6)
    # The temperature has a loss of its own.
    assert tape.gradient(loss, agent.log_alpha) is None


def test_targets_start_as_the_critics_and_follow_by_tau():
    agent = make(tau=0.25)
    start = values_of(*agent.critics)
    slow = list(variables_by_name(*agent.targets).values())
    for before, target in zip(start.values(), slow, strict=True):
        np.testing.assert_array_equal(before, target)
    agent.update(transitions(np.random.default_rng(0), 4),
                 CounterDraws(0, 'x', tf.constant(0)))
    now = values_of(*agent.critics)
    for name, target in zip(start, slow, strict=True):
        np.testing.assert_allclose(
            target, 0.75 * start[name] + 0.25 * now[name], atol=1e-6)


def test_temperature_grows_below_the_target_entropy():
    agent = make()
    for log_pi, grows in ((5.0, True), (1.0, False)):  # entropy -5, -1; -3
        with tf.GradientTape() as tape:
            loss = agent.temperature_loss(tf.fill([4], log_pi))
        slope = float(tape.gradient(loss, agent.log_alpha))
        assert (slope < 0) == grows


@pytest.mark.parametrize(('actions', 'name', 'value'), [
    (6, 'released', -3), (1, 'released', -3), (6, 'dimension', -6)])
def test_trap_21_target_entropy(actions, name, value):
    agent = make(action_size=actions, target_entropy=name)
    assert agent.target_entropy == value


def test_the_spread_of_the_policy_is_bounded():
    agent = make()
    variables_by_name(agent.policy)['sac/policy/out/bias'].assign(
        [50.0, -50.0, 50.0, -50.0])  # two means, two log-deviations
    mean, log_std = agent._gaussian(tf.zeros((1, 3)))
    np.testing.assert_allclose(mean, [[50.0, -50.0]], atol=1e-3)
    np.testing.assert_array_equal(log_std, [[2.0, -20.0]])


def test_unknown_target_entropy_is_a_user_error():
    with pytest.raises(UserError, match=r'sac\.target_entropy: expected'):
        make(target_entropy='auto')


def test_trap_5_adam_has_the_epsilon_of_its_settings():
    # The published one: below. Where it is added: test_optimizer.py.
    found = make(eps=0.25)._optimizers
    assert {name: optimizer._eps for name, optimizer in found.items()} == {
        'q': 0.25, 'policy': 0.25, 'alpha': 0.25}


def test_acting():
    agent = make()
    state = tf.constant(np.random.default_rng(0).standard_normal((4, 3)),
                        tf.float32)
    mode = agent.act(state, None, deterministic=True)
    np.testing.assert_array_equal(
        mode, agent.act(state, None, deterministic=True))
    zeros = RecordedDraws({'action': np.zeros((4, 2), np.float32)})
    np.testing.assert_allclose(
        mode, agent.act(state, zeros, deterministic=False), atol=1e-6)
    drawn = agent.act(state, CounterDraws(0, 'x', tf.constant(1)), False)
    assert np.abs(drawn - mode).max() > 0.1


def test_an_update_is_a_function_of_its_draws():
    batch = transitions(np.random.default_rng(0), 4)
    ends = []
    for counter in (3, 3, 4):
        agent = make()
        agent.update(batch, CounterDraws(0, 'x', tf.constant(counter)))
        ends.append(values_of(agent))
    assert all(np.array_equal(ends[0][k], ends[1][k]) for k in ends[0])
    assert any(not np.array_equal(ends[0][k], ends[2][k]) for k in ends[0])


def test_it_learns_a_bandit():
    """One step, reward −(a − 0.3)²: the action goes to 0.3, not away."""
    agent = make(1, 1, lr=3e-3, units=32, target_entropy='dimension')
    update = tf.function(lambda batch, step: agent.update(
        batch, CounterDraws(0, 'bandit', step)))
    rng = np.random.default_rng(0)
    for step in range(400):
        action = rng.uniform(-1, 1, (64, 1)).astype(np.float32)
        still = tf.zeros((64, 1))
        metrics = update({
            'state': still, 'next_state': still,
            'action': tf.constant(action),
            'reward': tf.constant(-4 * (action[:, 0] - 0.3) ** 2),
            'terminal': tf.ones(64)}, tf.constant(step))
    found = float(agent.act(tf.zeros((1, 1)), None, True)[0, 0])
    assert found == pytest.approx(0.3, abs=0.1)
    # The critic is fitted: chance alone (its mean) leaves an error of ~1.
    assert metrics['q_loss'] < 0.1


# Terminations.


def rows(*states):
    return tf.constant(states, tf.float32)


def test_walker2d_ends_low_high_and_tilted():
    states = rows([1.2, 0, 0], [0.8, 0, 0], [2.0, 0, 0], [1.2, 1, 0],
                  [1.2, -1, 0], [1.2, 0.9, 500])
    np.testing.assert_array_equal(
        termination('walker2d')(states), [0, 1, 1, 1, 1, 0])


def test_hopper_as_written_correctly_and_as_published():
    states = rows([1.0, 0, 0], [0.7, 0, 0], [1.0, 0.2, 0], [1.0, 0, 101],
                  [1.0, 0, -101], [1.0, 0, np.nan])
    np.testing.assert_array_equal(
        termination('hopper')(states), [0, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(
        termination('hopper', quirk=True)(states), [0, 1, 1, 1, 0, 1])


@pytest.mark.parametrize('name', ['never', 'halfcheetah'])
def test_the_others_never_end(name):
    found = termination(name)(rows([np.nan, 9, 9], [-5, 0, 0]))
    assert not found.numpy().any()
    assert found.shape == (2,)


def test_unknown_terminations_are_user_errors():
    with pytest.raises(UserError, match=r'mopo\.termination: expected'):
        termination('ant')


def test_settings_are_the_published_ones():
    group: Config = settings.presets().defaults.sac
    assert (group.layers, group.units, group.act) == (2, 256, 'relu')
    assert (group.lr, group.eps, group.batch) == (3e-4, 1e-8, 256)
    assert (group.discount, group.tau) == (0.99, 5e-3)
    assert make().log_alpha.numpy() == 0  # a temperature of 1
