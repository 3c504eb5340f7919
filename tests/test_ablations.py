"""The ablations of figures 4, 5 and 10: presets alone, and each one trains."""

from __future__ import annotations

import json

import pytest

from semopo_tf import settings
from tests.helpers import make_folder, run

ORDER = {'sampling', 'replay.incremental', 'replay.sort_rewards'}
CHANGES = {
    'se_cs': set(),
    'se_rs': ORDER,
    'se_rs_drp': ORDER | {'disen_scales.reward', 'grad_heads'},
    'offline_dv2_rs': ORDER | {
        'separate_wm', 'disen_action_type', 'grad_heads'}}


@pytest.mark.parametrize('small', ['debug', 'demo', 'mini'])
@pytest.mark.parametrize('name', CHANGES)
def test_in_small_they_are_still_themselves(name, small):
    """`debug` is based on `released`, which must not undo the ablation."""
    plain, _ = settings.resolve(['--configs', small])
    for order in ((name, small), (small, name)):
        found, _ = settings.resolve(['--configs', *order])
        # At `mini` rewards shape the latents of every method.
        same = {'grad_heads'} if small == 'mini' else set()
        assert set(plain.difference(found)) == CHANGES[name] - same, order


def test_reward_dissociation_has_its_weight_and_its_gradients():
    config, _ = settings.resolve(['--configs', 'se_rs_drp'])
    assert config.disen_scales.reward == 20000.0
    assert 'reward' in config.grad_heads


@pytest.mark.slow
@pytest.mark.parametrize('name', CHANGES)
def test_a_debug_training(name, tmp_path):
    data = make_folder(tmp_path / 'data')
    folder = tmp_path / 'run'
    done = run('train', '--configs', name, 'debug', '--task',
               'dmc_walker_walk', '--jit', 'eager', '--offline_dir', data,
               '--logdir', folder)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in
            (folder / 'episodes.jsonl').read_text().splitlines()]
    assert [row['final'] for row in rows][-1]
    metrics = [json.loads(line) for line in
               (folder / 'metrics.jsonl').read_text().splitlines()]
    names = {key for row in metrics for key in row}
    assert ('disen/kl' in names) == (name != 'offline_dv2_rs')
