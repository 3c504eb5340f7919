"""Car Racing: random episodes made headless, read back, trained on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from datasets import readers
from datasets.validate import validate
from dreamerv2_base.episodes import read_episode
from semopo_tf.controllers import Uniform
from tests.helpers import run

RANDOM = ('--configs', 'debug', '--task', 'car_racing', '--collect_policy',
          'uniform', '--collect_episodes', '3')


def test_uniform_actions():
    policy = Uniform(np.random.default_rng(0), 3)
    first, state = policy({'is_first': np.zeros(2, bool)}, None)
    second, _ = policy({'is_first': np.zeros(2, bool)}, state)
    assert first.shape == (2, 3)
    assert first.dtype == np.float32
    assert (first != second).all()
    many = np.concatenate([policy({'is_first': np.zeros(500)}, None)[0]
                           for _ in range(4)])
    assert np.abs(many).max() <= 1
    assert many.std() == pytest.approx(1 / np.sqrt(3), abs=0.02)


@pytest.fixture(scope='module')
def episodes(tmp_path_factory):
    """Three short episodes (of 61 rows; whole ones have 501)."""
    folder = tmp_path_factory.mktemp('cars') / 'car_racing' / 'random'
    done = run('collect', *RANDOM, '--offline_dir', folder,
               '--time_limit', '120', DISPLAY='')
    assert done.returncode == 0, done.stderr
    return folder


def test_episodes(episodes):
    files = readers.episode_files(episodes)
    assert len(files) == 3
    for path in files:
        episode = read_episode(path)
        assert episode['image'].shape == (61, 64, 64, 3)
        assert episode['action'].shape == (61, 3)
        assert episode['reward'][0] == 0
        assert not episode['is_terminal'].any()
        # −0.1 per control step, and tiles of the track.
        assert episode['reward'][1:].min() == pytest.approx(-0.2)
        assert episode['image'].std(0).max() > 10  # it moves


def test_what_made_them_is_written_down(episodes):
    recipe = json.loads((episodes / 'manifest.json').read_text())['recipe']
    assert recipe['environment'] == {
        'id': 'CarRacing-v2', 'gym': '0.26.2', 'box2d': '2.3.10',
        'pygame-ce': '2.5.8'}
    assert (recipe['policy'], recipe['seed'], recipe['action_repeat']) == (
        'uniform', 0, 2)
    before = recipe
    report = validate(episodes)
    assert report.reused == 3
    assert {one.check for one in report.findings if one.serious} <= {
        'episodes', 'statistics'}
    after = json.loads((episodes / 'manifest.json').read_text())['recipe']
    assert after == before


def test_without_box2d_the_command_is_named(tmp_path):
    (tmp_path / 'hidden' / 'Box2D').mkdir(parents=True)
    (tmp_path / 'hidden' / 'Box2D' / '__init__.py').write_text(
        'raise ImportError("No module named Box2D")\n')
    done = run('collect', *RANDOM, '--offline_dir', tmp_path / 'data',
               PYTHONPATH=str(tmp_path / 'hidden'))
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith('error: car_racing: expected gym 0.26, Box2D')
    assert 'pip install gym==0.26.2 box2d==2.3.10' in lines[0]


@pytest.mark.slow
def test_training(episodes, tmp_path):
    done = run('train', '--configs', 'debug', '--task', 'car_racing',
               '--offline_dir', episodes, '--logdir', tmp_path / 'run',
               '--offline_model_train_steps', '20', '--steps', '20')
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in
            (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    for phase in ('model', 'agent'):
        steps = [row['step'] for row in rows if row['phase'] == phase]
        assert max(steps) == 20
    losses = [row[key] for row in rows for key in row if 'loss' in key]
    assert losses
    assert np.isfinite(losses).all()
    assert np.isfinite(rows[-1]['final_eval_return'])
