"""What the builder asks of a behaviour policy, and which kinds there are.

A kind is trained in a buffer's folder, has the episodes of its training run in
order, and can be frozen in a band of returns. `sac` learns from simulator
states (V-D4RL's way), `tia` from distracted pixels (the paper's), every other
name is a scripted policy of `semopo_tf.controllers`. Imports TensorFlow only
to make a policy that learns.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from datasets import recipes, state_episodes
from datasets.recipes import Recipe
from dreamerv2_base.config import Config
from semopo_tf import run_folder

SHARE = 0.5  # of a round's episodes that lie in the band of a policy there
CENTRE = 0.75  # part of the band, in its middle, where their mean lies
TRIES = 20  # episodes of a frozen policy per one that is wanted


class Behaviour(Protocol):
    """A behaviour policy in its buffer.

    Made as `(recipe, config, folder, identity)`: the folder of the buffer and
    a text that stands for everything that the episodes depend on.

    Attributes: `outcome`: how training ended, for the manifest; None without.
    """

    outcome: dict[str, Any] | None

    def train(self) -> Any:
        """Train to the end, or go on; nothing if there is nothing to do.

        Raises Stopped when the user or a loss ended it.
        """

    def episodes(self, count: int) -> list[Path]:
        """The files of the training run, in the order of collection.

        `count`: how many are wanted, for policies that can make more.
        """

    def frozen(self, count: int, band: Sequence[float]) -> list[Path]:
        """Files of at least `count` episodes within a band [low, high] by one
        policy; or of all that there are after `TRIES` times as many.

        Raises UserError when no policy came into the band.
        """


class Stopped(Exception):
    """Training ended early and has said why; `code`: for the shell."""

    def __init__(self, code: int):
        super().__init__(f'exit code {code}')
        self.code = code


@dataclass(frozen=True)
class Kind:
    """What is known of a behaviour policy before it is made.

    Attributes:
      where: module and class.
      presets: what its configuration starts from, before the user's.
      fixed: keys of the configuration that may not be changed.
      words: everything its episodes depend on beyond what `words` has.
      more: what gives more episodes, for a message.
      learns: with TensorFlow.
    """

    where: tuple[str, str]
    presets: Callable[[Recipe], list[str]]
    fixed: Callable[[Recipe], dict[str, str]]
    words: Callable[[Recipe, Any], dict[str, Any]]
    more: str
    learns: bool = True


def _sac_words(recipe: Recipe, config: Config) -> dict[str, Any]:
    return {'goal': recipe.to_json()['goal'], 'sac': config.sac.nested(),
            'behaviour': config.behaviour.nested()}


def _run_fixed(recipe: Recipe) -> dict[str, str]:
    suite = '' if recipe.kept == 'frames' else 'dmcdrv_'
    return {'method': 'tia', 'task': f'{suite}{recipe.task}'}


def _run_words(recipe: Recipe, config: Config) -> dict[str, Any]:
    # What the run's own folder compares, too.
    return {f'run.{key}': value for key, value in config.flat().items()
            if key not in run_folder.FREE_KEYS}


KINDS = {
    'sac': Kind(('datasets.sac_behaviour', 'Training'),
                lambda recipe: ['behaviour_sac'], lambda recipe: {},
                _sac_words, 'more --behaviour.round_episodes'),
    'tia': Kind(('datasets.tia_behaviour', 'Training'),
                lambda recipe: [recipes.TIA_PRESETS[recipe.task]],
                _run_fixed, _run_words, 'more --steps')}
SCRIPTED = Kind(('datasets.scripted_behaviour', 'Scripted'),
                lambda recipe: [], lambda recipe: {},
                lambda recipe, config: {}, 'another --seed', learns=False)


def kind(recipe: Recipe) -> Kind:
    """The kind of a recipe's policy."""
    return KINDS.get(recipe.policy, SCRIPTED)


def words(recipe: Recipe, config: Config) -> dict[str, Any]:
    """Everything that the episodes of a training run depend on."""
    return {'format': 1, 'task': recipe.task, 'policy': recipe.policy,
            'seed': config.seed, 'action_repeat': config.action_repeat,
            'time_limit': config.time_limit,
            **kind(recipe).words(recipe, config)}


def make(recipe: Recipe, config: Config, folder: Path, identity: str,
         ) -> Behaviour:
    """The behaviour policy of a recipe in a buffer's folder."""
    module, name = kind(recipe).where
    if kind(recipe).learns:
        # Here, so that a run that goes on computes as the one before did.
        from dreamerv2_base.tf import prepare_devices
        prepare_devices(config.deterministic)
    return getattr(importlib.import_module(module), name)(
        recipe, config, folder, identity)


# Shared by the kinds.


def within(returns: Sequence[float], band: Sequence[float]) -> bool:
    """Whether a policy with these returns is one of a band.

    At least half of them are in it, and their mean is in the middle part of
    it (6.6: "mid-band"; a policy at the edge would give the tail of its
    returns). A band without end has no middle: the mean is above its start.
    """
    low, high = band
    values = np.asarray(returns)
    inside = np.mean((values >= low) & (values <= high))
    edge = (1 - CENTRE) / 2 * (high - low) if np.isfinite(high) else 0.0
    return bool(low + edge <= values.mean() <= high - edge
                and inside >= SHARE)


def lies(path: Path, band: Sequence[float]) -> bool:
    """Whether the return of a stored episode lies in a band."""
    low, high = band
    return low <= state_episodes.total_of(path) <= high
