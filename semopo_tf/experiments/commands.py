"""`run.py reproduce`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import registry
from dreamerv2_base.config import Config, parse_flags
from dreamerv2_base.errors import UserError
from semopo_tf import settings
from semopo_tf.experiments import grid, live, plan, runner, scales, slurm
from semopo_tf.experiments.results import ResultStore, Row
from semopo_tf.experiments.sweep import (
    Interrupted,
    LocalPool,
    Pool,
    Sweep,
    adopt,
    alone,
    stopping,
    unfinished,
)

INTERRUPTED = 130
ALL_ROWS = ('Every row is shown by --only-report without --sets, --systems '
            'and --seeds.')

# Keys that tell one run of the grid from another: a flag that changes them in
# every run would put its rows under other names than their own.
OWN = {'seed': '--seeds N', 'task': '--sets NAME', 'logdir': '--out FOLDER',
       'offline_dir': '--data FOLDER', 'method': '--systems NAME'}


@dataclass(frozen=True)
class Request:
    """A checked command line."""

    items: tuple[grid.Item, ...]
    offered: tuple[str, ...]
    cells: tuple[grid.Cell, ...]
    scale: scales.Scale
    out: Path
    data: Path
    video_dir: str | None
    jobs: int
    flags: tuple[str, ...]
    seeds: int | None = None  # as given


def reproduce(options: argparse.Namespace, rest: list[str]) -> int:
    """Run what is missing, then write tables and figures.

    0: complete; 1: some runs failed (named); 130: stopped, all saved.
    """
    request = _request(options, rest)
    if options.paper:
        from semopo_tf.experiments import paper_numbers
        paper_numbers.load(options.paper)  # a mistake in it shows at once
    if options.slurm:
        slurm.write(options.slurm, slurm.same_command(sys.argv[1:]),
                    options.nodes, request.out)
        print(f'{options.slurm}: put your account and partition in, then\n'
              f'  sbatch {options.slurm}')
        return 0
    if options.plan:
        return _plan(options, request)
    if options.only_report:  # also while another process runs the rest
        store = ResultStore(request.out, create=False)
        _expect_scale(request, store)
        _report(options, request, store)
        return 0
    if request.scale.name != 'demo':
        scales.locate(_sets(request), request.data)
    with alone(request.out):
        store = ResultStore(request.out)
        try:
            failed = _sweep(options, request, store)
        except Interrupted:
            print('stopped; every run is saved. The same command goes on.',
                  file=sys.stderr)
            return INTERRUPTED
        _report(options, request, store)
    for name, message in failed.items():
        print(f'failed: {name}: {message}', file=sys.stderr)
    return 1 if failed else 0


def _request(options: argparse.Namespace, rest: list[str]) -> Request:
    flags = _checked_flags(rest, options.label)
    _check_label(options, rest)
    scale = scales.SCALES[options.scale]
    items = tuple(grid.items_named(
        options.table, options.figure, options.all))
    offered = tuple(registry.find(name).name
                    for name in options.sets or scale.sets)
    seeds = scale.seeds if options.seeds is None else options.seeds
    for name, value, least in (('seeds', seeds, 1), ('jobs', options.jobs, 1),
                               ('retries', options.retries, 0),
                               ('nodes', options.nodes, 1),
                               ('gpus-per-run', options.gpus_per_run, 0),
                               ('cpus-per-run', options.cpus_per_run, 0)):
        if value is not None and value < least:
            raise UserError(f'--{name}: expected at least {least}, found '
                            f'{value}')
    systems = scale.systems
    extra = scale.systems or ()
    if options.systems:
        systems = tuple(grid.system_named(name).name
                        for name in options.systems)
        _expect_different(scale, systems)
        if options.label:
            systems = tuple(f'{name} [{options.label}]' for name in systems)
        extra = systems
    cells = tuple(grid.cells(items, offered, seeds, scale.name, systems,
                             extra))
    _expect_used(items, cells, offered if options.sets else (),
                 systems or () if options.systems else ())
    if flags:
        plan.configs(cells, flags)  # a mistake in them shows at once
    out = options.out or Path('runs') / f'reproduce_{scale.name}'
    jobs = options.jobs or (
        min(4, os.cpu_count() or 1) if scale.name == 'demo' else 1)
    out = out.expanduser().resolve()
    data = options.data.expanduser().resolve()
    return Request(items, offered, cells, scale, out, data,
                   _whole(options.video_dir), jobs, tuple(rest),
                   options.seeds)


def _expect_different(scale: scales.Scale, systems: Sequence[str]) -> None:
    """Raises UserError for two systems that are one and the same run."""
    known: dict[tuple[str, ...], str] = {}
    for name in dict.fromkeys(systems):
        presets = scales.presets_of(scale, name)
        if presets in known:
            raise UserError(
                f'--systems: expected different runs, found {known[presets]} '
                f'and {name}, which at --scale {scale.name} are the same '
                f'({" ".join(presets)}); leave {name} out')
        known[presets] = name


def _check_label(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Raises UserError for a label that is none, or of nothing."""
    if options.label is None:
        return
    if not grid.LABEL.fullmatch(f'x [{options.label}]'):
        raise UserError('--label: expected small letters, digits and _, found '
                        f'{options.label!r}; give --label mine')
    if not options.systems or not rest:
        raise UserError(
            '--label: expected --systems and the keys that differ, found '
            f'{"no keys" if options.systems else "no --systems"}; give for '
            'example --systems SeMOPO --offline_lmbd 5 --label lambda_5')


