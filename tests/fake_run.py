"""Stands in for run.py in tests of the sweep: the same records, no training.

A run whose folder holds `fail` ends with that exit code; one whose folder
holds `slow` counts updates until it is asked to stop or `slow` is gone.
"""

from __future__ import annotations

import fcntl
import json
import signal
import sys
import time
from pathlib import Path

import numpy as np

from dreamerv2_base.config import parse_flags
from semopo_tf import settings

UPDATES = 3


def train(arguments: list[str]) -> int:
    flags = parse_flags(arguments)
    seed, logdir = int(flags['seed'][0]), Path(flags['logdir'][0])
    logdir.mkdir(parents=True, exist_ok=True)
    lock = (logdir / 'lock').open('w')
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fail = logdir / 'fail'
    if fail.exists():
        code = int(fail.read_text())
        fail.unlink()
        print('error: told to fail', file=sys.stderr)
        return code
    with (logdir / 'starts').open('a') as file:
        print('start', file=file)
    timings = logdir / 'timings.jsonl'
    done = len(timings.read_text().splitlines()) if timings.exists() else 0
    for step in range(done, UPDATES):
        with timings.open('a') as file:  # resumed, it does the rest
            print(json.dumps({'phase': 'agent', 'step': step + 1,
                              'updates_per_second': 1.0, 'seconds': 2.0}),
                  file=file)
        while (logdir / 'slow').exists():
            time.sleep(0.05)
    finish(logdir, seed, arguments)
    return 0


def finish(logdir: Path, seed: int, arguments: list[str]) -> None:
    config, _ = settings.resolve(arguments)
    config.save(logdir / 'config.yaml')
    (logdir / 'versions.json').write_text(json.dumps({
        'commit': 'c0ffee', 'dirty': False, 'devices': ['CPU']}))
    (logdir / 'data.json').write_text(json.dumps({'digest': 'd'}))
    (logdir / 'episodes.jsonl').write_text(''.join(
        json.dumps({'phase': 'agent', 'step': UPDATES, 'final': final,
                    'return': 10.0 * seed + episode, 'length': 101}) + '\n'
        for final in (False, True) for episode in range(2)))
    (logdir / 'report.html').write_text('')


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    command, *rest = arguments
    if command == 'train':
        return train(rest)
    if command == 'evaluate':
        (Path(rest[0]) / 'evaluated.json').write_text(json.dumps(rest[1:]))
        print(json.dumps({'returns': [1.0, 2.0], 'lengths': [101, 101]}))
    if command == 'measure':
        np.savez(rest[rest.index('--out') + 1], done=1)
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
