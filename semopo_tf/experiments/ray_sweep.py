"""Jobs on a Ray cluster: `--ray local` or `--ray ADDRESS`.

Ray is an optional part: without it the same plan runs on this machine. All
machines must see the project, the data and `--out` under the same paths.

Ray ends a process whose cluster is lost. So the one that speaks to it is a
child of the sweep (ray_driver.py): when that ends, or falls silent, another
one connects, as soon as the cluster is back, and gets every open job again.
"""

from __future__ import annotations

import importlib.util
import itertools
import multiprocessing
import sys
import time
from pathlib import Path

from dreamerv2_base.errors import UserError
from semopo_tf.experiments.ray_driver import Cluster, serve
from semopo_tf.experiments.runner import (
    STOPPED,
    Job,
    Outcome,
    Runner,
    now,
    stop_file,
)

QUIET = 45       # waits without a word from the driver before it is given up
TRIES = 30       # connections, without a job that ends between them
PAUSE = 4.0      # seconds between two of them
CONNECT = 60.0   # seconds that one of them may take
CLOSE = 30.0     # seconds that a driver has to shut down


class RayPool:
    """A pool (sweep.py) on a cluster.

    Args:
      address: 'local' starts a cluster on this machine, with `slots` runs at
        a time; otherwise that of a running one ('auto': found by itself).
      log: file for what Ray prints.
      gpus: share of a GPU for each run; None: a half where there are any.
      cpus: cores for each run.

    Raises UserError when Ray is missing or the cluster cannot be reached.
    """

    def __init__(self, address: str, slots: int, log: Path,
                 gpus: float | None = None, cpus: float = 1,
                 work: Runner | None = None):
        if importlib.util.find_spec('ray') is None:
            raise UserError(
                '--ray: expected the package ray, found none; pip install '
                'ray, or leave --ray out and run one after the other')
        self._cluster = Cluster(
            address, slots, gpus, cpus, work or Runner(), log)
        self._numbers = itertools.count()
        self._open: dict[int, Job] = {}
        self._process: multiprocessing.process.BaseProcess | None = None
        self._quiet = self._tries = 0
        refused = self._connect()
        if refused:
            raise UserError(
                f'--ray {address}: expected a cluster, found none '
                f'({refused}); start one: ray start --head (if it has a '
                'token: RAY_AUTH_MODE=token here as well), or give --ray '
                'local')

    def submit(self, job: Job) -> None:
        number = next(self._numbers)
        self._open[number] = job
        self._send(number)

    def wait(self, seconds: float) -> list[tuple[Job, Outcome]]:
        """What has ended; nothing while the cluster is lost.

        When it stays lost, every open job ends as failed.
        """
        if self._process is None:
            return self._again()
        try:
            while self._pipe.poll(seconds):
                self._quiet = 0
                message = self._pipe.recv()
                if message is not None:
                    number, outcome = message
                    self._tries = 0
                    return [(self._open.pop(number), outcome)]
                seconds = 0
        except (EOFError, OSError):
            self._lost()
            return []
        if seconds:
            # Counted, not timed: the whole sweep may have been suspended.
            self._quiet += 1
        if self._quiet > QUIET:
            self._lost()
        return []

    def close(self) -> None:
        if self._process is not None:
            try:
                self._pipe.send(None)
            except OSError:
                pass  # it has ended by itself
            self._end(CLOSE)

    def _connect(self) -> str:
        """Start a driver; why it could not connect, or ''."""
        context = multiprocessing.get_context('spawn')
        self._pipe, child = context.Pipe()
        self._process = context.Process(
            target=serve, args=(child, self._cluster), daemon=True)
        self._process.start()
        child.close()  # else its death would not end the pipe
        self._quiet = 0
        try:
            refused = (self._pipe.recv() if self._pipe.poll(CONNECT)
                       else f'no answer in {CONNECT:.0f} s')
        except EOFError:
            self._process.join()
            refused = f'exit code {self._process.exitcode}'
        if refused:
            self._end(0)
        return refused

    def _lost(self) -> None:
        print(f'{time.strftime("%H:%M:%S")} the Ray cluster is lost; '
              f'{len(self._open)} runs wait for it ({self._cluster.log})',
              file=sys.stderr, flush=True)
        self._end(0)

    def _again(self) -> list[tuple[Job, Outcome]]:
        if any(stop_file(job.out).exists() for job in self._open.values()):
            return self._give_up(STOPPED)
        self._tries += 1
        refused = self._connect()
        if refused and self._tries >= TRIES:
            return self._give_up(f'cluster lost: {refused}')
        if refused:
            time.sleep(PAUSE)
            return []
        print(f'{time.strftime("%H:%M:%S")} connected to Ray again',
              file=sys.stderr, flush=True)
        for number in list(self._open):
            self._send(number)
        return []

    def _give_up(self, message: str) -> list[tuple[Job, Outcome]]:
        jobs = list(self._open.values())
        self._open.clear()
        return [(job, Outcome(message=message, again=False, started=now()))
                for job in jobs]

    def _send(self, number: int) -> None:
        if self._process is not None:
            try:
                self._pipe.send((number, self._open[number]))
            except OSError:
                self._lost()

    def _end(self, seconds: float) -> None:
        """End the driver, by force when it takes longer."""
        process, self._process = self._process, None
        if process is None:
            return
        process.join(seconds)
        process.kill()
        process.join()
        self._pipe.close()
