"""What result rows and the files they point to hold, for tables and figures.

Nothing is made up here: what is not there is counted as missing.
"""

from __future__ import annotations

import functools
import math
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets import manifest, registry
from dreamerv2_base.errors import UserError
from dreamerv2_base.logger import read_record, read_rows
from semopo_tf.experiments import grid, metrics, run_records, scales
from semopo_tf.experiments.results import Attempt, Row

LEVELS = grid.LEVELS
NO_RANGE = 'nothing is known to normalise its returns with'
UNLIKE = '†'  # at numbers of runs that differ in more than their seeds
Key = tuple[str, str, str, int]  # system, set, variant, seed


@dataclass(frozen=True)
class Curve:
    """A metric of one run: steps and values [n], finite ones alone.

    `left_out` counts the rows whose value was not finite.
    """

    steps: np.ndarray
    values: np.ndarray
    left_out: int = 0


class Evidence:
    """Rows of one scale beside the runs that were wanted.

    Args:
      rows: of one scale, each run once.
      items: names of the tables and figures to make.
      wanted: runs asked for; without them those of the rows' scale and the
        rows' own. A run that is wanted and has no row is missing; a row that
        nobody asked for is shown nowhere, only counted.
      data: folders of data sets by name, of which manifests are read where
        no run says what its data were.
      attempts: starts of runs, in order.
      offered: sets of items about data alone; without them those of runs
        and of `data`.

    Attributes:
      rows: those to be shown. others: those that nobody asked for.

    Raises UserError for rows of several scales, or two of one run.
    """

    def __init__(self, rows: Sequence[Row], items: Sequence[str],
                 wanted: Sequence[grid.Cell] | None = None,
                 data: Mapping[str, Path] | None = None,
                 attempts: Sequence[Attempt] = (),
                 offered: Sequence[str] | None = None):
        self.items = [_item(name) for name in items]
        self.scale = _scale(rows, wanted)
        every = _unique(rows)
        self._folders = dict(data or {})
        self._offered = offered
        self._failures = run_records.failures(attempts)
        self.wanted = list(default_wanted(rows, self.items, self.scale)
                           if wanted is None else wanted)
        asked = set(every) if wanted is None else self._wanted_keys()
        self._found = {key: row for key, row in every.items() if key in asked}
        self.rows = list(self._found.values())
        self._mixed: dict[tuple[str, str], list[str]] = {}
        self.others = [row for key, row in every.items() if key not in asked]

    # What was wanted.

    def systems(self, item: str) -> list[str]:
        """Systems of an item, the paper's first and in its order."""
        used = {cell.system for cell in self.wanted if item in cell.items}
        order = (*grid.ITEMS[item].systems, *grid.SYSTEMS, *sorted(used))
        return [name for name in dict.fromkeys(order) if name in used]

    def sets(self, item: str) -> list[str]:
        """Sets of an item, the paper's first and in its order."""
        if not grid.ITEMS[item].systems:  # about data, not about runs
            offered = self._offered if self._offered is not None else [
                *(cell.set for cell in self.wanted),
                *(row.set for row in self._every), *self._folders]
            used = set(grid.sets_of(grid.ITEMS[item], offered))
        else:
            used = {cell.set for cell in self.wanted if item in cell.items}
        order = (*grid.ITEMS[item].sets, *sorted(used))
        return [name for name in dict.fromkeys(order) if name in used]

    def _wanted_keys(self) -> set[Key]:
        return {(cell.system, cell.set, variant, cell.seed)
                for cell in self.wanted for variant in cell.variants}

    @property
    def _every(self) -> list[Row]:
        """Rows shown and not: data are what they are, whoever asks."""
        return [*self.rows, *self.others]

    def there(self) -> int:
        """How many of the wanted rows there are."""
        return len(self._wanted_keys() & set(self._found))

    def unasked(self, *items: str) -> str:
        """A note on the rows that these items would show if asked for.

        'Not shown, as nobody asked for them: 3 rows, walker_walk_random (1),
        …'; '' if there are none.
        """
        sets = Counter(row.set for row in self.others if any(
            self._fits(grid.ITEMS[name], row) for name in items))
        if not sets:
            return ''
        names = ', '.join(f'{name} ({n})' for name, n in sets.items())
        return ('Not shown, as nobody asked for them: '
                f'{plural(sets.total(), "row")}, {names}.')

    def _fits(self, item: grid.Item, row: Row) -> bool:
        systems = {*item.systems, *self.systems(item.name)}
        if item.name in grid.OPEN:
            systems |= set(scales.SCALES[self.scale].systems or ())
        return ({row.system, grid.base(row.system)} & systems != set()
                and row.variant in item.variants
                and bool(grid.sets_of(item, [row.set])))

    def absent(self, item: str) -> list[str]:
        """Notes on what the paper's item has and nobody asked for."""
        paper, notes = grid.ITEMS[item], []
        for kind, theirs, ours in (
                ('methods', paper.systems, self.systems(item)),
                ('sets', paper.sets, self.sets(item))):
            left = [name for name in theirs if name not in ours]
            if left:
                notes.append(f'Not part of this reproduction ({kind} of the '
                             f'paper): {", ".join(left)}.')
        return notes

    def notes(self, item: str) -> list[str]:
        """What a reader must know of an item's runs: which are not shown,
        and which are not alike. UNLIKE stands where `mixed` finds
        something.
        """
        found = [self.unasked(item)] if self.unasked(item) else []
        for name in self.sets(item):
            systems = self.systems(item) or self.every_system()
            digests = {system: ', '.join(sorted({
                row.data_digest[:8] for row in self._of(system, name)}))
                for system in systems if self._of(system, name)}
            if len(set(digests.values())) > 1:
                found.append(f'Methods on {name} were trained on several '
                             'versions of the data: ' + '; '.join(
                                 f'{system} {text}' for system, text
                                 in digests.items()) + '.')
            found += [f'{UNLIKE} {system} on {name}: its runs differ in '
                      f'{", ".join(self.mixed(system, name))}.'
                      for system in self.systems(item)
                      if self.mixed(system, name)]
        return found

    def drawn(self, item: str) -> list[str]:
        """A note where an item's runs had drawn backgrounds, no videos."""
        systems, sets = self.systems(item), self.sets(item)
        return run_records.drawn_note([
            row for row in self.rows
            if row.system in systems and row.set in sets])

    def mixed(self, system: str, name: str) -> list[str]:
        """In what the runs of a system on a set differ beside their seed:
        presets, commit, data, configuration (`run_records`)."""
        key = system, name
        if key not in self._mixed:
            self._mixed[key] = run_records.differences(
                self._of(system, name))
        return self._mixed[key]

    def every_system(self) -> list[str]:
        """All systems in their order, then the labelled ones of the rows."""
        return [*grid.SYSTEMS, *sorted({row.system for row in self.rows}
                                       - set(grid.SYSTEMS))]

    def _of(self, system: str, name: str) -> list[Row]:
        """Rows of a system on a set, in every variant."""
        return [self._found[key] for key in sorted(self._found)
                if (key[0], key[1]) == (system, name)]

    def count(self, item: str, system: str, name: str, variant: str = '',
              ) -> int:
        """How many runs were wanted."""
        return sum(cell.system == system and cell.set == name
                   and item in cell.items and variant in cell.variants
                   for cell in self.wanted)

    # What is there.

    def runs(self, system: str, name: str, variant: str = '') -> list[Row]:
        """Rows of a system on a set, by seed."""
        return [self._found[key] for key in sorted(self._found)
                if key[:3] == (system, name, variant)]

    def missing(self, item: str, system: str, name: str, variant: str = '',
                ) -> int:
        """How many of the wanted runs have no row."""
        return len(self._missing(item, system, name, variant))

    def missing_text(self, item: str, system: str, name: str,
                     variant: str = '') -> str:
        """`missing: 2 of 4 runs, 1 failed`, or nothing."""
        missing = self._missing(item, system, name, variant)
        failed = sum(cell.run() in self._failures for cell in missing)
        return missing_text(len(missing), self.count(
            item, system, name, variant)) + (
                f', {failed} failed' if failed else '')

    def _missing(self, item: str, system: str, name: str, variant: str,
                 ) -> list[grid.Cell]:
        there = {row.seed for row in self.runs(system, name, variant)}
        return [cell for cell in self.wanted if cell.system == system
                and cell.set == name and item in cell.items
                and variant in cell.variants and cell.seed not in there]

    def missing_runs(self) -> dict[str, str]:
        """Ids of the wanted runs that have no row, and why: 'not run' or
        'failed 2 times, last: …'."""
        return {cell.run(variant): self._failures.get(cell.run(), 'not run')
                for cell in self.wanted for variant in cell.variants
                if (cell.system, cell.set, variant, cell.seed)
                not in self._found}

    def scores(self, item: str, systems: Sequence[str], episodes: bool,
               ) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
        """Normalised scores [runs, sets] of systems on the same sets.

        A set joins only if every wanted run of every system is there, for
        `episodes` with equally many of them. Returns the scores, the sets
        that joined, and those that did not with the reason:
        'hopper_hop_medium (missing: 1 run)'. Runs are seeds, or with
        `episodes` every final episode.
        """
        joined, notes = [], []
        columns: dict[str, list[np.ndarray]] = {name: [] for name in systems}
        for name in self.sets(item):
            problem = self._incomplete(item, systems, name, episodes)
            span = None if problem else self.range(self.task(name))
            if span is None:
                notes.append(f'{name} ({problem or NO_RANGE})')
                continue
            joined.append(name)
            for system in systems:
                returns = [row.returns for row in self.runs(system, name)]
                values = (np.ravel(returns) if episodes else
                          np.array([np.mean(one) for one in returns]))
                columns[system].append(span.mean(values))
        if not joined:
            return {}, [], notes
        if any(len(set(map(len, some))) > 1 for some in columns.values()):
            return {}, [], [*notes, *(
                f'{name} (sets differ in their number of runs)'
                for name in joined)]
        return ({name: np.stack(columns[name], 1) for name in systems},
                joined, notes)

    def _incomplete(self, item: str, systems: Sequence[str], name: str,
                    episodes: bool = False) -> str:
        missing = sum(self.missing(item, system, name) for system in systems)
        if missing:
            return f'missing: {plural(missing, "run")}'
        found = [self.runs(system, name) for system in systems]
        if not all(found):
            return 'not asked for'
        if episodes and len({
                len(row.returns) for rows in found for row in rows}) > 1:
            return 'its runs differ in their number of episodes'
        return ''

    def why_none(self, item: str, system: str) -> str:
        """Why no set of a system joins `scores`."""
        missing = sum(self.missing(item, system, name)
                      for name in self.sets(item))
        if missing:
            return f'missing: {plural(missing, "run")}'
        return '; '.join(dict.fromkeys(
            self._incomplete(item, [system], name) or NO_RANGE
            for name in self.sets(item)))

    def quantity(self, row: Row, key: str) -> np.ndarray | None:
        """A measured array of a run, None where it was not measured.

        Raises UserError for a file that cannot be read.
        """
        if not row.quantities or not Path(row.quantities).exists():
            return None
        try:
            with np.load(row.quantities) as arrays:  # reads this key alone
                return arrays[key] if key in arrays else None
        except (OSError, EOFError, ValueError,
                zipfile.BadZipFile) as error:
            raise UserError(
                f'{row.quantities}: expected measured quantities, found a '
                f'file that cannot be read ({error}); make it anew: '
                f'{_measure(row)}') from None

    def measured(self, row: Row, key: str) -> np.ndarray:
        """As `quantity`, of an array that other measured ones come with.

        Raises UserError where it is missing.
        """
        found = self.quantity(row, key)
        if found is None:
            raise UserError(
                f'{row.quantities or row.run}: expected a measured {key}, '
                f'found none; measure the run anew: {_measure(row)}')
        return found

    def curve(self, row: Row, phase: str, name: str) -> Curve | None:
        """A metric of a run's records; None where there is none."""
        path = Path(row.logdir) / 'metrics.jsonl'
        if not row.logdir or not path.exists():
            return None
        points = [(line['step'], float(line[name]))
                  for line in _records(path, path.stat().st_mtime_ns)
                  if line['phase'] == phase and name in line]
        if not points:
            return None
        kept = [point for point in points if math.isfinite(point[1])]
        steps, values = zip(*kept, strict=True) if kept else ((), ())
        return Curve(np.array(steps, float), np.array(values, float),
                     len(points) - len(kept))

    # The data.

    def trained_on(self, name: str) -> tuple[str, ...]:
        """Ids of the runs that were trained on a set."""
        return tuple(row.run for row in self._every if row.set == name)

    def task(self, name: str) -> str | None:
        """The task of a set: of its rows, else as the project knows it."""
        found = next((row.task for row in self._every if row.set == name),
                     None)
        if found is None and name in registry.SETS:
            found = registry.SETS[name].task
        return found

    @functools.cached_property
    def data(self) -> dict[str, np.ndarray]:
        """Returns of the episodes of every set that runs were trained on.

        As the runs recorded them; else from the manifests of `data`.
        """
        found: dict[str, np.ndarray] = {}
        for row in self._every:
            path = Path(row.logdir) / 'data.json'
            if row.set in found or not row.logdir or not path.exists():
                continue
            returns = read_record(path).get('returns')
            if returns:
                found[row.set] = np.array(returns, float)
        for name, folder in self._folders.items():
            known = None if name in found else manifest.load(Path(folder))
            returns = [one['return'] for entry in (known or {}).get(
                'files', ()) for one in entry['episodes'] if 'return' in one]
            if returns:
                found[name] = np.array(returns, float)
        return found

    @property
    def unread(self) -> list[Path]:
        """Folders of Table 3's sets whose returns nobody has read yet."""
        return [self._folders[name] for name in self.sets('table3')
                if name in self._folders and name not in self.data]

    def range(self, task: str | None) -> metrics.Range | None:
        """S_min and S_max of a task (10.1).

        Of the data actually used where all three sets of the task are known;
        else the published ones; else of the sets that are there.
        """
        if task is None:
            return None
        names = [f'{task}_{level}' for level in LEVELS]
        if all(name in self.data for name in names):
            return _range(names, self.data, 'of the data used')
        published = metrics.published_range(task)
        if published is not None:
            return published
        names = [name for name in self.data if self.task(name) == task
                 and not name.startswith('vd4rl_')]
        return _range(names, self.data, 'of the data used') if names else None


