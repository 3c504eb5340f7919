"""Data of another task, background or scene than the evaluation's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import imageio
import numpy as np
import pytest

from datasets import manifest, rendering
from dreamerv2_base.episodes import write_episode
from dreamerv2_base.errors import UserError
from dreamerv2_base.store import open_store
from semopo_tf import commands, data_match, settings
from semopo_tf.environments import EnvSpec, describe_env
from tests.helpers import ROOT, call, make_episode, make_folder


def config_of(*flags):
    return settings.resolve(['--configs', 'released', *flags])[0]


@pytest.mark.parametrize(('folder', 'task', 'flag'), [
    ('cheetah_run/random', 'dmcdrv_walker_walk', '--task dmcdrv_cheetah_run'),
    ('walker_walk/medrep', 'dmc_hopper_hop', '--task dmc_walker_walk'),
    ('car_racing/random', 'dmcdrv_walker_walk', '--task car_racing'),
    ('walker_walk/random', 'dmcdrv_walker_walk', None),
    ('car_racing/random', 'gym_carracing', None),
    ('mine', 'dmcdrv_walker_run', None)])
def test_task_by_the_names_of_folders(tmp_path, folder, task, flag):
    config = config_of('--task', task, '--offline_dir',
                       str(tmp_path / folder))
    if flag is None:
        data_match.check_task(config)
    else:
        with pytest.raises(UserError, match=flag):
            data_match.check_task(config)


def test_task_of_what_collect_made(tmp_path):
    manifest.write(tmp_path, [], recipe={'task': 'dmcdrv_walker_walk'})
    data_match.check_task(config_of(
        '--task', 'dmc_walker_walk', '--offline_dir', str(tmp_path)))
    with pytest.raises(UserError, match='--task dmcdrv_walker_walk'):
        data_match.check_task(config_of(
            '--task', 'dmcdrv_walker_run', '--offline_dir', str(tmp_path)))


@pytest.mark.parametrize(('flags', 'background', 'floor', 'given'), [
    ('--task dmcdrv_walker_walk', 'grayscale video', 'video floor', []),
    ('--task dmcdrv_walker_walk', 'colour video', 'unclear',
     ['--background_grayscale False']),
    ('--background_grayscale False', 'grayscale video', 'unclear',
     ['--background_grayscale True']),
    ('--task dmcdrv_walker_walk', 'plain', 'plain floor',
     ['--task dmc_walker_walk']),
    ('--task dmc_walker_walk', 'plain', 'plain floor', []),
    ('--task dmc_walker_walk', 'colour video', 'unclear',
     ['--task dmcdrv_walker_walk']),
    ('--task dmcdrv_walker_walk', 'grayscale video', 'grey floor',
     ['--scene grey_floor']),
    ('--scene grey_floor', 'grayscale video', 'video floor',
     ['--scene stock']),
    ('--task car_racing', 'its own', 'its own', []),
    ('--task dmcdrv_walker_walk', 'mixed', 'mixed', [])])
def test_what_is_seen_against_what_is_evaluated(
        flags, background, floor, given):
    notes = data_match.compare(config_of(*flags.split()), background, floor)
    assert [note.split('give ')[1] for note in notes] == given


def test_frames_of_the_data_are_looked_at(tmp_path):
    """Gray noise before a task without videos."""
    episode = make_episode()
    episode['image'] = np.repeat(episode['image'][..., :1], 3, -1)
    write_episode(tmp_path, episode, 0, f'{0:032x}')
    store = open_store([tmp_path])
    folder = ['--offline_dir', str(tmp_path)]
    notes = data_match.episode_notes(
        config_of('--task', 'dmc_humanoid_walk', *folder), store)
    assert len(notes) == 1
    assert 'show grayscale video' in notes[0]
    assert not data_match.episode_notes(
        config_of('--task', 'dmcdrv_humanoid_walk', *folder), store)


def test_an_environment_of_ones_own_is_not_compared(tmp_path):
    store = open_store([make_folder(tmp_path / 'mine', 2)])
    config = config_of('--offline_dir', str(tmp_path / 'mine'))
    own = config.update({'task': 'my_dot'})
    assert not data_match.episode_notes(own, store)
    assert describe_env('my_dot') == {'id': 'my_dot'}
    assert describe_env('state_walker_walk')['id'] == 'dm_control walker_walk'


def test_rows_in_another_order_are_told(tmp_path):
    """Each row holds what is done at its frame, as D4RL's do."""
    episode = make_episode()
    store = open_store([make_folder(tmp_path / 'right', 2)])
    config = config_of('--offline_dir', str(tmp_path / 'right'))
    assert not [note for note in data_match.episode_notes(config, store)
                if note.startswith('rows')]
    for key in ('action', 'reward'):
        episode[key] = np.roll(episode[key], -1, 0)
    (tmp_path / 'early').mkdir()
    write_episode(tmp_path / 'early', episode, 0, f'{0:032x}')
    store = open_store([tmp_path / 'early'])
    config = config_of('--offline_dir', str(tmp_path / 'early'))
    note = data_match.episode_notes(config, store)[0]
    assert note.startswith('rows: expected the action and reward that led to')
    assert '1 of 1 episodes' in note


