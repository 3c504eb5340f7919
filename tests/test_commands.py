"""What a user can do wrong: one line, exit code 2, nothing lost."""

from __future__ import annotations

import errno
import fcntl
import shutil

import numpy as np
import pytest

from dreamerv2_base.checkpoint import Checkpoints
from dreamerv2_base.episodes import write_episode
from dreamerv2_base.errors import UserError
from tests.helpers import ROOT, call, make_episode, make_folder, run

DEBUG = ('--configs', 'debug', '--task', 'dmc_walker_walk')
SHORT = ('--jit', 'eager', '--offline_model_train_steps', '1', '--steps', '0',
         '--time_limit', '8', '--offline_video_every', '0')  # a whole run


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp('data') / 'episodes')


def train(data, tmp_path, *flags):
    return call('train', *DEBUG, '--offline_dir', data, '--logdir',
                tmp_path / 'run', *flags)


def assert_user_error(done, *words):
    assert done.returncode == 2, (done.stdout, done.stderr[-3000:])
    lines = done.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith('error: ')]
    assert len(errors) == 1, lines
    assert 'Traceback' not in done.stderr
    for word in words:
        assert word in errors[0], errors[0]


def test_unknown_key(data, tmp_path):
    assert_user_error(train(data, tmp_path, '--rssm.detre', '3'),
                      'rssm.detre', 'nearest: rssm.deter')


def test_wrong_type(data, tmp_path):
    assert_user_error(train(data, tmp_path, '--steps', 'many'),
                      'steps', 'int', 'many')


def test_data_of_another_task(tmp_path):
    data = make_folder(tmp_path / 'cheetah_run' / 'random')
    done = train(data, tmp_path, '--task', 'dmcdrv_walker_walk')
    assert_user_error(done, 'expected cheetah_run', 'dmcdrv_cheetah_run')
    assert not (tmp_path / 'run').exists()


def test_missing_folder(tmp_path):
    assert_user_error(train(tmp_path / 'nowhere', tmp_path), 'nowhere')


def test_empty_folder(tmp_path):
    (tmp_path / 'empty').mkdir()
    assert_user_error(train(tmp_path / 'empty', tmp_path), 'empty',
                      'collect')


def spoil(tmp_path, edit):
    folder = make_folder(tmp_path / 'episodes', count=2)
    edit(folder)
    return folder


def test_truncated_file(tmp_path):
    def edit(folder):
        path = sorted(folder.glob('*.npz'))[1]
        path.write_bytes(path.read_bytes()[:1000])
    folder = spoil(tmp_path, edit)
    assert_user_error(train(folder, tmp_path), '00000001-29.npz',
                      '--skip_broken')


@pytest.mark.parametrize('method', ['semopo', 'mopo'])
@pytest.mark.parametrize('spelling', ['', '/../data', '/link'])
def test_a_folder_given_twice(tmp_path, method, spelling):
    data = make_folder(tmp_path / 'data', count=1)
    (data / 'link').symlink_to(data)
    again = f'{data}{spelling}'
    done = train(data, tmp_path, '--method', method, '--offline_dir', data,
                 again)
    assert_user_error(done, f'once, found {again}, which is {data} again')
    assert not (data / '.mapped').exists()


def test_broken_files_are_skipped_and_counted_and_the_run_is_its_own(tmp_path):
    def edit(folder):
        path = sorted(folder.glob('*.npz'))[1]
        path.write_bytes(path.read_bytes()[:1000])
    folder = spoil(tmp_path, edit)
    skipping = ('--skip_broken', 'True', *SHORT)
    done = train(folder, tmp_path, *skipping)
    assert done.returncode == 0, done.stderr[-2000:]
    assert '1 broken file' in done.stderr
    assert 'broken episode file' in (
        tmp_path / 'run' / 'report.html').read_text()
    # Another configuration does not go on with it …
    done = train(folder, tmp_path, *skipping, '--model_opt.lr', '1e-5')
    assert_user_error(done, 'model_opt.lr', '1e-05')
    # … but the same command again finds everything done.
    done = train(folder, tmp_path, *skipping)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(('settings', 'words'), [
    ({'size': 32}, ('image', '32x32')),
    ({'actions': 3}, ('action', '[3]'))])