def default_wanted(rows: Sequence[Row], items: Sequence[grid.Item],
                   scale: str) -> list[grid.Cell]:
    """The runs that a scale asks for, and those that rows add to them."""
    known = scales.SCALES[scale]
    offered = list(dict.fromkeys((*known.sets, *(row.set for row in rows))))
    used = {row.system for row in rows}
    labelled = sorted(name for name in used if grid.base(name) != name)
    joined = [name for name in (*grid.SYSTEMS, *labelled) if name in used
              and not any(name in item.systems
                          for item in grid.ITEMS.values())]
    systems = known.systems and (*known.systems, *sorted(
        used - set(known.systems)))
    seeds = max([known.seeds, *(row.seed + 1 for row in rows)])
    cells = grid.cells(items, offered, seeds, scale, systems,
                       (*(known.systems or ()), *joined))
    # Of a label no scale says on which sets and seeds it should be.
    there = {(row.system, row.set, row.seed) for row in rows}
    return [cell for cell in cells if cell.system not in labelled
            or (cell.system, cell.set, cell.seed) in there]


def missing_text(missing: int, wanted: int) -> str:
    """`missing: 2 of 4 runs`, or nothing."""
    if not missing:
        return ''
    if missing == wanted:
        return f'missing: {plural(missing, "run")}'
    return f'missing: {missing} of {plural(wanted, "run")}'


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f'{count} {noun}{"" if count == 1 else "s"}'


