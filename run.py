#!/usr/bin/env python3
"""The one entry point: `run.py COMMAND …`. Parses, calls one function."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dreamerv2_base.errors import UserError

CONFIG_HELP = ('every key of configs.yaml as --key VALUE, after presets '
               '--configs NAME …')
# Of commands about a configuration that is there already.
CHANGE_HELP = 'keys of configs.yaml as --key VALUE change it'


def train(options, rest: list[str]) -> int:
    from semopo_tf import commands
    return commands.train(rest)


def evaluate(options, rest: list[str]) -> int:
    from semopo_tf import commands
    return commands.evaluate(
        Path(options.run), options.episodes, rest, options.video)


def collect(options, rest: list[str]) -> int:
    from semopo_tf import commands
    return commands.collect(rest)


def doctor(options, rest: list[str]) -> int:
    from semopo_tf import doctor
    return doctor.run(rest)


def _expect_no_more(rest: list[str], command: str, expected: str) -> None:
    if rest:
        raise UserError(f'{command}: expected {expected}, found {rest[0]!r} '
                        f'as well; see run.py {command} --help')


def report(options, rest: list[str]) -> int:
    from semopo_tf import commands
    _expect_no_more(rest, 'report', 'RUN')
    return commands.report(Path(options.run))


def export(options, rest: list[str]) -> int:
    from semopo_tf import export
    _expect_no_more(rest, 'export', 'RUN OUT')
    print(export.export(options.run, options.out))
    return 0


def diff(options, rest: list[str]) -> int:
    from semopo_tf import commands
    if options.presets or options.against:
        _expect_no_more(rest, 'diff', 'two names')
    if options.presets:
        left, right = options.presets
        return commands.diff_presets(left, right, options.format)
    if options.against:
        return commands.diff_runs(*map(Path, options.against))
    if options.record:
        return commands.record_trace(options.record, rest)
    return commands.diff_traces([Path(path) for path in options.trace], rest)


def convert_checkpoint(options, rest: list[str]) -> int:
    from semopo_tf import released_checkpoint
    _expect_no_more(rest, 'convert-checkpoint', 'IN OUT --config FILE')
    print(released_checkpoint.convert(
        options.source, options.target, options.config))
    return 0


def bench(options, rest: list[str]) -> int:
    from semopo_tf import bench
    _expect_no_more(rest, 'bench', 'only its own flags')
    bench.report(bench.run(bench.Options(
        options.preset, options.batch, options.length, options.repeats,
        options.precision)), options.json)
    return 0


COMMANDS = {
    'train': (train, 'train a method, or go on with a run'),
    'evaluate': (evaluate, 'evaluate the policy of a run folder'),
    'collect': (collect, 'make demonstration data with scripted policies'),
    'doctor': (doctor, 'check this machine for a configuration'),
    'report': (report, 'write the HTML report of a run folder'),
    'export': (export, 'the policy of a run folder alone, to hand on'),
    'diff': (diff, 'compare with recorded traces, presets or runs'),
    'bench': (bench, 'time the fast formulation beside the plain one'),
    'convert-checkpoint': (
        convert_checkpoint, 'read and write checkpoints of the published code'),
}


# Registered by modules that are imported when one of their commands is given.
MODULES = {
    'datasets.commands': {
        'data': 'the data sets: list, validate, describe, convert, build'},
    'semopo_tf.experiments.commands': {
        'reproduce': "the paper's tables and figures from runs",
        'results': 'list, filter, export and import rows of runs'},
    'semopo_tf.experiments.measure': {
        'measure': 'quantities of a trained run, for the figures'},
}


CONFIGURED = {'train': CONFIG_HELP, 'collect': CONFIG_HELP,
              'doctor': CONFIG_HELP, 'evaluate': CHANGE_HELP,
              'diff': CHANGE_HELP}


class Parser(argparse.ArgumentParser):
    """Whose errors are one line, as all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{self.prog}: {message}; see {self.prog} --help')


def key_help() -> str:
    """Presets and keys with their defaults, for --help."""
    from semopo_tf import settings
    presets = settings.presets()
    keys = '\n'.join(f'  --{key} {value}' for key, value
                     in presets.defaults.flat().items())
    return (f'presets: {", ".join(presets.names)}\n\nkeys and their '
            f'defaults (configs.yaml says what they mean):\n{keys}')


