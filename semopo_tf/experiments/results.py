"""One row per finished run, kept for good: `results.sqlite`.

Rows are only ever added: the database itself refuses to change or remove
one. Several processes of one machine may write at once (write-ahead log).
That log does not work across machines over a network disk, so a sweep on
several machines lets its head alone write.
"""

from __future__ import annotations

import csv
import json
import math
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dreamerv2_base.errors import UserError

FILE = 'results.sqlite'
WAIT = 60.0  # seconds that a writer waits for the others


@dataclass(frozen=True)
class Row:
    """One run, evaluated with its last parameters.

    Attributes:
      run: unique id, `scale/set/system/seed` and, for variants, `@variant`.
      system: as the paper names it: 'SeMOPO', 'Offline DV2', 'LOMPO', …
      presets: of configs.yaml, in their order.
      set, task, level: the data (names of datasets.registry).
      seed, scale: of the run; the scale is demo, mini, paper or released.
      variant: '' or 'colour', evaluated with a colour background (Table 2).
      commit, dirty: of the checkout; None outside git.
      config_hash: SHA-256 of the resolved configuration without what may
        change when a run goes on (`run_folder.FREE_KEYS`) and `offline_dir`.
      data_digest: of the episodes, as in the run's data.json.
      versions: packages, Python, devices.
      device: the first one, or CPU.
      hours: wall clock of all its commands up to this row: training,
        measurement, evaluation.
      updates_per_second: of both phases together.
      returns, lengths: of every final episode, raw (summed rewards; rows,
        one more than decisions).
      checkpoint_step: updates of the policy that was evaluated.
      quantities: path of an npz (experiments.quantities) or ''.
      logdir: the run folder. Both paths are kept relative to the store
        where they lie beside it, so a reproduction can be moved.
      finished: UTC, ISO 8601.
    """

    run: str
    system: str
    presets: list[str]
    set: str
    task: str
    level: str
    seed: int
    scale: str
    variant: str = ''
    commit: str | None = None
    dirty: bool | None = None
    config_hash: str = ''
    data_digest: str = ''
    versions: dict[str, Any] = field(default_factory=dict)
    device: str = 'CPU'
    hours: float = 0.0
    updates_per_second: float = 0.0
    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    checkpoint_step: int = 0
    quantities: str = ''
    logdir: str = ''
    finished: str = ''


NAMES = tuple(entry.name for entry in fields(Row))
_PATHS = ('quantities', 'logdir')
_JSON = ('presets', 'versions', 'returns', 'lengths')
_TYPES = {'seed': 'INTEGER', 'dirty': 'INTEGER', 'hours': 'REAL',
          'updates_per_second': 'REAL', 'checkpoint_step': 'INTEGER'}


@dataclass(frozen=True)
class Attempt:
    """One start of a run: `outcome` is 'done', 'failed' or 'lost'."""

    run: str
    started: str
    seconds: float
    outcome: str
    message: str = ''


def _schema() -> str:
    columns = ', '.join(
        f'"{name}" {_TYPES.get(name, "TEXT")}'
        + (' PRIMARY KEY' if name == 'run' else '') for name in NAMES)
    guards = ''.join(
        f'CREATE TRIGGER IF NOT EXISTS {table}_{verb} BEFORE {verb} ON '
        f"{table} BEGIN SELECT RAISE(ABORT, 'rows are only added'); END;"
        for table in ('results', 'attempts') for verb in ('UPDATE', 'DELETE'))
    return (f'CREATE TABLE IF NOT EXISTS results ({columns});'
            'CREATE TABLE IF NOT EXISTS attempts ('
            'run TEXT, started TEXT, seconds REAL, outcome TEXT, '
            f'message TEXT);{guards}')


