"""Stacked frames, n-step returns and future observations from episodes.

Baselines 3.1 and 7.1. Frames are read from the mapped arrays and stacked
on the fly. Free of TensorFlow: batches are made in a thread beside it.

Row t of an episode holds the action that led to frame t and its reward. The
sample of row t is: observation frames t−3 … t−1, action and reward of row t,
next observation frames t+n−3 … t+n−1. Rows before the first repeat frame 0.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from dreamerv2_base.errors import UserError
from dreamerv2_base.replay import batch_generator
from dreamerv2_base.store import EpisodeStore

FILM_EPISODES, FILM_ROWS = 3, 30


def upscale(frames: np.ndarray, size: int) -> np.ndarray:
    """Frames uint8 [..., H, W, 3] at size x size, with a cubic filter.

    The same function serves training and evaluation (baselines 3.7, 9.5).
    Frames that have the size already come back as they are.
    """
    if frames.shape[-3:-1] == (size, size):
        return frames
    lead, flat = frames.shape[:-3], frames.reshape(-1, *frames.shape[-3:])
    out = np.empty((len(flat), size, size, 3), np.uint8)
    for i, frame in enumerate(flat):
        cv2.resize(frame, (size, size), out[i],
                   interpolation=cv2.INTER_CUBIC)
    return out.reshape(*lead, size, size, 3)


def stacked(frames: np.ndarray) -> np.ndarray:
    """[B, F, H, W, 3] -> [B, H, W, 3·F], oldest frame first."""
    moved = np.moveaxis(frames, 1, 3)
    return np.ascontiguousarray(moved).reshape(*moved.shape[:3], -1)


class StackSampler:
    """Batches of transitions, uniform over all valid rows of all episodes.

    Args:
      store: the episodes.
      settings: the group `drq` of the configuration.
      seed, phase: batch i is a pure function of (seed, phase, i).
      next_obs: whether `next_obs` is wanted.
      max_offset: 0, or one more than the largest offset of `obs_k`.

    Raises UserError when an episode has too few rows for one sample.
    """

    def __init__(self, store: EpisodeStore, settings, seed: int, phase: str,
                 next_obs: bool = True, max_offset: int = 0):
        self._store, self._set = store, settings
        self._seed, self._phase = seed, phase
        self._next_obs, self._max_offset = next_obs, max_offset
        self._stack, self._nstep = settings.frame_stack, settings.nstep
        least = self._stack + self._nstep
        for number in np.flatnonzero(store.rows < least)[:1]:
            raise UserError(
                f'{store.names[number]}: expected at least {least} rows '
                f'(frame_stack + nstep), found {store.rows[number]}; leave '
                'the file out: --skip_broken True '
                f'--offline_model_dataset.length {least}')
        self.counts = self._valid_counts()
        self._ends = np.cumsum(self.counts)
        if not self._ends[-1]:
            raise UserError(
                'drq.replay_buffer_size: expected room for one sample, found '
                f'{settings.replay_buffer_size}; give '
                '--drq.replay_buffer_size 1000000')

    def _valid_counts(self) -> np.ndarray:
        """Valid rows per episode, [E]: 1 … rows − n, within the capacity.

        A row is valid when n − 1 further rows of its episode are there. The
        released buffer keeps the first `replay_buffer_size` rows.
        """
        offsets = self._store.offsets
        kept = np.clip(self._set.replay_buffer_size - offsets[:-1], 0,
                       self._store.rows)
        return np.maximum(kept - self._nstep, 0)

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Episode numbers [B] and rows t [B] of one batch."""
        return self._draw(step)[:2]

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """obs [B, S, S, 9] uint8, action [B, A], reward and discount [B];
        as wanted, next_obs, and obs_k with its offset k [B]."""
        episodes, rows, rng = self._draw(step)
        found = self._transition(episodes, rows)
        if self._max_offset:
            found['k'] = self._offsets(episodes, rows, rng)
            found['obs_k'] = stacked(self._frames(
                episodes, rows + found['k'] - self._stack, self._stack))
        return found

    def video_batch(self, step: int) -> dict[str, np.ndarray]:
        """obs [E, T, S, S, 9] of consecutive rows of a few episodes."""
        rng = batch_generator(self._seed, f'{self._phase}/video', step)
        count = int(min(FILM_ROWS, self._store.rows.min() - 1))
        episodes = rng.integers(len(self._store), size=FILM_EPISODES)
        starts = rng.integers(self._store.rows[episodes] - count)
        films = [stacked(self._frames(
            np.full(count, number), start + 1 - self._stack
            + np.arange(count), self._stack))
            for number, start in zip(episodes, starts, strict=True)]
        return {'obs': np.stack(films)}

    def describe(self) -> dict[str, Any]:
        """Counts for the log, and how frames were brought to size."""
        height, size = self._store.image_size[0], self._set.image_size
        how = 'none' if height == size else (
            f'{height} to {size} pixels, cubic (OpenCV INTER_CUBIC), in '
            'training and in evaluation')
        return {'episodes': len(self._store),
                'transitions': int(self._ends[-1]),
                'rows_beyond_capacity': int(max(
                    0, self._store.offsets[-1]
                    - self._set.replay_buffer_size)),
                'batch': self._set.batch_size, 'nstep': self._nstep,
                'frame_stack': self._stack, 'resized': how}

    def _draw(self, step: int):
        """Episodes, rows, and the generator for what else is drawn."""
        rng = batch_generator(self._seed, self._phase, step)
        slots = rng.integers(self._ends[-1], size=self._set.batch_size)
        episodes = np.searchsorted(self._ends, slots, side='right')
        before = self._ends[episodes] - self.counts[episodes]
        return episodes, slots - before + 1, rng

    def _transition(self, episodes: np.ndarray,
                    rows: np.ndarray) -> dict[str, np.ndarray]:
        keys = ['action', 'reward', 'is_terminal']
        if 'discount' in self._store.keys:
            keys.append('discount')
        chunk = self._store.gather(episodes, rows, self._nstep, keys)
        gamma = self._set.discount
        powers = (gamma ** np.arange(self._nstep)).astype(np.float32)
        wide = self._nstep if self._next_obs else 0
        frames = self._frames(
            episodes, rows - self._stack, self._stack + wide)
        found = {
            'obs': stacked(frames[:, :self._stack]),
            'action': chunk['action'][:, 0],
            'reward': (chunk['reward'] * powers).sum(1),
            'discount': np.float32(gamma ** self._nstep)
            * self._going_on(chunk)}
        if self._next_obs:
            found['next_obs'] = stacked(frames[:, self._nstep:])
        return found

    def _going_on(self, chunk: dict[str, np.ndarray]) -> np.ndarray:
        """Stored discount of the last of the n rows, [B] float32."""
        if 'discount' in chunk:
            last = chunk['discount'][:, -1]
        else:
            last = 1.0 - chunk['is_terminal'][:, -1]
        if self._set.ignore_terminals:
            # As the released environment wrapper, to which a 0 is "not
            # given"; whether its reader of data does so is not known.
            last = np.where(last == 0.0, 1.0, last)
        return last.astype(np.float32)

    def _frames(self, episodes: np.ndarray, first: np.ndarray,
                count: int) -> np.ndarray:
        """Frames `first` … `first + count − 1` [B, count, S, S, 3]; numbers
        below 0 stand for frame 0."""
        last_start = self._store.rows[episodes] - count
        starts = np.clip(first, 0, last_start)
        frames = self._store.gather(
            episodes, starts, count, ['image'])['image']
        wanted = np.maximum(first[:, None] + np.arange(count), 0)
        places = wanted - starts[:, None]
        same = (places == np.arange(count)).all(1)
        for row in np.flatnonzero(~same):
            frames[row] = frames[row, places[row]]
        return upscale(frames, self._set.image_size)

    def _offsets(self, episodes: np.ndarray, rows: np.ndarray,
                 rng: np.random.Generator) -> np.ndarray:
        """k [B], uniform on 1 … min(max_offset, rows left) − 1, at least 1.

        Rows left are counted after row t, so observation t + k exists.
        """
        left = self._store.rows[episodes] - 1 - rows
        return rng.integers(
            1, np.maximum(np.minimum(self._max_offset, left), 2))
