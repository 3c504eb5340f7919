"""One cell of the grid: train, measure, evaluate again, make the rows.

Every part is a `run.py` command in a process of its own, so that the sweep
needs no TensorFlow, a crash ends one run only, and each part can be repeated
by hand. All parts go on where they were stopped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from datasets import registry
from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.files import write_json
from dreamerv2_base.logger import append_row, read_record, read_rows
from semopo_tf import settings
from semopo_tf.experiments import scales
from semopo_tf.experiments.grid import COLOUR, NEED_SIMULATOR, Cell, system
from semopo_tf.experiments.results import Row
from semopo_tf.run_folder import FREE_KEYS

ROOT = Path(__file__).resolve().parents[2]
QUANTITIES = 'quantities.npz'
HOPELESS = (2, 3)  # exit codes that a second try cannot change
POLL = 1.0  # seconds between looks at a lock, a command, the stop file
STOPPED = 'stopped'  # the message of a run that was asked to stop

# Flags of `run.py evaluate` for each variant.
VARIANTS = {COLOUR: ['--background_grayscale', 'False']}


@dataclass(frozen=True)
class Job:
    """A cell with everything that running it takes; travels to workers.

    Attributes:
      cell: what to run.
      folder: of the set's episodes.
      out: of the reproduction; runs lie in `out/runs/<cell.name>`.
      video_dir: as the key of that name, or None for the default.
      threads: of TensorFlow on a CPU; 0 leaves it to TensorFlow.
      flags: further flags of `run.py train`.
    """

    cell: Cell
    folder: Path
    out: Path
    video_dir: str | None = None
    threads: int = 0
    flags: tuple[str, ...] = ()

    @property
    def logdir(self) -> Path:
        return self.out / 'runs' / self.cell.name

    @property
    def log(self) -> Path:
        """Everything that the commands of this run print."""
        return self.out / 'logs' / f'{self.cell.name.replace("/", "_")}.log'

    @property
    def spent(self) -> Path:
        """A line for each command of this run: how long it took."""
        return self.log.with_suffix('.jsonl')

    def train_flags(self) -> list[str]:
        return [*scales.arguments(self.cell, self.folder, self.logdir,
                                  self.video_dir), *self.flags]


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    `rows` are those of all wanted variants, or none; `again` says whether
    another attempt makes sense, `lost` that its worker vanished.
    """

    rows: tuple[Row, ...] = ()
    message: str = ''
    again: bool = True
    lost: bool = False
    started: str = ''
    seconds: float = 0.0

    @property
    def done(self) -> bool:
        return bool(self.rows)


class Failed(Exception):
    """A command of a run ended badly."""

    def __init__(self, message: str, again: bool = True):
        super().__init__(message)
        self.again = again


