"""A trained policy alone: a run folder small enough to hand on.

What `evaluate` and `report` need of a run: its records and the weights that
act. Optimizers, decoders, critics and the exogenous stream stay behind, so
training cannot go on from it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreamerv2_base.checkpoint import FORMAT, Checkpoints, restore
from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.logger import read_record

README = """A policy of {method} on {task}, exported by semopo_tf ({commit}).

In a checkout of semopo_tf (its README says how to make the environment):

    python run.py evaluate THIS_FOLDER --episodes 10 --video policy.mp4
    python run.py report THIS_FOLDER

In Python:

    from semopo_tf.export import load_policy
    method, _ = load_policy('THIS_FOLDER')
    actions, state = method.policy(observation, state, key)

observation: image uint8 [n, {side}, {side}, 3] and is_first bool [n]; state:
None at first; key: any number, a new one for every episode; actions float32
[n, {actions}] in [-1, 1], each held for {repeat} steps of the environment.
"""

# What a run leaves beside its checkpoints; what a run has not is left out.
RECORDS = ('config.yaml', 'data.json', 'start.json', 'versions.json',
           'warnings.json', 'metrics.jsonl', 'episodes.jsonl',
           'timings.jsonl')


def export(run: Path, out: Path) -> Path:
    """Write the newest policy of a run folder, and its records, to `out`.

    The weights are the run's own, bit for bit, compressed; paths in the
    records become relative to the present folder. Raises UserError when `out`
    exists, and for a method without `acting()`.
    """
    from semopo_tf import commands, registry
    config = commands.run_config(run)
    if out.exists():
        raise UserError(f'export: expected a new folder, found {out}; remove '
                        'it or give another one')
    checkpoints = Checkpoints(run / 'ckpt')
    arrays, state = checkpoints.load()
    if state.get('acting'):
        raise UserError(f'export: expected a run that was trained here, found '
                        f'an exported one; copy the folder: cp -r {run} {out}')
    data = read_record(run / 'data.json')
    method = registry.method_class(config)(
        config, None, action_size=data['action_size'])
    if not hasattr(method, 'acting'):
        raise UserError(
            'export: expected a method with acting(), which says what its '
            f'policy reads, found {registry.method_name(config)}; keep the run '
            'folder whole')
    names = list(method.acting())
    partial = out.parent / f'.{out.name}.partial'
    shutil.rmtree(partial, ignore_errors=True)
    place = partial / 'ckpt' / f'{checkpoints.positions()[-1]:09d}'
    place.mkdir(parents=True)
    for name in RECORDS:
        if (run / name).exists():
            (partial / name).write_text(_portable(_text(run / name)))
    np.savez_compressed(place / 'arrays.npz',
                        **{name: arrays[name] for name in names})
    (place / 'state.json').write_text(json.dumps({
        **state, 'format': FORMAT, 'acting': True, 'pinned': True}, indent=1))
    (place / 'done').touch()
    (partial / 'README.txt').write_text(_readme(
        partial, config, data['action_size']))
    os.replace(partial, out)
    return out


def _readme(folder: Path, config: Config, actions: int) -> str:
    from semopo_tf import registry
    path = folder / 'versions.json'
    commit = read_record(path)['commit'] if path.exists() else None
    return README.format(
        method=registry.method_name(config), task=config.task,
        commit=commit or 'of no commit', side=config.image_size,
        actions=actions, repeat=config.action_repeat)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise UserError(f'{path}: expected the record of a run, found a '
                        f'damaged one ({error}); restore it') from None


def _portable(text: str) -> str:
    """Paths below the present folder as others would write them: relative.
    """
    return text.replace(f'{Path.cwd()}/', '')


def load_policy(folder: Path | str, config: Any = None,
                ) -> tuple[Any, dict[str, Any]]:
    """The method of a run folder with its newest weights, ready to act.

    Args:
      folder: of a run or an exported policy.
      config: in place of the folder's own.

    Returns the method, whose `policy(observation, state, key)` gives
    (actions [n, A] in [-1, 1], state of the next call), and what the
    checkpoint knows of itself. `observation` holds `image` uint8
    [n, h, w, 3], `reward` float32 [n] and `is_first`, `is_last`,
    `is_terminal` bool [n]; `state` is None at first; `key` is any number, a
    new one for every episode. Raises UserError for a folder without them.
    """
    from semopo_tf import commands, registry
    folder = Path(folder)
    config = commands.run_config(folder) if config is None else config
    data = read_record(folder / 'data.json')
    commands.prepare(config)
    arrays, state = Checkpoints(folder / 'ckpt').load()
    method = registry.method_class(config)(
        config, None, action_size=data['action_size'])
    load(method, arrays, state)
    return method, state


def load(method: Any, arrays: Mapping[str, np.ndarray],
         state: Mapping[str, Any]) -> None:
    """Weights of a checkpoint, whole or exported, into a method that acts."""
    if not state.get('acting'):
        method.load(arrays)
        return
    restore(method.acting(), arrays, 'exported policy')


def expect_whole(folder: Path, state: Mapping[str, Any]) -> None:
    """Raises UserError for the checkpoint of an exported policy."""
    if state.get('acting'):
        raise UserError(
            f'{folder}: expected a whole run, found an exported policy: it '
            f'can only act; run.py evaluate {folder}')
