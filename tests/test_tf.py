"""The order of loading TensorFlow and OpenGL, and who imports what."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dreamerv2_base.tf import _KNOWN_NOISE, is_full, prepare_devices, tf
from tests.helpers import ROOT


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True,
        text=True, timeout=240, check=False)


RENDER = '''
from dreamerv2_base.envs.dmc import DMC
env = DMC('cartpole_swingup', shadows=False)
assert env.reset(0)['image'].shape == (64, 64, 3)
'''
COMPUTE = '''
from dreamerv2_base.tf import tf
x = tf.ones((1, 8, 8, 3))
assert float(tf.reduce_sum(tf.matmul(tf.ones((4, 4)), tf.ones((4, 4))))) == 64
conv = lambda: tf.reduce_sum(tf.nn.conv2d(x, tf.ones((3, 3, 3, 2)), 1, 'SAME'))
compiled = tf.function(conv, jit_compile=True)
assert float(tf.function(conv)()) == float(compiled())
'''


@pytest.mark.parametrize('code', [
    RENDER + COMPUTE + RENDER, COMPUTE + RENDER + COMPUTE])
def test_tensorflow_and_opengl_in_one_process_in_any_order(code):
    done = python(code)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_workers_import_never_imports_tensorflow():
    modules = ('dreamerv2_base', 'semopo_tf', 'datasets', 'run',
               'dreamerv2_base.envs.rollout', 'dreamerv2_base.envs.dmc',
               'semopo_tf.environments', 'semopo_tf.backgrounds',
               'dreamerv2_base.episodes', 'dreamerv2_base.store',
               'dreamerv2_base.replay', 'semopo_tf.conservative',
               'semopo_tf.data_match', 'semopo_tf.baselines.drq_data',
               'semopo_tf.baselines.mopo_data')
    done = python(f'import sys, {", ".join(modules)}\n'
                  'assert "tensorflow" not in sys.modules')
    assert done.returncode == 0, done.stderr[-2000:]


def test_importing_tensorflow_prints_nothing():
    done = python('import dreamerv2_base.tf')
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


@pytest.mark.parametrize(('package', 'module'), [
    ('tensorflow_probability', 'dreamerv2_base/distributions.py'),
    ('tensorflow', 'dreamerv2_base/tf.py')])
def test_one_module_imports_it(package, module):
    found = [path.relative_to(ROOT).as_posix()
             for top in ('dreamerv2_base', 'semopo_tf', 'datasets')
             for path in (ROOT / top).rglob('*.py')
             if f'import {package}' in path.read_text().replace(
                 'import tensorflow_probability',
                 'import tensorflow_probability' if package !=
                 'tensorflow' else '')]
    assert found == [module]


def test_base_does_not_know_semopo():
    for path in (ROOT / 'dreamerv2_base').rglob('*.py'):
        text = path.read_text()
        for name in ('semopo_tf', 'import datasets', 'from datasets'):
            lines = [line for line in text.splitlines() if name in line
                     and not line.lstrip().startswith(('#', '"'))]
            assert not any('import' in line for line in lines), (path, lines)


@pytest.mark.parametrize(('error', 'full'), [
    (tf.errors.ResourceExhaustedError(None, None, 'OOM'), True),
    (tf.errors.InternalError(None, None, 'Dst tensor is not initialized.'),
     True),
    (RuntimeError('CUDNN_STATUS_ALLOC_FAILED'), True),
    (tf.errors.InternalError(None, None, 'no such kernel'), False),
    (ValueError('CUDA_ERROR_OUT_OF_MEMORY'), False)])
def test_how_a_full_device_is_known(error, full):
    assert is_full(error) == full


@pytest.mark.parametrize('grows', [True, False])
def test_a_device_in_use_is_left_as_it_is(monkeypatch, capsys, grows):
    def used(*_):
        raise RuntimeError('Physical devices cannot be modified')

    one = tf.config.PhysicalDevice('/physical_device:GPU:0', 'GPU')
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda _: [one])
    monkeypatch.setattr(tf.config.experimental, 'set_memory_growth', used)
    monkeypatch.setattr(tf.config.experimental, 'get_device_details',
                        lambda _: {'device_name': 'a card'})
    monkeypatch.setattr(tf.config.experimental, 'get_memory_growth',
                        lambda _: grows)
    assert prepare_devices() == ['a card']
    assert ('GPU:0 was in use' in capsys.readouterr().err) != grows


def test_only_the_absence_of_a_gpu_is_not_passed_on():
    said = 'failed call to cuInit: {} ({}: text)'
    assert _KNOWN_NOISE.search('failed call to cuInit: UNKNOWN ERROR (303)')
    assert _KNOWN_NOISE.search(said.format('INTERNAL', 'CUDA_ERROR_NO_DEVICE'))
    assert not _KNOWN_NOISE.search(
        said.format('INTERNAL', 'CUDA_ERROR_SYSTEM_DRIVER_MISMATCH'))


def test_no_test_sees_a_gpu():
    done = python('import os; print(os.environ["CUDA_VISIBLE_DEVICES"])')
    assert done.stdout == '-1\n'
