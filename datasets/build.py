"""Make a data set from nothing: `run.py data build NAME`.

A buffer (one per task and settings) holds the training run of a behaviour
policy (`datasets.behaviour`) as simulator states, in order; a set is the part
of it that the recipe names, rendered. Everything can be killed at any moment:
the same command goes on, and ends in the same files.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from datasets import (
    behaviour,
    facts,
    manifest,
    probes,
    recipes,
    registry,
    rendering,
    state_episodes,
)
from datasets.behaviour import Behaviour
from datasets.recipes import Recipe
from datasets.selection import select
from datasets.table3 import statistics
from dreamerv2_base.config import Config, parse_flags
from dreamerv2_base.errors import UserError
from dreamerv2_base.files import held, write_json
from semopo_tf import run_folder
from semopo_tf import settings as configuration
from semopo_tf.environments import (
    describe_env,
    env_spec_from,
    is_car_racing,
)

PACKAGES = ('tensorflow', 'dm-control', 'mujoco', 'numpy')


def command(options: argparse.Namespace, rest: list[str]) -> int:
    """The command line's build; returns the exit code."""
    recipe = wanted(options)
    config = resolve(recipe, rest)
    level = recipe.name.removeprefix(f'{recipe.task}_')
    usual = recipe.policy == recipes.find(options.name).policy
    out = options.out or Path(
        'data', 'built' if usual else f'built_{recipe.policy}', recipe.task,
        level)
    buffer = options.buffer or out.parent / '.buffer'
    try:
        path = build(recipe, config, out, buffer, options.workers)
    except behaviour.Stopped as stopped:
        return stopped.code
    print(f'{summary(path)}\nset:      {out}\nmanifest: {path}\n'
          f'buffer:   {buffer}')
    if (buffer / 'states.hdf5').exists():
        print(f'for MOPO: {buffer / "states.hdf5"}')
    print(f'check it: python run.py data validate {out}')
    return 0


def wanted(options: argparse.Namespace) -> Recipe:
    """The recipe of a set as the flags change it.

    Raises UserError for a flag that does not go with the set.
    """
    recipe = recipes.find(options.name)
    if options.behaviour is not None:
        recipe = recipe.by(options.behaviour)
    if options.band is not None:
        recipe = recipe.within(*options.band)
    if options.episodes is None:
        return recipe
    if options.episodes < 1:
        raise UserError('--episodes: expected at least 1, found '
                        f'{options.episodes}; give --episodes 20')
    return dataclasses.replace(recipe, episodes=options.episodes)


def resolve(recipe: Recipe, arguments: list[str]) -> Any:
    """The configuration of a build from keys and presets of the user.

    Raises UserError for a `task`, which the recipe has, for a `logdir`, and
    for presets of something else.
    """
    flags = parse_flags(arguments)
    if 'task' in flags:
        raise UserError(f'data build: expected no --task, found one: '
                        f'{recipe.name} is of {recipe.task}; leave it out')
    if 'logdir' in flags:
        raise UserError('data build: expected no --logdir, found one: what '
                        'is trained lies in the buffer; give --buffer FOLDER')
    # A small set's own preset says what its frames look like.
    entry = registry.SETS.get(recipe.name)
    own = [entry.preset] if entry and entry.preset else []
    presets = [*own, *behaviour.kind(recipe).presets(recipe),
               *flags.pop('configs', [])]
    keys = [part for key, values in flags.items()
            for part in (f'--{key}', *values)]
    named = ['--configs', *presets] if presets else []
    config = configuration.resolve([*named, *keys])[0]
    for key, value in behaviour.kind(recipe).fixed(recipe).items():
        if config[key] != value:
            raise UserError(
                f'data build: expected {key} {value} for {recipe.name} by '
                f'{recipe.policy}, found {config[key]}; leave the preset or '
                'key out that changes it')
    return config


def build(recipe: Recipe, config: Config, out: Path, buffer: Path,
          workers: int | None = None) -> Path:
    """Make the set of a recipe, or go on making it.

    Args:
      recipe: with the number of episodes wanted.
      config: the resolved configuration (seed, environment, `sac`,
        `behaviour`; of TIA, everything).
      out: the set's folder. buffer: the training run's.
      workers: processes that render; None: `eval_workers`.

    Returns the manifest. Raises UserError when the folders hold something
    else, when the run has too few episodes for the recipe, or never came into
    the band of the frozen policy; Stopped when training ended early.
    """
    if workers is not None and workers < 1:
        raise UserError(f'--workers: expected at least 1, found {workers}; '
                        'leave it out for eval_workers')
    words = behaviour.words(recipe, config)
    identity = digest(words)
    with held(buffer):
        _expect_same(buffer / 'recipe.json', words)
        policy = behaviour.make(recipe, config, buffer, identity)
        chosen = _chosen(recipe, policy, buffer)
    spec = dataclasses.replace(env_spec_from(config), task=recipe.task)
    with held(out):
        rendered = recipe.kept == 'states'
        videos = rendering.videos(
            out, spec.video_dir, spec.background_seed, len(chosen),
        ) if rendered else {}
        show = rendering.render if rendered else rendering.copy
        files = show(spec, chosen, out, f'{identity}/{recipe.name}',
                     workers or config.eval_workers)
        return manifest.write(out, list(facts.scan(files)), recipe={
            'set': recipe.to_json(), 'buffer': words,
            'frames': rendering.settings(spec), **videos,
            'probes': probes.record(chosen, files) if rendered else [],
            'episodes': [path.name for path in chosen],
            'environment': describe_env(
                recipe.task if is_car_racing(recipe.task)
                else f'dmc_{recipe.task}'),
            'training': policy.outcome, 'versions': versions()})


def digest(words: Mapping[str, Any]) -> str:
    """64 hex digits that stand for the words."""
    text = json.dumps(words, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest()


def versions() -> dict[str, str | None]:
    """Of what the numbers depend on, and of this package."""
    found = {name: metadata.version(name) for name in PACKAGES}
    return {**found, 'commit': run_folder.commit()[0]}


def summary(path: Path) -> str:
    """One line on a built set, from its manifest."""
    known = json.loads(path.read_text())
    returns = [one['return'] for entry in known['files']
               for one in entry['episodes']]
    found = statistics(returns)
    return (f'{known["recipe"]["set"]["name"]}: {len(returns)} episodes, '
            f'returns {found.minimum:.1f} to {found.maximum:.1f}, mean '
            f'{found.mean:.1f}, std {found.std:.1f}')


def _chosen(recipe: Recipe, policy: Behaviour, buffer: Path) -> list[Path]:
    """Episodes of the set, in the order of collection."""
    policy.train()
    low, high = recipe.band
    if recipe.source == 'frozen':
        files = policy.frozen(recipe.episodes, recipe.band)
        high = float(np.nextafter(high, np.inf))
    else:
        files = policy.episodes(recipe.episodes)
    returns = [state_episodes.total_of(path) for path in files]
    return [files[number] for number in select(
        returns, (low, high), recipe.episodes, recipe.pick, str(buffer),
        behaviour.kind(recipe).more)]


def _expect_same(path: Path, words: Mapping[str, Any]) -> None:
    """Write what a buffer depends on, or compare with what is there."""
    if not path.exists():
        write_json(path, words)
        return
    known = json.loads(path.read_text())
    different = sorted(key for key in {*known, *words}
                       if known.get(key) != words.get(key))
    if different:
        key = different[0]
        raise UserError(
            f'{path}: expected the settings of this build, found another '
            f'{key} ({known.get(key)} instead of {words.get(key)}); give '
            'another --buffer')


