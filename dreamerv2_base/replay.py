"""Chunks of episodes: which, from where, and one batch ahead.

Batch i of a phase is a pure function of (seed, phase, i). So nothing of the
data order needs saving, and a resumed run draws what it would have drawn.
"""

from __future__ import annotations

import hashlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dreamerv2_base.episodes import Episode
from dreamerv2_base.errors import UserError
from dreamerv2_base.store import EpisodeStore


def batch_generator(seed: int, phase: str, step: int) -> np.random.Generator:
    """The generator of one batch."""
    digest = hashlib.blake2b(phase.encode(), digest_size=8).digest()
    return np.random.default_rng(
        [seed, int.from_bytes(digest, 'little'), step])


class ChunkSampler:
    """Batches of B independent chunks of T rows. Spec section 1.

    Args:
      store: the episodes.
      batch, length: B and T.
      seed, phase: what the order depends on.
      order: episode numbers, in the order in which the window opens.
      window: how many of `order` may be drawn at a step.
      prioritize_ends: enlarge the range of starts by T and clip, so that
        ends of episodes are drawn more often.
      notes: further entries of `describe()`.

    Raises UserError when an episode of `order` is shorter than T.
    """

    def __init__(self, store: EpisodeStore, batch: int, length: int,
                 seed: int, phase: str, order: np.ndarray | None = None,
                 window: Callable[[int], int] | None = None,
                 prioritize_ends: bool = False,
                 notes: dict[str, Any] | None = None):
        self._notes = notes or {}
        self._store, self._batch, self.length = store, batch, length
        self._seed, self._phase = seed, phase
        self._order = np.arange(len(store)) if order is None else order
        self._window = window or (lambda step: len(self._order))
        self._ends = prioritize_ends
        for number in self._order[store.rows[self._order] < length][:1]:
            raise UserError(
                f'{store.names[number]}: expected at least {length} rows, '
                f'found {store.rows[number]}; give a smaller dataset length, '
                'or leave the file out with --skip_broken True')

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Episode numbers [B] and first rows [B] of one batch.

        An episode is drawn uniformly from the window, a start uniformly from
        0 … rows − T inclusive.
        """
        rng = batch_generator(self._seed, self._phase, step)
        allowed = self._order[:self._window(step)]
        episodes = allowed[rng.integers(len(allowed), size=self._batch)]
        last = self._store.rows[episodes] - self.length
        if self._ends:
            starts = np.minimum(rng.integers(last + self.length + 1), last)
        else:
            starts = rng.integers(last + 1)
        return episodes, starts

    def batch(self, step: int) -> Episode:
        """Arrays [B, T, ...]; `is_first` is True at row 0 and nowhere else."""
        chunk = self._store.gather(*self.indices(step), self.length)
        chunk['is_first'] = np.zeros_like(chunk['is_first'])
        chunk['is_first'][:, 0] = True
        return chunk

    def describe(self) -> dict[str, Any]:
        """Counts for the log."""
        return {'episodes': len(self._store), 'in_order': len(self._order),
                'window_at_start': int(self._window(0)),
                'batch': self._batch, 'length': self.length, **self._notes}


class PlainGenerator:
    """The plain formulation of ChunkSampler.batch, for comparison alone.

    All episodes are held in memory; a Python generator cuts one chunk after
    the other out of them.
    """

    def __init__(self, store: EpisodeStore, sampler: ChunkSampler,
                 length: int):
        self._sampler, self._length = sampler, length
        self._episodes = [
            {key: np.array(value) for key, value in store.episode(i).items()}
            for i in range(len(store))]

    def chunks(self, step: int) -> Iterator[Episode]:
        """Chunks [T, ...] of batch `step`, then of the next, without end."""
        while True:
            for number, start in zip(*self._sampler.indices(step),
                                     strict=True):
                yield self._chunk(self._episodes[int(number)], int(start))
            step += 1

    def dataset(self, batch: int) -> Any:
        """Tensors [B, T, ...] of batch 0, 1, …: the generator as a
        `tf.data` pipeline that batches chunks and stays ahead."""
        from dreamerv2_base.tf import tf
        sample = next(self.chunks(0))
        signature = {key: tf.TensorSpec(value.shape, value.dtype)
                     for key, value in sample.items()}
        return tf.data.Dataset.from_generator(
            lambda: self.chunks(0), output_signature=signature).batch(
                batch, drop_remainder=True).prefetch(5)

    def batch(self, step: int) -> Episode:
        """The same arrays [B, T, ...] as the sampler's for the same step."""
        count = len(self._sampler.indices(step)[0])
        chunks = list(itertools.islice(self.chunks(step), count))
        return {key: np.stack([chunk[key] for chunk in chunks])
                for key in chunks[0]}

    def _chunk(self, episode: Episode, start: int) -> Episode:
        chunk = {key: value[start:start + self._length]
                 for key, value in episode.items()}
        chunk['is_first'] = np.arange(self._length) == 0
        return chunk


class Prefetcher:
    """Makes batches in a thread, `ahead` of them in advance.

    Args:
      source: has `batch(step)`.
      start, stop: steps of the batches, stop exclusive.
      ahead: batches that wait, finished, at most.
      prepare: done to each batch in the thread, such as copying it to where
        it is needed.
    """

    def __init__(self, source: Any, start: int, stop: int, ahead: int = 1,
                 prepare: Callable[[Episode], Any] | None = None):
        self._prepare = prepare or (lambda batch: batch)
        self._queue: queue.Queue = queue.Queue(ahead)
        self._closed = threading.Event()
        self._ended: tuple[int, BaseException] | None = None
        self._began, self._waited = time.monotonic(), 0.0
        self._thread = threading.Thread(
            target=self._produce, args=(source, start, stop), daemon=True)
        self._thread.start()

    def next(self) -> tuple[int, Any]:
        """The next step and its batch, prepared.

        Re-raises errors of the thread; StopIteration after the last batch.
        """
        before = time.monotonic()
        step, batch = self._ended or self._queue.get()
        self._waited += time.monotonic() - before
        if isinstance(batch, BaseException):
            # The thread is gone: further calls must not wait for it.
            self._ended = (step, batch)
            raise batch
        return step, batch

    @property
    def wait_share(self) -> float:
        """Share of the time since the last look spent waiting for data."""
        now = time.monotonic()
        share = self._waited / max(now - self._began, 1e-9)
        self._began, self._waited = now, 0.0
        return share

    def close(self) -> None:
        """End the thread. May be called again."""
        self._closed.set()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._thread.join(timeout=10)

    def _produce(self, source, start, stop):
        for step in range(start, stop):
            try:
                item = (step, self._prepare(source.batch(step)))
            except BaseException as error:  # handed to the caller
                item = (step, error)
            if not self._put(item) or isinstance(item[1], BaseException):
                return
        self._put((stop, StopIteration('no further batches')))

    def _put(self, item) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