def test_an_episode_unlike_the_others(tmp_path, settings, words):
    folder = spoil(tmp_path, lambda folder: write_episode(
        folder, make_episode(9, **settings), 9, 'f' * 32))
    if 'size' in settings:
        for path in sorted(folder.glob('*.npz'))[:2]:
            path.unlink()
    assert_user_error(train(folder, tmp_path), *words)


def test_nan_reward(tmp_path):
    episode = make_episode(9)
    episode['reward'][7] = np.nan
    folder = spoil(tmp_path, lambda folder: write_episode(
        folder, episode, 9, 'f' * 32))
    assert_user_error(train(folder, tmp_path), 'reward', 'row 7')


def test_folder_without_videos(data, tmp_path):
    (tmp_path / 'videos').mkdir()
    done = call('train', '--configs', 'debug', '--offline_dir', data,
                '--logdir', tmp_path / 'run', '--video_dir',
                tmp_path / 'videos')
    assert_user_error(done, 'video_dir', 'none')
    # Known before training, with no folder that binds the wrong flag.
    assert not (tmp_path / 'run').exists()


def test_a_task_with_other_actions_than_the_data(data, tmp_path):
    done = train(data, tmp_path, '--task', 'dmc_cartpole_swingup')
    assert_user_error(done, 'expected actions of 6 numbers', 'episodes',
                      'found 1 in dmc_cartpole_swingup', '--task')
    assert not (tmp_path / 'run').exists()


def test_no_opengl(tmp_path):
    # EGL without a vendor library; OSMesa is not on most machines.
    environment = {'MUJOCO_GL': '',
                   '__EGL_VENDOR_LIBRARY_FILENAMES': '/nonexistent'}
    from ctypes.util import find_library
    if find_library('OSMesa'):
        pytest.skip('OSMesa is installed and cannot be hidden')
    done = run('collect', *DEBUG, '--offline_dir', tmp_path / 'data',
               **environment)
    assert_user_error(done, 'OpenGL', 'apt-get install', 'libegl1')


def test_disk_full_while_saving(tmp_path, monkeypatch):
    ckpt = Checkpoints(tmp_path / 'ckpt')
    ckpt.save(1, {'a': np.ones(3)}, {})

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')
    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, 'write_array', full)
        with pytest.raises(UserError, match='disk full'):
            ckpt.save(2, {'a': np.ones(3)}, {})
    assert ckpt.positions() == [1]
    np.testing.assert_array_equal(ckpt.load()[0]['a'], np.ones(3))


@pytest.mark.parametrize(('file', 'words'), [
    ((), 'space to write, found'), (('a.npz',), 'space to write a.npz, ')])
def test_disk_full_in_any_command(tmp_path, monkeypatch, file, words):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, 'No space left on device', *file)
    monkeypatch.setattr('datasets.convert.convert', full)
    assert_user_error(call('data', 'convert', tmp_path, tmp_path / 'new',
                           '--to', 'npz'), words, 'same command again')


@pytest.mark.parametrize(('words', 'flag'), [
    (('train', '--configs', 'relased'), '--configs'),
    (('diff', '--presets', 'paper', 'relased'), '--presets'),
    (('bench', '--preset', 'relased'), '--preset')])
def test_a_misspelt_preset_is_blamed_on_its_flag(words, flag):
    assert_user_error(call(*words), f'error: {flag}: expected presets',
                      "'relased' (nearest: released)")