class ResultStore:
    """The rows of a reproduction.

    `path` is the database or the folder that holds `results.sqlite`; with
    `create=False` a missing file is a UserError instead of an empty store.
    """

    def __init__(self, path: Path, create: bool = True):
        path = Path(path)
        self.path = path if path.suffix == '.sqlite' else path / FILE
        if not create and not self.path.exists():
            raise UserError(
                f'{self.path}: expected a store of results, found none; give '
                'the folder of a reproduction (its --out), or make one: '
                'run.py reproduce --scale demo --all')
        if not create:  # also where nothing may be written
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f'{self.path}: expected a store of results that can be '
                f'written, found: {error}; give another --out') from None
        with self._open() as database:
            database.execute('PRAGMA journal_mode=WAL')
            database.executescript(_schema())

    def append(self, row: Row) -> bool:
        """Add a row; False (and nothing changed) if its run is there."""
        with self._open() as database:
            return self._insert(database, row)

    def rows(self, **filters: Any) -> list[Row]:
        """Rows in the order they came; `seed=[0, 1], system='SeMOPO'`.

        Raises UserError for a filter that is no field of Row.
        """
        unknown = set(filters) - set(NAMES)
        if unknown:
            raise UserError(f'results: expected filters among '
                            f'{", ".join(NAMES)}, found {sorted(unknown)[0]}')
        where: list[str] = []
        values: list[Any] = []
        for name, wanted in filters.items():
            several = (wanted if isinstance(wanted, (list, tuple, frozenset))
                       else [wanted])
            where.append(f'"{name}" IN ({", ".join("?" * len(several))})')
            values += several
        text = f' WHERE {" AND ".join(where)}' if where else ''
        with self._open() as database:
            found = database.execute(
                f'SELECT * FROM results{text} ORDER BY rowid', values)
            return [self._row(record) for record in found]

    def finished(self) -> frozenset[str]:
        """Ids of the runs that have a row."""
        with self._open() as database:
            return frozenset(
                run for (run,) in database.execute('SELECT run FROM results'))

    def export_csv(self, path: Path, rows: list[Row] | None = None) -> int:
        """Write rows (all by default) as CSV; lists as JSON. Their count."""
        rows = self.rows() if rows is None else rows
        with Path(path).open('w', newline='') as file:
            writer = csv.writer(file)
            writer.writerow(NAMES)
            for row in rows:
                writer.writerow(self._values(row))
        return len(rows)

    def import_rows(self, read: Sequence[tuple[Path, Sequence[Row]]],
                    ) -> dict[Path, int]:
        """Add the rows of CSVs that `export_csv` wrote, all or none.

        So runs of several machines, or published ones, make one table.
        Paths count from this store on, as they did from the other: copy
        run folders to the same places for what is drawn from them.

        Args:
          read: the rows of each file.

        Returns: how many of each were new.
        Raises UserError for a run that has other returns here.
        """
        here = {row.run: row for row in self.rows()}
        for path, rows in read:
            for row in rows:
                known = here.setdefault(row.run, row)
                if known.returns != row.returns:
                    raise UserError(
                        f'{path}: expected the returns that {row.run} has '
                        f'already, {_first(known)}, found {_first(row)}; a '
                        'run has one row: give another folder, or take it '
                        'out')
        with self._open() as database:
            database.execute('BEGIN IMMEDIATE')
            new = {path: sum(self._insert(database, row) for row in rows)
                   for path, rows in read}
            database.execute('COMMIT')
        return new

    def record(self, attempt: Attempt) -> None:
        """Add a start of a run, however it ended."""
        with self._open() as database:
            database.execute(
                'INSERT INTO attempts VALUES (?, ?, ?, ?, ?)',
                (attempt.run, attempt.started, attempt.seconds,
                 attempt.outcome, attempt.message))

    def attempts(self) -> list[Attempt]:
        """All starts, in order."""
        with self._open() as database:
            return [Attempt(*values) for values in database.execute(
                'SELECT * FROM attempts ORDER BY rowid')]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # A connection per use: safe in threads and after a fork.
        try:
            with closing(sqlite3.connect(
                    self.path, timeout=WAIT,
                    isolation_level=None)) as database:
                database.execute('PRAGMA synchronous=FULL')
                yield database
        except sqlite3.DatabaseError as error:
            raise UserError(
                f'{self.path}: expected a store of results that can be read '
                f'and written, found: {error}; restore it from a copy, or '
                'give another --out') from None

    def _insert(self, database: sqlite3.Connection, row: Row) -> bool:
        marks = ', '.join('?' * len(NAMES))
        return database.execute(
            f'INSERT OR IGNORE INTO results VALUES ({marks})',
            self._values(row)).rowcount == 1

    def _values(self, row: Row) -> list[Any]:
        values = asdict(row)
        home = self.path.parent.resolve()
        for name in _PATHS:
            path = Path(values[name])
            if values[name] and path.is_absolute() and (
                    path.is_relative_to(home)):
                values[name] = str(path.relative_to(home))
        return [json.dumps(value) if name in _JSON else value
                for name, value in values.items()]

    def _row(self, record: tuple) -> Row:
        values = dict(zip(NAMES, record, strict=True))
        for name in _JSON:
            values[name] = json.loads(values[name])
        for name in _PATHS:
            if values[name]:  # an absolute path stays what it is
                values[name] = str(self.path.parent.resolve() / values[name])
        if values['dirty'] is not None:
            values['dirty'] = bool(values['dirty'])
        return Row(**values)