def _whole(video_dir: str | None) -> str | None:
    """A folder of videos as runs get it, wherever they are started."""
    if video_dir and Path(video_dir).expanduser().exists():
        return str(Path(video_dir).expanduser().resolve())
    return video_dir  # 'procedural', 'none'


def _expect_scale(request: Request, store: ResultStore) -> None:
    """Raises UserError where all rows are of other scales."""
    found = {row.scale for row in store.rows()}
    if found and request.scale.name not in found:
        raise UserError(f'{request.out}: expected rows of scale '
                        f'{request.scale.name}, found those of '
                        f'{", ".join(sorted(found))}; give --scale '
                        f'{min(found)}')


def _checked_flags(rest: Sequence[str], label: str | None,
                   ) -> dict[str, list[str]]:
    """Keys for every run; none that makes a run another one."""
    flags = parse_flags(rest)
    if 'configs' in flags:
        raise UserError('reproduce: expected keys of configs.yaml, found '
                        '--configs: presets belong to the systems; give '
                        '--scale NAME')
    for key, instead in OWN.items():
        if key == 'method' and label:
            continue  # a class of one's own is a variant like any other
        for flag in flags:
            if key in settings.presets().defaults.matching(flag):
                raise UserError(f'reproduce: expected keys that may change '
                                f'in every run, found --{flag}; give '
                                f'{instead}')
    return flags


def _expect_used(items: Sequence[grid.Item], cells: Sequence[grid.Cell],
                 sets: Sequence[str], systems: Sequence[str]) -> None:
    """Raises UserError for a set or system that was named in vain."""
    names = ', '.join(item.name for item in items)
    used = {cell.set for cell in cells}
    for item in items:
        used |= set() if item.systems else set(grid.sets_of(item, sets))
    for kind, named, found, known in (
            ('sets', sets, used, [name for item in items
                                  for name in item.sets]),
            ('systems', systems, {cell.system for cell in cells},
             [name for item in items for name in item.systems])):
        for name in named:
            if name not in found:
                raise UserError(
                    f'--{kind}: expected those of {names} '
                    f'({", ".join(dict.fromkeys(known)) or "none"}), found '
                    f'{name}; leave it out or ask for what shows it')


# Before: data and plan.


def _sets(request: Request) -> list[str]:
    return list(dict.fromkeys(cell.set for cell in request.cells))


