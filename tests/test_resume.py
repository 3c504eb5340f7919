"""Killed anywhere and started again, a run ends in the same place."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dreamerv2_base.checkpoint import Checkpoints
from tests.helpers import ROOT, make_folder

FLAGS = ('--configs', 'debug', '--jit', 'eager', '--task', 'dmc_walker_walk',
         '--offline_model_train_steps', '6', '--steps', '4',
         '--imag_horizon', '2', '--time_limit', '16',
         '--offline_video_every', '0', '--agent_train_steps', '4',
         '--save_updates', '2', '--log_updates', '3')


def start(data: Path, logdir: Path, *flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / 'run.py'), 'train', *FLAGS,
         '--offline_dir', str(data), '--logdir', str(logdir), *flags],
        cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_for(condition, process, seconds=120) -> bool:
    """Whether `condition()` came true while the process was running."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if condition():
            return True
        time.sleep(0.002)
    return False


def results(folder: Path):
    arrays, _ = Checkpoints(folder / 'ckpt').load()
    return (arrays, (folder / 'metrics.jsonl').read_bytes(),
            (folder / 'episodes.jsonl').read_bytes())


def same(left, right) -> bool:
    return (left[1:] == right[1:] and left[0].keys() == right[0].keys()
            and all(np.array_equal(left[0][k], right[0][k])
                    for k in left[0]))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp('data') / 'episodes')


@pytest.fixture(scope='module')
def undisturbed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs') / 'undisturbed'
    finish(start(data, folder))
    return results(folder)


def killed_run(data: Path, folder: Path, kills: int, seed: int) -> list[str]:
    """A run killed `kills` times; every third time while it saves."""
    rng, moments = random.Random(seed), []
    ckpt = folder / 'ckpt'
    while len(moments) < kills:
        before = set(ckpt.glob('0*')) if ckpt.exists() else set()
        process = start(data, folder)
        if len(moments) % 3 == 1:
            hit = wait_for(lambda: any(ckpt.glob('.partial-*')), process)
            moment = 'while saving'
        else:  # some time after something new was saved
            hit = wait_for(
                lambda before=before: set(ckpt.glob('0*')) - before, process)
            time.sleep(rng.uniform(0, .5))
            moment = 'after a checkpoint'
        if process.poll() is not None and not hit:
            break
        kill(process)
        newest = Checkpoints(ckpt).positions()[-1:]
        moments.append(f'{moment}, newest checkpoint {newest}')
    finish(start(data, folder))
    return moments


def interrupted_run(data: Path, folder: Path) -> None:
    """A run stopped with Ctrl-C after its first checkpoint."""
    process = start(data, folder)
    assert wait_for(lambda: any((folder / 'ckpt').glob('0*')), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert 'Go on with' in errors


@pytest.mark.timeout(900)  # five trainings, each in a process of its own
def test_interrupted_killed_and_resumed_equals_undisturbed(
        data, undisturbed, tmp_path):
    interrupted_run(data, tmp_path / 'run')
    moments = killed_run(data, tmp_path / 'run', kills=2, seed=1)
    assert len(moments) == 2
    assert same(undisturbed, results(tmp_path / 'run'))


@pytest.mark.slow
def test_ten_kills(data, undisturbed, tmp_path):
    moments = killed_run(data, tmp_path / 'run', kills=10, seed=2)
    print('\n'.join(moments))
    assert len(moments) == 10
    assert same(undisturbed, results(tmp_path / 'run'))
