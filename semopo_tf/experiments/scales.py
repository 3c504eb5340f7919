"""Sizes at which the grid runs: one code path, other numbers.

Numbers are presets of configs.yaml, but for those that depend on the task or
are a scale's own (`overrides_of`); here it is said which presets a scale
applies after a method's own. `released` and `paper` are the full size
(semopo.md section 11); `mini` is for hours on two cores, `demo` for minutes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import registry
from dreamerv2_base.errors import UserError
from semopo_tf.experiments.grid import PAPER_SETS, SYSTEMS, Cell, base

ALL_SETS = tuple(name for name in registry.SETS if name in PAPER_SETS)


@dataclass(frozen=True)
class Scale:
    """A size of the reproduction.

    Attributes:
      seeds: how many by default (the paper: four).
      sets: names on offer by default.
      presets: applied after the method's, by family.
      tasks: applied after those to methods with a world model, by task.
      systems: Table 1 has these alone by default; None: the paper's.
      samples: states that an uncertainty is measured on (10.4: 1000).
    """

    name: str
    seeds: int
    sets: tuple[str, ...]
    presets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tasks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    systems: tuple[str, ...] | None = None
    samples: int = 1000


SCALES: dict[str, Scale] = {scale.name: scale for scale in (
    Scale('demo', 2,
          ('walker_walk_random', 'cheetah_run_random',
           'vd4rl_walker_walk_random_64px'),
          {'dreamer': ('demo', 'reproduce_demo'),
           'lompo': ('lompo_demo', 'reproduce_demo'),
           'drq': ('drq_demo', 'reproduce_demo')}, samples=100),
    Scale('mini', 2, ('cartpole_swingup_mixed',),
          {'dreamer': ('mini',), 'lompo': ('lompo_mini',),
           'drq': ('drq_mini',)},
          {'walker_walk': ('mini_walker',)},
          ('SeMOPO', 'SeMOPO (paper)', 'Offline DV2', 'Se+RS', 'BC')),
    Scale('paper', 4, ALL_SETS),
    Scale('released', 4, ALL_SETS))}

# Scales of the paper's size: its numbers are compared with those of these.
FULL_SIZE = ('paper', 'released')

# What depends on the task (semopo.md sections 4, 5; baselines 6.2): key, value.
_HOPPER = {
    'SeMOPO': {'disen_scales.disen_only': '2.0'},
    'Se+RS': {'disen_scales.disen_only': '2.0'},
    'Se+RS+DRP': {'disen_scales.disen_only': '2.0',
                  'disen_scales.reward': '30000'}}


def presets_of(scale: Scale, system: str, data: str = '',
               ) -> tuple[str, ...]:
    """Presets of configs.yaml for a system at a scale, in order.

    `data`: name of the set, whose own preset comes last if its frames have
    something that the method's do not know of.
    """
    system = base(system)
    entry = registry.SETS.get(data)
    task = scale.tasks.get(entry.task, ()) if (
        entry and SYSTEMS[system].family == 'dreamer') else ()
    own = (entry.preset,) if entry and entry.preset else ()
    return (*_method_presets(scale, system), *task, *own)


def presets_of_cell(cell: Cell) -> tuple[str, ...]:
    """Presets of configs.yaml that a cell's run names, in order."""
    return presets_of(SCALES[cell.scale], cell.system, cell.set)


def _method_presets(scale: Scale, system: str) -> tuple[str, ...]:
    preset, family = SYSTEMS[system].preset, SYSTEMS[system].family
    if (scale.name == 'paper' and family == 'dreamer'
            and system != 'Offline DV2'):
        ablation = () if preset in ('released', 'paper') else (preset,)
        return ('paper', *ablation)
    chosen = (preset, *scale.presets.get(family, ()))
    if system == 'SeMOPO (paper)' and len(chosen) > 1:
        return (*chosen, 'small_paper')
    return chosen


def overrides_of(cell: Cell) -> dict[str, str]:
    """Keys that a run changes beyond presets, folders and seed."""
    entry = registry.find(cell.set)
    changes = {'task': task_key(entry)}
    if entry.task == 'hopper_hop':
        changes |= {key: value for key, value
                    in _HOPPER.get(base(cell.system), {}).items()
                    # The paper has no exogenous-only decoder.
                    if cell.scale != 'paper' or 'disen_only' not in key}
    if cell.scale == 'paper' and base(cell.system) == 'Offline DV2':
        # V-D4RL's present command; semopo.md says 10 for SeMOPO itself.
        changes['offline_lmbd'] = '10'
    return changes


def task_key(entry: registry.DataSet) -> str:
    """The value of `task` for a set: as its data were rendered."""
    if entry.task == 'car_racing':
        return entry.task
    prefix = 'dmc' if entry.background == 'plain' else 'dmcdrv'
    return f'{prefix}_{entry.task}'


def arguments(cell: Cell, folder: Path, logdir: Path, video_dir: str | None,
              ) -> list[str]:
    """Flags of `run.py train` for a cell; videos where its task has some."""
    flags = ['--configs', *presets_of_cell(cell)]
    changes = overrides_of(cell)
    for key, value in changes.items():
        flags += [f'--{key}', value]
    flags += ['--offline_dir', str(folder), '--seed', str(cell.seed),
              '--logdir', str(logdir)]
    if video_dir and changes['task'].startswith('dmcdrv_'):
        flags += ['--video_dir', video_dir]
    return flags


def find_data(name: str, data: Path) -> Path | None:
    """Where a set lies in a data folder (`registry.places`), ready to train
    on; None if it is not there."""
    for folder in registry.places(registry.find(name), data):
        # Episodes, or the arrays that `run.py data convert` maps them to.
        if folder.is_dir() and any(next(folder.glob(kind), None)
                                   for kind in ('*.npz', 'index.json')):
            return folder
    return None


def locate(names: Sequence[str], data: Path) -> dict[str, Path]:
    """The folders of sets. Raises UserError for those that are missing."""
    found = {name: find_data(name, data) for name in names}
    missing = [name for name, folder in found.items() if folder is None]
    if missing:
        there = [name for name, folder in found.items() if folder]
        kept = f', or leave it out: --sets {" ".join(there)}' if there else ''
        entry = registry.find(missing[0])
        # V-D4RL's can only be had from where they are published.
        get = ('docs/reproducing.md says where it is'
               if entry.family == 'vd4rl' else
               f'build it: run.py data build {missing[0]} --out '
               f'{data / entry.folder}')
        raise UserError(
            f'--data {data}: expected the set {missing[0]} in '
            f'{entry.folder}, found none ({len(missing)} of {len(names)} '
            f'missing); {get}{kept}')
    return {name: folder for name, folder in found.items() if folder}
