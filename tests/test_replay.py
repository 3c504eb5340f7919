"""Chunks by index, the plain formulation and the prefetching thread."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from dreamerv2_base.replay import (
    ChunkSampler,
    PlainGenerator,
    Prefetcher,
    batch_generator,
)
from dreamerv2_base.store import open_store
from tests.test_episodes import ROOT, fill, make


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp('episodes')
    fill(folder, 3, rows=12)
    fill(folder, 2, first=3, rows=7)
    return open_store([folder])


def draws(sampler, steps):
    """Episodes and starts of several batches, each flat."""
    pairs = [sampler.indices(step) for step in range(steps)]
    return [np.concatenate(part) for part in zip(*pairs, strict=True)]


# Indices.


def test_indices_are_a_pure_function_of_seed_phase_and_step(store):
    one = ChunkSampler(store, 8, 5, seed=1, phase='model')
    two = ChunkSampler(store, 8, 5, seed=1, phase='model')
    for step in (7, 0, 10 ** 6):
        np.testing.assert_array_equal(one.indices(step), two.indices(step))
    others = [ChunkSampler(store, 8, 5, seed=2, phase='model').indices(7),
              ChunkSampler(store, 8, 5, seed=1, phase='agent').indices(7),
              one.indices(8)]
    for other in others:
        assert not np.array_equal(one.indices(7), other)


def test_indices_do_not_depend_on_the_process():
    # Python's own hash of a phase's name would.
    code = ('from dreamerv2_base.replay import batch_generator; '
            'print(batch_generator(3, "model", 11).integers(2 ** 40))')
    said = [subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, text=True, check=True,
        capture_output=True, env={**os.environ, 'PYTHONHASHSEED': seed},
        ).stdout for seed in ('1', '2')]
    here = batch_generator(3, 'model', 11).integers(2 ** 40)
    assert [int(text) for text in said] == [here, here]


def test_starts_are_uniform_and_reach_both_ends(store):
    episodes, starts = draws(
        ChunkSampler(store, 64, 5, seed=0, phase='model'), 300)
    count = len(episodes)
    assert np.bincount(episodes) / count == pytest.approx(
        np.full(5, 0.2), abs=0.015)
    for rows, numbers in ((12, (0, 1, 2)), (7, (3, 4))):
        found = np.bincount(starts[np.isin(episodes, numbers)])
        assert len(found) == rows - 5 + 1
        assert found / found.sum() == pytest.approx(
            np.full(len(found), 1 / len(found)), abs=0.02)


def test_prioritized_ends(store):
    # 12 rows, chunks of 5: starts 0 … 12 inclusive before clipping at 7.
    _, starts = draws(ChunkSampler(
        store, 64, 5, 0, 'model', np.array([0]), prioritize_ends=True), 300)
    found = np.bincount(starts) / len(starts)
    assert found == pytest.approx([1 / 13] * 7 + [6 / 13], abs=0.02)


def test_window_opens_along_the_order(store):
    order = np.array([4, 2, 0])
    sampler = ChunkSampler(
        store, 32, 5, 0, 'model', order, window=lambda step: step + 1)
    for step in range(3):
        assert set(sampler.indices(step)[0]) == set(order[:step + 1])
    assert sampler.describe()['in_order'] == 3


def test_short_episodes_are_refused_before_the_first_batch(store):
    with pytest.raises(UserError, match='at least 8 rows, found 7'):
        ChunkSampler(store, 8, 8, 0, 'model')
    ChunkSampler(store, 8, 8, 0, 'model', order=np.array([0, 1, 2]))


# Batches.


def test_batch_holds_the_rows_and_rewrites_is_first(store):
    sampler = ChunkSampler(store, 6, 5, 0, 'model')
    for step in range(4):
        batch = sampler.batch(step)
        for row, (number, start) in enumerate(
                zip(*sampler.indices(step), strict=True)):
            wanted = make(int(number), rows=int(store.rows[number]))
            wanted['is_first'] = np.arange(-start, 12 - start) == 0
            for key, value in wanted.items():
                assert batch[key].dtype == value.dtype
                np.testing.assert_array_equal(
                    batch[key][row], value[start:start + 5])


def test_plain_generator_makes_the_same_batches(store):
    sampler = ChunkSampler(store, 6, 5, 0, 'model')
    plain = PlainGenerator(store, sampler, 5)
    for step in (0, 3):
        fast, slow = sampler.batch(step), plain.batch(step)
        assert set(fast) == set(slow)
        for key, value in fast.items():
            assert slow[key].dtype == value.dtype
            np.testing.assert_array_equal(slow[key], value)


# The thread.


class Source:
    """Counts batches; may fail or be slow."""

    def __init__(self, fail_at=None, seconds=0.0):
        self.made, self._fail_at, self._seconds = [], fail_at, seconds

    def batch(self, step):
        time.sleep(self._seconds)
        if step == self._fail_at:
            raise UserError('broken at 3')
        self.made.append(step)
        return {'step': step}


def test_prefetched_batches_are_those_of_the_sampler(store):
    sampler = ChunkSampler(store, 6, 5, 0, 'model')
    ahead = Prefetcher(sampler, 4, 9)
    for expected in range(4, 9):
        step, batch = ahead.next()
        assert step == expected
        for key, value in sampler.batch(step).items():
            np.testing.assert_array_equal(batch[key], value)
    for _ in range(2):
        with pytest.raises(StopIteration):
            ahead.next()
    ahead.close()


def test_errors_of_the_thread_reach_the_caller():
    ahead = Prefetcher(Source(fail_at=3), 2, 9)
    assert ahead.next() == (2, {'step': 2})
    for _ in range(2):
        with pytest.raises(UserError, match='broken at 3'):
            ahead.next()
    ahead.close()


@pytest.mark.parametrize('ahead', [1, 3])
def test_no_more_than_asked_is_made_ahead(ahead):
    # `ahead` wait in the queue and one is in the thread's hand.
    source = Source()
    prefetcher = Prefetcher(source, 0, 99, ahead)
    deadline = time.monotonic() + 5
    while len(source.made) <= ahead and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert source.made == list(range(ahead + 1))
    prefetcher.close()


def test_close_ends_the_thread():
    before = threading.active_count()
    prefetcher = Prefetcher(Source(), 0, 99)
    prefetcher.next()
    assert threading.active_count() == before + 1
    prefetcher.close()
    prefetcher.close()
    assert threading.active_count() == before


def test_wait_share_tells_slow_data_from_slow_training():
    slow = Prefetcher(Source(seconds=0.03), 0, 99)
    for _ in range(6):
        slow.next()
    assert slow.wait_share > 0.8
    slow.close()
    fast = Prefetcher(Source(), 0, 99)
    for _ in range(6):
        fast.next()
        time.sleep(0.03)
    assert fast.wait_share < 0.5
    fast.close()
