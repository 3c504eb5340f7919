"""`run.py data list | validate | describe | convert | build`.

Light: what a sub-command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from datasets import recipes, registry
from dreamerv2_base.errors import UserError

UNKNOWN = 'not known here'


def add_data(commands: argparse._SubParsersAction) -> None:
    """Register `data` with its sub-commands."""
    data = commands.add_parser(
        'data', help='the data sets: list, validate, describe, convert, build',
        description='The data sets: which there are, whether a folder is one '
        'of them, what it looks like, other layouts, new ones from nothing.')
    inner = data.add_subparsers(
        dest='data_command', required=True, metavar='WHAT')
    _add_list(inner)
    _add_validate(inner)
    _add_describe(inner)
    _add_convert(inner)
    _add_build(inner)


def _add_list(inner: argparse._SubParsersAction) -> None:
    new = inner.add_parser(
        'list', help='the sets known by name',
        description='The sets known by name, and whether they are here.')
    new.add_argument('names', nargs='*', metavar='SET',
                     help='say everything of these')
    new.add_argument('--family', choices=('lqv', 'vd4rl', 'built'))
    new.add_argument('--data', type=Path, default=Path('data'),
                     help='folder in which to look (default: data)')
    new.set_defaults(call=list_sets)


def _add_validate(inner: argparse._SubParsersAction) -> None:
    new = inner.add_parser(
        'validate', help='is this the set that it is said to be?',
        description='Check one set or a tree of sets. Exit code 0: all are '
        'the named sets; 1: something differs; 2: it cannot be said.')
    new.add_argument('path', type=Path, metavar='PATH')
    _add_name(new)
    new.add_argument('--unpack', type=Path, metavar='FOLDER',
                     help='unpack archives at PATH there')
    new.add_argument('--full', action='store_true',
                     help='read all files, even unchanged ones')
    new.add_argument('--renew', action='store_true',
                     help='write the manifest for the files that are here')
    new.set_defaults(call=validate_sets)


def _add_describe(inner: argparse._SubParsersAction) -> None:
    new = inner.add_parser(
        'describe', help='an HTML page on a set',
        description='Returns, frames, actions of one set: an HTML page.')
    new.add_argument('path', type=Path, metavar='PATH')
    _add_name(new)
    new.add_argument('--out', type=Path, metavar='FILE.html',
                     help='default: describe.html in the folder')
    new.set_defaults(call=describe_set)


def _add_convert(inner: argparse._SubParsersAction) -> None:
    new = inner.add_parser(
        'convert', help='between npz, hdf5, mapped arrays and Minari',
        description="Write a set in another layout: npz (a file per "
        "episode), hdf5 (V-D4RL's), mapped (this package's arrays), minari. "
        'What SOURCE is, is seen.')
    new.add_argument('source', type=Path, metavar='SOURCE')
    new.add_argument('target', type=Path, metavar='TARGET',
                     help='a folder, or for one hdf5 file FILE.hdf5')
    new.add_argument('--to', required=True,
                     choices=('npz', 'hdf5', 'mapped', 'minari'))
    new.add_argument('--size', type=int, metavar='PIXELS',
                     help='resize frames (bicubic; default: as they are)')
    new.add_argument('--shards', type=int, default=1, metavar='K',
                     help='hdf5: this many files, cut between episodes')
    new.add_argument('--join-shards', action='store_true',
                     help='put episodes that a border of hdf5 files cuts '
                     'together again')
    new.set_defaults(call=convert_set)


def _add_build(inner: argparse._SubParsersAction) -> None:
    new = inner.add_parser(
        'build', help='make a set from nothing: train a policy, select, '
        'render',
        description='make a set from nothing; every key of configs.yaml as '
        '--key VALUE (--video_dir FOLDER, --seed 1, --scene grey_floor)',
        epilog=f'sets: {", ".join(recipes.RECIPES)}')
    new.add_argument('name', metavar='SET')
    new.add_argument('--behaviour', default=None, metavar='POLICY',
                     help='sac: learns from simulator states; tia: from '
                     "distracted pixels, the paper's way (default: sac, "
                     'for Car Racing tia)')
    new.add_argument('--band', type=float, nargs=2, default=None,
                     metavar=('LOW', 'HIGH'),
                     help='returns of the episodes (default: as inferred '
                     'from Table 3)')
    new.add_argument('--episodes', type=int, default=None,
                     help='how many (default: as in Table 3)')
    new.add_argument('--out', type=Path, default=None, metavar='FOLDER',
                     help='default: data/built/TASK/LEVEL (another '
                     'behaviour than the default: data/built_POLICY/…)')
    new.add_argument('--buffer', type=Path, default=None, metavar='FOLDER',
                     help='training run, shared by the levels of a task '
                     '(default: .buffer beside the set)')
    new.add_argument('--workers', type=int, default=None,
                     help='processes that render (default: eval_workers)')
    new.set_defaults(call=build_set)


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--set', dest='name', metavar='SET',
                        help='compare with this one (default: the one that '
                        'the path speaks of)')


# What they do. Each returns the exit code.


def list_sets(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Print the sets: a table, or all that is known of some."""
    _no_more('list', rest)
    if options.names:
        for name in options.names:
            print(_everything(registry.find(name), options.data))
        return 0
    from rich.console import Console
    from rich.table import Table
    table = Table()
    for title in ('set', 'layout', 'px', 'episodes', 'rows', 'min', 'mean',
                  'max', 'here'):
        table.add_column(title, no_wrap=True, justify='left' if title in (
            'set', 'layout', 'here') else 'right')
    for entry in registry.SETS.values():
        if options.family in (None, entry.family):
            table.add_row(*_row(entry, options.data))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(
        'min, mean, max: of the returns, where known of Table 3. here: found '
        f'below {options.data}. All of one: run.py data list SET',
        highlight=False)
    return 0


