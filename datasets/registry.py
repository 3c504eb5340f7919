"""The data sets that this project knows by name.

LQV-D4RL: 5 tasks of 3 levels, the paper's own. V-D4RL: its main track, of
which the paper's Table 4 uses some. Built: small mixed sets of ours. What is
not known here is None.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path

from datasets.table3 import TABLE, Statistics
from dreamerv2_base.errors import UserError

ROWS = 501  # of 1000 control steps at action repeat 2; row 0 is the reset

LQV_SOURCE = "file share linked from the SeMOPO paper's repository"
VD4RL_SOURCE = "file share linked from V-D4RL's repository"
LICENCE = ('none stated in what this project has read; ask the authors '
           'before passing it on')


@dataclass(frozen=True)
class DataSet:
    """A named set of episodes.

    Attributes:
      name: unique, and a preset of configs.yaml for LQV-D4RL.
      family: 'lqv', 'vd4rl', or 'built': made here alone, for experiments
        on small machines.
      task, level: as 'walker_walk', 'medium_replay'.
      folder: where it lies below a data folder; what is found in it.
      layout: 'npz', one file per episode, or 'hdf5', episodes end to end.
      size: height and width of its frames.
      episodes: counts that the set may have; rows: of every episode.
      rewards: range of one row's reward, None where not known.
      background: 'grayscale' video, 'plain', or None where not known.
      statistics: of the returns.
      preset: of configs.yaml, for what its frames show otherwise than usual;
        building it and training on it apply it.
      note: what a user must know.
    """

    name: str
    family: str
    task: str
    level: str
    folder: str
    layout: str
    size: int
    source: str
    episodes: tuple[int, ...] = ()
    rows: int | None = ROWS
    rewards: tuple[float, float] | None = (0.0, 2.0)
    background: str | None = None
    statistics: Statistics = field(default_factory=Statistics)
    preset: str = ''
    note: str = ''
    licence: str = LICENCE


LQV_TASKS = ('walker_walk', 'cheetah_run', 'hopper_hop', 'humanoid_walk',
             'car_racing')
LQV_EPISODES = {'random': 200, 'medium_replay': 400, 'medium': 200}
VD4RL_TASKS = ('walker_walk', 'cheetah_run', 'humanoid_walk')
VD4RL_LEVELS = ('random', 'medium_replay', 'medium', 'medium_expert',
                'expert')


def _lqv(task: str, level: str) -> DataSet:
    car = task == 'car_racing'
    note = ('the public listing shows cheetah, hopper and walker only'
            if task in ('humanoid_walk', 'car_racing') else '')
    return DataSet(
        name=f'{task}_{level}', family='lqv', task=task, level=level,
        folder=f'lqv_d4rl/{task}/{level}', layout='npz', size=64,
        source=LQV_SOURCE, episodes=(LQV_EPISODES[level],),
        # Gym's episodes of car racing end early, and its rewards are not
        # bounded; which version was used is unknown (9.6).
        rows=None if car else ROWS, rewards=None if car else (0.0, 2.0),
        background=None if car else 'grayscale',
        statistics=TABLE[task, level], note=note)


def _vd4rl(task: str, level: str, size: int) -> DataSet:
    return DataSet(
        name=f'vd4rl_{task}_{level}_{size}px', family='vd4rl', task=task,
        level=level, folder=f'vd4rl_data/main/{task}/{level}/{size}px',
        layout='npz' if size == 64 else 'hdf5', size=size,
        source=VD4RL_SOURCE, episodes=(200, 400), background='plain',
        note=('published humanoid episodes of 500 rows were reported'
              if task == 'humanoid_walk' else ''))


def _built(task: str) -> DataSet:
    repeat = 8 if task == 'cartpole_swingup' else 2
    return DataSet(
        name=f'{task}_mixed', family='built', task=task, level='mixed',
        folder=f'built/{task}/mixed', layout='npz', size=64,
        source=f'run.py data build {task}_mixed', background='grayscale',
        rows=1000 // repeat + 1, rewards=(0.0, float(repeat)),
        licence='that of the videos behind the robot',
        preset=('cartpole_swingup_mixed' if task == 'cartpole_swingup'
                else ''),
        note='not a published set: every quality, for small experiments')


SETS: dict[str, DataSet] = {entry.name: entry for entry in (
    *(_lqv(task, level) for task in LQV_TASKS for level in LQV_EPISODES),
    *(_vd4rl(task, level, size) for task in VD4RL_TASKS
      for level in VD4RL_LEVELS for size in (64, 84)),
    *(_built(task) for task in ('cartpole_swingup', 'walker_walk')))}

_LEVELS = {'medrep': 'medium_replay', 'medium-replay': 'medium_replay',
           'medexp': 'medium_expert', 'medium-expert': 'medium_expert'}


def places(entry: DataSet, data: Path) -> list[Path]:
    """Where a set may lie in a data folder, in the order of looking.

    The registry's layout with or without its first folder, `TASK/LEVEL` (not
    V-D4RL's: LQV-D4RL has the same names), and a folder of the set's name.
    """
    path = Path(entry.folder)
    short = [] if entry.family == 'vd4rl' else [Path(entry.task, entry.level)]
    return [data / place for place in (
        path, Path(*path.parts[1:]), *short, Path(entry.name))]


def find(name: str) -> DataSet:
    """The set of a name. Raises UserError with the nearest one."""
    if name not in SETS:
        near = difflib.get_close_matches(name, SETS, 1)
        raise UserError(
            f'expected the name of a data set, found {name!r}'
            f'{f" (nearest: {near[0]})" if near else ""}; see run.py data '
            'list')
    return SETS[name]


def guess(folder: Path) -> DataSet | None:
    """The set that a folder's path speaks of, None if it names none.

    `.../walker_walk/medrep`, `.../walker_walk_random` and V-D4RL's
    `.../main/walker_walk/random/84px` are understood.
    """
    parts = [_LEVELS.get(part.lower(), part.lower())
             for part in folder.resolve().parts[-6:]]
    known = next((SETS[part] for part in reversed(parts) if part in SETS),
                 None)
    if known is not None:
        return known
    levels = {entry.level for entry in SETS.values()}
    level = next((part for part in reversed(parts) if part in levels), None)
    tasks = {entry.task for entry in SETS.values()}
    task = next((part for part in reversed(parts) if part in tasks), None)
    if level is None or task is None:
        return None
    if {'distracting', 'multitask'} & set(parts):
        return None  # other tracks of V-D4RL, of which nothing is known here
    size = next((part for part in parts if re.fullmatch(r'\d+px', part)), '')
    if size or any('vd4rl' in re.sub('[-_]', '', part) and 'lqv' not in part
                   for part in parts):
        return SETS.get(f'vd4rl_{task}_{level}_{size or "64px"}')
    return SETS.get(f'{task}_{level}')
