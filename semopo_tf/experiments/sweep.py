"""Running many jobs: what is done, what failed, what is tried again.

The same loop drives a pool of threads on this machine and a Ray cluster
(ray_sweep.py). A run is done when its rows are in the store; it goes on in its
own folder when it is not. Only this process writes the store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dreamerv2_base.errors import UserError
from semopo_tf.experiments import runner
from semopo_tf.experiments.results import Attempt, ResultStore, Row
from semopo_tf.experiments.runner import Job, Outcome, Runner

POLL = 2.0  # seconds between two looks at what runs


class Interrupted(Exception):
    """The user asked to stop; every run has saved."""


class Pool(Protocol):
    """Where jobs run."""

    def submit(self, job: Job) -> None: ...

    def wait(self, seconds: float) -> list[tuple[Job, Outcome]]: ...

    def close(self) -> None: ...


class LocalPool:
    """`jobs` runs at a time on this machine."""

    def __init__(self, jobs: int, work: Runner | None = None):
        self._run = (work or Runner()).run
        self._threads = futures.ThreadPoolExecutor(jobs)
        self._open: dict[futures.Future, Job] = {}

    def submit(self, job: Job) -> None:
        self._open[self._threads.submit(self._run, job)] = job

    def wait(self, seconds: float) -> list[tuple[Job, Outcome]]:
        done, _ = futures.wait(
            self._open, seconds, futures.FIRST_COMPLETED)
        return [(self._open.pop(one), one.result()) for one in done]

    def close(self) -> None:
        self._threads.shutdown()


class Watcher(Protocol):
    """Told of everything that happens (live.py shows it)."""

    def event(self, kind: str, job: Job, text: str) -> None: ...

    def refresh(self, sweep: Sweep) -> None: ...


@dataclass
class Sweep:
    """Jobs on their way into a store.

    Attributes:
      retries: attempts after the first one, where one makes sense.
      waiting: names of the jobs that have no rows and have not failed.
      failed: names and messages of those given up.
    """

    jobs: Sequence[Job]
    store: ResultStore
    pool: Pool
    watcher: Watcher
    retries: int = 2
    waiting: dict[str, Job] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    def run(self) -> dict[str, str]:
        """Run what has no rows yet; names and messages of what failed.

        Raises Interrupted after Ctrl-C, SIGTERM or SIGHUP, when every run
        has saved.
        """
        for job in unfinished(self.jobs, self.store):
            self.waiting[job.cell.name] = job
        self.done = [job.cell.name for job in self.jobs
                     if job.cell.name not in self.waiting]
        attempts: Counter[str] = Counter()
        try:
            with stopping() as stop:
                for job in self.waiting.values():
                    self.pool.submit(job)
                while self.waiting and not stop.asked:
                    for job, outcome in self.pool.wait(POLL):
                        attempts[job.cell.name] += 1
                        self._ended(job, outcome, attempts[job.cell.name])
                    self.watcher.refresh(self)
                if self.waiting:
                    self._drain()
                    raise Interrupted
        finally:
            self.pool.close()
        return self.failed

    def _ended(self, job: Job, outcome: Outcome, attempt: int) -> None:
        name = job.cell.name
        outcome = self._record(job, outcome)
        if outcome.done:
            del self.waiting[name]
            self.done.append(name)
            self.watcher.event('done', job, _mean(outcome))
        elif outcome.again and attempt <= self.retries:
            self.watcher.event('again', job, outcome.message)
            self.pool.submit(job)
        else:
            del self.waiting[name]
            self.failed[name] = outcome.message
            self.watcher.event('failed', job, outcome.message)

    def _record(self, job: Job, outcome: Outcome) -> Outcome:
        """Keep rows and the attempt; how it ended when that is considered."""
        for row in outcome.rows:
            if not keep(row, self.store):
                outcome = dataclasses.replace(
                    outcome, rows=(), again=False, message=other_returns(row))
        if outcome.message != runner.STOPPED:
            self.store.record(Attempt(
                job.cell.run(), outcome.started, outcome.seconds,
                'done' if outcome.done else 'lost' if outcome.lost
                else 'failed', outcome.message))
        return outcome

    def _drain(self) -> None:
        """Let running jobs save; those that end by the way count."""
        for job in self.jobs[:1]:
            runner.stop_file(job.out).touch()
        while self.waiting:
            for job, outcome in self.pool.wait(POLL):
                self._record(job, outcome)
                self.waiting.pop(job.cell.name, None)


def adopt(jobs: Sequence[Job], store: ResultStore) -> None:
    """Put rows into the store that a sweep wrote but did not get to keep."""
    for job in jobs:
        for row in runner.left_behind(job):
            if not keep(row, store):
                print(f'warning: {other_returns(row)}', file=sys.stderr)


def keep(row: Row, store: ResultStore) -> bool:
    """Put a row into the store; False if it has other returns of that run."""
    return store.append(row) or (
        store.rows(run=row.run)[0].returns == row.returns)


def other_returns(row: Row) -> str:
    """What to say of a row that is not kept."""
    return (f'{row.run}: the store has other returns of this run (imported?); '
            f'its own are in {row.logdir}')


def unfinished(jobs: Sequence[Job], store: ResultStore) -> list[Job]:
    """Jobs of which a wanted row is missing."""
    there = store.finished()
    return [job for job in jobs if not there.issuperset(job.cell.runs)]


@dataclass
class Stop:
    """Whether the user asked to stop."""

    asked: bool = False

    def __call__(self, number: int, frame: Any) -> None:
        """A signal handler. Asked twice, it insists."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """Ctrl-C, SIGTERM and SIGHUP ask to stop, between two steps.

    An exception could come anywhere, and leave a job neither running nor
    ended.
    """
    stop = Stop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(number, stop) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold a reproduction's folder. Raises UserError if another does."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / 'lock').open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f'{out}: expected no other reproduction in this folder, '
                'found one running; wait for it or give another --out'
            ) from None
        runner.stop_file(out).unlink(missing_ok=True)
        yield


def _mean(outcome: Outcome) -> str:
    returns = outcome.rows[0].returns
    return f'mean return {sum(returns) / len(returns):.1f}'
