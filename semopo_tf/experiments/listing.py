"""`run.py results`: rows of a reproduction, listed, exported, imported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from dreamerv2_base.errors import UserError
from semopo_tf.experiments.results import ResultStore, Row, read_csv

COLUMNS = ('run', 'system', 'episodes', 'return', '± std', 'updates/s',
           'hours', 'commit', 'finished')
WORDS = ('run', 'system', 'commit', 'finished')


def show_results(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """List rows; as CSV where a file is given.

    Raises UserError for flags that do not go together.
    """
    if rest:
        raise UserError(f'results: expected only its own flags, found '
                        f'{rest[0]!r}; see run.py results --help')
    if options.attempts and options.csv:
        raise UserError(f'results: expected --attempts or --csv, found both; '
                        'leave --attempts out to write rows to '
                        f'{options.csv}')
    read = [(path, read_csv(path)) for path in options.sources]
    store = ResultStore(options.out, create=bool(read))
    for path, count in store.import_rows(read).items():
        print(f'{count} new rows of {path} in {store.path}')
    if options.attempts:
        for entry in store.attempts():
            print(f'{entry.started} {entry.seconds:8.0f} s {entry.outcome:7}'
                  f'{entry.run} {entry.message}')
        return 0
    filters = {name: getattr(options, name) for name in (
        'system', 'set', 'variant', 'scale', 'task', 'level', 'seed')
        if getattr(options, name) is not None}
    rows = store.rows(**filters)
    if not rows:
        _expect_known(store, filters)
    if options.csv:
        count = store.export_csv(options.csv, rows)
        print(f'{count} rows in {options.csv}')
        return 0
    _print_rows(rows)
    return 0


def _expect_known(store: ResultStore, filters: Mapping[str, Sequence],
                  ) -> None:
    """Raises UserError for a filter's value that no row has."""
    every = store.rows()
    if not every:
        raise UserError(f'{store.path}: expected rows, found none yet; run.py '
                        f'results {store.path.parent} --attempts says what '
                        'was begun')
    for name, values in filters.items():
        known = {getattr(row, name) for row in every}
        for value in values:
            if value not in known:
                raise UserError(
                    f'--{name}: expected one of '
                    f'{", ".join(map(repr, sorted(known)))}, found '
                    f'{value!r}; leave --{name} out to see all rows')


def _print_rows(rows: Sequence[Row]) -> None:
    """A table on a terminal; else a line for each row, fields between tabs."""
    rows = sorted(rows, key=lambda row: (row.set, row.system, row.seed,
                                         row.variant))
    if sys.stdout.isatty():
        _print_table(rows)
        return
    for fields in (COLUMNS, *map(_fields, rows)):
        print(*fields, sep='\t')


def _fields(row: Row) -> tuple[str, ...]:
    """What COLUMNS say of a row."""
    return (row.run, row.system, str(len(row.returns)),
            f'{np.mean(row.returns):.1f}', f'{np.std(row.returns):.1f}',
            f'{row.updates_per_second:.1f}', f'{row.hours:.2f}',
            f'{(row.commit or "–")[:8]}{"*" if row.dirty else ""}',
            row.finished[:16])


def _print_table(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify='left' if name in WORDS else 'right',
                         overflow='fold')
    for row in rows:
        table.add_row(*_fields(row))
    console = Console()
    console.print(table)
    console.print(f'{len(rows)} rows; ± is the population deviation over '
                  'episodes; * a checkout with changes', highlight=False)
