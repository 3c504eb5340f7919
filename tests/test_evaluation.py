"""What an evaluation adds to a policy."""

from __future__ import annotations

import numpy as np

from semopo_tf.evaluation import _Keyed


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
