"""Comparing runs, and recording traces of ours."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from semopo_tf import parity, run_diff, settings, trace_recorder


def make_run(folder, loss=1.0, seed=0, digest='d', rows=3):
    folder.mkdir()
    config, _ = settings.resolve(
        ['--configs', 'debug', '--seed', str(seed), '--logdir', str(folder)])
    config.save(folder / 'config.yaml')
    (folder / 'data.json').write_text(json.dumps({'digest': digest}))
    with (folder / 'metrics.jsonl').open('w') as file:
        for step in range(rows):
            file.write(json.dumps({'phase': 'model', 'step': step,
                                   'loss': loss if step == 1 else 0.5})
                       + '\n')
    return folder


def test_equal_runs(tmp_path):
    assert run_diff.compare(
        make_run(tmp_path / 'a'), make_run(tmp_path / 'b')) == []


@pytest.mark.parametrize(('settings_', 'words'), [
    ({'loss': 1.5}, ('metrics', 'row 1', '1.0 against 1.5')),
    ({'seed': 1}, ('config: seed: 0 against 1',)),
    ({'digest': 'e'}, ('data: d against e',)),
    ({'rows': 2}, ('equal for 2 rows',))])
def test_where_runs_part(tmp_path, settings_, words):
    lines = run_diff.compare(make_run(tmp_path / 'a'),
                             make_run(tmp_path / 'b', **settings_))
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


def test_no_run_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r'config\.yaml'):
        run_diff.compare(tmp_path, tmp_path)


# As the preset `paper`: no decoder of the exogenous stream alone.
GAUSSIAN = ('--rssm.discrete 0 --offline_penalty_type disagreement '
            '--exo_only_decoder False')
PLAIN = ('--separate_wm False --pred_discount True --rssm.ensemble 2 '
         '--grad_heads decoder,reward,discount --imag_horizon 3')


@pytest.mark.parametrize(('flags', 'jit'), [
    (GAUSSIAN, 'eager'), (PLAIN, 'eager'),
    pytest.param(GAUSSIAN, 'none', marks=pytest.mark.slow),
    pytest.param(PLAIN, 'none', marks=pytest.mark.slow)])
def test_a_trace_of_ours_is_whole_and_replays(tmp_path, flags, jit):
    config, _ = settings.resolve(['--configs', 'debug', *flags.split()])
    trace_recorder.record(tmp_path / 't.npz', config)
    report = parity.compare(tmp_path / 't.npz', {'jit': jit})
    assert report.agrees, {g: report.worst(g) for g in report.errors}
    assert {'losses', 'gradients', 'weights', 'states', 'imagination',
            'targets', 'actions'} <= set(report.errors)
    with np.load(tmp_path / 't.npz', allow_pickle=False) as file:
        assert json.loads(str(file['case']))['reference'] == 'semopo_tf'
