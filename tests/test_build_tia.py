"""Sets by TIA: replayed to states, frozen as a snapshot; Car Racing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from datasets import build, recipes, rendering, state_episodes, tia_behaviour
from datasets.behaviour import words
from datasets.validate import validate
from dreamerv2_base.errors import UserError
from semopo_tf import commands
from tests.helpers import ROOT
from tests.test_build import call

# Two episodes of 20 decisions, two updates, a snapshot after each episode.
TINY = ('--configs', 'online_debug', '--steps', '40', '--prefill', '20',
        '--train_every', '10', '--train_steps', '1', '--pretrain', '1',
        '--snapshot_every', '20', '--num_reward_opt_iters', '1',
        '--save_updates', '1', '--eval_every', '0', '--eval_workers', '1',
        '--offline_video_every', '0', '--video_frames', '20', '--jit',
        'eager', '--behaviour.round_episodes', '2')
KEPT = ('*.npz', '*.hdf5', 'trained.json', 'recipe.json', 'metrics.jsonl')


def recipe_of(name, episodes, band=None, policy='tia'):
    recipe = dataclasses.replace(
        recipes.find(name).by(policy), episodes=episodes)
    return recipe if band is None else recipe.within(*band)


def make(folder, task, sets):
    """Sets (level, episodes, band) of one buffer; manifests by level."""
    found = {}
    for level, episodes, band in sets:
        recipe = recipe_of(f'{task}_{level}', episodes, band)
        path = build.build(recipe, build.resolve(recipe, [*TINY]),
                           folder / level, folder / 'buffer', 1)
        found[level] = json.loads(path.read_text())
    return found


def digests(folder):
    """sha256 by name of everything that a rerun must find or make again."""
    found = {str(path.relative_to(folder)):
             hashlib.sha256(path.read_bytes()).hexdigest()
             for pattern in KEPT for path in sorted(folder.rglob(pattern))}
    assert found
    return found


def arrays(path):
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


# ------------------------------------------------------- recipes and flags


def test_which_policies_make_which_sets():
    found = {name: recipes.find(name).policies() for name in recipes.RECIPES}
    assert found['walker_walk_medium'] == ['sac', 'tia']
    assert found['hopper_hop_random'] == ['sac', 'tia']
    assert found['humanoid_walk_random'] == ['sac']
    assert found['car_racing_medium_replay'] == ['tia']
    assert found['walker_walk_scripted'] == []
    assert recipes.find('walker_walk_random').policy == 'sac'
    assert recipes.find('car_racing_random').policy == 'tia'


@pytest.mark.parametrize(('arguments', 'message'), [
    (('humanoid_walk_random', '--behaviour', 'tia'),
     "--behaviour: expected sac for humanoid_walk_random, found 'tia'; give "
     '--behaviour sac'),
    (('car_racing_random', '--behaviour', 'sac'),
     "--behaviour: expected tia for car_racing_random, found 'sac'; give "
     '--behaviour tia'),
    (('walker_walk_scripted', '--behaviour', 'tia'),
     "--behaviour: expected none for walker_walk_scripted, found 'tia'; its "
     'policy is sinusoids: leave it out'),
    (('walker_walk_random', '--band', '50', '10'),
     '--band: expected LOW below HIGH, found 50 10; give --band 10 50'),
    (('walker_walk_random', '--behaviour', 'tia', '--logdir', 'x'),
     'data build: expected no --logdir, found one: what is trained lies in '
     'the buffer; give --buffer FOLDER'),
    (('walker_walk_random', '--behaviour', 'tia', '--configs', 'dreamerv2'),
     'data build: expected method tia for walker_walk_random by tia, found '
     'dreamerv2; leave the preset or key out that changes it'),
    (('walker_walk_random', '--behaviour', 'tia', '--configs',
      'tia_hopper_hop'),
     'data build: expected task dmcdrv_walker_walk for walker_walk_random by '
     'tia, found dmcdrv_hopper_hop; leave the preset or key out that changes '
     'it')])
def test_flags_that_do_not_go_with_the_set(arguments, message):
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(('task', 'name', 'weight'), [
    ('walker_walk', 'dmcdrv_walker_walk', 20000),
    ('cheetah_run', 'dmcdrv_cheetah_run', 20000),
    ('hopper_hop', 'dmcdrv_hopper_hop', 30000),
    ('car_racing', 'car_racing', 20000)])
def test_presets_of_tia_and_the_users_after_them(task, name, weight):
    recipe = recipe_of(f'{task}_random', 3)
    config = build.resolve(recipe, ['--configs', 'online_small', '--seed', '4',
                                    '--dataset.batch', '3'])
    assert (config.task, config.method) == (name, 'tia')
    assert config.disen_scales.reward == weight
    assert (config.steps, config.dataset.batch, config.seed) == (3000, 3, 4)
    found = words(recipe, config)
    assert (found['policy'], found['task'], found['seed']) == ('tia', task, 4)
    assert found['run.disen_scales.reward'] == weight
    assert not any('logdir' in key or 'workers' in key for key in found)


def test_a_band_is_where_the_frozen_policy_is_looked_for():
    assert recipe_of('walker_walk_medium', 1, (3, 9)).goal == (3, 9)
    random = recipe_of('walker_walk_random', 1, (3, 9))
    assert random.band == (3, 9)
    assert random.goal == (401.5, 598.0)


def test_where_sets_of_another_behaviour_lie(tmp_path, monkeypatch):
    """Not where those of the usual one do; a stop has its exit code."""
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(commands, 'train_run', lambda config, *rest: (
        seen.append(config.logdir) or 130))
    for name in ('walker_walk_random', 'car_racing_random'):
        assert call(name, '--behaviour', 'tia', *TINY) == 130
    assert seen == ['data/built_tia/walker_walk/.buffer/run',
                    'data/built/car_racing/.buffer/run']


# --------------------------------------------------------------- the walker


@pytest.fixture(scope='module')
def random(tmp_path_factory):
    folder = tmp_path_factory.mktemp('walker')
    return folder, make(folder, 'walker_walk', [('random', 2, None)])


@pytest.fixture(scope='module')
def walker(random):
    """random and medium, of one run."""
    folder, manifests = random
    return folder, manifests | make(
        folder, 'walker_walk', [('medium', 3, (-10.0, 20.0))])


def test_states_are_those_of_the_run_and_frames_what_it_saw(random):
    folder, _ = random
    run, states, frames = (sorted((folder / name).glob('*.npz')) for name in (
        'buffer/run/episodes', 'buffer/episodes', 'random'))
    assert len(run) == len(states) == len(frames) == 2
    for one, two, three in zip(run, states, frames, strict=True):
        seen, kept, shown = arrays(one), arrays(two), arrays(three)
        assert kept['physics'].shape[0] == kept['state'].shape[0] == 21
        assert kept['seed'] == seen['log_seed']
        assert set(shown) == {*rendering.KEPT, 'image'}
        for key in ('action', 'reward', 'is_first', 'is_last'):
            np.testing.assert_array_equal(kept[key], seen[key], key)
            np.testing.assert_array_equal(shown[key], seen[key], key)
        np.testing.assert_array_equal(shown['image'], seen['image'])


@pytest.mark.slow
def test_states_for_mopo_are_written(walker):
    import h5py
    with h5py.File(walker[0] / 'buffer' / 'states.hdf5') as file:
        assert file['observations'].shape == (40, 24)
        assert file['timeouts'][:].sum() == 2


@pytest.mark.slow
def test_the_manifest_says_how_it_was_made(walker):
    _, manifests = walker
    recipe = manifests['random']['recipe']
    assert recipe['set']['policy'] == 'tia'
    assert recipe['buffer']['seed'] == 0
    assert recipe['buffer']['run.method'] == 'tia'
    assert recipe['buffer']['run.prefill'] == 20
    assert recipe['frames']['scene'] == 'grey_floor'
    assert recipe['environment']['id'] == 'dm_control walker_walk'
    assert recipe['training'] == {
        'decisions': 40, 'episodes': 2, 'snapshots': [20, 40]}
    medium = manifests['medium']['recipe']
    assert medium['training']['snapshot'] in (20, 40)
    assert medium['set']['band'] == medium['set']['goal'] == [-10.0, 20.0]
    assert manifests['medium']['totals']['episodes'] == 3


@pytest.mark.slow
def test_a_killed_build_ends_in_the_same_files(walker, tmp_path):
    """What is lost of training, replaying, the snapshot's waves and frames
    is made again, the same."""
    folder, _ = walker
    wanted = digests(folder)
    shutil.copytree(folder, tmp_path / 'killed')
    buffer = tmp_path / 'killed' / 'buffer'
    checkpoints = sorted((buffer / 'run/ckpt').glob('0*'))
    for path in checkpoints[1:]:
        shutil.rmtree(path)
    for path in (buffer / 'trained.json', buffer / 'states.hdf5',
                 *sorted((buffer / 'run/episodes').glob('*.npz'))[1:],
                 *sorted((buffer / 'episodes').glob('*.npz'))[1:],
                 *sorted(buffer.glob('frozen/*/*.npz'))[1:],
                 *sorted((tmp_path / 'killed/random').glob('*.npz'))[:1],
                 *sorted((tmp_path / 'killed/medium').glob('*.npz'))[1:]):
        path.unlink()
    shutil.rmtree(buffer / 'run/snapshots/000000040')
    make(tmp_path / 'killed', 'walker_walk', (
        ('random', 2, None), ('medium', 3, (-10.0, 20.0))))
    assert digests(tmp_path / 'killed') == wanted


@pytest.mark.slow
def test_another_configuration_needs_another_buffer(walker, tmp_path):
    recipe = recipe_of('walker_walk_random', 2)
    config = build.resolve(recipe, [*TINY, '--actor_ent', '0.5'])
    with pytest.raises(UserError, match=r'found another run.actor_ent'):
        build.build(recipe, config, tmp_path, walker[0] / 'buffer', 1)


@pytest.mark.slow
def test_no_snapshot_in_the_band(walker, tmp_path):
    recipe = recipe_of('walker_walk_medium', 2, (900.0, 950.0))
    with pytest.raises(UserError, match=r'returns in \[900.0, 950.0\], found '
                       r'none among 2 \(means .*more --steps'):
        build.build(recipe, build.resolve(recipe, [*TINY]), tmp_path,
                    walker[0] / 'buffer', 1)


def test_another_simulator_is_noticed():
    recipe = recipe_of('walker_walk_random', 1)
    config = build.resolve(recipe, ['--time_limit', '8'])
    task, = state_episodes.make_tasks(config, 'walker_walk', 1)
    action = np.zeros((5, 6), np.float32)
    whole, = state_episodes.run([task], lambda rows: action[:1], [7])
    again = tia_behaviour.replayed(task, 7, action, whole['reward'])
    np.testing.assert_array_equal(again['physics'], whole['physics'])
    for reward in (whole['reward'] + np.float32(.1), whole['reward'][:4]):
        with pytest.raises(UserError, match='the rewards of its seed'):
            tia_behaviour.replayed(task, 7, action[:len(reward)], reward)


# --------------------------------------------------------------- Car Racing


@pytest.fixture(scope='module')
def cars(tmp_path_factory):
    """medium_replay and medium, of one run."""
    folder = tmp_path_factory.mktemp('cars') / 'car_racing'
    return folder, make(folder, 'car_racing', (
        ('medium_replay', 2, None), ('medium', 3, (-100.0, 100.0))))


@pytest.mark.slow
def test_cars_are_kept_as_they_were_seen(cars):
    folder, _ = cars
    run = sorted((folder / 'buffer/run/episodes').glob('*.npz'))
    found = sorted((folder / 'medium_replay').glob('*.npz'))
    assert len(run) == len(found) == 2
    for one, two in zip(run, found, strict=True):
        seen, kept = arrays(one), arrays(two)
        assert kept['image'].shape == (21, 64, 64, 3)
        assert kept['action'].shape == (21, 3)
        for key, value in kept.items():
            np.testing.assert_array_equal(value, seen[key], key)
    assert not (folder / 'buffer/states.hdf5').exists()
    assert not (folder / 'buffer/episodes').exists()


@pytest.mark.slow
def test_cars_have_versions_and_no_background(cars):
    folder, manifests = cars
    for level, count in (('medium_replay', 2), ('medium', 3)):
        recipe = manifests[level]['recipe']
        assert recipe['frames'] == {
            'task': 'car_racing', 'size': [64, 64], 'action_repeat': 2,
            'time_limit': 40}
        assert recipe['environment']['id'] == 'CarRacing-v2'
        assert recipe['environment']['box2d']
        report = validate(folder / level)
        assert report.reused == count
        assert {one.check for one in report.findings if one.serious} <= {
            'episodes', 'statistics'}


@pytest.mark.slow
def test_cars_of_a_killed_build_are_the_same(cars, tmp_path):
    folder, _ = cars
    wanted = digests(folder)
    shutil.copytree(folder, tmp_path / 'killed')
    for pattern in ('medium/*.npz', 'buffer/frozen/*/*.npz'):
        for path in sorted((tmp_path / 'killed').glob(pattern))[1:]:
            path.unlink()
    make(tmp_path / 'killed', 'car_racing', (
        ('medium_replay', 2, None), ('medium', 3, (-100.0, 100.0))))
    assert digests(tmp_path / 'killed') == wanted


# --------------------------------------------------------------------- kill


def start(folder):
    """Both sets of the walker in a process."""
    code = ('import sys; from pathlib import Path; '
            'from tests.test_build_tia import make; '
            'make(Path(sys.argv[1]), "walker_walk", ('
            '("random", 2, None), ("medium", 3, (-10.0, 20.0))))')
    return subprocess.Popen([sys.executable, '-c', code, str(folder)],
                            cwd=ROOT, stderr=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_processes_end_in_the_same_files(tmp_path):
    """SIGKILL while TIA trains, and while its snapshot plays."""
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    assert start(whole).wait(300) == 0
    for pattern in ('buffer/run/ckpt/0*/done', 'buffer/frozen/*/*.npz'):
        process = start(killed)
        while not list(Path(killed).glob(pattern)):
            assert process.poll() is None, f'{pattern}: ended before the kill'
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    assert not (killed / 'medium' / 'manifest.json').exists()
    assert start(killed).wait(300) == 0
    assert digests(killed) == digests(whole)
    assert len(list(whole.glob('medium/*.npz'))) == 3
