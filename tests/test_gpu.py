"""On a GPU: `make test MARK=gpu`. Never run by the authors, who had none."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from dreamerv2_base.tf import prepare_devices, tf
from tests.helpers import ROOT
from tests.test_battery import begun, configured, write_data

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not tf.config.list_physical_devices('GPU'),
                       reason='no GPU')]
METHODS = ['semopo', 'offline_dv2', 'lompo', 'mopo', 'drq_bc', 'drq_cql',
           'bc', 'infogating']


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    prepare_devices()
    return write_data(tmp_path_factory.mktemp('data') / 'episodes')


def updated(name, data, folder, device, **changes):
    """Weights after two updates of every phase on a device."""
    with tf.device(device):
        method, store = begun(configured(name, data, folder, **changes))
        for phase in method.phases():
            if phase.start:
                phase.start()
            for i in range(2):
                batch = None
                if phase.source and phase.prefetch:
                    batch = phase.source(store).batch(i)
                    batch = phase.prepare(batch) if phase.prepare else batch
                phase.train(batch, i)
            if phase.finish:
                phase.finish()
    return {key: np.array(value) for key, value in method.state().items()}


@pytest.mark.parametrize('name', METHODS)
def test_updates_repeat_to_the_bit(name, data, tmp_path):
    first, second = (updated(name, data, tmp_path, 'GPU:0', jit='none')
                     for _ in range(2))
    for key, value in first.items():
        np.testing.assert_array_equal(second[key], value, key)


@pytest.mark.parametrize('precision', ['16', 'bf16'])
@pytest.mark.parametrize('jit', ['none', 'xla'])
def test_other_precisions_and_xla_train(data, tmp_path, precision, jit):
    found = updated('semopo', data, tmp_path, 'GPU:0', jit=jit,
                    precision=precision)
    assert all(np.isfinite(value).all() for value in found.values()
               if value.dtype.kind == 'f')


def test_weights_are_near_those_of_the_cpu(data, tmp_path):
    """Gaussian latents: a class that is drawn otherwise changes everything."""
    tf.config.experimental.enable_tensor_float_32_execution(False)
    on_gpu, on_cpu = (
        updated('semopo', data, tmp_path, device, jit='none',
                **{'rssm.discrete': 0,
                   'offline_penalty_type': 'disagreement'})
        for device in ('GPU:0', 'CPU:0'))
    for key, value in on_cpu.items():
        if value.dtype.kind == 'f' and 'optimizer' not in key:
            # Two of Adam's steps, where a gradient's sign may be rounding.
            np.testing.assert_allclose(
                on_gpu[key], value, rtol=1e-3, atol=2e-3, err_msg=key)


def test_two_processes_share_a_card():
    commands = [[sys.executable, str(ROOT / 'run.py'), 'doctor', '--configs',
                 'debug', '--require_gpu', 'True', '--task',
                 'dmc_cartpole_swingup'] for _ in range(2)]
    # As the runs of a sweep have it (`runner.environment`).
    env = {**os.environ, 'TF_GPU_ALLOCATOR': 'cuda_malloc_async'}
    running = [subprocess.Popen(command, cwd=ROOT, env=env)
               for command in commands]
    assert [process.wait(600) for process in running] == [0, 0]
