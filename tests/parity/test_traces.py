"""Recorded traces of the published code (docs/traces.md).

The files in data/ are trimmed copies of the recordings: what is in them is
compared with what was recorded, never with our own output.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from semopo_tf import parity

DATA = Path(__file__).parent / 'data'
TRACES = sorted(path.stem for path in DATA.glob('*.npz'))


MODEL = {'losses', 'gradients', 'weights', 'changes', 'states'}
POLICY = {'losses', 'gradients', 'weights', 'changes', 'imagination',
          'targets'}
LOMPO = {'losses', 'gradients', 'weights', 'changes', 'targets'}
PIXELS = {'losses', 'weights', 'changes', 'actions'}
# What is compared of each.
GROUPS = {
    'semopo_released': MODEL | POLICY | {'actions', 'video'},
    'semopo_gaussian': MODEL | POLICY,
    'tia_reward_dissociation': MODEL,
    'offline_dv2_meandis': MODEL | POLICY | {'actions'},
    'offline_dv2_logprob': MODEL | POLICY,
    'offline_dv2_gaussian': MODEL, 'offline_dv2_tuned_lambda': POLICY,
    'lompo': LOMPO, 'lompo_mean': LOMPO, 'lompo_max_var': LOMPO,
    'bc': PIXELS, 'drq_bc': PIXELS, 'drq_cql': PIXELS}


def test_the_traces_are_there():
    assert set(GROUPS) == set(TRACES)
    # Random initial weights: no lossless compression takes off more than 15 %.
    assert sum(p.stat().st_size for p in DATA.iterdir()) < 15e6


def modes():
    """Every trace eagerly; in `make test` one of each network as a graph.

    As a graph a trace takes three to six times as long, SeMOPO's a minute:
    that its graph is its eager update is held by test_plain.py, too.
    """
    graphs = ('offline_dv2_gaussian', 'bc', 'drq_cql', 'lompo')
    for name in TRACES:
        yield pytest.param(name, 'eager')
        yield pytest.param(name, 'none', marks=() if name in graphs
                           else pytest.mark.slow)


@pytest.mark.parametrize(('name', 'jit'), modes())
def test_agrees(name, jit):
    report = parity.compare(DATA / f'{name}.npz', {'jit': jit})
    assert set(report.errors) == GROUPS[name]
    worst = {group: report.worst(group) for group in report.errors}
    assert report.agrees, worst


def change(tmp_path, name, key, edit):
    with np.load(DATA / f'{name}.npz') as file:
        arrays = dict(file)
    arrays[key] = edit(arrays[key])
    path = tmp_path / f'{name}.npz'
    np.savez(path, **arrays)
    return path


def test_a_wrong_trace_is_noticed(tmp_path):
    # A check that cannot fail shows nothing: disturb one weight by 1 %.
    path = change(tmp_path, 'offline_dv2_tuned_lambda',
                  'init/behavior/actor/out/kernel', lambda x: x * 1.01)
    eagerly = {'jit': 'eager'}
    assert not parity.compare(path, eagerly).agrees
    assert parity.compare(DATA / path.name, eagerly).agrees


def test_a_missing_result_is_noticed():
    report = parity.Report('x')
    report.metrics({}, {'unheard_of': np.float32(1.0)}, 'agent0/')
    assert report.worst('losses') == (
        float('inf'), 'agent0/unheard_of (missing)')


def test_relative_error():
    assert parity.relative_error([1.0, 2.0], [1.0, 2.2]) == pytest.approx(
        .2 / 2.2)
    assert parity.relative_error([1.0], [1.0, 2.0]) == float('inf')
    assert parity.relative_error([0.0], [0.0]) == 0.0
    assert parity.relative_error([np.nan], [1.0]) == float('inf')


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04broken', b'text'])
def test_unreadable_traces_are_user_errors(tmp_path, content):
    path = tmp_path / 'x.npz'
    path.write_bytes(content)
    with pytest.raises(UserError, match='trace'):
        parity.compare(path)
    with pytest.raises(UserError, match='no file'):
        parity.compare(tmp_path / 'absent.npz')


def test_an_odd_shape_is_a_user_error(tmp_path):
    path = change(tmp_path, 'offline_dv2_tuned_lambda',
                  'init/behavior/actor/out/kernel', lambda x: x[:-1])
    with pytest.raises(UserError, match='expected shape'):
        parity.compare(path)