def test_episodes_of_all_of_the_data_are_looked_at(tmp_path):
    """Of five the last one alone has its rows in another order."""
    folder = make_folder(tmp_path / 'mine', 4)
    late = make_episode(9)
    for key in ('action', 'reward'):
        late[key] = np.roll(late[key], -1, 0)
    write_episode(folder, late, 9, f'{9:032x}')
    config = config_of('--offline_dir', str(folder))
    assert [note for note in data_match.episode_notes(
        config, open_store([folder])) if note.startswith('rows')]


def test_collected_data_say_how_they_were_rendered(tmp_path):
    spec = EnvSpec('dmcdrv_walker_walk', video_dir='procedural')
    environment = describe_env('dmcdrv_walker_walk')
    manifest.write(tmp_path, [], recipe={
        'policy': 'random', 'frames': rendering.settings(spec),
        'environment': {**environment, 'mujoco': '2.3.0'}})
    repeat, version = data_match.recipe_notes(config_of(
        '--task', 'dmcdrv_walker_walk', '--offline_dir', str(tmp_path),
        '--action_repeat', '8'))
    assert repeat.endswith('give --action_repeat 2')
    assert version.startswith('mujoco: the data were rendered with 2.3.0, the '
                              f'evaluation with {environment["mujoco"]}')


@pytest.mark.parametrize('task', ['my_robot', 'none', 'walker_walk'])
def test_a_task_that_is_none_is_refused_before_the_data_are_read(task):
    with pytest.raises(UserError, match='task: expected dmc_TASK'):
        data_match.check_task(config_of('--task', task))


# Which videos.


@pytest.fixture
def videos(tmp_path):
    """Two folders of two tiny videos; in the second another `b`."""
    folders = []
    for name, sizes in (('one', (32, 32)), ('two', (32, 64))):
        folder = tmp_path / name
        folder.mkdir()
        for video, size in zip('ab', sizes, strict=True):
            imageio.mimwrite(folder / f'{video}.mp4', [
                np.zeros((size, size, 3), np.uint8)] * 2, fps=10)
        folders.append(folder)
    return folders


class Records(dict):
    """Of a run folder that is new: what is written into it."""

    path = Path('none')

    def write(self, name, content):
        self[name] = json.loads(json.dumps(content))


def data_of(config, folder):
    """What a run with these data begins its data.json with."""
    run = Records()
    commands.record_start(run, config, open_store([folder]), [], [], [])
    return run['data.json']


def test_a_run_records_its_videos(tmp_path, videos):
    episodes = make_folder(tmp_path / 'data', count=1)
    flags = ('--video_dir', str(videos[0]), '--offline_dir', str(episodes))
    config = config_of('--task', 'dmcdrv_walker_walk', *flags)
    found = data_of(config, episodes)['videos']
    assert sorted(found) == [
        [path.name, path.stat().st_size]
        for path in sorted(videos[0].iterdir())]
    orders = {str(data_of(config.update({'seed': seed}), episodes)['videos'])
              for seed in range(8)}
    assert len(orders) == 2
    for other in ({'task': 'dmc_walker_walk'}, {'video_dir': 'procedural'}):
        assert 'videos' not in data_of(config.update(other), episodes)


def test_other_videos_than_those_of_the_run(tmp_path, videos):
    config = config_of('--task', 'dmcdrv_walker_walk', '--video_dir',
                       str(videos[0]))
    run = tmp_path / 'run'
    run.mkdir()
    assert data_match.video_notes(run, config) == []  # not begun
    (run / 'data.json').write_text(json.dumps({'returns': []}))
    assert data_match.video_notes(run, config) == []  # of an older version
    (run / 'data.json').write_text(json.dumps(
        {'videos': data_match.videos_of(config)}))
    assert data_match.video_notes(run, config) == []
    for other in ({'video_dir': 'procedural'}, {'task': 'dmc_walker_walk'}):
        assert data_match.video_notes(run, config.update(other)) == []
    note, = data_match.video_notes(
        run, config.update({'video_dir': str(videos[1])}))
    was, now = (path.stat().st_size for path in (
        folder / 'b.mp4' for folder in videos))
    assert f'was b.mp4 ({was:,} bytes) and is b.mp4 ({now:,} bytes)' in note
    assert '\n' not in note


def test_evaluating_before_other_videos_is_said(tmp_path, videos):
    run = shutil.copytree(
        ROOT / 'docs' / 'results' / 'mini' / 'agent', tmp_path / 'agent')
    data = json.loads((run / 'data.json').read_text())
    config = commands.run_config(run).update({'video_dir': str(videos[0])})
    data['videos'] = data_match.videos_of(config)
    (run / 'data.json').write_text(json.dumps(data))
    shutil.rmtree(run / 'ckpt')  # said before the policy is looked for
    warned = []
    for folder in videos:
        done = call('evaluate', run, '--video_dir', folder)
        assert 'expected a complete checkpoint' in done.stderr
        warned.append([line for line in done.stderr.splitlines()
                       if line.startswith('warning: videos: ')])
    assert [len(lines) for lines in warned] == [0, 1]
    done = call('evaluate', run, '--task', 'dmc_cartpole_swingup',
                '--background_grayscale', 'False')
    assert ('warning: background_grayscale has no effect in dmc_cartpole'
            in done.stderr)
