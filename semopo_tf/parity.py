"""Compare this package with recorded traces of the published code.

`run.py diff --trace FILES`. The trace format is described in docs/traces.md:
weights, batches, every random draw, losses, gradients and results. Networks
are rebuilt from the trace's own configuration, weights and draws injected.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dreamerv2_base.errors import UserError

# Largest relative error allowed per group of quantities.
TOLERANCES = {
    'losses': 1e-4,
    'gradients': 1e-3,
    'weights': 1e-3,
    'changes': 1e-3,
    'states': 1e-4,
    'imagination': 1e-4,
    'targets': 1e-4,
    'actions': 1e-4,
    'video': 2e-3,
}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The file of a trace. Raises UserError when it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names = getattr(file, 'files', ['one array'])
            if 'case' not in names:
                raise UserError(
                    f'{path}: expected a trace with the key `case`, found '
                    f'{sorted(names)[:3]} …; see docs/traces.md')
            yield file
    except FileNotFoundError:
        raise UserError(f'{path}: expected a trace, found no file; give '
                        'run.py diff --trace FILE.npz') from None
    except (ValueError, OSError, EOFError, KeyError,
            zipfile.BadZipFile) as error:
        raise UserError(f'{path}: expected a trace (.npz), found an '
                        f'unreadable file ({error})') from None


class Trace(Mapping[str, np.ndarray]):
    """A recorded trace: arrays by name, with its configuration.

    Raises UserError when the file is no trace.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        with opened(self.path) as file:
            self._arrays = {key: file[key] for key in file.files}
        self.case: dict[str, Any] = json.loads(str(self._arrays['case']))
        self.config: dict[str, Any] = {}
        if 'config' in self._arrays:
            self.config = json.loads(str(self._arrays['config']))

    def __getitem__(self, key: str) -> np.ndarray:
        return self._arrays[key]

    def __iter__(self):
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def below(self, prefix: str) -> dict[str, np.ndarray]:
        """Entries under `prefix/`, without it."""
        start = f'{prefix}/'
        return {key[len(start):]: value for key, value in self._arrays.items()
                if key.startswith(start)}

    def count(self, name: str) -> int:
        """How many numbered entries (`model0`, `model1`, …) there are."""
        number = 0
        while self.below(f'{name}{number}'):
            number += 1
        return number


def inject(variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray],
           path: Path) -> None:
    """Set the first weights (`init/…`) of the trace in `path`, by name.

    `variables` are those of the network that the trace's own case or
    configuration asks for. Raises UserError for a weight that it does not
    have, or has in another shape.
    """
    for name, value in arrays.items():
        expected = 'no such weight'
        if name in variables:
            expected = f'shape {tuple(variables[name].shape)}'
        if expected != f'shape {value.shape}':
            raise UserError(
                f'{path}: init/{name}: expected {expected} in the network of '
                f'its own case, found shape {value.shape}; see docs/traces.md')
        variables[name].assign(value)


def relative_error(ours: np.ndarray, recorded: np.ndarray) -> float:
    """max |ours − recorded| / max |recorded| over an array."""
    ours = np.asarray(ours, np.float64)
    recorded = np.asarray(recorded, np.float64)
    if ours.shape != recorded.shape:
        return float('inf')
    if not recorded.size:
        return 0.0
    scale = np.abs(recorded).max()
    gap = np.abs(ours - recorded).max()
    if scale == 0.0:
        return float(gap)
    return float(gap / scale) if np.isfinite(gap) else float('inf')