def test_second_process_on_a_run_folder(data, tmp_path):
    (tmp_path / 'run').mkdir()
    with (tmp_path / 'run' / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_user_error(train(data, tmp_path), 'no other process')


def test_evaluating_what_is_no_run_folder(tmp_path):
    assert_user_error(call('evaluate', tmp_path), 'config.yaml')


def test_a_traceback_on_demand(tmp_path):
    done = run('--debug', 'train', '--offline_dir', tmp_path / 'x')
    assert 'Traceback' in done.stderr


@pytest.mark.parametrize(('words', 'found'), [
    (('report', 'RUN', '--fast'), '--fast'),
    (('diff', '--presets', 'paper', 'released', 'mini'), 'mini'),
    (('diff', '--against', 'RUN', 'RUN', '--strict', '1'), '--strict')])
def test_words_that_nothing_reads(tmp_path, words, found):
    words = [tmp_path if word == 'RUN' else word for word in words]
    assert_user_error(call(*words), found, 'as well', '--help')


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    assert_user_error(
        call('reproduce', '--table', '1', '--slurm', tmp_path / 'no' / 'x',
             '--out', tmp_path / 'out'),
        'no/x', 'No such file')
    assert not (tmp_path / 'out').exists()
    assert_user_error(
        call('reproduce', '--scale', 'demo', '--table', '1', '--data',
             tmp_path, '--out', tmp_path / 'file' / 'out'),
        'file/out', 'Not a directory')


AGENT = ROOT / 'docs' / 'results' / 'mini' / 'agent'


@pytest.mark.parametrize(('words', 'found'), [
    (('evaluate', AGENT, '--task', 'dmc_walker_walk'), 'found 6 in dmc_walk'),
    (('evaluate', AGENT, '--precision', '64'), "found '64'"),
    (('evaluate', AGENT, '--action_repeat', '0'), 'at least 1, found 0'),
    (('evaluate', AGENT, '--episodes', '0'), 'at least 1, found 0'),
    (('evaluate', AGENT, '--eval_eps', '3'), '--episodes'),
    (('evaluate', AGENT, '--video', '/no/where/x.mp4'), '/no/where'),
    (('evaluate', AGENT, '--video', 'x.mpeg'), '--video x.mp4'),
    (('evaluate', AGENT, '--render_size', '84', '84'), 'found 84'),
    (('collect', '--collect_episodes', '0'), 'collect_episodes'),
    (('data', 'build', 'walker_walk_random', '--workers', '0'), '--workers'),
    (('train', '--offline_penalty_type', 'md'), "found 'md'"),
    (('train', '--critic.dist', 'binary'), "one of mse, found 'binary'"),
    (('reproduce', '--scale', 'big'), "invalid choice: 'big'"),
    (('measure', AGENT, '--names', 'prob'), '--help'),
    (('convert-checkpoint', AGENT, 'x.npz', '--config',
      AGENT / 'config.yaml'), 'exported policy')])
def test_values_that_cannot_be(words, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_user_error(call(*words), found)
    assert not list(tmp_path.iterdir())


def test_damaged_records_are_named(tmp_path):
    run = shutil.copytree(AGENT, tmp_path / 'agent')
    (run / 'metrics.jsonl').write_text('{"phase": "model"}\n{oh\n')
    assert_user_error(call('report', run), 'metrics.jsonl, line 2')
    (run / 'data.json').write_text('')
    assert_user_error(call('evaluate', run), 'data.json', 'damaged')
    (run / 'data.json').unlink()
    assert_user_error(call('evaluate', run), 'data.json', 'found none')


def test_a_flag_given_twice_is_said(data, tmp_path):
    done = train(data, tmp_path, '--offline_dir', tmp_path / 'nowhere')
    assert ('warning: --offline_dir was given 2 times: the last counts'
            in done.stderr)
    assert_user_error(done, 'nowhere')


def test_rows_that_are_asked_for_in_vain(tmp_path):
    rows = AGENT.parent / 'rows.csv'
    assert call('results', tmp_path, '--import', rows).returncode == 0
    assert_user_error(call('results', tmp_path, '--system', 'SeMOP'),
                      "'SeMOPO'", "found 'SeMOP'")
    assert_user_error(call('reproduce', '--only-report', '--table', '1',
                           '--out', tmp_path), 'found those of mini')
    other = tmp_path / 'other'
    assert_user_error(call('results', other, '--import', rows,
                           tmp_path / 'none.csv'), 'none.csv')
    assert not other.exists()
