"""States for MOPO: transitions, data order, model pool, environments.

Baselines 8.1 to 8.3. Data are folders of episodes that
hold `state`, or hdf5 files laid out as D4RL's. Every order is a pure function
of (seed, phase, step). Never imports TensorFlow: environments live here too.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamerv2_base.config import Config
from dreamerv2_base.envs.dmc import DMC
from dreamerv2_base.errors import UserError
from dreamerv2_base.replay import batch_generator
from dreamerv2_base.store import EpisodeStore, open_store

Arrays = dict[str, np.ndarray]

# state, next_state [n, S]; action [n, A]; reward, terminal [n]; float32.
FIELDS = ('state', 'action', 'reward', 'next_state', 'terminal')
# The same in D4RL's files. `timeouts` may be missing, or `next_observations`.
HDF5_NAMES = {'state': 'observations', 'action': 'actions',
              'reward': 'rewards', 'next_state': 'next_observations',
              'terminal': 'terminals'}
SUFFIXES = ('.hdf5', '.h5')


# Reading.


def open_states(config: Config) -> EpisodeStore | TransitionFiles:
    """The data of `offline_dir`, folders of episodes or hdf5 files.

    An EpisodeStore has the key `state`.
    Raises UserError for mixed or unreadable data, and for episodes without
    `state`.
    """
    paths = [Path(path).expanduser() for path in config.offline_dir]
    files = [path for path in paths if path.suffix in SUFFIXES]
    if not files:
        _expect_states(paths)
        return open_store(
            paths, cache=Path(config.cache_dir) if config.cache_dir else None,
            skip_broken=config.skip_broken, extra_keys=('state',))
    if len(files) < len(paths):
        raise UserError(
            'offline_dir: expected folders or hdf5 files, found both '
            f'({files[0]} and others); give one kind')
    return TransitionFiles(files)


class TransitionFiles:
    """D4RL-style hdf5 files: rows of transitions, episodes end to end.

    Attributes as an EpisodeStore's: `names`, `rows` (transitions + 1) and
    `returns` of the episodes, cut at `terminals` and `timeouts`; `digest`,
    `action_size`, `skipped`, `ignored`. Of files without successors (D4RL's
    first version) some rows are left out (`_followed`), here as well.

    Raises UserError for missing keys, unequal lengths, numbers that are not
    finite and actions outside [-1, 1].
    """

    def __init__(self, files: Sequence[Path]):
        parts, self.names = [], []
        rows, returns, digests = [], [], []
        self.skipped: list[tuple[str, str]] = []
        self.ignored: list[str] = []
        for path in files:
            arrays, ends = _read_hdf5(path)
            parts.append(arrays)
            for number, part in enumerate(
                    np.split(arrays['reward'], ends[:-1])):
                self.names.append(f'{path.name}#{number}')
                rows.append(len(part) + 1)
                returns.append(part.sum(dtype=np.float64))
            with path.open('rb') as file:
                digests.append(hashlib.file_digest(file, 'sha256').hexdigest())
        _equal_sizes(parts, [str(path) for path in files])
        self.rows, self.returns = np.array(rows), np.array(returns)
        self.digest = hashlib.sha256('\n'.join(digests).encode()).hexdigest()
        self._arrays = _joined(parts)
        self.action_size = self._arrays['action'].shape[1]

    def __len__(self) -> int:
        return len(self.names)

    def transitions(self) -> Arrays:
        """FIELDS by name, [n, ...] float32."""
        return self._arrays


def transitions(store: EpisodeStore | TransitionFiles) -> Arrays:
    """All transitions of a store, FIELDS by name, [n, ...] float32.

    Transition t of an episode goes from state t by the action of row t + 1,
    with the reward of row t + 1, to state t + 1. An end by time is no
    terminal.

    Raises UserError for episodes without `state`, or of several sizes.
    """
    if isinstance(store, TransitionFiles):
        return store.transitions()
    if 'state' not in store.keys:
        raise _no_states(store.names[0], store.keys)
    parts = []
    for number in range(len(store)):
        rows = store.episode(number)
        if rows['state'].ndim != 2:
            raise UserError(
                f'{store.names[number]}: state: expected shape [rows, S], '
                f'found {list(rows["state"].shape)}; flatten it')
        parts.append({
            'state': rows['state'][:-1], 'action': rows['action'][1:],
            'reward': rows['reward'][1:], 'next_state': rows['state'][1:],
            'terminal': rows['is_terminal'][1:].astype(np.float32)})
    _equal_sizes(parts, store.names)
    return _joined(parts)


def _expect_states(folders: Sequence[Path]) -> None:
    """Raises UserError before frames are mapped for nothing."""
    for path in [path for folder in folders
                 for path in sorted(folder.glob('*.npz'))[:1]]:
        try:
            with zipfile.ZipFile(path) as file:
                keys = [name.removesuffix('.npy') for name in file.namelist()]
        except (OSError, zipfile.BadZipFile):
            continue  # `open_store` says so, or leaves it out
        if 'state' not in keys:
            raise _no_states(str(path), keys)


def _no_states(name: str, keys: Iterable[str]) -> UserError:
    return UserError(
        f'{name}: expected the key state (MOPO learns from states), found '
        f'{", ".join(sorted(keys))}; run.py data build SET keeps the states '
        'of its training run: --offline_dir '
        'data/built/TASK/.buffer/states.hdf5')


def _read_hdf5(path: Path) -> tuple[Arrays, np.ndarray]:
    """FIELDS of a file, and the row behind the last of every episode."""
    import h5py
    try:
        with h5py.File(path, 'r') as file:
            _check_keys(path, file)
            arrays = {name: np.asarray(file[key], np.float32)
                      for name, key in HDF5_NAMES.items() if key in file}
            cut = (np.asarray(file['timeouts'], bool) if 'timeouts' in file
                   else np.zeros(len(arrays['reward']), bool))
    except OSError as error:
        raise UserError(f'{path}: expected an hdf5 file, found none that can '
                        f'be read ({error}); give another --offline_dir'
                        ) from None
    _check_hdf5(path, {**arrays, 'cut': cut})
    over = cut | (arrays['terminal'] > 0)
    over[-1:] = True
    episode: np.ndarray = np.cumsum(over) - over
    if 'next_state' not in arrays:
        arrays, kept = _followed(path, arrays, over)
        episode = episode[kept]
    ends = np.flatnonzero(np.diff(episode)) + 1
    return arrays, np.append(ends, len(episode))


def _check_keys(path: Path, file: Mapping[str, Any]) -> None:
    """Raises UserError for a file without the keys that are needed."""
    missing = [key for key in HDF5_NAMES.values() if key not in file]
    if missing == ['next_observations']:
        if 'timeouts' in file:
            return
        raise UserError(
            f'{path}: expected next_observations, or timeouts, without which '
            'it is not known where a trajectory was cut and the next row is '
            'of another one, missing both; give a file with one of them')
    if missing:
        raise UserError(
            f'{path}: expected the keys {", ".join(HDF5_NAMES.values())}, '
            f'missing {", ".join(missing)}; give a D4RL-style file')


def _followed(path: Path, arrays: Arrays, over: np.ndarray,
              ) -> tuple[Arrays, np.ndarray]:
    """FIELDS of a file without `next_observations`; and which rows stayed.

    The next row's observation is the successor. The last rows of trajectories
    (`over`, bool [n]) have none in the file. Terminal ones keep their own
    observation: nothing is bootstrapped from there (though the model is shown
    that such a step leads nowhere). Those that time or the end of the file
    cut are left out, and counted on stderr. Raises UserError when no row is
    left.
    """
    state, terminal = arrays['state'], arrays['terminal'] > 0
    following = np.concatenate([state[1:], state[-1:]])
    following[terminal] = state[terminal]
    kept = terminal | ~over
    if not kept.any():
        raise UserError(f'{path}: expected rows with a successor, found none '
                        f'among {len(kept)}; give a complete file')
    print(f'note: {path}: no next_observations, taken from the next row; '
          f'{(~kept).sum()} of {len(kept)} rows, cut by time or by the end of '
          f'the file, have none and are left out; {terminal.sum()} terminal '
          'ones keep their own', file=sys.stderr)
    found = {**arrays, 'next_state': following}
    return {name: values[kept] for name, values in found.items()}, kept


def _check_hdf5(path: Path, arrays: Arrays) -> None:
    """Raises UserError for arrays that are no transitions."""
    count = len(arrays['reward'])
    for name, values in arrays.items():
        rank = 2 if name in ('state', 'next_state', 'action') else 1
        if values.ndim != rank or len(values) != count or not count:
            raise UserError(
                f'{path}: {HDF5_NAMES.get(name, "timeouts")}: expected '
                f'{rank} axes and as many rows as rewards ({count}), found '
                f'shape {list(values.shape)}; give a complete file')
        if not np.isfinite(values).all():
            raise UserError(
                f'{path}: {HDF5_NAMES.get(name, "timeouts")}: expected finite '
                'numbers, found NaN or infinity; give a sound file')
    largest = float(np.abs(arrays['action']).max())
    if largest > 1.0 + 1e-3:
        raise UserError(f'{path}: actions: expected values in [-1, 1], found '
                        f'{largest:g}; scale them')


def _equal_sizes(parts: Sequence[Mapping[str, np.ndarray]],
                 names: Sequence[str]) -> None:
    for name, part in zip(names, parts, strict=True):
        for key in ('state', 'action'):
            mine, theirs = part[key].shape[1:], parts[0][key].shape[1:]
            if mine != theirs:
                raise UserError(
                    f'{name}: {key}: expected size {list(theirs)} as in '
                    f'{names[0]}, found {list(mine)}; give data of one task')


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]).astype(
        np.float32) for name in FIELDS}


# Order.


class EpochPlan:
    """Which rows each network sees in which epoch. Baselines 8.1.

    The rows are split once into training and hold-out rows; each network has
    its own bootstrap set, drawn once from the former with replacement and
    shuffled anew in every epoch.

    Args:
      settings: the configuration's group `mopo`.
      seed: what everything depends on.
      count: rows of the data.

    Attributes: `holdout` [h] and `training` [n] rows.
    Raises UserError when nothing would be left to train on.
    """

    def __init__(self, settings, seed: int, count: int):
        self._settings, self._seed = settings, seed
        held = min(int(count * settings.holdout_share), settings.holdout_rows)
        if held < 1 or held >= count:
            raise UserError(
                f'mopo: expected transitions to train on and to hold out, '
                f'found {count} with mopo.holdout_share '
                f'{settings.holdout_share:g}; give more data')
        order = batch_generator(seed, 'mopo_split', 0).permutation(count)
        self.holdout, self.training = order[:held], order[held:]
        rng = batch_generator(seed, 'mopo_bootstrap', 0)
        self._sets = self.training[rng.integers(
            len(self.training), size=(settings.ensemble, len(self.training)))]

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Rows [K, at most `batch`] of the updates of an epoch, in order."""
        rng = batch_generator(self._seed, 'mopo_epoch', epoch)
        rows = rng.permuted(self._sets, axis=1)
        size = self._settings.batch
        return [rows[:, start:start + size]
                for start in range(0, rows.shape[1], size)]

    def batch(self, step: int) -> Arrays:
        """The epoch's number (its rows are drawn when it is not skipped)."""
        return {'epoch': np.array(step, np.int64)}

    def describe(self) -> dict[str, Any]:
        """Counts for the log."""
        return {'transitions': len(self.training) + len(self.holdout),
                'training': len(self.training), 'holdout': len(self.holdout),
                'networks': len(self._sets), 'batch': self._settings.batch,
                'updates_per_epoch': -(
                    -len(self.training) // self._settings.batch)}


class MixedPlaces:
    """Where a policy update looks: data rows, and numbers in [0, 1).

    The pool changes while training goes on; the places in it do not depend
    on its content. Baselines 8.3: 12 of 256 rows are data.
    """

    def __init__(self, seed: int, batch: int, real_share: float, count: int):
        self._seed, self._count = seed, count
        self._real = int(batch * real_share)
        self._model = batch - self._real

    def batch(self, step: int) -> Arrays:
        """'real': rows [n], 'model': uniform numbers [batch − n]."""
        rng = batch_generator(self._seed, 'mopo_policy', step)
        return {'real': rng.integers(self._count, size=self._real),
                'model': rng.random(self._model)}

    def describe(self) -> dict[str, Any]:
        """Counts for the log."""
        return {'transitions': self._count, 'batch': self._real + self._model,
                'real_rows': self._real, 'model_rows': self._model}


class Pool:
    """Imagined transitions of the newest `rounds` rounds. Baselines 8.2."""

    def __init__(self, rounds: int):
        self._limit = rounds
        self.clear()

    def __len__(self) -> int:
        return sum(self._sizes)

    def clear(self) -> None:
        """Forget everything."""
        self._sizes: list[int] = []
        self._rows: Arrays = {}

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Append a round, FIELDS [n, ...]; the oldest one leaves."""
        self._sizes.append(len(rows['reward']))
        gone = sum(self._sizes[:-self._limit])
        self._sizes = self._sizes[-self._limit:]
        self._rows = {
            name: np.concatenate([self._rows[name], rows[name]])[gone:]
            if self._rows else np.asarray(rows[name]) for name in FIELDS}

    def sample(self, uniform: np.ndarray) -> Arrays:
        """The rows [n, ...] at uniform numbers [n] in [0, 1)."""
        places = (uniform * len(self)).astype(np.int64)
        return {name: values[places] for name, values in self._rows.items()}

    def state(self) -> Arrays:
        """Everything, by name."""
        return {'sizes': np.array(self._sizes, np.int64), **self._rows}

    def load(self, state: Mapping[str, np.ndarray], where: str) -> None:
        """Restore `state()`. Raises UserError when it is no pool."""
        sizes = state.get('sizes', np.zeros(0, np.int64)).tolist()
        rows = {name: state[name] for name in FIELDS if name in state}
        found = [len(values) for values in rows.values()]
        expected = [sum(sizes)] * len(FIELDS) if sizes else []
        if 'sizes' not in state or found != expected:
            raise UserError(
                f'{where}: expected sizes and {", ".join(FIELDS)} of equal '
                f'length, found {sorted(state)} of {found} rows; the '
                'checkpoint belongs to another method')
        self._sizes, self._rows = sizes, rows


# Environments.


class StateOnly(DMC):
    """A DM Control task whose observations hold `state` and no image.

    Nothing is rendered, which makes it several times faster.
    """

    def _observation(self, reward: float, first: bool = False,
                     ) -> dict[str, Any]:
        over = self._last.last()
        return _seen(self.state(), reward, first, over or self._over(),
                     over and self._last.discount == 0)


class GymStates:
    """A locomotion task of gymnasium, for policies learned from D4RL's files.

    The layout of its observations is D4RL's (the x position left out). Its
    simulator is newer, so returns need not be those of D4RL's `-v2` tasks.

    Args:
      name: as `Hopper-v4`.
      action_repeat: steps per action, rewards summed; 1 in D4RL's data.
      time_limit: steps of an episode; 0 for the task's own.

    Raises UserError when gymnasium or the task is missing.
    """

    def __init__(self, name: str, action_repeat: int = 1,
                 time_limit: int = 0):
        self._env = _gymnasium(name)
        self._repeat, self._limit = action_repeat, time_limit
        self._count = 0
        space = self._env.action_space
        self._low, self._high = np.float64(space.low), np.float64(space.high)
        self.action_size = int(np.prod(space.shape))

    def reset(self, seed: int) -> dict[str, Any]:
        """Start an episode that depends on `seed` alone."""
        state, _ = self._env.reset(seed=seed)
        self._count = 0
        return _seen(state, 0.0, first=True)

    def step(self, action: np.ndarray) -> dict[str, Any]:
        """Hold an action [A] in [-1, 1] for `action_repeat` steps."""
        share = (np.clip(np.asarray(action, np.float64), -1, 1) + 1) / 2
        total = 0.0
        for _ in range(self._repeat):
            state, reward, terminal, cut, _ = self._env.step(
                self._low + share * (self._high - self._low))
            self._count += 1
            total += float(reward)
            last = terminal or cut or self._count == self._limit
            if last:
                break
        return _seen(state, total, last=last, terminal=terminal)

    def close(self) -> None:
        self._env.close()


def make_state_env(spec) -> StateOnly | GymStates:
    """The environment of a task: `state_TASK` of DM Control, or
    `state_gym_NAME` of gymnasium (spec: an EnvSpec).

    Raises UserError for another name.
    """
    kind, _, task = spec.task.partition('_')
    if kind != 'state' or not task:
        raise UserError(f'task: expected state_TASK, found {spec.task!r}; '
                        'give --task state_walker_walk')
    if task.startswith('gym_'):
        return GymStates(task.removeprefix('gym_'), spec.action_repeat,
                         spec.time_limit)
    return StateOnly(task, spec.size, spec.action_repeat,
                     time_limit=spec.time_limit)


def _gymnasium(name: str) -> Any:
    try:
        import gymnasium
    except ImportError:
        raise UserError(
            f'task: expected gymnasium for state_gym_{name}, found it not '
            'installed; install it: pip install gymnasium') from None
    try:
        return gymnasium.make(name)
    except gymnasium.error.Error as error:
        raise UserError(
            f'task: expected a task of gymnasium, found {name!r} ({error}); '
            'give --task state_gym_Hopper-v4') from None


def _seen(state: np.ndarray, reward: float, first: bool = False,
          last: bool = False, terminal: bool = False) -> dict[str, Any]:
    """An observation (see docs/design.md) of a state, without image."""
    return {'state': np.asarray(state, np.float32), 'reward': float(reward),
            'is_first': first, 'is_last': bool(last),
            'is_terminal': bool(terminal)}
