"""What a reproduction would run, and what it would cost: `--plan`.

Hours are estimates and say what they rest on: finished runs of the same
system where the store has some, else the arithmetic of an update over the
speed of a machine (`run.py bench --json`, or two cores measured by us), else
seconds per update measured on two cores.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets import mapped_sets, recipes, registry
from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from semopo_tf import flops, memory, settings
from semopo_tf.experiments import scales
from semopo_tf.experiments.evidence import plural
from semopo_tf.experiments.grid import Cell, base, system
from semopo_tf.experiments.results import Row

ACTIONS = 6
TIME_LIMIT = 1000          # control steps of an episode, unless told otherwise
# docs/performance.md: a released model update of 4x50 frames, two cores.
CPU_SPEED = 285e9 / 1.85
# Small convolutions run at a part of it, by how many streams a model has:
# fitted to the slower of two machines (medians of rows_rung1_first.csv and
# rows_rung2_2500.csv in docs/results/mini, two or three jobs at a time): SeMOPO
# 1.25 hours on cartpole, 1.5 on walker, Offline DV2 0.3, 0.6. The other needed
# half.
SMALL_SHARE = {1: 1 / 4, 2: 1 / 7}
# Seconds per update at batch 256 and published sizes, two cores.
DRQ_SECONDS = {'BC': 1.2, 'DrQ+BC': 1.7, 'DrQ+CQL': 3.6, 'InfoGating': 25.0}
DRQ_WORK = 256 * 1024      # batch × hidden units of those
START = 40.0               # seconds: imports, tracing, report
STEP = 0.004               # seconds: a rendered and evaluated step
# Bytes of two checkpoints, films and records: at full size (a checkpoint of
# `released` is 0.67 GB), at a small one.
RUN_DISK, SMALL_DISK = 1.4e9, 0.05e9
SMALL_EPISODES = 60        # of a set at the small scales, if nothing says more


@dataclass(frozen=True)
class Estimate:
    """Hours of one run, and what they rest on."""

    hours: float
    basis: str


def estimate(cell: Cell, config: Config, rows: Sequence[Row] = (),
             speed: float | None = None) -> Estimate:
    """Hours of a cell's training, if it has no row yet, and evaluation.

    Args:
      config: of the run.
      rows: finished runs, of any cell.
      speed: floating-point operations per second, if it was measured.
    """
    done = {row.run for row in rows}
    missing = sum(run not in done for run in cell.runs)
    steps = (config.time_limit or TIME_LIMIT) // config.action_repeat
    final = STEP * steps * config.final_eval_eps * missing
    if cell.run() in done:
        return Estimate((START + final) / 3600, 'evaluation alone')
    # A small scale gives some tasks presets of their own: other hours.
    known = [row.hours for row in rows if row.system == cell.system
             and row.scale == cell.scale and not row.variant
             and tuple(row.presets) == scales.presets_of_cell(cell)]
    if known:
        return Estimate(statistics.median(known),
                        f'{len(known)} finished')
    if system(cell.system).family == 'drq':
        seconds, basis = _drq(base(cell.system), config), 'updates, 2 cores'
        if speed:
            seconds, basis = seconds * CPU_SPEED / speed, 'updates and bench'
    else:
        small = bool(scales.SCALES[cell.scale].presets)
        seconds = _dreamer(config) / (speed or CPU_SPEED) / (
            SMALL_SHARE[2 if config.separate_wm else 1] if small else 1)
        basis = 'bench' if speed else 'operations, 2 cores'
    evaluations = config.steps // config.agent_train_steps
    curve = STEP * steps * config.eval_eps * evaluations
    return Estimate((START + seconds + curve + final) / 3600, basis)


def _dreamer(config: Config) -> float:
    """Operations of all phases (LOMPO's policy phase: as Dreamer's)."""
    model, policy = config.offline_model_dataset, config.offline_train_dataset
    # A run stops at the first right one: of ten runs 2.4 were begun on average.
    starts = config.model_start_updates * min(config.model_starts, 2) if (
        settings.several_starts(config)) else 0
    updates = config.offline_model_train_steps + starts
    return (updates * flops.model_update(
        config, model.batch * model.length, ACTIONS)
        + config.steps * flops.policy_update(
            config, policy.batch * policy.length, ACTIONS))


def _drq(system: str, config: Config) -> float:
    work = config.drq.batch_size * config.drq.hidden_dim / DRQ_WORK
    # The convolutions do not shrink with the hidden units.
    share = max(work, config.drq.batch_size / 256 * config.drq.filters / 32)
    return config.steps * DRQ_SECONDS[system] * share


def bench_speed(path: Path) -> float:
    """Operations per second of `run.py bench --json FILE`.

    Raises UserError when the file is something else.
    """
    try:
        found = json.loads(path.read_text())
        seconds = float(np.median(found['seconds']['model_update']['fast']))
        return found['GFLOP']['fast']['model_update'] * 1e9 / seconds
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'--bench {path}: expected what `run.py bench --json FILE` '
            f'wrote, found {type(error).__name__}: {error}') from None


def configs(cells: Sequence[Cell], flags: Mapping[str, Any] | None = None,
            ) -> dict[str, Config]:
    """The configuration of each cell (folders left as they are).

    `flags`: keys that are changed in every one. Raises UserError for those
    that `run.py train` would not take.
    """
    presets = settings.presets()
    found: dict[str, Config] = {}
    cache: dict[tuple, Config] = {}
    for cell in cells:
        names = scales.presets_of_cell(cell)
        changes = scales.overrides_of(cell)
        key = (names, tuple(sorted(changes.items())))
        if key not in cache:
            cache[key] = settings.check(presets.apply(
                presets.defaults, names).update(changes, 'grid').update(
                    flags or {}, 'command line'))
        found[cell.name] = cache[key].update({'seed': cell.seed})
    return found


def frames_of(name: str, scale: str, folder: Path | None = None) -> int:
    """Frames of a set: of the episodes in its folder.

    Without a folder of as many as a set of ours is built with, or else the
    paper's has, or a small one. Raises UserError for damaged mapped arrays.
    """
    entry = registry.find(name)
    if folder is not None:
        count = episodes_in(folder)
    elif entry.family == 'built':
        count = recipes.find(name).episodes
    elif scales.SCALES[scale].presets:
        count = SMALL_EPISODES
    else:
        count = max(entry.episodes or (200,))
    return count * (entry.rows or registry.ROWS)


def episodes_in(folder: Path) -> int:
    """Episodes of a folder that `scales.find_data` found."""
    if (folder / 'index.json').exists():
        return len(mapped_sets.names(folder))
    return sum(1 for _ in folder.glob('*.npz'))


def data_disk(name: str, scale: str, folder: Path | None = None) -> float:
    """Bytes of a set's episodes, mapped."""
    return memory.dataset_disk(
        frames_of(name, scale, folder), registry.find(name).size, ACTIONS)