def read_csv(path: Path) -> list[Row]:
    """Rows as `export_csv` wrote them; paths as they stand.

    Raises UserError for a missing file, another one, or a damaged line.
    """
    try:
        with Path(path).open(newline='', encoding='utf-8-sig') as file:
            reader = csv.DictReader(file, strict=True)
            if tuple(reader.fieldnames or ()) != NAMES:
                raise UserError(
                    f'{path}: expected the columns {", ".join(NAMES)}, found '
                    f'{", ".join(reader.fieldnames or ["none"])}; write it '
                    'with: run.py results OUT --csv FILE')
            return [_parsed(path, reader.line_num, values)
                    for values in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'{path}: expected rows as CSV, found: {error}; '
                        'write it with: run.py results OUT --csv FILE'
                        ) from None


def _parsed(path: Path, line: int, values: dict[str, Any]) -> Row:
    try:
        if None in values or None in values.values():
            raise ValueError('another number of columns')
        parsed: dict[str, Any] = dict(values)
        for name in NAMES:
            text = values[name]
            if name in _JSON:
                parsed[name] = json.loads(text)
            elif name in ('commit', 'dirty') and text == '':
                parsed[name] = None
            elif name == 'dirty':
                parsed[name] = {'True': True, 'False': False}[text]
            elif name in _TYPES:
                parsed[name] = (float if _TYPES[name] == 'REAL' else int)(text)
        row = Row(**parsed)
        _check(row)
        return row
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path}, line {line}: expected a row of a run, found '
            f'{error}; export it again: run.py results OUT --csv FILE'
        ) from None


def _check(row: Row) -> None:
    """Raises ValueError for what no run writes: a store keeps it for good."""
    numbers = (*row.returns, row.hours, row.updates_per_second)
    if not row.returns or not all(
            isinstance(value, float) and math.isfinite(value)
            for value in numbers):
        raise ValueError('no finite returns, hours and updates_per_second')
    if not all(isinstance(name, str) for name in row.presets) or not (
            isinstance(row.presets, list) and isinstance(row.versions, dict)):
        raise ValueError('other presets or versions than a list and a map')
    if not isinstance(row.lengths, list) or len(row.lengths) not in (
            0, len(row.returns)):
        raise ValueError(f'{len(row.returns)} returns and lengths '
                         f'{row.lengths!r}')
    if not 0 <= row.seed < 2 ** 63 or not re.search(
            rf'/{re.escape(row.set)}/.*/seed{row.seed}(@|$)', f'/{row.run}'):
        raise ValueError(f'run {row.run!r} of set {row.set}, seed {row.seed}')


def _first(row: Row) -> str:
    shown = ', '.join(f'{value:.2f}' for value in row.returns[:3])
    return f'{shown}, … ({len(row.returns)})'
