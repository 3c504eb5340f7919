"""The process of a sweep that speaks to a Ray cluster (see ray_sweep.py)."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from semopo_tf.experiments.runner import ROOT, Job, Outcome, Runner, now

LOCAL = 'local'
POLL = 0.5    # seconds between two looks at what has ended
CHECK = 5.0   # seconds between two looks at the cluster


@dataclass(frozen=True)
class Cluster:
    """Where jobs run, and with what; see RayPool.

    `log` gets what Ray prints: among it a stack trace when it is lost.
    """

    address: str
    slots: int
    gpus: float | None
    cpus: float
    work: Runner
    log: Path


def serve(pipe: Connection, cluster: Cluster) -> None:
    """Connect, then run the jobs (number, Job) that come.

    Sends first why it could not connect, or ''; then (number, Outcome) for
    each job that ended, and None as a sign of life. Ends when None comes,
    when the sweep is gone, or when the cluster is another one.
    """
    # Ctrl-C reaches the whole process group; the sweep decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _print_into(cluster.log)
    try:
        tasks = Tasks(cluster)
    except Exception as error:  # whatever Ray raises is why
        lines = str(error).strip().splitlines() or [type(error).__name__]
        pipe.send(lines[0])
        return
    pipe.send('')
    try:
        while _new_jobs(pipe, tasks):
            for ended in tasks.ended(POLL):
                pipe.send(ended)
            tasks.check()
            pipe.send(None)
    except (EOFError, OSError):
        pass  # the sweep is gone, or the cluster
    pipe.close()  # the sweep need not wait
    tasks.close()


def _print_into(path: Path) -> None:
    """Let this process, C++ included, print into a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a') as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def _new_jobs(pipe: Connection, tasks: Tasks) -> bool:
    """Start what has come; False at the end."""
    while pipe.poll(0):
        message = pipe.recv()
        if message is None:
            return False
        tasks.start(*message)
    return True


class Tasks:
    """Jobs as Ray tasks. Without a GPU a run has `cluster.cpus` threads."""

    def __init__(self, cluster: Cluster):
        import ray
        self._ray, self._work = ray, cluster.work
        environment = {'env_vars': {'PYTHONPATH': str(ROOT)}}
        if cluster.address == LOCAL:
            # Without the address Ray would join a cluster that runs here.
            ray.init(address=LOCAL, include_dashboard=False,
                     num_cpus=max(1, round(cluster.slots * cluster.cpus)),
                     log_to_driver=False, runtime_env=environment)
        else:
            ray.init(address=cluster.address, log_to_driver=False,
                     runtime_env=environment)
        gpus = cluster.gpus
        if gpus is None:
            gpus = 0.5 if ray.cluster_resources().get('GPU') else 0
        # Else TensorFlow takes all cores of a machine in every run.
        self._threads = 0 if gpus else max(1, round(cluster.cpus))
        # Retries are the sweep's: it counts and records them.
        self._task = ray.remote(num_cpus=cluster.cpus, num_gpus=gpus,
                                max_retries=0)(_run)
        self._node = ray.get_runtime_context().get_node_id()
        self._numbers: dict[Any, int] = {}
        self._checked = time.monotonic()

    def start(self, number: int, job: Job) -> None:
        if self._threads:
            job = replace(job, threads=self._threads)
        self._numbers[self._task.remote(self._work, job)] = number

    def ended(self, seconds: float) -> list[tuple[int, Outcome]]:
        """What ended; waits for something to end."""
        if not self._numbers:
            time.sleep(seconds)
            return []
        done, _ = self._ray.wait(list(self._numbers), timeout=seconds)
        return [(self._numbers.pop(one), self._outcome(one)) for one in done]

    def check(self) -> None:
        """Raises EOFError when the cluster does not know this process.

        A head that was restarted remembers nothing: what was started
        before would never end.
        """
        if time.monotonic() - self._checked < CHECK:
            return
        self._checked = time.monotonic()
        alive = {node['NodeID'] for node in self._ray.nodes()
                 if node['Alive']}
        if self._node not in alive:
            raise EOFError('another cluster')

    def close(self) -> None:
        self._ray.shutdown()

    def _outcome(self, reference: Any) -> Outcome:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            return Outcome(message='worker lost: ' + (
                lines[0] if lines else type(error).__name__), started=now(),
                lost=True)


def _run(work: Runner, job: Job) -> Outcome:
    """What a worker does."""
    return work.run(job)
