"""The loop: what comes before the first update happens once."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from dreamerv2_base.checkpoint import Checkpoints
from dreamerv2_base.errors import NoRoomError, UserError
from dreamerv2_base.store import open_store
from dreamerv2_base.tf import tf
from semopo_tf import (
    commands,
    evaluation,
    registry,
    run_folder,
    settings,
    training,
)
from semopo_tf.evaluation import Evaluation
from semopo_tf.experiments import runner
from semopo_tf.method import Phase
from semopo_tf.run_folder import RunFolder
from semopo_tf.semopo import SeMOPO
from tests.helpers import ROOT, make_folder


class Counter:
    """A method whose whole state is how often its parts were called."""

    def __init__(self, interrupted: bool):
        self.counts = np.zeros(2, int)  # starts, updates
        self.interrupted = interrupted

    def phases(self):
        return [Phase('model', 3, self.train, None, start=self.start)]

    def start(self):
        self.counts[0] += 1
        if self.interrupted:
            os.kill(os.getpid(), signal.SIGTERM)

    def train(self, batch, step):
        self.counts[1] += 1
        return {'loss': 0.0}

    def state(self):
        return {'counts': self.counts}

    def load(self, state):
        self.counts = np.array(state['counts'])


class NoSimulator:
    def run(self, method, episodes, key):
        return Evaluation([{'return': 0.0}] * episodes, None)


@pytest.fixture
def store(tmp_path):
    return open_store([make_folder(tmp_path / 'data', count=2)])


def configured(folder, *flags):
    return settings.resolve(['--configs', 'debug', '--jit', 'eager',
                             '--logdir', str(folder), *flags])[0]


def train(config, store, interrupted=False):
    method = Counter(interrupted)
    with RunFolder(config) as run:
        training.Loop(config, method, store, run, NoSimulator()).train()
    return method.counts.tolist()


def test_a_stop_while_it_starts_does_not_start_it_twice(store, tmp_path):
    config = configured(tmp_path / 'run')
    with pytest.raises(training.Interrupted):
        train(config, store, interrupted=True)
    assert train(config, store) == [1, 3]
    assert train(configured(tmp_path / 'other'), store) == [1, 3]


class Noting(NoSimulator):
    """… and what its evaluations were to be drawn by."""

    def __init__(self):
        self.keys = []

    def run(self, method, episodes, key):
        self.keys.append(key)
        return super().run(method, episodes, key)


class Evaluated(Counter):
    """Two phases, each with evaluations before updates 0 and 2."""

    def phases(self):
        return [Phase(name, 4, self.train, None, 2) for name in ('a', 'b')]


def test_no_two_evaluations_of_a_run_share_their_key(store, tmp_path):
    def keys(name, seed):
        config, noting = configured(tmp_path / name, '--seed', seed), Noting()
        with RunFolder(config) as run:
            training.Loop(config, Evaluated(False), store, run,
                          noting).train()
        return noting.keys

    found = keys('first', '5') + keys('other', '6')
    # An environment's seed is the key's last 31 bits.
    assert len({key % 2 ** 31 for key in found}) == len(found) == 10
    assert keys('again', '5') == found[:5]


class EqualReturns(Counter):
    """… whose source leaves episodes out."""

    def phases(self):
        return [Phase('model', 1, self.train, lambda store: self,
                      prefetch=False)]

    def describe(self):
        return {'episodes_loaded': 5, 'dropped_as_equal_returns': 3}


def test_episodes_left_out_for_equal_returns_are_said(
        store, tmp_path, capsys):
    config = configured(tmp_path / 'run')
    with RunFolder(config) as run:
        training.Loop(config, EqualReturns(False), store, run,
                      NoSimulator()).train()
    assert 'note: 3 of 5 episodes' in capsys.readouterr().err


def test_a_given_world_model_is_not_touched_by_the_first_update(
        store, tmp_path):
    given = SeMOPO(configured(tmp_path / 'given', '--seed', '1'), store)
    Checkpoints(tmp_path / 'given' / 'ckpt').save(1, given.state(), {})
    made = SeMOPO(configured(
        tmp_path / 'run', '--initial_joint_step', 'True',
        '--offline_model_train_steps', '0',
        '--offline_model_loaddir', str(tmp_path / 'given')), store)
    before = {key: np.array(value) for key, value in made.state().items()}
    made.phases()[0].start()
    after = made.state()
    for name, value in given.state().items():
        if name.startswith('world_model/'):
            np.testing.assert_array_equal(after[name], value, err_msg=name)
    actor = next(name for name in before
                 if name.startswith('behavior/actor/')
                 and name.endswith('kernel'))
    assert not np.array_equal(after[actor], before[actor])


def test_norms_of_skipped_updates_are_counted_and_spoil_no_mean():
    inf = float('inf')
    assert training.block_means({
        'model_loss': [1.0, 3.0], 'model_grad_norm': [2.0, inf, 4.0]}) == {
        'model_loss': 2.0, 'model_grad_norm': 3.0,
        'model_grad_norm_left_out': 1.0}
    none = training.block_means({'disen_grad_norm': [inf, inf]})
    assert np.isnan(none['disen_grad_norm'])
    assert none['disen_grad_norm_left_out'] == 2


@pytest.mark.parametrize(('method', 'two'), [
    ('semopo', 'False'), ('offline_dv2', 'True')])
def test_a_method_has_the_streams_of_its_name(tmp_path, method, two):
    config = configured(tmp_path, '--method', method, '--separate_wm', two)
    with pytest.raises(UserError, match=f'{method}: expected separate_wm'):
        registry.method_class(config)(config, None, action_size=3)


class Source:
    """Batches of the rows that `indices` names."""

    def describe(self):
        return {}

    def batch(self, step):
        return {}

    def indices(self, step):
        return np.array([1, 0]), np.array([step, step + 1])


class Diverging(Counter):
    """… whose second update of three fails."""

    failure = 'loss'

    def __init__(self, config, store):
        super().__init__(interrupted=False)

    def phases(self):
        return [Phase('model', 3, self.train, lambda store: Source())]

    def train(self, batch, step):
        super().train(batch, step)
        if step == 1 and self.failure == 'memory':
            raise tf.errors.ResourceExhaustedError(None, None, 'full')
        return {'grad_norm': np.inf, 'loss': np.nan if step == 1 else 0.0}

    def parameters(self):
        return {}


def test_a_loss_that_is_not_finite_ends_the_run_and_says_where(
        store, tmp_path):
    config = configured(tmp_path / 'run')
    with RunFolder(config) as run:
        loop = training.Loop(config, Diverging(config, store), store, run,
                             NoSimulator())
        with pytest.raises(training.NotFinite,
                           match=r'loss .* at update 1 of'):
            loop.train()
    arrays, record = Checkpoints(tmp_path / 'run' / 'failure').load()
    assert arrays['counts'].tolist() == [0, 2]
    assert (record['phase'], record['update'], record['metric']) == (
        'model', 1, 'loss')
    assert record['episodes'] == [store.names[1], store.names[0]]
    assert record['starts'] == [1, 2]


def test_what_the_command_says_of_a_failed_run(
        store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(registry, 'method_class', lambda config: Diverging)
    monkeypatch.setattr(evaluation.Evaluator, 'check', lambda *_: None)
    config = configured(tmp_path / 'run', '--offline_dir',
                        str(tmp_path / 'data'))
    assert commands.train_run(config, [], [], '') == 3
    assert 'error: loss is not finite' in capsys.readouterr().err
    monkeypatch.setattr(Diverging, 'failure', 'memory')
    config = config.update({'logdir': str(tmp_path / 'other')})
    with pytest.raises(NoRoomError, match='--slice_frames 400') as error:
        commands.train_run(config, [], [], '')
    # A sweep tries it again: another run may have had the card.
    assert error.value.code not in (0, *runner.HOPELESS)


def test_a_gpu_that_is_not_seen_is_told(monkeypatch, tmp_path, capsys):
    config = configured(tmp_path / 'run')
    for found in (None, '/usr/bin/nvidia-smi'):
        monkeypatch.setattr(commands.shutil, 'which', lambda _, f=found: f)
        commands.prepare(config)
        said = 'TensorFlow sees no GPU' in capsys.readouterr().err
        assert said == bool(found)


def test_parity_is_compared_without_tf32():
    tf.config.experimental.enable_tensor_float_32_execution(True)
    commands.diff_traces([ROOT / 'tests/parity/data/bc.npz'], [])
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


@pytest.mark.parametrize(('devices', 'threads', 'said'), [
    (['RTX 3090'], '1', 'begun on CPU (threads: 1), and goes on on RTX 3090'),
    ([], '3', 'begun on CPU (threads: 1), and goes on on CPU (threads: 3)')])
def test_a_run_that_goes_on_on_another_device_says_so(
        store, tmp_path, capsys, monkeypatch, devices, threads, said):
    config = configured(tmp_path / 'run')
    with RunFolder(config) as run:
        for now, count in ([], '1'), ([], '1'), (devices, threads):
            assert 'warning' not in capsys.readouterr().err
            monkeypatch.setenv('TF_NUM_INTRAOP_THREADS', count)
            commands.record_start(run, config, store, [], [], now)
    assert said in capsys.readouterr().err


def test_a_record_without_threads_is_no_other_machine(store, tmp_path, capsys):
    config = configured(tmp_path / 'run')
    with RunFolder(config) as run:
        run.write('versions.json', {'devices': ['CPU']})
        commands.record_start(run, config, store, [], [], [])
    assert 'warning' not in capsys.readouterr().err


def test_threads_are_those_of_tensorflow(monkeypatch):
    monkeypatch.setenv('TF_NUM_INTRAOP_THREADS', '3')
    assert run_folder.threads() == 3
    for value in ('0', ''):  # as many as this process may use
        monkeypatch.setenv('TF_NUM_INTRAOP_THREADS', value)
        monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {0, 2, 5, 7})
        assert run_folder.threads() == 4


def test_waiting_for_data_is_told_once(store, tmp_path, capsys):
    class Slow:
        describe = staticmethod(dict)

        def batch(self, step):
            time.sleep(0.1)
            return {}

    class Waiting(Counter):
        def phases(self):
            return [Phase('model', 4, self.train, lambda store: Slow())]

    config = configured(tmp_path / 'run', '--log_updates', '1')
    with RunFolder(config) as run:
        training.Loop(config, Waiting(False), store, run,
                      NoSimulator()).train()
    said = [line for line in capsys.readouterr().err.splitlines()
            if 'waiting for data' in line]
    assert len(said) == 1
    assert '--cache_dir' in said[0]


def test_a_run_that_lost_its_checkpoints_says_so(store, tmp_path, capsys):
    config = configured(tmp_path / 'run', '--offline_model_train_steps', '0',
                        '--steps', '2', '--save_updates', '1',
                        '--log_updates', '1')
    done = train(config, store)
    assert 'begins anew' not in capsys.readouterr().err
    for mark in (tmp_path / 'run').glob('ckpt/*/done'):
        mark.unlink()
    assert train(config, store) == done
    assert 'no complete checkpoint, so the run begins anew' in (
        capsys.readouterr().err)


def test_a_run_goes_on_where_its_data_are_moved_to(store, tmp_path):
    first = configured(tmp_path / 'run', '--offline_dir', 'here')
    with RunFolder(first):
        pass
    with RunFolder(first.update({'offline_dir': ['there']})):
        pass
    with pytest.raises(UserError, match=r"1 changed: discount 0\.99 -> 0\.9;"):
        RunFolder(first.update({'discount': 0.9}))
