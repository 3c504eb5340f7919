"""Every switch of the plain formulation changes no number."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.nets import variables_by_name
from dreamerv2_base.noise import CounterDraws
from dreamerv2_base.tf import compiled, tf
from semopo_tf import doctor, settings
from semopo_tf.agent import PenalizedAgent

B, T, A = 2, 3, 3
GRAPHS = {  # switches that have no effect without a graph, and all at once
    'scan': ('--scan', 'unroll'),
    'everything': ('--configs', 'debug', 'plain'),
}
EAGERLY = {  # the others: tracing takes longer by far than the update
    'transition': ('--transition', 'all'),
    'actor_passes': ('--actor_passes', 'twice'),
}
OF_THE_MODEL = {  # … which the policy phase does not know
    'slice_frames': ('--slice_frames', '4'),
    'backward': ('--jit', 'eager', '--backward', 'separate'),
    'pixel': ('--jit', 'eager', '--pixel', 'convolution'),
}


def run(*flags, phases=('model', 'agent')):
    """Metrics and weights after one update of each phase."""
    config, _ = settings.resolve(
        ['--configs', 'debug', *flags, '--imag_horizon', '2'])
    agent = PenalizedAgent(config, (64, 64, 3), A)
    data = {key: tf.constant(value) for key, value in doctor.fake_batch(
        np.random.default_rng(0), B, T, 64, A).items()}
    metrics = {}
    for name in phases:
        update = {'model': agent.model_train, 'agent': agent.agent_train}[name]

        def once(data, update=update, name=name):
            draws = CounterDraws(0, name, tf.constant(0, tf.int64))
            return update(data, draws)[1]
        metrics.update({f'{name}/{key}': float(value) for key, value
                        in compiled(once, config.jit)(data).items()})
    weights = {name: value.numpy()
               for name, value in variables_by_name(agent).items()
               if 'exo_heads' not in name and 'disen_reward' not in name}
    return metrics, weights


def model_of(weights):
    found = {name: value for name, value in weights.items()
             if name.startswith('world_model/')}
    assert found
    return found


def assert_equal(found, expected):
    for key, value in expected[0].items():
        np.testing.assert_allclose(
            found[0][key], value, rtol=1e-5, atol=1e-6, err_msg=key)
    assert found[1].keys() == expected[1].keys()
    for key, value in expected[1].items():
        # Adam divides by the root of the second moment: where a gradient is
        # at rounding level (1e-10 and below), so is its sign.
        np.testing.assert_allclose(
            found[1][key], value, rtol=1e-4, atol=2e-5, err_msg=key)


@pytest.fixture(scope='module')
def fast():
    return run()


@pytest.fixture(scope='module')
def eagerly():
    return run('--jit', 'eager')


def test_a_graph_changes_no_number(fast, eagerly):
    assert_equal(eagerly, fast)


@pytest.mark.parametrize('name', [
    'everything',  # … and so unrolled, too
    pytest.param('scan', marks=pytest.mark.slow)])
def test_switch_changes_no_number(fast, name):
    assert_equal(run(*GRAPHS[name]), fast)


@pytest.mark.parametrize('name', sorted(OF_THE_MODEL))
def test_switch_changes_no_number_of_the_model(fast, eagerly, name):
    flags = OF_THE_MODEL[name]
    expected = eagerly if 'eager' in flags else fast
    metrics, weights = run(*flags, phases=['model'])
    assert_equal((metrics, model_of(weights)), (
        {key: value for key, value in expected[0].items()
         if key.startswith('model/')}, model_of(expected[1])))


@pytest.mark.parametrize('name', sorted(EAGERLY))
def test_switch_changes_no_number_eagerly(eagerly, name):
    assert_equal(run('--jit', 'eager', *EAGERLY[name]), eagerly)
