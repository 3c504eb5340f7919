"""What may follow `run.py reproduce`, `results` and `measure`.

Light: what a command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from semopo_tf.experiments import grid, scales

# `--table 1 --table 4` is `--table 1 4`.
SEVERAL: dict[str, Any] = {'nargs': '+', 'action': 'extend'}


def add_reproduce(commands: argparse._SubParsersAction) -> None:
    """Register `reproduce`."""
    new = commands.add_parser(
        'reproduce', help="the paper's tables and figures from runs",
        description="Runs what the paper's tables and figures need, and "
        'makes them. What has a row is never run again. Keys of configs.yaml '
        'as --key VALUE change every run.')
    what = new.add_argument_group('what')
    what.add_argument('--table', **SEVERAL, type=int, default=[], metavar='N',
                      help='of the paper: 1 to 5')
    what.add_argument('--figure', **SEVERAL, type=int, default=[],
                      metavar='N', help='of the paper: 2 to 10')
    what.add_argument('--all', action='store_true',
                      help='every table and figure')
    what.add_argument('--scale', choices=tuple(scales.SCALES),
                      default='paper',
                      help='size of the runs (default: paper)')
    what.add_argument('--sets', **SEVERAL,
                      help='these data sets alone; also such as the scale '
                      'does not have (run.py data list)')
    what.add_argument('--systems', **SEVERAL,
                      help='these methods alone; also such as the scale does '
                      f'not have. Of {", ".join(grid.SYSTEMS)}')
    what.add_argument('--label', metavar='NAME',
                      help='call the --systems with your keys so: rows and '
                      'columns of their own beside the system as it is')
    what.add_argument('--seeds', type=int, help='how many, from 0 on')
    where = new.add_argument_group('where')
    where.add_argument('--data', type=Path, default=Path('data'),
                       help='folder of the data sets (default: data)')
    where.add_argument('--out', type=Path,
                       help='default: runs/reproduce_SCALE')
    where.add_argument('--video_dir', help='folder of background videos')
    how = new.add_argument_group('how')
    how.add_argument('--plan', action='store_true',
                     help='only say what would run, hours, disk, data')
    how.add_argument('--bench', type=Path, metavar='FILE',
                     help='speed of the machine: run.py bench --json FILE')
    how.add_argument('--only-report', action='store_true',
                     help='tables and figures of the rows that are there')
    how.add_argument('--published-style', action='store_true',
                     help="the paper's own normalisation (baselines 10.1)")
    how.add_argument('--sample-std', action='store_true',
                     help='± divides by n - 1 (default: by n)')
    how.add_argument('--paper', type=Path, metavar='FILE',
                     help="the paper's printed numbers, as JSON (format: "
                     'semopo_tf/experiments/paper_numbers.py)')
    place = how.add_mutually_exclusive_group()
    place.add_argument('--serial', action='store_true',
                       help='on this machine without Ray (the default)')
    place.add_argument('--ray', metavar='ADDRESS',
                       help='local, auto or the address of a cluster')
    how.add_argument('--jobs', type=int,
                     help='runs at a time on this machine (default 1; demo: '
                     'as many as cores, at most 4)')
    how.add_argument('--gpus-per-run', type=float,
                     help='Ray: default 0.5 where there are GPUs')
    how.add_argument('--cpus-per-run', type=float, default=1.0,
                     help='Ray: default 1; without a GPU also the threads '
                     'that a run computes with')
    how.add_argument('--retries', type=int, default=2,
                     help='further attempts at a run that fails (default 2)')
    how.add_argument('--slurm', type=Path, metavar='FILE',
                     help='write a submission file instead of running')
    how.add_argument('--nodes', type=int, default=1, help='of --slurm')
    new.set_defaults(call=reproduce)


def reproduce(options: argparse.Namespace, rest: list[str]) -> int:
    """Run what is missing, then write tables and figures."""
    from semopo_tf.experiments import commands
    return commands.reproduce(options, rest)


def add_results(commands: argparse._SubParsersAction) -> None:
    """Register `results`."""
    new = commands.add_parser(
        'results', help='list, filter, compare, export and import rows of runs',
        description='Rows of a reproduction: one per finished run. A table on '
        'a terminal; into a file or a pipe a line for each row, fields between '
        'tabs.')
    new.add_argument('out', type=Path, help='the --out of a reproduction')
    for name in ('system', 'set', 'variant', 'scale', 'task', 'level'):
        new.add_argument(f'--{name}', **SEVERAL, help='only rows of these')
    new.add_argument('--seed', **SEVERAL, type=int,
                     help='only rows of these')
    new.add_argument('--csv', type=Path, metavar='FILE',
                     help='write the rows there')
    new.add_argument('--against', type=Path, metavar='FILE',
                     help='beside the rows that --csv wrote there, of another '
                     'machine say: are the means the same within what runs '
                     'differ by? Exit code 1 where one is apart')
    new.add_argument('--import', type=Path, **SEVERAL, metavar='FILE',
                     dest='sources', default=[],
                     help='add rows that --csv wrote, of other machines '
                     'say; what has a row is not run again')
    new.add_argument('--attempts', action='store_true',
                     help='instead of rows the starts of runs, and how they '
                     'ended: done, failed or lost; one that was stopped, or '
                     'killed with its sweep, is none')
    new.set_defaults(call=results)


def results(options: argparse.Namespace, rest: list[str]) -> int:
    """List rows; as CSV where a file is given."""
    from semopo_tf.experiments import listing
    return listing.show_results(options, rest)


def add_measure(commands: argparse._SubParsersAction) -> None:
    """Register `measure`."""
    new = commands.add_parser(
        'measure', help='quantities of a trained run, for the figures',
        formatter_class=argparse.RawTextHelpFormatter,
        description='Measure a trained run and write one npz file. Flags '
        'change keys of the\nrun, such as --offline_dir FOLDER where the data '
        'have moved.',
        epilog='names:\n' + '\n'.join(
            f'  {name:19} {text}' for name, text in grid.QUANTITIES.items()))
    new.add_argument('logdir', type=Path, metavar='LOGDIR')
    new.add_argument('--names', **SEVERAL, required=True, metavar='NAME',
                     choices=grid.QUANTITIES, help='what to measure')
    new.add_argument('--out', type=Path, required=True, metavar='FILE.npz')
    new.add_argument('--samples', type=int, default=1000,
                     help='states of uncertainty and of separation')
    new.add_argument('--seed', type=int, default=0,
                     help='of the choice of states and all draws')
    new.set_defaults(call=measure)


def measure(options: argparse.Namespace, rest: list[str]) -> int:
    """Measure a run and write what was found."""
    from semopo_tf.experiments import measure
    return measure.run(options, rest)