def run_disk(cell: Cell) -> float:
    """Bytes that a finished run keeps."""
    small = scales.SCALES[cell.scale].presets
    return SMALL_DISK if small else RUN_DISK


def cache_disk(cell: Cell, config: Config, folder: Path | None = None,
               ) -> float:
    """Bytes of embeddings, while a run trains its policy."""
    if system(cell.system).family != 'dreamer' or not (
            config.cache_embeddings):
        return 0.0
    item = 4 if config.precision == '32' else 2
    return (frames_of(cell.set, cell.scale, folder) * item
            * 32 * config.encoder.cnn_depth)


def show(cells: Sequence[Cell], rows: Sequence[Row], speed: float | None,
         slots: int, folders: Mapping[str, Path | None],
         flags: Mapping[str, Any] | None = None) -> None:
    """Print the plan: runs by system and set, hours, disk, data.

    Args:
      rows: finished runs, which are not done again.
      speed: as in `estimate`.
      slots: runs at a time.
      folders: of the data sets, None where there is none.
      flags: as in `configs`.
    """
    from rich.console import Console
    from rich.table import Table
    config = configs(cells, flags)
    finished = {row.run for row in rows}
    todo = [cell for cell in cells if not finished.issuperset(cell.runs)]
    estimates = {cell.name: estimate(cell, config[cell.name], rows, speed)
                 for cell in todo}
    table = Table(title=f'{len(todo)} of {len(cells)} runs to do',
                  title_justify='left')
    for name in ('system', 'presets', 'sets', 'runs', 'hours each',
                 'hours', 'estimated from'):
        table.add_column(name, justify='left' if name in (
            'system', 'presets', 'estimated from') else 'right')
    keys = [f'--{key} {" ".join(map(str, values))}'
            for key, values in (flags or {}).items()]
    groups: dict[tuple[str, tuple[str, ...]], list[Cell]] = {}
    for cell in todo:
        key = cell.system, scales.presets_of_cell(cell)
        groups.setdefault(key, []).append(cell)
    for (method, presets), some in groups.items():
        hours = [estimates[cell.name].hours for cell in some]
        table.add_row(
            method, ' '.join([*presets, *keys]),
            str(len({cell.set for cell in some})), str(len(some)),
            f'{statistics.median(hours):.2f}', f'{sum(hours):.1f}',
            ', '.join(dict.fromkeys(
                estimates[cell.name].basis for cell in some)))
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    total = sum(entry.hours for entry in estimates.values())
    disk = sum(map(run_disk, todo)) + slots * max(
        (cache_disk(cell, config[cell.name], folders.get(cell.set))
         for cell in todo), default=0)
    console.print(
        f'{total:.1f} hours of runs (an estimate), {total / slots:.1f} with '
        f'{slots} at a time; about {disk / 1e9:.1f} GB for runs',
        highlight=False, soft_wrap=True)
    scale = cells[0].scale if cells else 'paper'
    for name, folder in folders.items():
        # The demo makes what its runs need and does not find.
        made = scale == 'demo' and any(cell.set == name for cell in cells)
        where = folder or ('will be made' if made else 'missing')
        size = (plural(episodes_in(folder), 'episode') if folder
                else f'{scale} size')
        console.print(f'data {name}: {where} ({size}, mapped: '
                      f'{data_disk(name, scale, folder) / 1e9:.1f} GB)',
                      highlight=False, soft_wrap=True)
