"""What a sweep shows: a live table on a terminal, else a line per event."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from semopo_tf.experiments.runner import QUANTITIES, Job, trained

if TYPE_CHECKING:
    from semopo_tf.experiments.sweep import Sweep

ROWS = 24        # of the live table
TAIL = 4096      # bytes of a record that are read for its last line


class Lines:
    """A line per event on stderr, for files and pipes."""

    def event(self, kind: str, job: Job, text: str) -> None:
        word = {'again': 'tried again'}.get(kind, kind)
        print(f'{time.strftime("%H:%M:%S")} {word} {job.cell.name}: {text}',
              file=sys.stderr, flush=True)

    def refresh(self, sweep: Sweep) -> None:
        """Nothing: a file wants no table every two seconds."""

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class LiveTable(Lines):
    """The live table."""

    def __init__(self, console: Console):
        self._live = Live(console=console, auto_refresh=False)
        self._started = time.time()

    def event(self, kind: str, job: Job, text: str) -> None:
        if kind != 'done':
            self._live.console.print(
                f'{kind} {job.cell.name}: {text}', highlight=False)

    def refresh(self, sweep: Sweep) -> None:
        self._live.update(self._render(sweep), refresh=True)

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _render(self, sweep: Sweep) -> Group:
        table = Table()
        for name in ('set', 'system', 'seed', 'state'):
            table.add_column(name)
        running = {name: state for name, job in sweep.waiting.items()
                   if (state := stage(job, self._started))}
        for name, state in list(running.items())[:ROWS]:
            cell = sweep.waiting[name].cell
            table.add_row(cell.set, cell.system, str(cell.seed), state)
        spent = (time.time() - self._started) / 60
        return Group(table, Text(
            f'{len(sweep.done)} done, {len(running)} running, '
            f'{len(sweep.waiting) - len(running)} waiting, '
            f'{len(sweep.failed)} failed; {spent:.0f} min'))


def watcher() -> Lines:
    """A table where stderr is a terminal, lines elsewhere."""
    console = Console(stderr=True)
    return LiveTable(console) if console.is_terminal else Lines()


def stage(job: Job, since: float) -> str:
    """What a run is doing; '' if nothing has happened since then."""
    if not job.log.exists() or job.log.stat().st_mtime < since:
        return ''
    if trained(job.logdir):
        done = (job.logdir / QUANTITIES).exists()
        return 'evaluating' if done else 'measuring'
    last = last_record(job.logdir / 'timings.jsonl')
    if last is None:
        return 'starting'
    return (f'{last["phase"]} {last["step"]:,}, '
            f'{last["updates_per_second"]:.1f}/s')


def last_record(path: Path) -> dict | None:
    """The last whole line of a file of JSON lines, without reading it all."""
    if not path.exists():
        return None
    with path.open('rb') as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().split(b'\n')[:-1]
    return json.loads(lines[-1]) if lines and lines[-1] else None
