"""Small data and runs for the tests."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import run as entry
from dreamerv2_base.episodes import write_episode

ROOT = Path(__file__).resolve().parents[1]


def make_episode(seed=0, rows=30, actions=6, size=64, reward=None):
    """A valid episode of noise."""
    rng = np.random.default_rng(seed)
    first = np.zeros(rows, bool)
    first[0] = True
    last = np.zeros(rows, bool)
    last[-1] = True
    action = rng.uniform(-1, 1, (rows, actions)).astype(np.float32)
    action[0] = 0
    rewards = rng.uniform(0, 1, rows).astype(np.float32)
    if reward is not None:
        rewards[:] = 0
        rewards[-1] = reward
    rewards[0] = 0
    return {'image': rng.integers(0, 256, (rows, size, size, 3), np.uint8),
            'action': action, 'reward': rewards, 'is_first': first,
            'is_last': last, 'is_terminal': np.zeros(rows, bool)}


def make_folder(folder: Path, count=4, **settings) -> Path:
    """A folder of `count` episodes."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        write_episode(folder, make_episode(i, **settings), i, f'{i:032x}')
    return folder


def run(*arguments, timeout=240, **environment):
    """`run.py …` in a process; returns it finished, with its output."""
    return subprocess.run(
        [sys.executable, str(ROOT / 'run.py'), *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, check=False,
        cwd=ROOT, env={**os.environ, **environment})


def call(*arguments) -> subprocess.CompletedProcess:
    """The same without a process of its own, which takes seconds to start."""
    words = [str(argument) for argument in arguments]
    out, errors = io.StringIO(), io.StringIO()
    with (contextlib.redirect_stdout(out),
          contextlib.redirect_stderr(errors)):
        code = entry.main(words)
    return subprocess.CompletedProcess(
        words, code, out.getvalue(), errors.getvalue())
