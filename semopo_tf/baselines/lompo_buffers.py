"""What LOMPO draws from: padded sequences, and two rings of latent rows.

Baselines 2.3 (sequences) and 2.4 (buffers). Sequence
batches and the places drawn from a ring are pure functions of (seed, phase,
step); the rings' content is part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.noise import generator
from dreamerv2_base.replay import batch_generator
from dreamerv2_base.store import EpisodeStore

Arrays = dict[str, np.ndarray]

# A transition: feature, action, reward, next feature, 1 where it is the end.
FIELDS = ('obs', 'actions', 'rewards', 'next_obs', 'terminals')


class Ring:
    """The newest `capacity` transitions, float32.

    Attributes:
      rows: FIELDS by name; 'obs' and 'next_obs' [capacity, F], 'actions'
        [capacity, A], 'rewards' and 'terminals' [capacity].
      written: transitions ever appended.
    """

    def __init__(self, capacity: int, feat_size: int, action_size: int):
        wide = {'obs': (feat_size,), 'next_obs': (feat_size,),
                'actions': (action_size,)}
        self.capacity, self.written = capacity, 0
        self.rows = {name: np.zeros((capacity, *wide.get(name, ())),
                                    np.float32) for name in FIELDS}

    def __len__(self) -> int:
        return min(self.written, self.capacity)

    def clear(self) -> None:
        """Forget everything."""
        self.written = 0

    def append(self, rows: Mapping[str, np.ndarray]) -> None:
        """Add FIELDS [n, ...] over the oldest ones, in order."""
        count = len(rows['rewards'])
        kept = min(count, self.capacity)
        places = np.arange(
            self.written + count - kept, self.written + count) % self.capacity
        for name, values in self.rows.items():
            values[places] = rows[name][count - kept:]
        self.written += count

    def sample(self, uniform: np.ndarray) -> Arrays:
        """The transitions [n, ...] at uniform numbers [n] in [0, 1)."""
        places = (uniform * len(self)).astype(np.int64)
        return {name: values[places] for name, values in self.rows.items()}

    def state(self) -> Arrays:
        """The filled part, copied, and `written`."""
        filled = {name: values[:len(self)].copy()
                  for name, values in self.rows.items()}
        return {**filled, 'written': np.array(self.written, np.int64)}

    def load(self, state: Mapping[str, np.ndarray], where: str) -> None:
        """Restore `state()`.

        Raises UserError when it does not fit this ring.
        """
        missing = sorted({*FIELDS, 'written'} - set(state))
        if missing:
            raise UserError(
                f'{where}: expected {", ".join(FIELDS)} and written, missing '
                f'{missing}; the checkpoint belongs to another configuration')
        written = int(state['written'])
        filled = min(written, self.capacity)
        for name, values in self.rows.items():
            expected = (filled, *values.shape[1:])
            if state[name].shape != expected:
                raise UserError(
                    f'{where}/{name}: expected shape {expected}, found '
                    f'{state[name].shape}; the checkpoint belongs to other '
                    'data or another --lompo.buffer_size')
        for name, values in self.rows.items():
            values[:filled] = state[name]
        self.written = written


def episode_transitions(feat: np.ndarray, action: np.ndarray,
                        reward: np.ndarray) -> Arrays:
    """The transitions [L − 1, ...] of an encoded episode of L rows.

    Transition t goes from feature t by the action of row t + 1, with the
    reward of row t + 1 (unpenalised), to feature t + 1; terminal is always 0.
    Baselines 2.4.

    Args:
      feat: [L, F]; action: [L, A]; reward: [L].
    """
    return {'obs': feat[:-1], 'actions': action[1:], 'rewards': reward[1:],
            'next_obs': feat[1:],
            'terminals': np.zeros(len(feat) - 1, np.float32)}


def imagined_transitions(rows: Mapping[str, np.ndarray],
                         mask: np.ndarray) -> Arrays:
    """FIELDS [H, B·T, ...] of a rollout -> [n, ...], step after step.

    Those that start at a padded row (mask [B, T] False) are left out.
    """
    real = mask.reshape(-1)
    return {name: np.concatenate([step[real] for step in rows[name]])
            for name in FIELDS}


class SequenceSampler:
    """Batches of sequences for the world model, padded and masked.

    Args:
      store: has `rows` [E] and `slice(number, start, length)`.
      config: the resolved configuration (`offline_model_dataset` and the
        keys drop_last_start, cache_episodes, cache_sequences of `lompo`).
      phase: what the order depends on, besides the seed.
    """

    KEYS = ('image', 'action', 'reward')

    def __init__(self, store: EpisodeStore, config: Config, phase: str):
        self._store, self._seed, self._phase = store, config.seed, phase
        self._size, self._settings = config.offline_model_dataset, config.lompo

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Episode numbers [B] and first rows [B] of one batch.

        A start is uniform in [0, rows − T): the last possible one is never
        used, as released (`lompo.drop_last_start`). Episodes of at most T
        rows start at 0.
        """
        rng = batch_generator(self._seed, self._phase, step)
        places = rng.random(self._size.batch)
        sequences = step * self._size.batch + np.arange(self._size.batch)
        episodes = np.array([
            self._pick(place, number) for place, number in zip(
                places, sequences // self._settings.cache_sequences,
                strict=True)])
        choices = self._store.rows[episodes] - self._size.length
        if not self._settings.drop_last_start:
            choices = choices + 1
        starts = rng.integers(np.maximum(choices, 1))
        return episodes, starts

    def batch(self, step: int) -> Arrays:
        """'image', 'action', 'reward' [B, T, ...] and 'mask' [B, T] bool."""
        length, found = self._size.length, []
        for number, start in zip(*self.indices(step), strict=True):
            rows = min(int(self._store.rows[number]) - int(start), length)
            part = self._store.slice(int(number), int(start), rows)
            found.append(padded({key: part[key] for key in self.KEYS},
                                length))
        return {key: np.stack([one[key] for one in found])
                for key in found[0]}

    def describe(self) -> dict[str, Any]:
        """Counts for the log."""
        short = int((self._store.rows < self._size.length).sum())
        return {'episodes': len(self._store.rows), 'padded_episodes': short,
                'batch': self._size.batch, 'length': self._size.length,
                'cached_at_a_time': min(
                    self._settings.cache_episodes, len(self._store.rows))}

    def _pick(self, place: float, cache: int) -> int:
        """The episode at `place` in [0, 1) of the cache of that number."""
        count = len(self._store.rows)
        kept = self._settings.cache_episodes
        if count <= kept:  # every cache holds everything
            return int(place * count)
        rng = generator(self._seed, self._phase, 'cache', int(cache))
        return int(rng.permutation(count)[int(place * kept)])


class RowSampler:
    """Where in the rings each policy update looks: numbers in [0, 1).

    The rings change while training goes on; the places do not depend on
    them. `notes` are the entries of `describe()`.
    """

    def __init__(self, seed: int, size: int, notes: dict[str, Any]):
        self._seed, self._size, self._notes = seed, size, notes

    def batch(self, step: int) -> Arrays:
        """{'real', 'latent': [size]}, independent and with replacement."""
        rng = batch_generator(self._seed, 'agent', step)
        return {name: rng.random(self._size) for name in ('real', 'latent')}

    def describe(self) -> dict[str, Any]:
        """Counts for the log."""
        return dict(self._notes)


def padded(arrays: Mapping[str, np.ndarray], length: int) -> Arrays:
    """Arrays [n, ...] filled up with zeros to [length, ...], and 'mask'."""
    count = len(arrays['reward'])
    full = {}
    for name, values in arrays.items():
        full[name] = np.zeros((length, *values.shape[1:]), values.dtype)
        full[name][:count] = values
    return {**full, 'mask': np.arange(length) < count}
