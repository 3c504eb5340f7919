"""`run.py results`: rows of a reproduction, listed, compared, exported,
imported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from dreamerv2_base.errors import UserError
from semopo_tf.experiments import compare
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
    chosen = [flag for flag in ('attempts', 'csv', 'against')
              if getattr(options, flag)]
    if len(chosen) > 1:
        raise UserError(f'results: expected one of --attempts, --csv and '
                        f'--against, found --{" and --".join(chosen)}; give '
                        'one after the other')
    read = [(path, read_csv(path)) for path in options.sources]
    store = ResultStore(options.out, create=bool(read))
    for path, count in store.import_rows(read).items():
        print(f'{count} new rows of {path} in {store.path}')
    if options.attempts:
        for entry in store.attempts():
            print(f'{entry.started} {entry.seconds:8.0f} s {entry.outcome:7}'
                  f'{entry.run} {entry.message}')
        return 0
    filters = _filters(options)
    rows = store.rows(**filters)
    if not rows:
        _expect_known(store, filters)
    if options.csv:
        count = store.export_csv(options.csv, rows)
        print(f'{count} rows in {options.csv}')
        return 0
    if options.against:
        return _compare(rows, options)
    _print_rows(rows)
    return 0


def _compare(rows: Sequence[Row], options: argparse.Namespace) -> int:
    """Our rows beside a file's; 1 where a mean is apart from theirs."""
    theirs = [row for row in read_csv(options.against)
              if all(getattr(row, name) in wanted
                     for name, wanted in _filters(options).items())]
    pairs = compare.compare(rows, theirs)
    _print(compare.COLUMNS, [pair.fields() for pair in pairs],
           ('scale', 'set', 'system', 'other', 'verdict'),
           'mean of the runs ± their sample deviation (how many); equal: '
           'every return; other: what runs of one name were not given alike; '
           "p: of Student's t, whether the means differ: with "
           'two runs a side only large differences can show')
    return int(any(pair.verdict == 'apart' for pair in pairs))


def _filters(options: argparse.Namespace) -> dict[str, Sequence]:
    return {name: found for name in (
        'system', 'set', 'variant', 'scale', 'task', 'level', 'seed')
        if (found := getattr(options, name)) is not None}


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
    rows = sorted(rows, key=lambda row: (row.set, row.system, row.seed,
                                         row.variant))
    _print(COLUMNS, list(map(_fields, rows)), WORDS,
           '± is the population deviation over episodes; * a checkout with '
           'changes')


def _fields(row: Row) -> tuple[str, ...]:
    """What COLUMNS say of a row."""
    return (row.run, row.system, str(len(row.returns)),
            f'{np.mean(row.returns):.1f}', f'{np.std(row.returns):.1f}',
            f'{row.updates_per_second:.1f}', f'{row.hours:.2f}',
            f'{(row.commit or "–")[:8]}{"*" if row.dirty else ""}',
            row.finished[:16])


def _print(columns: Sequence[str], rows: Sequence[Sequence[str]],
           words: Sequence[str], note: str) -> None:
    """A table on a terminal; else a line for each row, fields between tabs.

    `words`: columns of words, the others hold numbers.
    """
    if not sys.stdout.isatty():
        for fields in (columns, *rows):
            print(*fields, sep='\t')
        return
    from rich.console import Console
    from rich.table import Table
    table = Table()
    for name in columns:
        table.add_column(name, justify='left' if name in words else 'right',
                         overflow='fold')
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(f'{len(rows)} rows; {note}', highlight=False)