def _shown(request: Request) -> list[str]:
    """… and the sets of items about data alone (Table 3)."""
    return list(dict.fromkeys([*_sets(request), *(
        name for item in request.items if not item.systems
        for name in grid.sets_of(item, request.offered))]))


def _with_levels(names: Sequence[str]) -> list[str]:
    """Sets, and all others of their tasks: returns are normalised with the
    range of them all, whichever are asked for."""
    known = [registry.SETS[name] for name in names if name in registry.SETS]
    tasks = {entry.task for entry in known}
    return [entry.name for entry in registry.SETS.values()
            if entry in known or (entry.task in tasks
                                  and entry.family != 'vd4rl')]


def _plan(options: argparse.Namespace, request: Request) -> int:
    speed = plan.bench_speed(options.bench) if options.bench else None
    store = (ResultStore(request.out, create=False)
             if (request.out / 'results.sqlite').exists() else None)
    plan.show(request.cells, store.rows() if store else (), speed,
              request.jobs,
              {name: scales.find_data(name, request.data)
               for name in _shown(request)}, parse_flags(request.flags))
    return 0


def _folders(request: Request) -> dict[str, Path]:
    """Where the sets lie; the demo's own are made when they are missing."""
    names = _sets(request)
    if request.scale.name == 'demo':
        for number, name in enumerate(names):
            folder = scales.find_data(name, request.data)
            if folder is None or folder == request.data / name:
                _collect(request, name, number)
    return scales.locate(names, request.data)


def _collect(request: Request, name: str, seed: int) -> None:
    """A few scripted episodes that stand in for a set, at the demo scale."""
    folder = request.data / name
    command = [sys.executable, str(runner.ROOT / 'run.py'), 'collect',
               '--configs', 'demo', 'reproduce_demo', '--task',
               scales.task_key(registry.find(name)), '--offline_dir',
               str(folder), '--seed', str(seed)]
    if request.video_dir:
        command += ['--video_dir', request.video_dir]
    print(f'scripted stand-in for {name}: {folder}', file=sys.stderr)
    with stopping() as stop, subprocess.Popen(
            command, cwd=runner.ROOT, stdout=subprocess.DEVNULL) as child:
        while child.poll() is None:
            if stop.asked:
                child.terminate()
            time.sleep(0.2)
    if stop.asked:
        raise Interrupted
    if child.returncode:
        raise UserError(f'collect {name}: expected episodes in {folder}, '
                        f'found exit code {child.returncode}; see above, then '
                        'give the same command again')


# The sweep.


def _sweep(options: argparse.Namespace, request: Request,
           store: ResultStore) -> dict[str, str]:
    _keep_label(options, request)
    jobs = _jobs(request)
    adopt(jobs, store)
    _warn_changed(request, store)
    todo = unfinished(jobs, store)
    if not todo:
        return {}
    print(f'{len(todo)} of {len(jobs)} runs to do, into {request.out}',
          file=sys.stderr)
    with live.watcher() as watcher:
        return Sweep(jobs, store, _pool(options, request), watcher,
                     options.retries).run()


