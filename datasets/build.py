"""Make a data set from nothing: `run.py data build NAME`.

A buffer (one per task and settings) holds the training run of a behaviour
policy as simulator states, in order; a set is the part of it that the recipe
names, rendered. Everything can be killed at any moment: the same command goes
on, and ends in the same files.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from datasets import facts, manifest, recipes, rendering, state_episodes
from datasets.recipes import Recipe
from datasets.selection import select
from datasets.state_episodes import StateFolder
from datasets.table3 import statistics
from dreamerv2_base.config import parse_flags
from dreamerv2_base.envs.rollout import episode_seed
from dreamerv2_base.errors import UserError
from semopo_tf import controllers, run_folder
from semopo_tf import settings as configuration
from semopo_tf.environments import env_spec_from

PACKAGES = ('tensorflow', 'dm-control', 'mujoco', 'numpy')


def add_parser(subparsers: Any) -> None:
    """`data build` with its flags; any key of configs.yaml may follow."""
    parser = subparsers.add_parser(
        'build', allow_abbrev=False,
        help='make a set from nothing: train a policy, select, render',
        description='make a set from nothing; every key of configs.yaml as '
        '--key VALUE (--video_dir FOLDER, --seed 1, --scene grey_floor)',
        epilog=f'sets: {", ".join(recipes.RECIPES)}')
    parser.add_argument('name', metavar='SET')
    parser.add_argument('--episodes', type=int, default=None,
                        help='how many (default: as in Table 3)')
    parser.add_argument('--out', type=Path, default=None, metavar='FOLDER',
                        help='default: data/built/TASK/LEVEL')
    parser.add_argument('--buffer', type=Path, default=None, metavar='FOLDER',
                        help='training run, shared by the levels of a task '
                        '(default: .buffer beside the set)')
    parser.add_argument('--workers', type=int, default=None,
                        help='processes that render (default: eval_workers)')
    parser.set_defaults(call=command)


def command(options: argparse.Namespace, rest: list[str]) -> int:
    """The command line's build; returns the exit code."""
    recipe = recipes.find(options.name)
    config = resolve(recipe, rest)
    if options.episodes is not None:
        if options.episodes < 1:
            raise UserError('--episodes: expected at least 1, found '
                            f'{options.episodes}; give --episodes 20')
        recipe = dataclasses.replace(recipe, episodes=options.episodes)
    level = recipe.name.removeprefix(f'{recipe.task}_')
    out = options.out or Path('data', 'built', recipe.task, level)
    buffer = options.buffer or out.parent / '.buffer'
    if recipe.policy == 'sac':
        from dreamerv2_base.tf import prepare_devices
        prepare_devices(config.deterministic)
    path = build(recipe, config, out, buffer, options.workers)
    print(f'{summary(path)}\nset:      {out}\nmanifest: {path}\n'
          f'buffer:   {buffer} (states for MOPO: '
          f'{buffer / "states.hdf5"})\ncheck it: python run.py data '
          f'validate {out}')
    return 0


def resolve(recipe: Recipe, arguments: list[str]) -> Any:
    """The configuration of a build from keys and presets of the user.

    Raises UserError for a `task`: the recipe has it.
    """
    flags = parse_flags(arguments)
    if 'task' in flags:
        raise UserError(f'data build: expected no --task, found one: '
                        f'{recipe.name} is of {recipe.task}; leave it out')
    presets = ['behaviour_sac', *flags.pop('configs', [])]
    keys = [part for key, values in flags.items()
            for part in (f'--{key}', *values)]
    return configuration.resolve(['--configs', *presets, *keys])[0]


