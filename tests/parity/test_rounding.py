"""What a replay may leave out because rounding decides it (parity_drq.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from semopo_tf import parity_drq
from semopo_tf.parity import Report, Trace

DATA = Path(__file__).parent / 'data'


def compared(ours, recorded, doubt, of=100):
    """Report of one array, among `of` elements that agree."""
    report = Report('x')
    same, odd = np.ones(of, np.float32), np.array(ours)
    restart = {'same': same, 'odd': odd + np.array(doubt) / 4}
    parity_drq._compare_group('weights', {
        'same': (same, same), 'odd': (odd, np.array(recorded))},
        parity_drq.Doubt({'same': same, 'odd': odd}, lambda _: restart, 1),
        report)
    return report


def test_only_what_rounding_explains_is_left_out():
    explained = compared([1.0, 2.0], [1.0, 2.1], [0.0, 0.2])
    assert explained.agrees
    assert explained.skipped == [
        'weights: 1 of 102 elements, which rounding decides']
    beyond = compared([1.0, 2.0], [1.0, 2.1], [0.2, 0.05])
    assert beyond.worst('weights') == (
        pytest.approx(0.1 / 2.1), 'after/odd')
    assert not beyond.skipped


def test_many_differences_are_not_rounding():
    ours, recorded = np.zeros(6), np.ones(6)
    assert compared(ours, recorded, recorded, of=200).agrees
    assert not compared(ours, recorded, recorded, of=100).agrees


def test_doubt_is_measured_until_nothing_is_left_to_explain():
    ours = {'sure': np.float32([1.0]), 'chance': np.float32([1.0, 1.0])}
    restarts = []

    def again(seed):
        restarts.append(seed)
        return {'sure': np.float32([1.0]),
                'chance': np.float32([1.0, 1.25 if seed == 3 else 0.875])}

    # Four times what a restart moves, .125 or .25: .5, later 1.
    doubt = parity_drq.Doubt(ours, again, 6)
    for gap, explained, made in (
            ([0.0, .5], [True, True], 1), ([0.0, .51], [True, True], 4),
            ([0.0, 1.0], [True, True], 4), ([.01, 1.01], [False, False], 6),
            ([0.0, 1.0], [True, True], 6)):
        assert doubt.explains('chance', np.array(gap)).tolist() == explained
        assert restarts == list(range(made))
    assert not doubt.explains('sure', np.array([1e-9]))
    assert restarts == list(range(6))


def test_without_restarts_nothing_is_explained():
    doubt = parity_drq.Doubt({'x': np.zeros(2)}, lambda seed: {}, 0)
    assert doubt.explains('x', np.array([0.0, 1e-9])).tolist() == [True, False]


def test_the_last_bits_move_up_and_down():
    weights = {'kernel': np.linspace(-2, 2, 1000, dtype=np.float32)}
    moved = parity_drq._last_bits_changed(weights, 0)['kernel']
    share = (moved - weights['kernel']) / weights['kernel']
    assert np.abs(share).max() < 6e-7
    assert (share > 2e-7).any()
    assert (share < -2e-7).any()
    assert moved.dtype == np.float32


@pytest.mark.parametrize('mutation', ['actions', 'rate'])
def test_a_wrong_update_is_no_rounding(monkeypatch, mutation):
    train = parity_drq.BCAgent.train
    calls = []

    def wrong(self, batch, iteration, draws):
        calls.append(iteration)
        if mutation == 'actions' and len(calls) % 2 == 0:
            return train(self, {**batch, 'action': 0 * batch['action']},
                         iteration, draws)
        return train(self, batch, iteration, draws)

    monkeypatch.setattr(parity_drq.BCAgent, 'train', wrong)
    changes = {'jit': 'eager'}
    if mutation == 'rate':
        changes['drq.lr'] = 1.01 * 3e-4
    report = parity_drq.replay(Trace(DATA / 'bc.npz'), changes)
    assert report.worst('changes')[0] > 1e-3
    assert not report.agrees
