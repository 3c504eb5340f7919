"""Jobs on a Ray cluster: `--ray local` or `--ray ADDRESS`.

Ray is an optional part: without it the same plan runs on this machine. All
machines must see the project, the data and `--out` under the same paths.
"""

from __future__ import annotations

import importlib
from typing import Any

from dreamerv2_base.errors import UserError
from semopo_tf.experiments.runner import ROOT, Job, Outcome, Runner, now

LOCAL = 'local'


class RayPool:
    """A pool (sweep.py) on a cluster.

    Args:
      address: 'local' starts a cluster on this machine, with `slots` runs at
        a time; otherwise that of a running one ('auto': found by itself).
      gpus: share of a GPU for each run; None: a half where there are any.
      cpus: cores for each run.

    Raises UserError when Ray is missing or the cluster cannot be reached.
    """

    def __init__(self, address: str, slots: int, gpus: float | None = None,
                 cpus: float = 1, work: Runner | None = None):
        self._ray = _import()
        environment = {'env_vars': {'PYTHONPATH': str(ROOT)}}
        try:
            if address == LOCAL:
                self._ray.init(
                    num_cpus=max(1, round(slots * cpus)),
                    include_dashboard=False, log_to_driver=False,
                    runtime_env=environment)
            else:
                self._ray.init(address=address, log_to_driver=False,
                               runtime_env=environment)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f'--ray {address}: expected a cluster, found none '
                f'({str(error).splitlines()[0]}); start one: ray start '
                '--head, or give --ray local') from None
        if gpus is None:
            gpus = 0.5 if self._ray.cluster_resources().get('GPU') else 0
        # Retries are the sweep's: it counts and records them.
        self._task = self._ray.remote(
            num_cpus=cpus, num_gpus=gpus, max_retries=0)(_run)
        self._work = work or Runner()
        self._open: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        self._open[self._task.remote(self._work, job)] = job

    def wait(self, seconds: float) -> list[tuple[Job, Outcome]]:
        done, _ = self._ray.wait(list(self._open), num_returns=1,
                                 timeout=seconds)
        return [(self._open.pop(one), self._outcome(one)) for one in done]

    def close(self) -> None:
        self._ray.shutdown()

    def _outcome(self, reference: Any) -> Outcome:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            return Outcome(message='worker lost: ' + (
                lines[0] if lines else type(error).__name__), started=now())


def _run(work: Runner, job: Job) -> Outcome:
    """What a worker does."""
    return work.run(job)


def _import() -> Any:
    try:
        return importlib.import_module('ray')
    except ImportError:
        raise UserError(
            '--ray: expected the package ray, found none; pip install ray, '
            'or leave --ray out and run one after the other') from None