@dataclass(frozen=True)
class Runner:
    """Runs jobs, one at a time per call; safe in threads."""

    command: Sequence[str] = (sys.executable, str(ROOT / 'run.py'))

    def run(self, job: Job) -> Outcome:
        """All parts of a job. Never raises for what a run does wrong."""
        started, clock = now(), time.monotonic()
        try:
            rows, message, again = self._parts(job), '', True
        except Failed as error:
            rows, message, again = (), str(error), error.again
        except (OSError, UserError, ValueError, KeyError) as error:
            rows, message, again = (), f'{type(error).__name__}: {error}', True
        return Outcome(rows, message, again, started=started,
                       seconds=time.monotonic() - clock)

    def _parts(self, job: Job) -> tuple[Row, ...]:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        self._call(job, 'train', *job.train_flags(),
                   unless=lambda: trained(job.logdir))
        quantities = self._measure(job)
        rows = tuple(self._row(job, variant, quantities)
                     for variant in job.cell.variants)
        for row in rows:
            write_json(row_file(job.logdir, row.variant), asdict(row))
        # Embeddings of every frame: as large as all else, made in minutes.
        shutil.rmtree(job.logdir / 'cache', ignore_errors=True)
        return rows

    def _measure(self, job: Job) -> str:
        names = wanted_quantities(job.cell)
        target = job.logdir / QUANTITIES
        if not names:
            return ''
        self._call(job, 'measure', job.logdir, '--names', *names, '--out',
                   target, '--samples', scales.SCALES[job.cell.scale].samples,
                   unless=target.exists)
        return str(target)

    def _row(self, job: Job, variant: str, quantities: str) -> Row:
        record = row_file(job.logdir, variant)
        if record.exists():
            return Row(**read_record(record))
        if not variant:
            finals = final_episodes(job.logdir)
        else:
            finals = self._evaluate(job, variant)
        return make_row(job, variant, finals, quantities)

    def _evaluate(self, job: Job, variant: str) -> list[dict[str, Any]]:
        printed = self._call(job, 'evaluate', job.logdir, *VARIANTS[variant])
        found = json.loads(printed)
        lengths = found.get('lengths', [])
        return [{'return': value, 'length': length} for value, length in zip(
            found['returns'], lengths, strict=True)]

    def _call(self, job: Job, *arguments: Any,
              unless: Callable[[], bool] = lambda: False) -> str:
        """Run a command, its errors into the log; what it printed.

        The command of a killed worker lives on for a while, and holds the
        job's lock: a second one beside it would do its work again.
        """
        text = [*self.command, *map(str, arguments)]
        with (job.log.with_suffix('.lock').open('w') as lock,
              job.log.open('a') as log):
            hold(lock, job)
            if unless():
                return ''
            wait_for(job.logdir / 'lock', job)  # training by hand
            print(f'\n{now()} $ {" ".join(text)}', file=log, flush=True)
            # A session of its own: Ctrl-C reaches the sweep alone, which
            # asks once; asked twice, a run ends without saving.
            child = subprocess.Popen(
                text, cwd=ROOT, stdin=subprocess.DEVNULL, text=True,
                stdout=subprocess.PIPE, stderr=log, env=environment(job),
                start_new_session=True, pass_fds=[lock.fileno()])
            clock = time.monotonic()
            printed = _ended(child, stop_file(job.out))
            append_row(job.spent, {'command': str(arguments[0]),
                                   'seconds': time.monotonic() - clock})
            if not child.returncode:  # else the error stays the last line
                log.write(printed)
        if stop_file(job.out).exists() and child.returncode:
            raise Failed(STOPPED, again=False)
        if child.returncode:
            raise Failed(
                f'{arguments[0]}: exit code {child.returncode}: '
                f'{last_line(job.log)} (log: {job.log})',
                child.returncode not in HOPELESS)
        return printed


def _ended(child: subprocess.Popen, stop: Path) -> str:
    """Wait for a command; ask it to save and end once `stop` exists."""
    asked = False
    while True:
        try:
            return child.communicate(timeout=POLL)[0]
        except subprocess.TimeoutExpired:
            if stop.exists() and not asked:
                child.terminate()
                asked = True


def stop_file(out: Path) -> Path:
    """While this exists no run of a reproduction starts or goes on."""
    return out / 'stop'


def environment(job: Job) -> dict[str, str]:
    """The environment of a run's commands: threads, unbuffered output."""
    found = {**os.environ, 'PYTHONUNBUFFERED': '1'}
    # TensorFlow's own allocator doubles what it takes: too much where two
    # runs share a card (not tried on one).
    found.setdefault('TF_GPU_ALLOCATOR', 'cuda_malloc_async')
    if job.threads:
        count = str(job.threads)
        found.update(OMP_NUM_THREADS=count, TF_NUM_INTRAOP_THREADS=count,
                     TF_NUM_INTEROP_THREADS=count)
    return found


def wanted_quantities(cell: Cell) -> tuple[str, ...]:
    """What is measured for a cell, whichever items were asked for.

    So a figure asked for later finds its numbers. Figures of the paper show
    sets with driving backgrounds; a mask's truth needs a simulator.
    """
    entry = registry.find(cell.set)
    if entry.background == 'plain':
        return ()
    names = system(cell.system).quantities
    if entry.task == 'car_racing':
        names = tuple(n for n in names if n not in NEED_SIMULATOR)
    return names