def validate_sets(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Check a set or a tree; the worst exit code of all."""
    _no_more('validate', rest)
    from datasets import validate
    codes = []
    for path in validate.prepare(options.path, options.unpack):
        try:
            report = validate.validate(
                path, options.name, options.full, options.renew)
        except UserError as error:
            # One set that cannot be read must not hide the others.
            print(f'error: {error}', file=sys.stderr)
            codes.append(2)
            continue
        print(validate.render(report), end='\n\n')
        codes.append(report.exit_code)
    return max(codes)


def describe_set(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Write the page of one set."""
    _no_more('describe', rest)
    from datasets import describe, validate
    report = validate.validate(options.path, options.name)
    folder = (options.path if options.path.is_dir()
              else options.path.parent)
    print(describe.describe(report, options.out or folder / 'describe.html'))
    return 0


def convert_set(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Write a set in another layout."""
    _no_more('convert', rest)
    from datasets import convert
    print(convert.convert(
        options.source, options.target, options.to, options.size,
        options.shards, options.join_shards))
    return 0


def build_set(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Make a set from nothing."""
    from datasets import build
    return build.command(options, list(rest))


def _no_more(name: str, rest: Sequence[str]) -> None:
    if rest:
        raise UserError(f'data {name}: expected only its own flags, found '
                        f'{rest[0]!r}; see run.py data {name} --help')


# Printing.


def _row(entry: registry.DataSet, data: Path) -> list[str]:
    known = entry.statistics
    return [entry.name, entry.layout, str(entry.size),
            ' or '.join(map(str, entry.episodes)) or '–',
            str(entry.rows or '–'),
            *('–' if value is None else f'{value:.1f}' for value in (
                known.minimum, known.mean, known.maximum)),
            'yes' if _place(entry, data) else '']


def _place(entry: registry.DataSet, data: Path) -> Path | None:
    from datasets import readers
    return next((path for path in registry.places(entry, data)
                 if readers.layout(path)), None)


def _everything(entry: registry.DataSet, data: Path) -> str:
    known = ', '.join(f'{name} {value:g}' for name, value
                      in entry.statistics.known().items())
    rewards = (f'{entry.rewards[0]:g} to {entry.rewards[1]:g}'
               if entry.rewards else UNKNOWN)
    here = _place(entry, data)
    lines = {
        'task, level': f'{entry.task}, {entry.level}',
        'source': entry.source, 'licence': entry.licence,
        'layout': f'{entry.layout}, frames of {entry.size}x{entry.size} px, '
                  f'in {entry.folder}',
        'episodes': ' or '.join(map(str, entry.episodes)) or UNKNOWN,
        'rows': f'{entry.rows} per episode' if entry.rows else UNKNOWN,
        'reward of a row': rewards,
        'background': entry.background or UNKNOWN,
        'returns': known or UNKNOWN, 'note': entry.note or '–',
        'here': str(here) if here else f'no ({data / entry.folder})'}
    return '\n'.join([f'{entry.name}', *(
        f'  {name + ":":<17}{text}' for name, text in lines.items())])
