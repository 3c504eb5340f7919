"""Every switch of the plain formulation changes no number."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.nets import variables_by_name
from dreamerv2_base.noise import CounterDraws
from dreamerv2_base.tf import tf
from semopo_tf import doctor, settings
from semopo_tf.agent import PenalizedAgent

B, T, A = 2, 4, 3
SWITCHES = {
    'scan': ('--scan', 'unroll'),
    'transition': ('--transition', 'all'),
    'backward': ('--backward', 'separate'),
    'pixel': ('--pixel', 'convolution'),
    'actor_passes': ('--actor_passes', 'twice'),
    'slice_frames': ('--slice_frames', '3'),
    'everything': ('--configs', 'debug', 'plain'),
}


def run(*flags):
    """Metrics and weights after one model and one policy update."""
    config, _ = settings.resolve(['--configs', 'debug', *flags])
    agent = PenalizedAgent(config, (64, 64, 3), A)
    data = {key: tf.constant(value) for key, value in doctor.fake_batch(
        np.random.default_rng(0), B, T, 64, A).items()}
    metrics = {}
    for name, update in (('model', agent.model_train),
                         ('agent', agent.agent_train)):
        found = tf.function(
            lambda data, update=update, name=name: update(
                data, CounterDraws(0, name, tf.constant(0, tf.int64)))[1],
            jit_compile=config.jit == 'xla')(data)
        metrics.update({f'{name}/{key}': float(value)
                        for key, value in found.items()})
    weights = {name: value.numpy()
               for name, value in variables_by_name(agent).items()
               if 'exo_heads' not in name and 'disen_reward' not in name}
    return metrics, weights


@pytest.fixture(scope='module')
def fast():
    return run()


@pytest.mark.parametrize('name', sorted(SWITCHES))
def test_switch_changes_no_number(fast, name):
    metrics, weights = run(*SWITCHES[name])
    for key, value in fast[0].items():
        np.testing.assert_allclose(
            metrics[key], value, rtol=1e-5, atol=1e-6, err_msg=key)
    assert weights.keys() == fast[1].keys()
    for key, value in fast[1].items():
        # Adam divides by the root of the second moment: where a gradient is
        # at rounding level (1e-10 and below), so is its sign.
        np.testing.assert_allclose(
            weights[key], value, rtol=1e-4, atol=2e-5, err_msg=key)
