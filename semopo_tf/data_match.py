"""Whether the data of a run show what it is evaluated in.

By what `data build` wrote beside them, by the names of their folders, and by
the frames themselves. Never imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets import manifest, rendering, scene
from datasets import registry as sets
from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.logger import read_record
from semopo_tf import registry
from semopo_tf.backgrounds import first_difference, video_order
from semopo_tf.environments import (
    check_name,
    describe_env,
    env_spec_from,
    is_car_racing,
    is_dm_control,
)

LOOKED_AT = 3  # episodes whose frames are looked at


def check_task(config: Config) -> None:
    """Raises UserError where the data are of another task than the run's, and
    for a task that is none."""
    check_name(config.task)
    if registry.method_name(config) in registry.ONLINE:
        return
    mine = task_of(config)
    for folder in map(Path, config.offline_dir):
        known = sets.guess(folder)
        task = _recorded_task(_recipe(folder)) or (
            known.task if known else mine)
        if task != mine:
            kind = config.task.split('_')[0]
            whole = task if is_car_racing(task) else f'{kind}_{task}'
            raise UserError(
                f'task: expected {task}, of which {folder} is, found '
                f'{config.task}; give --task {whole}, or presets of data '
                'last (a folder that only has such a name: rename it)')


def task_of(config: Config) -> str:
    """The task without what is behind it: 'walker_walk', 'car_racing'."""
    return _bare(config.task)


def _bare(task: str) -> str:
    return 'car_racing' if is_car_racing(task) else task.split('_', 1)[-1]


def _recorded_task(recipe: Mapping[str, Any]) -> str | None:
    """As `data build` writes it, whose sets have a task, or `collect`, whose
    recipe has that of its run."""
    if 'set' in recipe:
        return recipe['set'].get('task')
    return _bare(recipe['task']) if 'task' in recipe else None


def recipe_notes(config: Config) -> list[str]:
    """Where sets made by `data build` or `collect` were rendered otherwise.

    Others do not say how, but are taken to be before real videos if the task
    is.
    """
    if registry.method_name(config) in registry.ONLINE:
        return []
    notes: list[str] = []
    for folder in map(Path, config.offline_dir):
        recipe = _recipe(folder)
        if 'frames' in recipe:
            notes += rendering.differences(
                recipe['frames'], env_spec_from(config))
            notes += _other_versions(recipe, config)
        elif not recipe and config.video_dir == 'procedural' and (
                config.task.startswith('dmcdrv_')):
            notes.append(
                f'{config.task} is evaluated before drawn backgrounds; for '
                "returns like the paper's give --video_dir FOLDER with "
                'driving videos')
    return list(dict.fromkeys(notes))


def episode_notes(config: Config, store: Any) -> list[str]:
    """What a few of the run's episodes show that does not fit it.

    Rows in another order than this package's, frames of another scene or
    background than the evaluation's. `store`: the run's episodes; data
    without frames, and sets that `data build` made, are not looked at.
    """
    if registry.method_name(config) in registry.ONLINE or (
            'image' not in getattr(store, 'keys', ())) or any(
            'set' in _recipe(Path(folder)) for folder in config.offline_dir):
        return []
    numbers = np.unique(np.linspace(0, len(store) - 1, LOOKED_AT).astype(int))
    episodes = [store.episode(int(number)) for number in numbers]
    found = scene.judge([scene.look(one['image']) for one in episodes],
                        task_of(config))
    notes = row_notes(episodes)
    if is_dm_control(config.task):
        notes += compare(config, found['background'], found['floor'])
    return notes


def row_notes(episodes: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
    """Where row 0 holds an action or a reward (`datasets.checks`).

    Then rows hold what is done at their frame, as D4RL's do, and every model
    and reward would be learned one row off.
    """
    wrong = sum(bool(one['action'][0].any() or one['reward'][0])
                for one in episodes)
    if not wrong:
        return []
    return [
        f'rows: expected the action and reward that led to their frame, so '
        f'zeros in row 0, found others in {wrong} of {len(episodes)} episodes '
        'looked at; where each row holds what is done at its frame, move '
        'action, reward and the flags of the end one row on (docs/design.md)']


def videos_of(config: Config) -> list[list[Any]]:
    """The videos of a run, in the order that its seed gives (`video_order`)."""
    if not config.task.startswith('dmcdrv_'):
        return []
    return video_order(config.video_dir, config.seed)


def video_notes(folder: Path, config: Config) -> list[str]:
    """Where the videos in `video_dir` are not those that a run began with.

    `folder`: the run's, whose data.json says which those were; it says so of
    no run without a folder of videos, and of none that is not yet there.
    """
    path = folder / 'data.json'
    there = read_record(path).get('videos') if path.exists() else None
    here = videos_of(config)
    change = first_difference(there, here) if there and here else ''
    return [f'videos: not those that this run began with: {change} (names '
            f'and sizes in the order that seed {config.seed} gives); give '
            f'--video_dir with those of {path}'] if change else []


def compare(config: Config, background: str, floor: str) -> list[str]:
    """Notes for what `datasets.scene.judge` says of the data's frames."""
    videos = config.task.startswith('dmcdrv_')
    gray = config.background_grayscale
    flags = {
        ('plain', True): f'--task dmc_{task_of(config)}',
        ('grayscale video', False): f'--task dmcdrv_{task_of(config)}',
        ('colour video', False): f'--task dmcdrv_{task_of(config)}'}
    flag = flags.get((background, videos))
    if flag is None and videos and background in (
            'grayscale video', 'colour video'):
        if gray != (background == 'grayscale video'):
            flag = f'--background_grayscale {not gray}'
    notes = [] if flag is None else [
        f'background: the data show {background}, this run is evaluated in '
        f'{config.task}{(", in gray" if gray else ", in colour") * videos}; '
        f'give {flag}']
    scenes = {'grey floor': 'grey_floor', 'video floor': 'stock'}
    if videos and scenes.get(floor, config.scene) != config.scene:
        notes.append(
            f'scene: the data show a {floor}, this run is evaluated in scene '
            f'{config.scene}; give --scene {scenes[floor]}')
    return notes


def _other_versions(recipe: Mapping[str, Any], config: Config) -> list[str]:
    """Where other versions drew the data's frames than draw the run's."""
    here = describe_env(config.task)
    return [f'{name}: the data were rendered with {there}, the evaluation '
            f'with {here[name]}; frames and returns may differ'
            for name, there in recipe.get('environment', {}).items()
            if name != 'id' and name in here and here[name] != there]


def _recipe(folder: Path) -> dict[str, Any]:
    """How `data build` or `collect` made a folder; empty for others."""
    return (manifest.load(folder) or {}).get('recipe') or {}
