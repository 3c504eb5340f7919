"""Random numbers: the draws of updates, and generators for other purposes.

A draw is a pure function of (seed, purpose, site, counter): the same run from
the same seed gives the same numbers on resume, whatever happened in between.
(With `jit: xla` it is another one: XLA has its own generator.) `purpose` names
what is drawn for (a phase, films, acting), `site` the place in the computation,
`counter` the update. Recorded draws take the place of ours in
parity tests. NumPy's draws come from `generator` or, where they belong to a
phase and a step, from `replay.batch_generator`; backgrounds, environments and
collected data seed generators of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from dreamerv2_base.tf import tf


def fold(seed: int, *names: str | int) -> int:
    """A 63-bit integer that depends on all arguments (stable across runs)."""
    text = '/'.join(map(str, (seed, *names)))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'little') >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for one named purpose: first weights, prefill, …"""
    return np.random.default_rng(fold(seed, *names))


class Draws:
    """The random draws of one update: each site may be used once."""

    def uniform(self, site: str, shape: tuple) -> tf.Tensor:
        """Uniform numbers in the open interval (0, 1), float32."""
        raise NotImplementedError

    def normal(self, site: str, shape: tuple) -> tf.Tensor:
        """Standard normal numbers, float32."""
        raise NotImplementedError

    def integers(self, site: str, shape: tuple, high: int) -> tf.Tensor:
        """Uniform integers in [0, high), int32."""
        raise NotImplementedError

    def scope(self, prefix: str) -> Draws:
        """The same draws, with `prefix/` before every site."""
        return _Scoped(self, prefix)


class _Scoped(Draws):
    def __init__(self, parent: Draws, prefix: str):
        self._parent, self._prefix = parent, prefix

    def uniform(self, site, shape):
        return self._parent.uniform(f'{self._prefix}/{site}', shape)

    def normal(self, site, shape):
        return self._parent.normal(f'{self._prefix}/{site}', shape)

    def integers(self, site, shape, high):
        return self._parent.integers(f'{self._prefix}/{site}', shape, high)


class CounterDraws(Draws):
    """Draws keyed by (seed, purpose, site) and a counter tensor."""

    # Smallest uniform kept away from 0, so that log(-log u) is finite.
    TINY = 1e-7

    def __init__(self, seed: int, purpose: str, counter: tf.Tensor):
        self._seed, self._purpose = seed, purpose
        self._counter = tf.cast(counter, tf.int64)
        self._used: set[str] = set()

    def uniform(self, site, shape):
        return tf.random.stateless_uniform(
            shape, self._key(site), self.TINY, 1.0, alg='philox')

    def normal(self, site, shape):
        return tf.random.stateless_normal(
            shape, self._key(site), alg='philox')

    def integers(self, site, shape, high):
        return tf.random.stateless_uniform(
            shape, self._key(site), 0, high, tf.int32, alg='philox')

    def _key(self, site: str) -> tf.Tensor:
        if site in self._used:
            raise ValueError(f'site {site!r} drawn twice in one update')
        self._used.add(site)
        key = fold(self._seed, self._purpose, site)
        with tf.device('CPU'):  # where the draws' kernels want their keys
            return tf.stack([tf.constant(key, tf.int64), self._counter])


class RecordedDraws(Draws):
    """Draws read from recorded arrays, named by site (parity tests)."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = arrays

    def uniform(self, site, shape):
        return self._read(site, shape, tf.float32)

    def normal(self, site, shape):
        return self._read(site, shape, tf.float32)

    def integers(self, site, shape, high):
        return self._read(site, shape, tf.int32)

    def _read(self, site, shape, dtype):
        if site not in self._arrays:
            raise KeyError(f'no recorded draw for site {site!r}')
        value = tf.convert_to_tensor(self._arrays[site])
        if tuple(value.shape) != tuple(int(n) for n in shape):
            raise ValueError(
                f'recorded draw {site!r} has shape {tuple(value.shape)}, '
                f'expected {tuple(shape)}')
        return tf.cast(value, dtype)


class RecordingDraws(Draws):
    """Passes draws on and keeps their values (to record a trace of ours)."""

    def __init__(self, inner: Draws):
        self._inner = inner
        self.arrays: dict[str, tf.Tensor] = {}

    def uniform(self, site, shape):
        return self._keep(site, self._inner.uniform(site, shape))

    def normal(self, site, shape):
        return self._keep(site, self._inner.normal(site, shape))

    def integers(self, site, shape, high):
        return self._keep(site, self._inner.integers(site, shape, high))

    def _keep(self, site, value):
        self.arrays[site] = value
        return value
