"""The paper's printed numbers, as far as they are known; corrected beside.

`paper.json` holds those that the specification states (10.1, 10.3, 7.2 and
trap 18 of section 12); what it does not state is null. Someone with the paper
at hand writes the rest into a file of the same format:

    {"label": "text shown above the numbers",
     "table1": {SET: {SYSTEM: {"mean": 0.93, "std": 0.16}}},
     "table2": {SET: {SYSTEM: {"mean": ..., "std": ...}}},
     "table4": ..., "table5": ...,
     "figure4": {"SeMOPO > Se+RS": {"low": 0.8, "about": null}}}

SET is a name of `run.py data list`, with `@colour` for a column of Table 2
with colour backgrounds; SYSTEM is a name of grid.SYSTEMS. Any table, set,
system or number may be left out. Table 3's numbers are in datasets/table3.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.registry import SETS, guess
from dreamerv2_base.errors import UserError
from semopo_tf.experiments import grid, metrics

FILE = Path(__file__).with_name('paper.json')
TABLES = ('table1', 'table2', 'table4', 'table5')
# How far a mean of Table 1 lies from Table 5's by rounding alone (10.1).
ROUNDING = 0.009
UNEXPLAINED = ('car_racing_random', 'Offline DV2')


@dataclass(frozen=True)
class Number:
    """A printed mean ± std; None where it is not known."""

    mean: float | None = None
    std: float | None = None

    def __bool__(self):
        return self.mean is not None or self.std is not None


UNKNOWN = Number()


@dataclass(frozen=True)
class PaperNumbers:
    """The paper's tables: {table: {set: {system: Number}}}.

    `pairs` is figure 4's {'X > Y': {'low': …, 'about': …}}.
    """

    label: str
    tables: Mapping[str, Mapping[str, Mapping[str, Number]]]
    pairs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def cell(self, table: str, name: str, system: str, variant: str = '',
             ) -> Number:
        """A printed cell, UNKNOWN where it is not known."""
        column = f'{name}@{variant}' if variant else name
        return self.tables.get(table, {}).get(column, {}).get(system, UNKNOWN)

    def corrected_table1(self, name: str, system: str) -> Number:
        """A cell of Table 1 by the right formula (10.1).

        From Table 5; where that is not known, the printed mean with car
        racing's S_min put right. A standard deviation whose map loses
        information is then not known.
        """
        task = _task(name)
        span = metrics.published_range(task) if task else None
        if task is None or span is None:
            return UNKNOWN
        raw = self.cell('table5', name, system)
        printed = self.cell('table1', name, system)
        mean = (span.mean(raw.mean) if raw.mean is not None
                else _unmapped(printed.mean, task, span))
        std = printed.std if not metrics.affine_std(task, system) else None
        if raw.std is not None:
            std = span.std(raw.std)
        return Number(mean, std)

    def remarks(self, name: str, system: str) -> list[str]:
        """Letters of NOTES that a printed cell of Table 1 needs."""
        printed = self.cell('table1', name, system)
        right = self.corrected_table1(name, system)
        task = _task(name)
        found = []
        if printed.mean is not None and right.mean is not None and (
                abs(printed.mean - right.mean) > ROUNDING):
            found.append('a' if task == 'car_racing' else 'd')
        if printed.std is not None and task:
            if (name, system) == UNEXPLAINED:
                found.append('c')
            elif metrics.affine_std(task, system):
                found.append('b')
        return found


# What a reader must know about printed cells of Table 1 (10.1).
NOTES = {
    'a': 'Car Racing was normalised with S_min = 10.3, the mean of the random '
         'set, instead of its smallest episode return, −82.0: the printed '
         'mean cannot be had with the formula of the text.',
    'b': 'The printed standard deviation is |std − S_min| / (S_max − S_min), '
         "the mean's affine map, instead of std / (S_max − S_min): error bars "
         'are too small for walker and wrong for Car Racing.',
    'c': 'The one standard deviation that no map explains; probably a copy of '
         'the row below.',
    'd': 'The printed mean does not follow from Table 5 by rounding.',
}


def load(path: Path | None = None) -> PaperNumbers:
    """Read a file of the paper's numbers; without one, what is known here.

    A given file adds to what is known here and goes before it. Raises
    UserError for a file that cannot be read, and for a table, set, system or
    number that is none.
    """
    known = _read(FILE)
    if path is None:
        return known
    given = _read(Path(path))
    tables = {table: {
        name: {**known.tables.get(table, {}).get(name, {}),
               **given.tables.get(table, {}).get(name, {})}
        for name in {**known.tables.get(table, {}),
                     **given.tables.get(table, {})}} for table in TABLES}
    return PaperNumbers(given.label, tables, {**known.pairs, **given.pairs})


def of_run(folders: Sequence[Path], presets: Sequence[str]) -> Number:
    """The paper's return (Table 5) for a run's data and presets.

    UNKNOWN where they are not of the paper, or its number is not known.
    """
    systems = [system.name for preset in presets
               for system in grid.SYSTEMS.values() if system.preset == preset]
    entry = guess(folders[0]) if len(folders) == 1 else None
    if not systems or entry is None:
        return UNKNOWN
    return load().cell(
        'table5', entry.name, systems[-1].removesuffix(' (paper)'))


# Pieces.


def _unmapped(mean: float | None, task: str, span: metrics.Range,
              ) -> float | None:
    if mean is None or task != 'car_racing':
        return mean
    low = metrics.CAR_PUBLISHED_MINIMUM
    return span.mean(mean * (span.high - low) + low)


def _task(name: str) -> str | None:
    """The task of one of the paper's own sets, else None."""
    entry = SETS.get(name)
    return entry.task if entry and entry.family == 'lqv' else None


