"""Rollouts in child processes: order, seeds, mishaps."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dreamerv2_base.envs.rollout import (
    EpisodeUnderWay,
    Rollout,
    episode_seed,
    finished,
)
from dreamerv2_base.errors import UserError
from semopo_tf.environments import EnvSpec, make_env
from tests.helpers import ROOT


class Toy:
    """Ends after 3 to 6 steps; a file `VERB-SEED` makes one go wrong."""

    action_size = 2

    def __init__(self, folder: Path | None = None):
        self._folder = folder
        self.background = None

    def reset(self, seed):
        self._rng, self._seed = np.random.default_rng(seed), seed
        self.background = seed % 7
        self._steps, self._count = 3 + seed % 4, 0
        return self._observation(0.0)

    def step(self, action):
        self._count += 1
        if self._folder and self._count == 2:
            self._mishap()
        return self._observation(
            float(self._rng.uniform()) + float(np.sum(action)))

    def close(self):
        if self._folder:
            (self._folder / f'closed-{os.getpid()}').touch()

    def _observation(self, reward):
        return {'image': self._rng.integers(0, 256, (2, 2, 3), np.uint8),
                'reward': reward, 'is_first': self._count == 0,
                'is_last': self._count == self._steps,
                'is_terminal': False, 'tensorflow': 'tensorflow' in
                sys.modules}

    def _mishap(self):
        for verb in ('kill', 'hang', 'fail', 'always', 'user'):
            path = self._folder / f'{verb}-{self._seed}'
            if path.exists():
                if verb != 'always':
                    path.unlink()
                if verb in ('kill', 'always'):
                    os.kill(os.getpid(), signal.SIGKILL)
                if verb == 'hang':
                    time.sleep(60)
                if verb == 'user':
                    raise UserError('toy: expected nothing')
                raise ValueError('a renderer, say')


class Drifting(Toy):
    """Rewards that are not a function of the seed."""

    def step(self, action):
        return {**super().step(action), 'reward': time.monotonic()}


def policy(observation, state):
    """Actions that depend on the observation, the step and the row."""
    count = 0 if state is None else state
    shade = observation['image'].reshape(len(observation['image']), -1)
    row = np.arange(len(shade))
    action = np.stack([shade.mean(1) / 255, np.sin(row + count)], 1)
    return action.astype(np.float32), count + 1


def run(envs, workers, episodes=5, folder=None, seed=3, **settings):
    with Rollout(functools.partial(Toy, folder), envs, workers,
                 **settings) as rollout:
        return rollout.run(policy, episodes, seed, keep=True)


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert (a.total, a.length, a.background) == (
            b.total, b.length, b.background)
        for key in a.arrays:
            np.testing.assert_array_equal(a.arrays[key], b.arrays[key])


@pytest.fixture(scope='module')
def expected():
    return run(3, 1)


def test_episodes_have_the_format(expected):
    lengths = {episode.length for episode in expected}
    assert len(lengths) > 1  # they do not all end together
    for number, episode in enumerate(expected):
        arrays, seed = episode.arrays, episode_seed(3, number)
        assert episode.length == 4 + seed % 4 == len(arrays['image'])
        assert episode.background == seed % 7
        assert arrays['image'].dtype == np.uint8
        assert arrays['action'].dtype == np.float32
        assert arrays['reward'].dtype == np.float32
        assert arrays['is_first'].tolist() == [True] + [False] * (
            episode.length - 1)
        assert arrays['is_last'].tolist() == [False] * (
            episode.length - 1) + [True]
        assert not arrays['action'][0].any()
        assert arrays['action'][1:].any(-1).all()
        assert arrays['reward'][0] == 0
        assert episode.total == pytest.approx(arrays['reward'].sum())
        assert episode.attempts == 1


def test_returns_are_summed_in_double_precision():
    rows = [{'reward': np.float32(value)} for value in (1e8, 1, -1e8)]
    assert finished(EpisodeUnderWay(0, 0, rows), ()).total == 1.0


def test_action_of_a_row_led_to_its_reward(expected):
    toy = Toy()
    episode = expected[0]
    toy.reset(episode_seed(3, 0))
    for row in range(1, episode.length):
        found = toy.step(episode.arrays['action'][row])
        assert np.float32(found['reward']) == episode.arrays['reward'][row]
        np.testing.assert_array_equal(
            found['image'], episode.arrays['image'][row])


def test_children_have_no_tensorflow(expected):
    assert not any(e.arrays['tensorflow'].any() for e in expected)


def test_workers_do_not_change_results(expected):
    assert_same(expected, run(3, 2))
    assert_same(expected, run(3, 8))


@pytest.mark.parametrize('verb', ['kill', 'hang', 'fail'])
def test_a_lost_process_costs_no_other_episode(tmp_path, expected, verb):
    unlucky = 1
    (tmp_path / f'{verb}-{episode_seed(3, unlucky)}').touch()
    found = run(3, 3, folder=tmp_path, timeout=8 if verb == 'hang' else 120)
    assert [e.attempts for e in found] == [1, 2, 1, 1, 1]
    assert_same(expected, found)


def test_killed_from_outside(expected):
    with Rollout(Toy, 3, 2) as rollout:
        steps = []

        def on_step(moved):
            steps.append(moved)
            if len(steps) == 2:
                os.kill(rollout.pids[0], signal.SIGKILL)
        found = rollout.run(policy, 5, 3, keep=True, on_step=on_step)
    # Slots 0 and 2 live in the first process; all run at the third step.
    assert [e.attempts for e in found] == [2, 1, 2, 1, 1]
    assert_same(expected, found)
    assert sum(steps) == sum(e.length - 1 for e in found)


def test_a_hopeless_episode_is_named(tmp_path):
    (tmp_path / f'always-{episode_seed(3, 1)}').touch()
    with pytest.raises(UserError, match=r'episode 1 .* 3 times .*code -9'):
        run(3, 3, folder=tmp_path)


def test_an_environment_that_cannot_be_repeated_is_found(tmp_path):
    (tmp_path / f'kill-{episode_seed(3, 0)}').touch()
    with Rollout(functools.partial(Drifting, tmp_path), 1, 1) as rollout, \
            pytest.raises(RuntimeError, match=r'episode 0: .* row 1'):
        rollout.run(policy, 1, 3)


def test_after_an_error_answers_are_not_mixed_up(tmp_path, expected):
    (tmp_path / f'user-{episode_seed(3, 0)}').touch()
    with Rollout(functools.partial(Toy, tmp_path), 3, 3) as rollout:
        with pytest.raises(UserError, match='toy: expected nothing'):
            rollout.run(policy, 5, 3, keep=True)
        assert_same(expected, rollout.run(policy, 5, 3, keep=True))


def test_keep_and_close(tmp_path):
    with Rollout(functools.partial(Toy, tmp_path), 2, 2) as rollout:
        assert rollout.action_size == 2
        pids = rollout.pids
        assert rollout.run(policy, 2, 0)[0].arrays == {}
        kept = rollout.run(policy, 2, 0, keep=('image',))
        assert list(kept[0].arrays) == ['image']
    assert {path.name for path in tmp_path.iterdir()} == {
        f'closed-{pid}' for pid in pids}
    for pid in pids:
        assert not Path(f'/proc/{pid}').exists()  # nor a zombie
    rollout.close()


SLOW = '''
import signal
import time
# A shell's background job inherits an ignored SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
from dreamerv2_base.envs.rollout import Rollout
from tests.test_rollout import Toy, policy

def act(observation, state):
    print('stepping', flush=True)
    time.sleep(0.2)
    return policy(observation, state)

if __name__ == '__main__':
    with Rollout(Toy, 2, 2) as rollout:
        print(*rollout.pids, flush=True)
        rollout.run(act, 1000, 0)
'''


@pytest.mark.parametrize('ending', [signal.SIGINT, signal.SIGKILL])
def test_children_end_with_the_parent(tmp_path, ending):
    script = tmp_path / 'slow.py'
    script.write_text(SLOW)
    with subprocess.Popen(
            [sys.executable, script], stdout=subprocess.PIPE, text=True,
            stderr=subprocess.PIPE, start_new_session=True,
            env={**os.environ, 'PYTHONPATH': str(ROOT)}) as parent:
        pids = parent.stdout.readline().split()
        assert parent.stdout.readline() == 'stepping\n'
        if ending == signal.SIGINT:  # as a terminal does: to the group
            os.killpg(parent.pid, ending)
        else:
            parent.kill()
        errors = parent.communicate(timeout=60)[1]
    assert len(pids) == 2
    assert errors.count('Traceback') == (ending == signal.SIGINT)
    deadline = time.monotonic() + 20
    while any(Path(f'/proc/{pid}').exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_policy_sees_zeros_for_idle_environments():
    sizes = []

    def spy(observation, state):
        sizes.append(len(observation['image']))
        assert not observation['image'][1:].any()
        return policy(observation, state)
    with Rollout(Toy, 3, 1) as rollout:
        rollout.run(spy, 1, 0)
    assert set(sizes) == {3}


def test_user_errors_of_the_environment_arrive():
    factory = functools.partial(make_env, EnvSpec('dmc_no_task'))
    with Rollout(factory, 1, 1) as rollout, \
            pytest.raises(UserError, match='no_task'):
        rollout.run(policy, 1, 0)


def test_dm_control_is_exact_after_a_kill():
    spec = EnvSpec('dmcdrv_walker_walk', video_dir='procedural',
                   video_frames=20, size=(16, 16), time_limit=24,
                   shadows=False)
    found = []
    for workers, fatal in ((2, 0), (1, 5)):
        with Rollout(functools.partial(make_env, spec), 2, workers) as rollout:
            steps = []

            def on_step(_, steps=steps, fatal=fatal, rollout=rollout):
                steps.append(1)
                if len(steps) == fatal:
                    os.kill(rollout.pids[0], signal.SIGKILL)

            def act(observation, state):
                shade = observation['image'].reshape(2, -1).mean(1) / 128 - 1
                return np.stack([shade] * 6, 1).astype(np.float32), state
            found.append(rollout.run(act, 2, 1, keep=True, on_step=on_step))
    assert [e.length for e in found[0]] == [13, 13]
    assert [e.attempts for e in found[1]] == [2, 2]
    assert_same(*found)
