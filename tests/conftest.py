"""Shared by all tests. TensorFlow comes first, quietly and safely."""

from __future__ import annotations

import os

# Before any import of dm_control: two cores are shared by the test workers.
os.environ.setdefault('TF_NUM_INTRAOP_THREADS', '1')
os.environ.setdefault('TF_NUM_INTEROP_THREADS', '1')

import numpy as np
import pytest


def pytest_configure(config):
    # Every worker would take a whole card, and TF32 is no float32.
    if config.getoption('markexpr') != 'gpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = '-1'
    else:
        from dreamerv2_base.tf import prepare_devices
        prepare_devices()


def sines(shape, a, b, amp=1.0):
    """amp·sin(a·n + b), n row-major: the inputs of the golden numbers."""
    count = int(np.prod(shape))
    wave = amp * np.sin(a * np.arange(count) + b)
    return wave.reshape(shape).astype(np.float32)


@pytest.fixture(scope='session')
def S():
    return sines
