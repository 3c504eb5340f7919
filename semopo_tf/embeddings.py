"""Embeddings of every frame, computed once.

In the policy phase the encoder is frozen, so the embedding of a frame does
not change: it is computed once for all episodes that may be drawn, and images
are not touched again. The same mathematics, less work.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dreamerv2_base.episodes import Episode
from dreamerv2_base.files import expect_space
from dreamerv2_base.nets import variables_by_name
from dreamerv2_base.replay import ChunkSampler
from dreamerv2_base.store import EpisodeStore
from dreamerv2_base.tf import tf

BLOCK = 256  # frames embedded at a time; fixed, so that numbers repeat


class EmbeddedSource:
    """Chunks whose `image` is replaced by `embed` [B, T, E].

    Args:
      sampler: says which chunks.
      store: the episodes.
      encode: uint8 frames [N, h, w, 3] -> embeddings [N, E].
      folder: where the embeddings are kept (a file per encoder).
      stamp: identifies the encoder's weights.
      numbers: the episodes that may be drawn.
    """

    def __init__(self, sampler: ChunkSampler, store: EpisodeStore,
                 encode: Callable[[np.ndarray], np.ndarray], folder: Path,
                 stamp: str, numbers: np.ndarray):
        self._sampler, self._store = sampler, store
        self._offsets = np.full(len(store), -1)
        ends = np.cumsum(store.rows[numbers])
        self._offsets[numbers] = ends - store.rows[numbers]
        self._embed = _embedded(
            store, encode, folder, stamp, numbers, int(ends[-1]))

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Episode numbers [B] and first rows [B], as the sampler's."""
        return self._sampler.indices(step)

    def batch(self, step: int) -> Episode:
        """A chunk without images; `embed` float [B, T, E]."""
        episodes, starts = self._sampler.indices(step)
        length = self._sampler.length
        keys = [key for key in self._store.keys if key != 'image']
        chunk = self._store.gather(episodes, starts, length, keys)
        chunk['is_first'] = np.zeros_like(chunk['is_first'])
        chunk['is_first'][:, 0] = True
        rows = (self._offsets[episodes] + starts)[:, None] + np.arange(length)
        chunk['embed'] = self._embed[rows]
        return chunk

    def video_batch(self, step: int) -> Episode:
        """The same chunk with its images."""
        return self._sampler.batch(step)

    def describe(self) -> dict[str, Any]:
        return {**self._sampler.describe(),
                'frames_embedded_once': len(self._embed)}


def encoder_stamp(encoder: tf.Module, digest: str,
                  numbers: np.ndarray) -> str:
    """A name for (weights, data): other weights, other embeddings."""
    content = hashlib.sha256(digest.encode())
    content.update(np.ascontiguousarray(numbers).data)
    for variable in variables_by_name(encoder).values():
        content.update(variable.numpy().tobytes())
    return content.hexdigest()[:24]


def compiled_encoder(encoder: Any, dtype: tf.DType,
                     ) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 frames [BLOCK, h, w, 3] -> embeddings [BLOCK, E]."""
    @functools.partial(tf.function, autograph=False)
    def encode(frames):
        return encoder(tf.cast(frames, dtype) / 255.0 - 0.5)
    return lambda frames: encode(tf.convert_to_tensor(frames)).numpy()


def _embedded(store: EpisodeStore, encode, folder, stamp, numbers, rows,
              ) -> np.ndarray:
    path = folder / f'embed-{stamp}.npy'
    if path.exists():
        return _mapped(path)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob('*embed-*.npy'):
        stale.unlink()
    partial = folder / f'.partial-embed-{stamp}.npy'
    sample = encode(_block(store.slice(int(numbers[0]), 0, 1)['image']))
    # What else the run writes meanwhile wants room, too.
    expect_space(folder, rows * sample[0].nbytes + 2 ** 26, 'the embeddings',
                 'free some, or give --cache_embeddings False')
    target = np.lib.format.open_memmap(
        partial, 'w+', sample.dtype, (rows, sample.shape[1]))
    filled = 0
    for number in _progress(numbers):
        images = store.episode(int(number))['image']
        for start in range(0, len(images), BLOCK):
            frames = images[start:start + BLOCK]
            target[filled:filled + len(frames)] = encode(
                _block(frames))[:len(frames)]
            filled += len(frames)
    target.flush()
    del target
    partial.replace(path)
    return _mapped(path)


def _mapped(path: Path) -> np.ndarray:
    """Embeddings on disk. A .npy file does not know the name of bfloat16:
    it calls them two bytes of anything."""
    found = np.load(path, mmap_mode='r')
    return (found.view(tf.bfloat16.as_numpy_dtype)
            if found.dtype.kind == 'V' else found)


def _block(frames: np.ndarray) -> np.ndarray:
    """Frames padded to BLOCK, so that one graph serves all."""
    padded = np.zeros((BLOCK, *frames.shape[1:]), np.uint8)
    padded[:len(frames)] = frames
    return padded


def _progress(numbers):
    from tqdm import tqdm
    return tqdm(numbers, desc='embedding episodes', unit='episode',
                leave=False, disable=not sys.stderr.isatty())
