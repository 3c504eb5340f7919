"""`run.py measure LOGDIR`: quantities that figures are made of, as one npz.

Light: what a measurement needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dreamerv2_base.config import Config, parse_flags
from dreamerv2_base.errors import UserError
from dreamerv2_base.files import expect_writable, whole
from dreamerv2_base.logger import read_record
from semopo_tf import settings
from semopo_tf.experiments.grid import NEED_SIMULATOR, QUANTITIES

if TYPE_CHECKING:
    from dreamerv2_base.store import EpisodeStore
    from dreamerv2_base.world_model import WorldModel
    from semopo_tf.experiments.fresh import FreshEpisode
    from semopo_tf.experiments.streams import Filter

Arrays = dict[str, np.ndarray]


def run(options: argparse.Namespace, rest: list[str]) -> int:
    """The command."""
    if options.samples < 1:
        raise UserError('--samples: expected at least 1, found '
                        f'{options.samples}; give --samples 1000')
    if options.out.suffix != '.npz':
        raise UserError(f'--out: expected a name that ends in .npz, found '
                        f'{options.out}; give --out quantities.npz')
    expect_writable(options.out)
    trained = TrainedRun(options.logdir, rest, options.seed)
    check(trained.config, options.names)
    found = measure(trained, options.names, options.samples)
    write(options.out, found)
    print('\n'.join(headlines(found)))
    print(options.out)
    return 0


def headlines(found: Arrays) -> list[str]:
    """A line for each number, and for each list of numbers its mean and
    population deviation over those that are not NaN; frames, indices and the
    like are left out.
    """
    lines = []
    for name, array in found.items():
        if array.dtype.kind != 'f' or array.ndim > 1:
            continue
        known = array[~np.isnan(array)]
        mean = known.mean() if known.size else np.nan
        more = ''
        if array.ndim and known.size:
            more = f' ± {known.std():.3f}'
        if array.ndim:
            more += f' (n={known.size} of {array.size})'
        lines.append(f'{name:32} {mean:8.3f}{more}')
    return lines


def check(config: Config, names: Sequence[str]) -> None:
    """Raises UserError for a quantity that a run does not have."""
    from semopo_tf import registry
    method = registry.method_name(config)
    measured = registry.offline_models()
    if method not in measured:
        raise UserError(
            f'measure: expected a run of {", ".join(measured)}, found '
            f'{method}, which has no world model learned offline; give another '
            'run folder')
    theirs = [name for name in ('entropy', 'action_effects') if name in names]
    if theirs and method == 'lompo':
        raise UserError(
            'measure: expected a run of semopo or offline_dv2 for '
            f'{theirs[0]}, found lompo; leave {theirs[0]} out of --names')
    if 'separation' in names and not config.separate_wm:
        raise UserError(
            'measure: expected a run with two streams for separation, found '
            'separate_wm False, which learns no mask; leave separation out '
            'of --names')
    simulated = config.task.startswith(('dmc_', 'dmcdrv_'))
    if set(NEED_SIMULATOR) & set(names) and not simulated:
        raise UserError(
            'measure: expected a DM Control task for '
            f'{", ".join(NEED_SIMULATOR)} '
            f"(the truth is the simulator's), found {config.task}; leave "
            'them out of --names')


class TrainedRun:
    """A finished run: its method with the newest weights, and its data.

    Everything is loaded when it is first asked for. `rest` are flags that
    change keys of the run. Raises UserError for a folder without
    configuration, checkpoint or data.
    """

    def __init__(self, folder: Path, rest: Sequence[str] = (),
                 seed: int = 0):
        from semopo_tf import commands
        self.folder, self.seed = Path(folder), seed
        self.config = settings.check(commands.run_config(self.folder).update(
            parse_flags(list(rest)), 'command line'))
        self._data = read_record(self.folder / 'data.json')
        self.position: int | None = None

    @functools.cached_property
    def store(self) -> EpisodeStore:
        """The episodes it was trained on."""
        from semopo_tf import commands
        store = commands.open_data(self.config)
        if store.digest != self._data['digest']:
            raise UserError(
                f'{self.folder}: expected the data that this run was trained '
                f'on, found other episodes in {list(self.config.offline_dir)}'
                '; restore them or give --offline_dir FOLDER')
        return store

    @functools.cached_property
    def model(self) -> WorldModel:
        """The world model with the newest weights."""
        from dreamerv2_base.checkpoint import Checkpoints
        from semopo_tf import commands, export, registry
        from semopo_tf.experiments.streams import model_of
        commands.prepare(self.config)
        checkpoints = Checkpoints(self.folder / 'ckpt')
        arrays, state = checkpoints.load()
        export.expect_whole(self.folder, state)
        method = registry.method_class(self.config)(
            self.config, None, action_size=self._data['action_size'])
        method.load(arrays)
        self.position = checkpoints.positions()[-1]
        return model_of(method, self.config)

    def filter(self, purpose: str) -> Filter:
        """A filter with draws of its own."""
        from semopo_tf.experiments.streams import Filter
        return Filter(self.model, self.seed, purpose)

    @functools.cached_property
    def fresh(self) -> list[FreshEpisode]:
        """Fresh episodes of its environment."""
        from semopo_tf.experiments.fresh import collect_fresh
        return collect_fresh(self.config, self.seed)

    @functools.cached_property
    def fresh_states(self) -> list[dict[str, Arrays]]:
        """States [L, ...] of every fresh episode, by stream."""
        from semopo_tf.experiments.streams import whole_episodes
        return whole_episodes(
            self.filter('fresh'), [one.arrays for one in self.fresh])


def measure(trained: TrainedRun, names: Sequence[str], samples: int,
            ) -> Arrays:
    """All arrays of the quantities `names`, each once.

    `measured` is a JSON record of what they were measured with.
    """
    found: Arrays = {}
    for name in QUANTITIES:
        if name in names:
            print(f'measuring {name}', file=sys.stderr)
            found.update(MEASURES[name](trained, samples))
    note = {'run': str(trained.folder), 'task': trained.config.task,
            'seed': trained.seed, 'samples': samples,
            'names': [name for name in QUANTITIES if name in names],
            'checkpoint': trained.position, 'data': trained._data['digest']}
    return {**found, 'measured': np.array(json.dumps(note, sort_keys=True))}


def write(path: Path, arrays: Arrays) -> None:
    """An npz that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial, partial.open('wb') as file:
        np.savez_compressed(file, **arrays)