@dataclass
class Report:
    """Errors of one trace by group, and what could not be compared."""

    name: str
    errors: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def add(self, group: str, name: str, ours, recorded) -> None:
        """Compare one array; a shape mismatch counts as infinite error."""
        error = relative_error(ours, recorded)
        self.errors.setdefault(group, []).append((error, name))

    def add_all(self, group: str, ours: Mapping[str, Any],
                recorded: Mapping[str, np.ndarray], prefix: str = '') -> None:
        """Compare every recorded array; a missing one is an infinite error."""
        for key, value in recorded.items():
            name = f'{prefix}{key}'
            if key in ours:
                self.add(group, name, np.asarray(ours[key]), value)
            else:
                self.errors.setdefault(group, []).append(
                    (float('inf'), f'{name} (missing)'))

    def metrics(self, ours: Mapping[str, Any],
                recorded: Mapping[str, np.ndarray], prefix: str) -> None:
        """Compare metrics: scalars, or the mean where a trace has elements.

        Recorded values that are not finite (a division by a zero weight in
        the published code) are listed as skipped.
        """
        for key, value in recorded.items():
            if not np.isfinite(value).all():
                self.skipped.append(f'{prefix}{key}: recorded as {value}')
                continue
            mine = ours.get(key)
            if mine is not None and np.ndim(mine) == 0 and value.ndim:
                value = value.mean()
            found = {} if mine is None else {key: mine}
            self.add_all('losses', found, {key: value}, prefix)

    def weights(self, ours: Mapping[str, Any], trace: Trace,
                stage: str) -> None:
        """Compare weights below `stage`, and how far they are from `init`.

        One update moves a weight by less than the tolerance of the weights,
        so only the change shows an update that was left out.
        """
        recorded, init = trace.below(stage), trace.below('init')
        self.add_all('weights', ours, recorded, f'{stage}/')
        moved = [name for name in recorded if name in init and name in ours
                 and np.any(recorded[name] != init[name])]
        self.add_all(
            'changes', {name: np.asarray(ours[name]) - init[name]
                        for name in moved},
            {name: recorded[name] - init[name] for name in moved},
            f'{stage}/')

    def worst(self, group: str) -> tuple[float, str]:
        return max(self.errors[group], key=lambda item: item[0])

    @property
    def agrees(self) -> bool:
        return bool(self.errors) and all(
            self.worst(group)[0] <= TOLERANCES[group]
            for group in self.errors)


def compare(path: Path, changes: Mapping[str, Any] | None = None) -> Report:
    """Replay one trace and compare. `changes` overrides configuration keys
    (used to test that switches change no number)."""
    trace = Trace(path)
    return replayer(trace)(trace, dict(changes or {}))


def replayer(trace: Trace) -> Callable[[Trace, dict], Report]:
    """The function that replays a trace of this kind."""
    if trace.config:
        from semopo_tf.parity_world_model import replay
        return replay
    if 'penalty_type' in trace.case:
        from semopo_tf.parity_lompo import replay
        return replay
    algorithm = trace.case.get('algo')
    if algorithm in ('drq_bc', 'drq_cql', 'bc', 'infogating'):
        from semopo_tf.parity_drq import replay
        return replay
    raise UserError(
        f'{trace.path}: expected a trace of a world model (with `config`), '
        f'LOMPO, drq_bc, drq_cql, bc or infogating, found algo {algorithm!r}; '
        'see docs/traces.md')


def print_reports(reports: Iterable[Report]) -> bool:
    """One row per trace and a closing line. Returns whether all agree."""
    from rich.console import Console
    from rich.table import Table
    reports = list(reports)
    table = Table(title='Relative error against recorded traces (worst)')
    table.add_column('trace')
    groups = [g for g in TOLERANCES if any(g in r.errors for r in reports)]
    for group in groups:
        table.add_column(f'{group}\n≤ {TOLERANCES[group]:g}', justify='right')
    table.add_column('agrees')
    for report in reports:
        cells = []
        for group in groups:
            if group not in report.errors:
                cells.append('–')
                continue
            error, _ = report.worst(group)
            mark = '' if error <= TOLERANCES[group] else ' ✗'
            cells.append(f'{error:.1e}{mark}')
        table.add_row(report.name, *cells, 'yes' if report.agrees else 'NO')
    console = Console(width=max(100, 24 + 14 * len(groups)), soft_wrap=True)
    console.print(table)
    for report in reports:
        for group in report.errors:
            error, name = report.worst(group)
            if error > TOLERANCES[group]:
                console.print(f'{report.name}: {group}: {name} is off by '
                              f'{error:.2e} (≤ {TOLERANCES[group]:g})')
        for note in report.skipped:
            console.print(f'{report.name}: not compared: {note}')
    agreed = sum(report.agrees for report in reports)
    console.print(f'{agreed} of {len(reports)} traces agree')
    return agreed == len(reports)
