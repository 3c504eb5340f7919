"""MOPO in the loop: epochs end with the hold-out, each logged and saved."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.logger import read_rows
from semopo_tf import training
from semopo_tf.baselines import mopo_data
from semopo_tf.baselines.mopo import MOPO
from semopo_tf.evaluation import Evaluation
from semopo_tf.run_folder import RunFolder
from tests.test_mopo_data import ACTIONS, configured, linear_system


class NoSimulator:
    """Evaluates nothing: a linear system has no environment."""

    def run(self, method, episodes, key):
        action, _ = method.policy(
            {'state': np.zeros((1, 3), np.float32)}, None, key)
        assert action.shape == (1, ACTIONS)
        return Evaluation([{'return': 0.0}] * episodes, None)


def config_of(tmp_path, folder):
    return configured(logdir=str(tmp_path / folder), offline_dir=[
        str(tmp_path / 'linear.hdf5')], **{
            'mopo.max_epochs': 60, 'mopo.lr': 1e-2, 'mopo.batch': 200,
            'mopo.units': 8, 'mopo.patience': 2, 'mopo.improvement': 0.1,
            'steps': 4,
            'agent_train_steps': 2, 'log_updates': 100,
            'save_updates': 100})


def train(config, method_class=MOPO):
    store = mopo_data.open_states(config)
    with RunFolder(config) as run:
        method = method_class(config, store)
        training.Loop(config, method, store, run, NoSimulator()).train()
    return read_rows(run.path / 'metrics.jsonl'), method


class Killed(MOPO):
    """Dies in the middle of an epoch."""

    def train_epoch(self, batch, step):
        if step == 5:
            raise KeyboardInterrupt
        return super().train_epoch(batch, step)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('loop')
    linear_system(folder)
    return folder, *train(config_of(folder, 'whole'))


def test_epochs_are_logged_until_the_hold_out_ends_them(whole):
    _, rows, method = whole
    epochs = [row for row in rows if row['phase'] == 'model']
    assert 3 < len(epochs) < 60
    assert [row['step'] for row in epochs] == [
        *range(1, len(epochs) + 1)]
    assert [row['epochs'] for row in epochs] == [
        *range(1, len(epochs) + 1)]
    assert method.stopper.over
    # The other phase keeps the configuration's steps.
    losses = [row for row in rows if 'q_loss' in row]
    assert [(row['phase'], row['step']) for row in losses] == [('agent', 4)]


def test_a_killed_run_goes_on_from_its_last_epoch(whole):
    folder, rows, method = whole
    config = config_of(folder, 'killed')
    with pytest.raises(KeyboardInterrupt):
        train(config, Killed)
    saved = sorted(int(path.name) for path in
                   (folder / 'killed' / 'ckpt').iterdir())
    assert saved[-1] == 2 * 5  # five epochs, each counted twice
    again, resumed = train(config)
    assert again == rows
    for name, value in method.state().items():
        np.testing.assert_array_equal(value, resumed.state()[name], name)
