"""Checkpoints are complete or absent, and restored exactly or not at all."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dreamerv2_base.checkpoint import Checkpoints, Live, is_weight, restore
from dreamerv2_base.errors import UserError
from dreamerv2_base.tf import tf


@pytest.fixture
def ckpt(tmp_path):
    return Checkpoints(tmp_path / 'ckpt', keep=2)


def arrays(value=1.0):
    return {'a/b': np.full((2, 3), value, np.float32), 'n': np.int64(5)}


def test_round_trip(ckpt):
    ckpt.save(3, arrays(2.0), {'at': {'step': 3}})
    found, state = ckpt.load()
    np.testing.assert_array_equal(found['a/b'], arrays(2.0)['a/b'])
    assert found['n'] == 5
    assert state['at'] == {'step': 3}


def test_the_newest_are_kept_and_pinned_ones_stay(ckpt):
    ckpt.save(1, arrays(), {}, pin=True)
    for position in (2, 3, 4, 5):
        ckpt.save(position, arrays(position), {})
    assert ckpt.positions() == [1, 4, 5]
    assert ckpt.load(4)[0]['a/b'][0, 0] == 4


def test_what_a_crash_leaves_is_no_checkpoint(ckpt):
    ckpt.save(1, arrays(1), {})
    half = ckpt.folder / '000000002'
    half.mkdir()
    (half / 'arrays.npz').write_bytes(b'half')
    (ckpt.folder / '.partial-000000003').mkdir()
    assert ckpt.positions() == [1]
    assert ckpt.load()[0]['a/b'][0, 0] == 1
    ckpt.save(4, arrays(4), {})  # tidies up
    assert not half.exists()


def test_none_and_unknown_positions(ckpt):
    with pytest.raises(UserError, match=r'run\.py train'):
        ckpt.load()
    ckpt.save(1, arrays(), {})
    with pytest.raises(UserError, match=r'found \[1\]'):
        ckpt.load(2)


@pytest.mark.parametrize('name', ['arrays.npz', 'state.json'])
def test_damage_is_named(ckpt, name):
    path = ckpt.save(1, arrays(), {}) / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match='000000001'):
        ckpt.load()


@pytest.mark.parametrize('text', ['', '[]'])
def test_damage_of_an_older_one_is_named_when_it_is_in_the_way(ckpt, text):
    older = ckpt.save(1, arrays(), {})
    ckpt.save(2, arrays(), {})
    (older / 'state.json').write_text(text)
    with pytest.raises(UserError, match=r'000000001.*rm -r .*000000001$'):
        ckpt.save(3, arrays(3), {})
    assert ckpt.load()[0]['a/b'][0, 0] == 3  # nothing is lost


def test_another_format_is_refused(ckpt):
    path = ckpt.save(1, arrays(), {}) / 'state.json'
    path.write_text(json.dumps({'format': 99, 'pinned': False}))
    with pytest.raises(UserError, match='format 1'):
        ckpt.load()


@pytest.mark.parametrize(('found', 'message'), [
    ({}, 'missing'),
    ({'w': np.ones(2), 'x': np.ones(1)}, 'left over'),
    ({'w': np.ones(3)}, 'shape')])
def test_restoring_is_all_or_nothing(found, message):
    variable = tf.Variable([1.0, 2.0])
    with pytest.raises(UserError, match=message):
        restore({'w': variable}, found, 'here')
    np.testing.assert_array_equal(variable, [1.0, 2.0])
    restore({'w': variable}, {'w': np.float32([3, 4])}, 'here')
    np.testing.assert_array_equal(variable, [3, 4])


def test_variables_are_copied_one_at_a_time(ckpt):
    variables = {name: tf.Variable(np.arange(3, dtype=np.float32))
                 for name in 'ab'}
    live = Live(variables)
    kept = dict(live)
    variables['a'].assign([4.0, 5.0, 6.0])
    assert live['a'][0] == 4
    assert kept['a'][0] == 0
    ckpt.save(1, live, {})
    found, _ = ckpt.load()
    np.testing.assert_array_equal(found['a'], [4, 5, 6])
    np.testing.assert_array_equal(found['b'], [0, 1, 2])


def test_arrays_lie_as_numpy_writes_them(ckpt, tmp_path):
    path = ckpt.save(1, arrays(), {}) / 'arrays.npz'
    np.savez(tmp_path / 'numpy.npz', **arrays())
    with np.load(path) as ours, np.load(tmp_path / 'numpy.npz') as theirs:
        assert ours.files == theirs.files
        assert all(ours[k].dtype == theirs[k].dtype for k in ours.files)


def test_neither_optimizers_nor_loss_scales_are_weights():
    names = {'behavior/actor/out/kernel': True, 'behavior/log_lambda': True,
             'world_model/optimizer/model/count': False,
             'world_model/loss_scale/scale': False,
             'behavior/actor_loss_scale/good': False}
    assert {name: is_weight(name) for name in names} == names