def _jobs(request: Request) -> list[runner.Job]:
    folders = _folders(request)
    cores = os.cpu_count() or 1
    threads = max(1, cores // request.jobs) if request.jobs > 1 else 0
    return [runner.Job(cell, folders[cell.set], request.out,
                       request.video_dir, threads, request.flags)
            for cell in request.cells]


def _pool(options: argparse.Namespace, request: Request) -> Pool:
    if not options.ray:
        return LocalPool(request.jobs)
    from semopo_tf.experiments.ray_sweep import RayPool
    return RayPool(options.ray, request.jobs,
                   request.out / 'logs' / 'ray.log', options.gpus_per_run,
                   options.cpus_per_run)


def _labels(out: Path) -> dict[str, list[str]]:
    """The keys behind every label of a reproduction."""
    path = out / 'labels.json'
    return json.loads(path.read_text()) if path.exists() else {}


def _keep_label(options: argparse.Namespace, request: Request) -> None:
    """Record what a label stands for; raises UserError if it stood for
    something else before."""
    if not options.label:
        if request.flags:
            print(f'note: every run gets {" ".join(request.flags)} and is '
                  'called as without; --label NAME keeps both apart',
                  file=sys.stderr)
        return
    known = _labels(request.out)
    mine = list(request.flags)
    if known.setdefault(options.label, mine) != mine:
        raise UserError(
            f'--label {options.label}: expected its keys '
            f'{" ".join(known[options.label])}, found {" ".join(mine)}; give '
            'another label')
    runner.write_json(request.out / 'labels.json', known)


def _with_variants(request: Request, store: ResultStore,
                   ) -> tuple[grid.Cell, ...]:
    """The wanted runs, and finished ones of labelled systems and of what
    these vary, so that they stand side by side: every seed, or the --seeds.
    """
    rows = {row.run: row for row in store.rows(scale=request.scale.name,
                                               variant='')}
    used = {row.system for row in rows.values()} | {
        cell.system for cell in request.cells}
    labelled = {name for name in used if grid.base(name) != name}
    names = sorted(labelled | {grid.base(name) for name in labelled})
    seeds = request.seeds or max(
        (row.seed + 1 for row in rows.values()), default=0)
    mine = {cell.run() for cell in request.cells}
    more = grid.cells(request.items, request.offered, seeds,
                      request.scale.name, names, names)
    return (*request.cells, *(cell for cell in more if cell.run() in rows
                              and cell.run() not in mine))


def _warn_changed(request: Request, store: ResultStore) -> None:
    """Say which rows were made with another configuration."""
    rows = {row.run: row for row in store.rows(variant='')}
    if not rows:
        return
    changes = parse_flags(request.flags)
    if request.video_dir:
        changes['video_dir'] = [request.video_dir]
    configs: dict[str, Config] = plan.configs(request.cells, changes)
    other = [cell.run() for cell in request.cells if cell.run() in rows
             and _hash_today(rows[cell.run()]) != runner.config_hash(
                 configs[cell.name])]
    if other:
        print(f'warning: {len(other)} finished runs were made with another '
              f'configuration, first {other[0]}; they are kept. For new ones '
              'give another --out', file=sys.stderr)


def _hash_today(row: Row) -> str:
    """The hash of a row's configuration, with the keys that came since.

    They have their defaults, which compute what was computed without them.
    """
    path = Path(row.logdir) / 'config.yaml'
    if not row.logdir or not path.exists():
        return row.config_hash
    try:
        return runner.config_hash(settings.saved(path))
    except UserError:  # a key that is no more
        return row.config_hash


# After: tables and figures.


def _report(options: argparse.Namespace, request: Request,
            store: ResultStore) -> None:
    from semopo_tf.experiments import page, paper_numbers
    from semopo_tf.experiments.evidence import Evidence
    rows = store.rows(scale=request.scale.name)
    items = [item.name for item in request.items]
    # What is there, unless a part of it was named.
    named = options.sets or options.systems or options.seeds
    wanted = (None if options.only_report and not named
              else _with_variants(request, store))
    offered = list(dict.fromkeys((
        *request.offered, *(row.set for row in rows if wanted is None))))
    folders = {name: scales.find_data(name, request.data)
               for name in _with_levels((*_shown(request), *offered))}
    note = Evidence(rows, items, wanted).unasked(*items)
    if note:
        print(f'note: {note} {ALL_ROWS}', file=sys.stderr)
    written = page.write(
        rows, items, request.out / 'report',
        published_style=options.published_style, wanted=wanted,
        data={name: folder for name, folder in folders.items() if folder},
        paper=paper_numbers.load(options.paper), sample=options.sample_std,
        labels=_labels(request.out), attempts=store.attempts(),
        offered=offered)
    for path in written:
        if path.name == 'index.html':
            print(f'report: {path}')
