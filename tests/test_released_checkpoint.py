"""Published checkpoints: read safely, named, written back the same."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from semopo_tf import parity, settings
from semopo_tf import released_checkpoint as released
from tests.helpers import call

DATA = Path(__file__).parent / 'parity' / 'checkpoints'
TRACES = Path(__file__).parent / 'parity' / 'data'
NAMES = ('semopo_released', 'offline_dv2_meandis')
FILES = [(name, kind) for name in NAMES for kind in ('agent', 'world_model')]


def config_of(name):
    trace = parity.Trace(TRACES / f'{name}.npz')
    return settings.check(settings.presets().defaults.update(trace.config))


def config_file(name, folder):
    trace = parity.Trace(TRACES / f'{name}.npz')
    path = folder / 'config.json'
    path.write_text(json.dumps(trace.config))
    return path


@pytest.mark.parametrize(('name', 'kind'), FILES)
def test_names_follow_the_recorded_order(name, kind):
    order = json.loads((DATA / f'{name}.order.json').read_text())[kind]
    shapes = released.shapes_of(config_of(name), 3)
    assert released.variable_order(shapes, kind, config_of(name)) == order


@pytest.mark.parametrize(('name', 'kind'), FILES)
def test_reads_and_writes_the_same_entries(name, kind, tmp_path):
    path = DATA / f'{name}.{kind}.pkl'
    entries = released.read_pickle(path)
    arrays = released.name_entries(entries, config_of(name), path)
    released.write_pickle(tmp_path / 'out.pkl', arrays, list(arrays))
    again = released.read_pickle(tmp_path / 'out.pkl')
    assert len(again) == len(entries)
    for ours, theirs in zip(again, entries, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('name', NAMES)
def test_weights_are_those_after_the_recorded_training(name):
    path = DATA / f'{name}.agent.pkl'
    arrays = released.name_entries(
        released.read_pickle(path), config_of(name), path)
    trace = parity.Trace(TRACES / f'{name}.npz')
    recorded = {**trace.below('after_model'), **trace.below('after_agent')}
    assert recorded
    for key, value in recorded.items():
        np.testing.assert_array_equal(arrays[key], value, err_msg=key)


@pytest.mark.parametrize('name', NAMES)
def test_a_converted_agent_acts_as_recorded(name, tmp_path):
    from dreamerv2_base.checkpoint import Checkpoints
    from semopo_tf.parity_world_model import acted
    from semopo_tf.world_model_method import WorldModelMethod
    released.convert(DATA / f'{name}.agent.pkl', tmp_path / 'run',
                     config_file(name, tmp_path))
    method = WorldModelMethod(config_of(name), None, action_size=3)
    method.load(Checkpoints(tmp_path / 'run' / 'ckpt').load()[0])
    trace = parity.Trace(TRACES / f'{name}.npz')
    error = parity.relative_error(
        acted(method.agent, trace), trace['act/action'])
    assert error <= 1e-4


def test_every_kind_converts_into_every_other(tmp_path):
    name = 'semopo_released'
    config = config_file(name, tmp_path)
    source = DATA / f'{name}.agent.pkl'
    released.convert(source, tmp_path / 'a.npz', config)
    released.convert(tmp_path / 'a.npz', tmp_path / 'b', config)
    released.convert(tmp_path / 'b', tmp_path / 'c.pkl', config)
    for ours, theirs in zip(released.read_pickle(tmp_path / 'c.pkl'),
                            released.read_pickle(source), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('word', ['missing', 'unknown'])
def test_named_arrays_are_neither_dropped_nor_left_random(word, tmp_path):
    name = 'semopo_released'
    config = config_file(name, tmp_path)
    released.convert(DATA / f'{name}.agent.pkl', tmp_path / 'a.npz', config)
    with np.load(tmp_path / 'a.npz') as file:
        arrays = dict(file)
    mask = 'world_model/mask/mask1/kernel'
    if word == 'missing':
        del arrays[mask]
    else:
        arrays['world_model/mask/mask9/kernel'] = arrays[mask]
    np.savez(tmp_path / 'b.npz', **arrays)
    with pytest.raises(UserError, match=f'found 1 {word}, first world_model/'
                                        r'mask/mask\d/kernel'):
        released.convert(tmp_path / 'b.npz', tmp_path / 'run', config)
    assert not (tmp_path / 'run').exists()


def test_other_sizes_work(tmp_path):
    from semopo_tf.world_model_method import WorldModelMethod
    flags = ('--configs debug --rssm.deter 11 --rssm.stoch 3 --rssm.discrete '
             '0 --rssm.ensemble 12 --reward_head.layers 3').split()
    config, _ = settings.resolve(flags)
    method = WorldModelMethod(config, None, action_size=5)
    state = {k: v for k, v in method.state().items()
             if 'optimizer' not in k}
    shapes = released.shapes_of(config, 5)
    order = released.variable_order(shapes, 'agent', config)
    released.write_pickle(
        tmp_path / 'x.pkl', {**released._default_scalars(), **state}, order)
    arrays = released.name_entries(
        released.read_pickle(tmp_path / 'x.pkl'), config, tmp_path / 'x.pkl')
    for key, value in state.items():
        np.testing.assert_array_equal(arrays[key], value, err_msg=key)


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


def test_an_attack_is_refused_and_not_run(tmp_path):
    mark = tmp_path / 'ran'
    path = tmp_path / 'attack.pkl'
    path.write_bytes(pickle.dumps((Attack(mark), np.ones(3))))
    config = config_file('semopo_released', tmp_path)
    done = call('convert-checkpoint', path, tmp_path / 'out.npz', '--config',
                config)
    assert done.returncode == 2
    assert done.stderr.count('error: ') == 1
    assert 'attack.pkl' in done.stderr
    assert 'system' in done.stderr
    assert not mark.exists()
    assert not (tmp_path / 'out.npz').exists()


def mutations():
    raw = (DATA / 'semopo_released.agent.pkl').read_bytes()
    entries = list(released.read_pickle(
        DATA / 'semopo_released.agent.pkl'))
    swapped = [*entries[:2], entries[3], entries[2], *entries[4:]]
    reshaped = [*entries[:5], entries[5].T[:-1], *entries[6:]]
    texts = [*entries[:-1], np.array(['a', 'b'])]
    objects = [*entries[:-1], np.array([{}, None], object)]
    dump = lambda x: pickle.dumps(tuple(x))  # noqa: E731
    return {
        'truncated': raw[:len(raw) // 2], 'empty': b'', 'text': b'hello',
        'flipped': raw[:40] + bytes([raw[40] ^ 255]) + raw[41:],
        'wrong order': dump(swapped), 'wrong shape': dump(reshaped),
        'extra entry': dump([*entries, entries[-1]]),
        'missing entry': dump(entries[:-1]), 'object array': dump(objects),
        'strings': dump(texts), 'a dict': pickle.dumps({'a': entries[2]}),
        'nested': pickle.dumps((tuple(entries),))}


@pytest.mark.parametrize('kind', sorted(mutations()))
def test_a_mutated_file_is_a_one_line_error(kind, tmp_path):
    path = tmp_path / 'x.pkl'
    path.write_bytes(mutations()[kind])
    with pytest.raises(UserError) as error:
        released.name_entries(released.read_pickle(path),
                              config_of('semopo_released'), path)
    assert 'x.pkl' in str(error.value)
    assert '\n' not in str(error.value)


def test_a_wrong_configuration_is_explained(tmp_path):
    path = DATA / 'semopo_released.agent.pkl'
    config = config_of('semopo_released').update({'actor.units': 13})
    with pytest.raises(UserError, match=r'actor\.units'):
        released.name_entries(released.read_pickle(path), config, path)
