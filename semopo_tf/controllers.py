"""Policies without learning that make data sets (`run.py collect`).

Each is a function of the observations of N environments and of its own state,
as `Rollout` wants it. `CartpoleSwingup` is deterministic: its data show what
cloning can reach. Never imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dreamerv2_base.errors import UserError

Observations = Mapping[str, np.ndarray]


class Sinusoids:
    """Open-loop actions a_t = Σ_j c_j sin(ω_j t + φ_j) + noise, clipped.

    One set of parameters per environment of the wave, [N, waves, A].
    """

    WAVES = 3
    NOISE = 0.2

    def __init__(self, rng: np.random.Generator, action_size: int):
        self._rng, self._size = rng, action_size

    def __call__(self, observation: Observations, state: Any,
                 ) -> tuple[np.ndarray, Any]:
        if state is None:
            state = self._parameters(len(observation['is_first']))
        t, amplitude, frequency, phase = state
        wave = amplitude * np.sin(frequency * t + phase)
        action = wave.sum(1) + self.NOISE * self._rng.standard_normal(
            (len(amplitude), self._size))
        action = np.clip(action, -1, 1).astype(np.float32)
        return action, (t + 1, amplitude, frequency, phase)

    def _parameters(self, count: int) -> tuple:
        shape = (count, self.WAVES, self._size)
        amplitude = self._rng.uniform(0, 0.8, shape)
        frequency = self._rng.uniform(0.02, 0.6, shape)
        phase = self._rng.uniform(0, 2 * np.pi, shape)
        return 0, amplitude, frequency, phase


class Uniform:
    """Every action drawn anew, uniformly from [-1, 1]^A."""

    def __init__(self, rng: np.random.Generator, action_size: int):
        self._rng, self._size = rng, action_size

    def __call__(self, observation: Observations, state: Any,
                 ) -> tuple[np.ndarray, Any]:
        shape = (len(observation['is_first']), self._size)
        return self._rng.uniform(-1, 1, shape).astype(np.float32), state


class CartpoleSwingup:
    """Swings the pole of DM Control's cartpole up and holds it there.

    A function of the simulator's state alone, which three frames show: no
    noise, no memory. Far from the top it pumps energy, near it a linear
    feedback takes over; a sigmoid of angle and speed blends the two.

    The gains are from a search for those that a clone can live with. Others,
    as good by themselves, let a clone that errs by 0.01 miss the top and lose
    more than half of the return (docs/results/model_free.md).
    """

    GRAVITY = 1.5 * 9.81  # of a uniform pole of 1 m: θ'' = g sin θ − …

    def __init__(self, rng: np.random.Generator | None = None,
                 action_size: int = 1):
        if action_size != 1:
            raise UserError(
                'collect_policy: expected the task cartpole_swingup for '
                f'cartpole, found one with {action_size} actions; give --task '
                'dmc_cartpole_swingup')

    def __call__(self, observation: Observations, state: Any,
                 ) -> tuple[np.ndarray, Any]:
        """Actions [N, 1]; `observation['state']` is [N, 5]: position of the
        cart (m), cos θ, sin θ (θ = 0 is upright), and both speeds."""
        return self.action(observation['state']), state

    def action(self, state: np.ndarray) -> np.ndarray:
        """The action [N, 1] in a state [N, 5] of DM Control's cartpole."""
        if state.shape[-1] != 5:
            raise UserError(
                'collect_policy: expected the task cartpole_swingup for '
                f'cartpole, found one with {state.shape[-1]} numbers of '
                'state; give --task dmc_cartpole_swingup')
        place, cos, sin, speed, turn = np.asarray(state, np.float64).T
        angle = np.arctan2(sin, cos)
        near = _sigmoid(40 * (np.exp(
            -(angle / 0.31) ** 2 - (turn / 6.7) ** 2) - 0.34))
        hold = 0.13 * place + 0.26 * speed + 2.9 * angle + 0.56 * turn
        action = near * hold + (1 - near) * self._swing(
            place, cos, speed, turn)
        return np.clip(action, -1, 1).astype(np.float32)[:, None]

    def _swing(self, place, cos, speed, turn) -> np.ndarray:
        """Pump energy towards that of the upright pole, keep to the middle.

        Hanging still, energy cannot be pumped: there it pushes to one side.
        """
        energy = turn ** 2 / 2 + self.GRAVITY * (cos - 1)
        push = 1.07 * np.exp(-(energy + 2 * self.GRAVITY) / 2)
        pump = 0.75 * np.tanh(0.44 * energy * (turn + push) * cos)
        return pump - 1.2 * place - 0.14 * speed


class CartpoleMixed:
    """The swing-up controller, disturbed by as much as each episode draws.

    a = (1 − m) · controller + m · sinusoids, with m uniform in [0, 1] per
    episode: returns from those of chance to those of the controller.
    """

    def __init__(self, rng: np.random.Generator, action_size: int):
        self._rng = rng
        self._skilled = CartpoleSwingup(rng, action_size)
        self._clumsy = Sinusoids(rng, action_size)

    def __call__(self, observation: Observations, state: Any,
                 ) -> tuple[np.ndarray, Any]:
        share, waves = state or (None, None)
        if share is None:
            share = self._rng.uniform(size=(len(observation['is_first']), 1))
        good, _ = self._skilled(observation, None)
        bad, waves = self._clumsy(observation, waves)
        action = (1 - share) * good + share * bad
        return action.astype(np.float32), (share, waves)


POLICIES: dict[str, Callable[[np.random.Generator, int], Any]] = {
    'sinusoids': Sinusoids,
    'uniform': Uniform,
    'cartpole': CartpoleSwingup,
    'cartpole_mixed': CartpoleMixed,
}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