def _read(path: Path) -> PaperNumbers:
    try:
        found = json.loads(path.read_text('utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f"--paper {path}: expected the paper's numbers as "
                        f'JSON, found {error}; see {FILE}') from None
    known = (*TABLES, 'label', 'note', 'figure4')
    _check(path, 'a table', found, known)
    tables = {table: _table(path, table, found.get(table, {}))
              for table in TABLES}
    pairs = found.get('figure4', {})
    _check(path, 'a pair of figure 4', pairs, [
        f'{x} > {y}' for x in grid.SYSTEMS for y in grid.SYSTEMS])
    for pair, values in pairs.items():
        _check(path, pair, values, ('low', 'about'))
    return PaperNumbers(
        str(found.get('label', path.name)), tables,
        {pair: {key: number for key, value in values.items()
                if (number := _number(path, pair, value)) is not None}
         for pair, values in pairs.items()})


def _table(path: Path, table: str, content: Any,
           ) -> dict[str, dict[str, Number]]:
    columns = [column for name in SETS for column in (
        (name, f'{name}@{grid.COLOUR}') if table == 'table2' else (name,))]
    _check(path, f'a set of {table}', content, columns)
    found: dict[str, dict[str, Number]] = {}
    for name, cells in content.items():
        _check(path, f'a system of {table}', cells, grid.SYSTEMS)
        found[name] = {}
        for system, cell in cells.items():
            where = f'{table}, {name}, {system}'
            _check(path, where, cell, ('mean', 'std'))
            found[name][system] = Number(
                *(_number(path, where, cell.get(key))
                  for key in ('mean', 'std')))
    return found


def _check(path: Path, what: str, content: Any, known: Any) -> None:
    if not isinstance(content, dict):
        raise UserError(f'--paper {path}: expected {what} to be a mapping, '
                        f'found {content!r}; see {FILE}')
    for key in content:
        if key not in known:
            raise UserError(f'--paper {path}: expected {what}, found '
                            f'{key!r}; see {FILE} for the format')


def _number(path: Path, where: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (
            not math.isfinite(value)):
        raise UserError(f'--paper {path}: expected a number or null in '
                        f'{where}, found {value!r}; see {FILE}')
    return float(value)
