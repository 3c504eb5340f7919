"""The builder's training run, its frames, and builds that were killed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from datasets import build, recipes, rendering, state_episodes
from datasets.behaviour import within
from datasets.sac_behaviour import Learner, Replay, Training
from dreamerv2_base.envs.rollout import Rollout
from dreamerv2_base.errors import UserError
from semopo_tf.environments import env_spec_from, make_env
from tests.helpers import ROOT

SMALL = [
    '--time_limit', '16', '--sac.layers', '1', '--sac.units', '8',
    '--sac.batch', '16', '--behaviour.round_episodes', '2',
    '--behaviour.round_updates', '5', '--behaviour.max_rounds', '4',
    '--video_dir', 'procedural', '--video_frames', '20']


def small(name, episodes, *flags, **changes):
    """A recipe and its configuration, small."""
    recipe = dataclasses.replace(
        recipes.find(name), episodes=episodes, **changes)
    return recipe, build.resolve(recipe, [*SMALL, *flags])


def training(folder, goal=(1e3, 2e3), *flags):
    recipe, config = small('walker_walk_random', 3, *flags, goal=goal)
    return Training(recipe, config, folder, 'x')


def digests(folder, pattern='*.npz'):
    """sha256 by name."""
    found = {str(path.relative_to(folder)):
             hashlib.sha256(path.read_bytes()).hexdigest()
             for path in sorted(folder.rglob(pattern))}
    assert found
    return found


# ------------------------------------------------------------------ frames


def test_frames_are_those_of_collecting_online(tmp_path):
    """Rendered from states or seen while acting: the same bytes."""
    recipe, config = small(
        'walker_walk_scripted', 2, '--scene', 'grey_floor',
        '--background_grayscale', 'False', '--seed', '3')
    build.build(recipe, config, tmp_path / 'set', tmp_path / 'buffer', 1)
    files = sorted((tmp_path / 'set').glob('*.npz'))
    sources = sorted((tmp_path / 'buffer' / 'episodes').glob('*.npz'))
    assert len(files) == len(sources) == 2
    spec = dataclasses.replace(
        env_spec_from(config), task=f'dmcdrv_{recipe.task}')
    with Rollout(functools.partial(_Started, spec, sources), 1, 1) as rollout:
        for file in files:
            with np.load(file) as found:
                kept = {key: found[key] for key in found.files}
            later = iter(kept['action'][1:])
            seen, = rollout.run(
                lambda rows, state, later=later: (next(later)[None], None),
                1, seed=0, keep=True)
            assert set(kept) == {*rendering.KEPT, 'image'}
            for key in ('image', 'reward', 'is_first', 'is_last',
                        'is_terminal'):
                np.testing.assert_array_equal(
                    kept[key], seen.arrays[key], key)
            assert np.ptp(kept['image'], axis=0).any()  # it moves


class _Started:
    """An environment whose episodes have the seeds of state episodes."""

    def __init__(self, spec, sources):
        self._seeds = [int(state_episodes.read(path)['seed'])
                       for path in sources]
        self._env = make_env(spec)
        self.action_size = self._env.action_size
        self.step, self.close = self._env.step, self._env.close

    def reset(self, seed):
        return self._env.reset(self._seeds.pop(0))


# ---------------------------------------------------------------- training


@pytest.mark.parametrize(('returns', 'band', 'answer'), [
    ([410, 420, 300, 700], (401.5, 598.0), True),
    ([410, 300, 300, 900], (401.5, 598.0), False),  # a quarter of them
    ([405, 410, 430, 440], (401.5, 598.0), False),  # too near the edge
    ([590, 580, 590, 420], (401.5, 598.0), True),
    ([590, 580, 590, 560], (401.5, 598.0), False),
    ([405, 410, 100, 200], (401.5, 598.0), False),
    ([590, 610, 620, 400], (600.0, float('inf')), False),
    ([590, 610, 620, 600], (600.0, float('inf')), True)])
def test_a_policy_of_a_band(returns, band, answer):
    """Its mean lies in the middle part, half of its episodes in the band."""
    assert within(returns, band) is answer


def test_without_noise_the_policy_repeats_itself():
    config = build.resolve(recipes.find('walker_walk_medium'), [
        '--sac.units', '8'])
    learner = Learner(config, 3, 2)
    rows = {'state': np.ones((4, 3), np.float32)}

    def actions(seed, noise):
        return learner.actor(np.random.default_rng(seed), noise)(rows)

    np.testing.assert_array_equal(actions(0, False), actions(1, False))
    assert np.abs(actions(0, True) - actions(1, True)).min() > 0


def test_the_replay_pairs_an_action_with_what_it_led_to():
    episode = {'state': np.float32([[0], [1], [2]]),
               'action': np.float32([[0], [.1], [.2]]),
               'reward': np.float32([0, 5, 6]),
               'is_terminal': np.array([False, False, True])}
    replay = Replay()
    replay.add(episode)
    rows = replay.sample(np.random.default_rng(0), (1, 50))
    assert {key: value.shape for key, value in rows.items()} == {
        'state': (1, 50, 1), 'action': (1, 50, 1), 'reward': (1, 50),
        'next_state': (1, 50, 1), 'terminal': (1, 50)}
    found = {tuple(round(float(np.squeeze(value[0, i])), 3)
                   for value in rows.values()) for i in range(50)}
    assert found == {(0, .1, 5, 1, 0), (1, .2, 6, 2, 1)}


def test_a_killed_training_run_ends_in_the_same_files(tmp_path):
    """What is lost after the last checkpoint is made again, the same."""
    whole = training(tmp_path / 'whole')
    outcome = whole.train()
    assert (outcome.reached, outcome.rounds) == (False, 4)
    wanted = digests(tmp_path / 'whole')
    assert len(digests(tmp_path / 'whole/episodes')) == 8

    killed = tmp_path / 'killed'
    shutil.copytree(tmp_path / 'whole', killed)
    (killed / 'trained.json').unlink()
    shutil.rmtree(killed / 'ckpt' / '000000003')
    for path in sorted((killed / 'episodes').glob('*.npz'))[5:]:
        path.unlink()
    assert training(killed).train() == outcome
    assert digests(killed) == wanted


def test_another_seed_is_another_run(tmp_path):
    for seed in ('0', '1'):
        training(tmp_path / seed, (1e3, 2e3), '--seed', seed,
                 '--behaviour.max_rounds', '1').train()
    assert not set(digests(tmp_path / '0').values()) & set(
        digests(tmp_path / '1').values())


def test_the_frozen_policy_and_what_never_became_one(tmp_path):
    recipe, config = small('walker_walk_medium', 3, goal=(-100.0, 100.0),
                           band=(0.0, 100.0))
    path = build.build(recipe, config, tmp_path / 'set', tmp_path / 'buffer',
                       1)
    assert 'walker_walk_medium: 3 episodes' in build.summary(path)
    assert len(list((tmp_path / 'buffer/episodes').glob('*.npz'))) == 2
    assert len(list((tmp_path / 'buffer/frozen').glob('*.npz'))) == 4

    high = dataclasses.replace(recipe, goal=(900.0, 1000.0))
    with pytest.raises(UserError, match=r'expected a policy with returns in '
                       r'\[900.0, 1000.0\] within 4 rounds'):
        build.build(high, config, tmp_path / 'no', tmp_path / 'other', 1)


# -------------------------------------------------------------------- kill


def build_two(folder):
    """A set of the training run and one of a frozen policy, small."""
    folder = Path(folder)
    for name, goal in (('walker_walk_random', (1e3, 2e3)),
                       ('walker_walk_medium', (-100.0, 100.0))):
        recipe, config = small(name, 5, goal=goal, band=(0.0, 100.0))
        build.build(recipe, config, folder / name, folder / f'{name}_buffer',
                    2)


def start(folder):
    """`build_two` in a process."""
    code = ('import sys; from tests.test_build_training import build_two; '
            'build_two(sys.argv[1])')
    return subprocess.Popen([sys.executable, '-c', code, str(folder)],
                            cwd=ROOT, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_builds_end_in_the_same_files(tmp_path):
    """SIGKILL while collecting, while rendering, and in the frozen part."""
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    assert start(whole).wait(300) == 0
    for part, count in (('walker_walk_random_buffer/episodes', 5),
                        ('walker_walk_random', 2),
                        ('walker_walk_medium_buffer/frozen', 3)):
        process = start(killed)
        while len(list(killed.glob(f'{part}/*.npz'))) < count:
            assert process.poll() is None, f'{part}: ended before the kill'
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    assert start(killed).wait(300) == 0
    for pattern in ('*.npz', '*.hdf5', 'trained.json', 'recipe.json'):
        assert digests(killed, pattern) == digests(whole, pattern)
    assert len(digests(whole / 'walker_walk_medium')) == 5
