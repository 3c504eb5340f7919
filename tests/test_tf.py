"""The order of loading TensorFlow and OpenGL, and who imports what."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