def build(recipe: Recipe, config, out: Path, buffer: Path,
          workers: int | None = None) -> Path:
    """Make the set of a recipe, or go on making it.

    Args:
      recipe: with the number of episodes wanted.
      config: the resolved configuration (seed, environment, `sac`,
        `behaviour`).
      out: the set's folder. buffer: the training run's.
      workers: processes that render; None: `eval_workers`.

    Returns the manifest. Raises UserError when the folders hold something
    else, when the run has too few episodes for the recipe, or never came into
    the band of the frozen policy.
    """
    words = buffer_words(recipe, config)
    identity = digest(words)
    with _held(buffer):
        _expect_same(buffer / 'recipe.json', words)
        chosen = _chosen(recipe, config, buffer, identity)
    spec = dataclasses.replace(env_spec_from(config), task=recipe.task)
    with _held(out):
        files = rendering.render(
            spec, chosen, out, f'{identity}/{recipe.name}',
            workers or config.eval_workers)
        return manifest.write(out, list(facts.scan(files)), recipe={
            'set': recipe.to_json(), 'buffer': words,
            'frames': rendering.settings(spec),
            'episodes': [path.name for path in chosen],
            'training': _outcome(buffer), 'versions': versions()})


def buffer_words(recipe: Recipe, config) -> dict[str, Any]:
    """Everything that the episodes of a training run depend on."""
    words = {'format': 1, 'task': recipe.task, 'policy': recipe.policy,
             'seed': config.seed, 'action_repeat': config.action_repeat,
             'time_limit': config.time_limit}
    if recipe.policy != 'sac':
        return words
    return {**words, 'goal': recipe.to_json()['goal'],
            'sac': config.sac.nested(), 'behaviour': config.behaviour.nested()}


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


def _chosen(recipe: Recipe, config, buffer: Path,
            identity: str) -> list[Path]:
    """State episodes of the set, in the order of collection."""
    if recipe.policy != 'sac':
        return _scripted(recipe, config, buffer, identity)
    from datasets.behaviour import Training  # imports TensorFlow
    training = Training(config, recipe.task, buffer, identity, recipe.goal)
    outcome = training.train()
    files = training.episodes.files()
    if not (buffer / 'states.hdf5').exists():
        state_episodes.write_transitions(files, buffer / 'states.hdf5')
    if recipe.source == 'frozen':
        if not outcome.reached:
            raise UserError(
                f'{buffer}: expected a policy with returns in '
                f'{list(recipe.goal)} within {outcome.rounds} rounds, found '
                f'a mean of {np.mean(outcome.returns):.1f} at the end; give '
                'a new --buffer with more --behaviour.max_rounds, or another '
                '--seed')
        files = training.frozen(recipe.episodes, recipe.band)
        recipe = dataclasses.replace(
            recipe, band=(recipe.band[0], np.nextafter(recipe.band[1], 1e9)))
    returns = [state_episodes.total(state_episodes.read(path))
               for path in files]
    return [files[number] for number in select(
        returns, recipe.band, recipe.episodes, recipe.pick, str(buffer))]


def _scripted(recipe: Recipe, config, buffer: Path,
              identity: str) -> list[Path]:
    """As many episodes as wanted, of a policy without learning."""
    folder = StateFolder(buffer / 'episodes', identity)
    missing = range(len(folder.files()), recipe.episodes)
    tasks = state_episodes.make_tasks(config, recipe.task, 1)
    for number in missing:
        rng = np.random.default_rng([config.seed, number])
        policy = controllers.POLICIES[recipe.policy](
            rng, tasks[0].action_size)
        episode, = state_episodes.run(
            tasks, _remembering(policy), [episode_seed(config.seed, number)])
        folder.write(number, episode)
    return folder.files(recipe.episodes)


def _remembering(policy: Any) -> state_episodes.Actor:
    """A policy of `controllers`, its memory kept from call to call."""
    memory = None

    def act(rows: state_episodes.Arrays) -> np.ndarray:
        nonlocal memory
        action, memory = policy(rows, memory)
        return action

    return act


def _outcome(buffer: Path) -> dict[str, Any] | None:
    path = buffer / 'trained.json'
    return json.loads(path.read_text()) if path.exists() else None


def _expect_same(path: Path, words: Mapping[str, Any]) -> None:
    """Write what a buffer depends on, or compare with what is there."""
    if not path.exists():
        partial = path.with_suffix('.partial')
        partial.write_text(json.dumps(words, indent=1) + '\n')
        partial.replace(path)
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


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Nobody else builds in this folder meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / '.lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f'waiting for another build in {folder}', file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