# One function per name.


def _uncertainty(trained: TrainedRun, samples: int) -> Arrays:
    from semopo_tf.experiments import quantities
    return quantities.uncertainty(
        trained.filter('uncertainty'), trained.store, samples, trained.seed)


def _frames(trained: TrainedRun, samples: int) -> Arrays:
    from semopo_tf.experiments import quantities
    return quantities.frames(
        trained.filter('frames'), trained.store, trained.seed)


def _reconstruction(trained: TrainedRun, samples: int) -> Arrays:
    from semopo_tf.experiments import quantities
    return quantities.reconstruction(
        trained.filter('reconstruction'), trained.store, trained.seed)


def _entropy(trained: TrainedRun, samples: int) -> Arrays:
    from semopo_tf.experiments import action_entropy
    return action_entropy.entropy(
        trained.config, trained.store, trained.seed)


def _action_information(trained: TrainedRun, samples: int) -> Arrays:
    from semopo_tf.experiments import quantities
    return quantities.action_information(
        trained.filter('action_information'), trained.store, samples,
        trained.seed)


def _separation(trained: TrainedRun, samples: int) -> Arrays:
    from semopo_tf.experiments import quantities, separation
    from semopo_tf.experiments.streams import EARLIEST, rows_of
    filtered = trained.filter('fresh')
    index = separation.choose_rows(
        [len(one) for one in trained.fresh], samples, EARLIEST, trained.seed)
    shown = quantities.decoded(
        filtered, rows_of(trained.fresh_states, index))
    return separation.separation(trained.fresh, index, shown['mask'])


def _probe(trained: TrainedRun, samples: int) -> Arrays:
    from semopo_tf.experiments import probe
    from semopo_tf.experiments.streams import (
        EARLIEST,
        features,
        streams_of,
    )
    feat = {stream.name: [features(stream.rssm, states[stream.name])
                          for states in trained.fresh_states]
            for stream in streams_of(trained.model)}
    return probe.probe(trained.fresh, feat, EARLIEST,
                       'cartpole' in trained.config.task)


def _action_effects(trained: TrainedRun, samples: int) -> Arrays:
    from semopo_tf.experiments import separation
    from semopo_tf.experiments.action_effects import action_effects
    from semopo_tf.experiments.streams import EARLIEST, rows_of, streams_of
    index = separation.choose_rows(
        [len(one) for one in trained.fresh], samples, EARLIEST, trained.seed)
    acting = streams_of(trained.model)[0].name
    return action_effects(
        trained.config, trained.model, trained.fresh, index,
        rows_of(trained.fresh_states, index)[acting], trained.seed)


MEASURES: dict[str, Callable[[TrainedRun, int], Arrays]] = {
    'uncertainty': _uncertainty, 'frames': _frames,
    'reconstruction': _reconstruction, 'entropy': _entropy,
    'action_information': _action_information,
    'separation': _separation, 'probe': _probe,
    'action_effects': _action_effects}
