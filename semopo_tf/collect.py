"""Demonstration data: policies that need no learning (`collect_policy`).

With `sinusoids`, each episode is driven by sums of sinusoids whose amplitudes,
frequencies and phases are drawn anew, plus noise: enough spread in behaviour
and return to show every part of the package at work. The paper's data are
rebuilt by `run.py data build`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from datasets import facts, manifest, rendering
from dreamerv2_base.config import Config
from dreamerv2_base.envs.rollout import Rollout
from dreamerv2_base.episodes import write_episode
from dreamerv2_base.errors import UserError
from dreamerv2_base.files import held
from dreamerv2_base.logger import Progress
from semopo_tf.controllers import POLICIES
from semopo_tf.environments import describe_env, env_spec_from, make_env

DEFAULT = 'sinusoids'
BLIND = (DEFAULT, 'uniform')  # policies that read no observation
# Flags of what a recipe calls otherwise.
FLAGS = {'policy': 'collect_policy', 'size': 'render_size',
         'camera': 'dmc_camera', 'grayscale': 'background_grayscale',
         'background_seed': 'seed'}


def collect(config: Config) -> Path:
    """Fill `offline_dir` with `collect_episodes` episodes, in waves.

    Waves already there are kept, so an interrupted collection goes on.
    Raises UserError when the folder holds other episodes, or these made with
    other settings; then nothing was written.
    """
    if config.offline_dir == ['none'] or len(config.offline_dir) != 1:
        raise UserError('collect: expected one folder in offline_dir, found '
                        f'{list(config.offline_dir)}; give --offline_dir '
                        'FOLDER')
    with held(folder := Path(config.offline_dir[0])):
        _collect(config, folder)
    return folder


def _collect(config: Config, folder: Path) -> None:
    done = sorted(path.name for path in folder.glob('*.npz'))
    recipe = _recipe(config)
    if done:
        _expect_same(folder, recipe)
    total, wave = config.collect_episodes, config.eval_envs
    mine = [_identity(config, i) for i in range(total)]
    strange = [name for name in done
               if not any(identity in name for identity in mine)]
    if strange:
        raise UserError(
            f'{folder}: expected an empty folder or episodes of this same '
            f'collection, found {strange[0]}; give another --offline_dir or '
            'empty it')
    if config.task.startswith('dmcdrv_'):
        recipe |= rendering.videos(
            folder, config.video_dir, config.seed, total)
    # The simulator's state is kept where a policy reads it.
    spec = dataclasses.replace(
        env_spec_from(config), state_key=config.collect_policy not in BLIND)
    factory = functools.partial(make_env, spec)
    bar = Progress(total, 0, 'episodes')
    with Rollout(factory, wave, config.eval_workers) as rollout:
        if not done:
            # Before the first episode: one that is stopped is known, too.
            manifest.write(folder, [], recipe=recipe)
        for first in range(0, total, wave):
            names = mine[first:first + wave]
            if not all(any(n in d for d in done) for n in names):
                _one_wave(config, rollout, folder, first, names)
            bar.update(len(names))
    bar.close()
    _record(folder, recipe)


def _recipe(config: Config) -> dict[str, Any]:
    """What episodes are collected with, as JSON holds it; no videos yet."""
    recipe = {
        'policy': config.collect_policy, 'task': config.task,
        'environment': describe_env(config.task), 'seed': config.seed,
        **{key: config[key] for key in (
            'action_repeat', 'time_limit', 'render_size', 'eval_envs')}}
    if config.task.startswith('dmcdrv_'):
        recipe |= {key: config[key] for key in (
            'video_dir', 'background_grayscale', 'scene')}
    recipe['frames'] = rendering.settings(env_spec_from(config))
    # Through JSON, which knows no tuples.
    return json.loads(json.dumps(recipe))


def _expect_same(folder: Path, recipe: dict[str, Any]) -> None:
    """Raises UserError where a folder's episodes have another recipe."""
    known = (manifest.load(folder) or {}).get('recipe') or {}
    there, now = _flat(known), _flat(recipe)
    changes = [f'{key} {there[key]} instead of {value}'
               for key, value in now.items()
               if there.get(key, value) != value]
    if changes:
        raise UserError(
            f'{manifest.path_of(folder)}: expected episodes collected as '
            f'these flags say, found {", ".join(changes)}; give another '
            '--offline_dir or the old values')


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values by their flags, or by the names of packages."""
    parts = {**recipe, **recipe.get('environment', {}),
             **recipe.get('frames', {})}
    # `rendering.videos` compares these; more of them may be needed now.
    return {FLAGS.get(key, key): value for key, value in parts.items()
            if key not in ('environment', 'frames', 'videos')}


def _record(folder: Path, recipe: dict[str, Any]) -> None:
    """Write the folder's manifest: what was collected, and with what."""
    files = sorted(folder.glob('*.npz'))
    known = manifest.load(folder) or {}
    names = [entry['name'] for entry in known.get('files', [])]
    if known.get('recipe') != recipe or names != [one.name for one in files]:
        manifest.write(folder, list(facts.scan(files)), recipe=recipe)


def _one_wave(config: Config, rollout: Rollout, folder: Path, first: int,
              names: list[str]) -> None:
    rng = np.random.default_rng([config.seed, first])
    policy = POLICIES[config.collect_policy](rng, rollout.action_size)
    episodes = rollout.run(policy, len(names), seed=_seed(config, first),
                           keep=True)
    for i, (name, episode) in enumerate(zip(names, episodes, strict=True)):
        write_episode(folder, episode.arrays, first + i, name)
    returns = [f'{episode.total:.1f}' for episode in episodes]
    print(f'returns {" ".join(returns)}', file=sys.stderr)


def _identity(config: Config, index: int) -> str:
    """32 hex digits that name an episode of a collection."""
    text = '/'.join(map(str, (
        config.task, config.seed, config.video_dir, config.scene,
        config.background_grayscale, config.time_limit, config.action_repeat,
        config.eval_envs, index)))
    if config.collect_policy != DEFAULT:
        text += f'/{config.collect_policy}/{config.render_size[0]}'
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _seed(config: Config, first: int) -> int:
    text = f'collect/{config.seed}/{first}'.encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], 'little')
