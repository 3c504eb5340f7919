#!/usr/bin/env python3
"""The one entry point: `run.py COMMAND …`. Parses, calls one function.

Every command has an `_add_…` here, which says what may follow it, and a
function that imports what does the work: `--help` is there at once. Those of
data sets and experiments are registered beside them, in the same way.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from datasets.commands import add_data
from dreamerv2_base.errors import UserError
from semopo_tf.experiments.command_line import (
    add_measure,
    add_reproduce,
    add_results,
)

Command = Callable[[argparse.Namespace, list[str]], int]

ANY_KEY = ('every key of configs.yaml as --key VALUE, after presets '
           '--configs NAME …')
# Of commands about a configuration that is there already.
CHANGED_KEY = 'keys of configs.yaml as --key VALUE change it'


class Parser(argparse.ArgumentParser):
    """Of run.py and, because of it, of every command in it.

    Its errors are one line, as all others; it knows `--debug`; nothing can
    be abbreviated. `keys`: what is said of keys of configs.yaml where a
    command takes them; its help lists them.
    """

    def __init__(self, keys: str = '', **options: Any):
        super().__init__(allow_abbrev=False, **options)
        # Without a default: that of a command would undo `run.py --debug …`.
        self.add_argument('--debug', action='store_true',
                          default=argparse.SUPPRESS,
                          help='show the traceback of an error')
        self._keys = keys
        if keys:
            self.description = f'{self.description}; {keys}'
            self.formatter_class = argparse.RawDescriptionHelpFormatter

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{self.prog}: {message}; see {self.prog} --help')

    def format_help(self) -> str:
        if self._keys:
            self.epilog = _presets_and_keys()
        return super().format_help()


def _presets_and_keys() -> str:
    from semopo_tf import settings
    named = '\n'.join(
        textwrap.fill(f'{title}: {", ".join(names)}', initial_indent='  ',
                      subsequent_indent='    ', break_on_hyphens=False)
        for title, names in settings.preset_groups().items())
    return (f'presets, as in configs.yaml:\n\n{named}\n\nkeys and their '
            'defaults, from there, too; those in a group with its name in '
            f'front, --group.key VALUE:\n\n{settings.defaults_text()}')


def _add(commands: argparse._SubParsersAction, name: str, call: Command,
         text: str, keys: str = '') -> argparse.ArgumentParser:
    """A command, its `text` in the list of all and in its own help."""
    new = commands.add_parser(name, help=text, description=text, keys=keys)
    new.set_defaults(call=call)
    return new


def _expect_no_more(rest: list[str], command: str, expected: str) -> None:
    if rest:
        raise UserError(f'{command}: expected {expected}, found {rest[0]!r} '
                        f'as well; see run.py {command} --help')


# The commands. Each gets its parsed flags and what is left of the command
# line, and returns the exit code.


def _add_train(commands: argparse._SubParsersAction) -> None:
    _add(commands, 'train', train, 'train a method, or go on with a run',
         ANY_KEY)


def train(options: argparse.Namespace, rest: list[str]) -> int:
    from semopo_tf import commands
    return commands.train(rest)


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    new = _add(commands, 'evaluate', evaluate,
               'evaluate the policy of a run folder', CHANGED_KEY)
    new.add_argument('run', type=Path, help='the run folder')
    new.add_argument('--episodes', type=int, default=None,
                     help='how many (default: final_eval_eps of the run)')
    new.add_argument('--video', type=Path, default=None, metavar='FILE.mp4',
                     help='film of the first episode')


def evaluate(options: argparse.Namespace, rest: list[str]) -> int:
    from semopo_tf import commands
    return commands.evaluate(
        options.run, options.episodes, rest, options.video)


def _add_collect(commands: argparse._SubParsersAction) -> None:
    _add(commands, 'collect', collect,
         'make demonstration data with scripted policies', ANY_KEY)


def collect(options: argparse.Namespace, rest: list[str]) -> int:
    from semopo_tf import commands
    return commands.collect(rest)


def _add_doctor(commands: argparse._SubParsersAction) -> None:
    _add(commands, 'doctor', doctor, 'check this machine for a configuration',
         ANY_KEY)


def doctor(options: argparse.Namespace, rest: list[str]) -> int:
    from semopo_tf import doctor
    return doctor.run(rest)


def _add_report(commands: argparse._SubParsersAction) -> None:
    new = _add(commands, 'report', report,
               'write the HTML report of a run folder')
    new.add_argument('run', type=Path, help='the run folder')


def report(options: argparse.Namespace, rest: list[str]) -> int:
    from semopo_tf import commands
    _expect_no_more(rest, 'report', 'RUN')
    return commands.report(options.run)


def _add_export(commands: argparse._SubParsersAction) -> None:
    new = _add(commands, 'export', export,
               'the policy of a run folder alone, to hand on')
    new.add_argument('run', type=Path, help='the run folder')
    new.add_argument('out', type=Path, help='a new folder')


def export(options: argparse.Namespace, rest: list[str]) -> int:
    from semopo_tf import export
    _expect_no_more(rest, 'export', 'RUN OUT')
    print(export.export(options.run, options.out))
    return 0


def _add_diff(commands: argparse._SubParsersAction) -> None:
    new = _add(commands, 'diff', diff,
               'compare with recorded traces, presets or runs', CHANGED_KEY)
    what = new.add_mutually_exclusive_group(required=True)
    what.add_argument('--trace', nargs='+', action='extend', type=Path,
                      metavar='FILE.npz', help='replay recorded traces')
    what.add_argument('--presets', nargs=2, metavar='NAME',
                      help='every key in which two presets differ, and why; of '
                      'paper and released also equal numbers of the paper')
    what.add_argument('--against', nargs=2, type=Path, metavar='RUN',
                      help='where two run folders first part')
    what.add_argument('--record', type=Path, metavar='FILE.npz',
                      help='record a trace of this package')
    new.add_argument('--format', choices=('table', 'markdown', 'json'),
                     default='table')


def diff(options: argparse.Namespace, rest: list[str]) -> int:
    from semopo_tf import commands
    if options.presets or options.against:
        _expect_no_more(rest, 'diff', 'two names')
    if options.presets:
        left, right = options.presets
        return commands.diff_presets(left, right, options.format)
    if options.against:
        return commands.diff_runs(*options.against)
    if options.record:
        return commands.record_trace(options.record, rest)
    return commands.diff_traces(options.trace, rest)


def _add_bench(commands: argparse._SubParsersAction) -> None:
    new = _add(commands, 'bench', bench,
               'time the fast formulation beside the plain one')
    new.add_argument('--preset', default='released',
                     help='of configs.yaml (default: released)')
    new.add_argument('--batch', type=int, default=4,
                     help='chunks of a batch (default: 4)')
    new.add_argument('--length', type=int, default=50,
                     help='rows of a chunk (default: 50)')
    new.add_argument('--repeats', type=int, default=5,
                     help='timings of each (default: 5)')
    new.add_argument('--precision', default='32',
                     help='32, 16 or bf16 (default: 32)')
    new.add_argument('--json', type=Path, metavar='FILE',
                     help='also write them there')


def bench(options: argparse.Namespace, rest: list[str]) -> int:
    from semopo_tf import settings
    _expect_no_more(rest, 'bench', 'only its own flags')
    presets = settings.presets()  # before TensorFlow's ten seconds
    presets.apply(presets.defaults, [options.preset], '--preset')
    from semopo_tf import bench
    bench.report(bench.run(bench.Options(
        options.preset, options.batch, options.length, options.repeats,
        options.precision), options.json), options.json)
    return 0


def _add_convert_checkpoint(commands: argparse._SubParsersAction) -> None:
    new = _add(commands, 'convert-checkpoint', convert_checkpoint,
               'read and write checkpoints of the published code')
    new.add_argument('source', type=Path, metavar='IN')
    new.add_argument('target', type=Path, metavar='OUT')
    new.add_argument('--config', type=Path, required=True, metavar='FILE',
                     help='configuration keys, YAML or JSON')


def convert_checkpoint(options: argparse.Namespace, rest: list[str]) -> int:
    from semopo_tf import released_checkpoint
    _expect_no_more(rest, 'convert-checkpoint', 'IN OUT --config FILE')
    print(released_checkpoint.convert(
        options.source, options.target, options.config))
    return 0


# In the order of `run.py --help`.
COMMANDS = (
    _add_train, _add_evaluate, _add_collect, _add_doctor, _add_report,
    _add_export, _add_diff, _add_bench, _add_convert_checkpoint, add_data,
    add_reproduce, add_results, add_measure)


def parser() -> Parser:
    """The command line: `options.call(options, rest)` is the command."""
    top = Parser(prog='run.py', description='SeMOPO and its baselines: one '
                 'command for everything. run.py COMMAND --help says more.')
    commands = top.add_subparsers(
        dest='command', required=True, metavar='COMMAND')
    for add in COMMANDS:
        add(commands)
    return top


def main(arguments: list[str]) -> int:
    """Run a command; returns its exit code, 2 for most of a user's errors."""
    try:
        options, rest = parser().parse_known_args(arguments)
        return options.call(options, rest)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, OSError, KeyboardInterrupt) as error:
        said = _explanation(error)
        if said is None or '--debug' in arguments:
            raise
        print(said, file=sys.stderr)
        if isinstance(error, KeyboardInterrupt):
            return 130
        return getattr(error, 'code', 2)


def _explanation(error: BaseException) -> str | None:
    """One line on what is no mistake of this package; None on what may be."""
    if isinstance(error, UserError):
        return f'error: {error}'
    if isinstance(error, KeyboardInterrupt):
        return 'stopped; the same command again goes on or starts anew'
    if isinstance(error, (FileNotFoundError, FileExistsError,
                          NotADirectoryError, IsADirectoryError,
                          PermissionError)) and error.filename:
        return (f'error: expected to read or write {error.filename}, found: '
                f'{error.strerror}; give another path (--debug shows what '
                'wanted it)')
    if isinstance(error, OSError) and error.errno in (
            errno.ENOSPC, errno.EDQUOT):
        place = f' {error.filename}' if error.filename else ''
        return (f'error: expected space to write{place}, found the disk full; '
                'free some and give the same command again')
    return None


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
