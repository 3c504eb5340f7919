"""What an evaluation adds to a policy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from semopo_tf import evaluation, settings
from semopo_tf.environments import env_spec_from
from semopo_tf.evaluation import Evaluator, _Keyed, evaluation_spec


class Keys:
    """A policy that notes the key of every call."""

    def __init__(self):
        self.seen = []

    def policy(self, observation, state, key):
        self.seen.append(key)
        return np.zeros((1, 2)), 'state'


def test_every_wave_of_an_evaluation_has_draws_of_its_own():
    method = Keys()
    policy = _Keyed(method, 7)
    for state in (None, 'state', None, 'state', None):
        policy({}, state)
    first, again, second, more, third = method.seen
    assert (first, second) == (again, more)
    # A policy counts its steps on from the key: no two waves may meet.
    assert min(second - first, third - second) > 10 ** 6


def test_every_evaluation_starts_from_episodes_of_its_own(monkeypatch):
    seeds = []

    class Rollout:
        def __init__(self, *_):
            pass

        def run(self, policy, episodes, seed, keep):
            seeds.append(seed)
            return []

    monkeypatch.setattr(evaluation, 'Rollout', Rollout)
    evaluator = Evaluator(resolved('bc'))
    for key in (7, 8, 2 ** 31 + 9):  # a simulator's seeds have 31 bits
        evaluator.run(Keys(), 2, key)
    assert seeds == [7, 8, 9]


def resolved(*names, seed='3'):
    return settings.resolve(['--configs', *names, '--seed', seed])[0]


@pytest.mark.parametrize('name', ['tia', 'dreamerv2'])
def test_what_collects_its_data_is_evaluated_before_other_videos(name):
    config = resolved(name)
    trained, seen = env_spec_from(config), evaluation_spec(config)
    assert seen.background_seed != trained.background_seed
    assert dataclasses.replace(seen, background_seed=3) == trained
    assert evaluation_spec(resolved(name)) == seen
    assert evaluation_spec(resolved(name, seed='4')) != seen


@pytest.mark.parametrize('name', [
    'released', 'offline_dv2', 'bc', 'lompo', 'mopo'])
def test_what_learns_offline_is_evaluated_before_the_videos_of_its_seed(name):
    config = resolved(name)
    assert evaluation_spec(config) == env_spec_from(config)


def test_the_evaluator_makes_that_environment(monkeypatch):
    made = []

    class Rollout:
        action_size = 6

        def __init__(self, make_env, envs, workers):
            made.extend(make_env.args)

    monkeypatch.setattr(evaluation, 'Rollout', Rollout)
    config = resolved('tia')
    Evaluator(config).check(6)
    assert made == [evaluation_spec(config)]