def parser(epilog: str = '', given: Sequence[str] = (),
           ) -> argparse.ArgumentParser:
    top = Parser(
        prog='run.py', description=__doc__, allow_abbrev=False)
    top.add_argument('--debug', action='store_true',
                     help='show the traceback of an error')
    commands = top.add_subparsers(
        dest='command', required=True, metavar='COMMAND')
    added = {}
    for name, (_, text) in COMMANDS.items():
        keys = CONFIGURED.get(name, '')
        added[name] = commands.add_parser(
            name, help=text, allow_abbrev=False,
            description=f'{text}; {keys}' if keys else text,
            epilog=epilog if keys else '',
            formatter_class=argparse.RawDescriptionHelpFormatter)
        added[name].add_argument(
            '--debug', action='store_true', default=argparse.SUPPRESS,
            help='show the traceback of an error')
    for module, names in MODULES.items():
        if set(names) & set(given):
            importlib.import_module(module).add_parser(commands)
            continue
        for name, text in names.items():
            commands.add_parser(name, help=text)
    for name in ('evaluate', 'report'):
        added[name].add_argument('run', help='the run folder')
    added['export'].add_argument('run', type=Path, help='the run folder')
    added['export'].add_argument('out', type=Path, help='a new folder')
    added['evaluate'].add_argument(
        '--episodes', type=int, default=None,
        help='how many (default: final_eval_eps of the run)')
    added['evaluate'].add_argument(
        '--video', type=Path, default=None, metavar='FILE.mp4',
        help='film of the first episode')
    what = added['diff'].add_mutually_exclusive_group(required=True)
    what.add_argument('--trace', nargs='+', metavar='FILE.npz',
                      help='replay recorded traces')
    what.add_argument('--presets', nargs=2, metavar='NAME',
                      help='every key in which two presets differ, and why')
    what.add_argument('--against', nargs=2, metavar='RUN',
                      help='where two run folders first part')
    what.add_argument('--record', type=Path, metavar='FILE.npz',
                      help='record a trace of this package')
    added['diff'].add_argument(
        '--format', choices=('table', 'markdown', 'json'), default='table')
    timing = added['bench']
    timing.add_argument('--preset', default='released',
                        help='of configs.yaml (default: released)')
    timing.add_argument('--batch', type=int, default=4,
                        help='chunks of a batch (default: 4)')
    timing.add_argument('--length', type=int, default=50,
                        help='rows of a chunk (default: 50)')
    timing.add_argument('--repeats', type=int, default=5,
                        help='timings of each (default: 5)')
    timing.add_argument('--precision', default='32',
                        help='32, 16 or bf16 (default: 32)')
    timing.add_argument('--json', type=Path, metavar='FILE',
                        help='also write them there')
    convert = added['convert-checkpoint']
    convert.add_argument('source', type=Path, metavar='IN')
    convert.add_argument('target', type=Path, metavar='OUT')
    convert.add_argument('--config', type=Path, required=True, metavar='FILE',
                         help='configuration keys, YAML or JSON')
    return top


def main(arguments: list[str]) -> int:
    wants_help = {'-h', '--help'} & set(arguments)
    try:
        epilog = key_help() if wants_help else ''
        options, rest = parser(epilog, arguments).parse_known_args(arguments)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    try:
        call = (options.call if hasattr(options, 'call')
                else COMMANDS[options.command][0])
        return call(options, rest)
    except UserError as error:
        if options.debug:
            raise
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if options.debug:
            raise
        print('stopped; the same command again goes on or starts anew',
              file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (FileNotFoundError, FileExistsError, NotADirectoryError,
            IsADirectoryError, PermissionError) as error:
        if options.debug or not error.filename:
            raise
        print(f'error: expected to read or write {error.filename}, found: '
              f'{error.strerror}; give another path (--debug shows what '
              'wanted it)', file=sys.stderr)
        return 2
    except OSError as error:
        if options.debug or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print('error: expected space to write, found the disk full '
              f'({error.filename or "a record of the run"}); free some and '
              'give the same command again', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