# What a finished run left behind.


def trained(logdir: Path) -> bool:
    """Whether a run has ended: its report is written after everything."""
    return (logdir / 'report.html').exists() and bool(final_episodes(logdir))


def final_episodes(logdir: Path) -> list[dict[str, Any]]:
    """Rows of the final evaluation in `episodes.jsonl`."""
    return [row for row in read_rows(logdir / 'episodes.jsonl')
            if row['final']]


def make_row(job: Job, variant: str, finals: Sequence[dict[str, Any]],
             quantities: str) -> Row:
    """The row of a finished run from the records in its folder."""
    cell, logdir = job.cell, job.logdir
    returns = [float(row['return']) for row in finals]
    if not all(map(math.isfinite, returns)):
        # NaN would rank above every score.
        lost = sum(not math.isfinite(value) for value in returns)
        raise Failed(f'expected finite returns, found {lost} of '
                     f'{len(returns)} that are not, in {logdir}/'
                     'episodes.jsonl', again=False)
    entry = registry.find(cell.set)
    versions = read_record(logdir / 'versions.json')
    data = read_record(logdir / 'data.json')
    timings = read_rows(logdir / 'timings.jsonl')
    seconds = sum(row['seconds'] for row in timings)
    # Records repeat nothing: a resumed run cuts them back to its checkpoint.
    updates = sum(max((row['step'] for row in timings
                       if row['phase'] == phase), default=0)
                  for phase in {row['phase'] for row in timings})
    return Row(
        run=cell.run(variant), system=cell.system,
        presets=list(scales.presets_of_cell(cell)),
        set=cell.set, task=entry.task, level=entry.level, seed=cell.seed,
        scale=cell.scale, variant=variant,
        commit=versions.pop('commit'), dirty=versions.pop('dirty'),
        config_hash=config_hash(settings.saved(logdir / 'config.yaml')),
        data_digest=data['digest'], versions=versions,
        device=versions['devices'][0],
        hours=_spent(job, seconds) / 3600,
        updates_per_second=updates / max(seconds, 1e-9),
        returns=returns,
        lengths=[int(row['length']) for row in finals],
        checkpoint_step=int(final_episodes(logdir)[0]['step']),
        quantities=quantities, logdir=str(logdir), finished=now())


def row_file(logdir: Path, variant: str) -> Path:
    """Where a row waits until the store has it."""
    return logdir / f'row{f"_{variant}" if variant else ""}.json'


def left_behind(job: Job) -> list[Row]:
    """Rows that a run wrote, whether or not the store got them."""
    files = [row_file(job.logdir, variant) for variant in job.cell.variants]
    return [Row(**read_record(path)) for path in files if path.exists()]


# Pieces.


def _spent(job: Job, training: float) -> float:
    """Seconds of a run's commands. Of a training that outlived its sweep
    nobody wrote them down; its updates took `training` at least."""
    spent = read_rows(job.spent)
    train = sum(row['seconds'] for row in spent if row['command'] == 'train')
    others = sum(row['seconds'] for row in spent
                 if row['command'] != 'train')
    return max(train, training) + others


def config_hash(config: Config) -> str:
    """SHA-256 of what decides a run's numbers; folders do not."""
    kept = {key: value for key, value in config.flat().items()
            if key not in FREE_KEYS | {'offline_dir'}}
    return hashlib.sha256(
        json.dumps(kept, sort_keys=True).encode()).hexdigest()


def hold(lock: IO[str], job: Job) -> None:
    """Lock a file as soon as no process holds it.

    Raises Failed when the sweep is to stop.
    """
    while True:
        if stop_file(job.out).exists():
            raise Failed(STOPPED, again=False)
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(POLL)


def wait_for(path: Path, job: Job) -> None:
    """Wait until no process trains in a run folder, as `hold` does."""
    if path.exists():
        with path.open() as lock:
            hold(lock, job)


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in
             log.read_text(errors='replace').splitlines() if line.strip()]
    return lines[-1] if lines else 'nothing was printed'


def now() -> str:
    """The time, UTC, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec='seconds')