# Pieces.


@functools.lru_cache(maxsize=32)  # the runs of a system on a task
def _records(path: Path, changed: int) -> list[dict[str, Any]]:
    """Rows of a record as it is since `changed`, for all of its metrics."""
    return read_rows(path)


def _measure(row: Row) -> str:
    """The command that measures a run as its row's figures need it."""
    system = grid.SYSTEMS.get(grid.base(row.system))
    names = ' '.join(system.quantities) if system else 'NAME …'
    return (f'run.py measure {row.logdir} --names {names} --out '
            f'{row.quantities or "FILE"}')


def _item(name: str) -> grid.Item:
    if name not in grid.ITEMS:
        raise UserError(f'report: expected items among '
                        f'{", ".join(grid.ITEMS)}, found {name!r}; see '
                        'run.py reproduce --help')
    return grid.ITEMS[name]


def _scale(rows: Sequence[Row], wanted: Sequence[grid.Cell] | None) -> str:
    found = {row.scale for row in rows} | {
        cell.scale for cell in wanted or ()}
    if len(found) > 1:
        raise UserError(f'report: expected rows of one scale, found '
                        f'{", ".join(sorted(found))}; choose one with '
                        '--scale')
    scale = next(iter(found), 'paper')
    if scale not in scales.SCALES:
        raise UserError(f'report: expected a scale among '
                        f'{", ".join(scales.SCALES)}, found {scale!r}; '
                        'choose one with --scale')
    return scale


def _unique(rows: Sequence[Row]) -> dict[Key, Row]:
    found: dict[Key, Row] = {}
    for row in rows:
        key = (row.system, row.set, row.variant, row.seed)
        if key in found:
            raise UserError(
                f'report: expected one row of {row.system} on {row.set}, '
                f'seed {row.seed}, found {found[key].run} and {row.run}; '
                'give --out of a single reproduction')
        found[key] = row
    return found


def _range(names: Sequence[str], data: Mapping[str, np.ndarray], source: str,
           ) -> metrics.Range | None:
    values = np.concatenate([data[name] for name in names])
    low, high = float(values.min()), float(values.max())
    if not low < high:
        return None
    return metrics.Range(low, high, source)
