"""Which imagined states end an episode: rules written by hand.

Baselines 8.2. They read the observations of D4RL's
locomotion tasks (without the x position): height first, then the angle of
the torso. Tasks of DM Control never end before their time.
"""

from __future__ import annotations

from collections.abc import Callable

from dreamerv2_base.errors import UserError
from dreamerv2_base.tf import tf

# Next states [N, S] -> bool [N], True where the episode ends.
Termination = Callable[[tf.Tensor], tf.Tensor]


def never(state: tf.Tensor) -> tf.Tensor:
    """DM Control, halfcheetah."""
    return tf.zeros(tf.shape(state)[:1], tf.bool)


def walker2d(state: tf.Tensor) -> tf.Tensor:
    """Ends unless 0.8 < z < 2 and −1 < angle < 1."""
    return ~(_within(state[:, 0], 0.8, 2.0)
             & _within(state[:, 1], -1.0, 1.0))


def hopper(state: tf.Tensor) -> tf.Tensor:
    """Ends unless finite, z > 0.7, |angle| < 0.2, |others| < 100."""
    small = tf.reduce_all(tf.abs(state[:, 1:]) < 100.0, -1)
    return ~(_upright_hopper(state) & small)


def hopper_released(state: tf.Tensor) -> tf.Tensor:
    """The published hopper: a misplaced parenthesis tests s < 100 alone."""
    small = tf.reduce_all(state[:, 1:] < 100.0, -1)
    return ~(_upright_hopper(state) & small)


RULES: dict[str, Termination] = {
    'never': never, 'halfcheetah': never, 'walker2d': walker2d,
    'hopper': hopper}


def termination(name: str, quirk: bool = False) -> Termination:
    """The rule of a `mopo.termination`; `quirk`: as published.

    Raises UserError for an unknown name.
    """
    if name not in RULES:
        raise UserError(
            f'mopo.termination: expected one of {", ".join(RULES)}, found '
            f'{name!r}; give --mopo.termination never')
    return hopper_released if quirk and name == 'hopper' else RULES[name]


def _within(value: tf.Tensor, low: float, high: float) -> tf.Tensor:
    return (value > low) & (value < high)


def _upright_hopper(state: tf.Tensor) -> tf.Tensor:
    finite = tf.reduce_all(tf.math.is_finite(state), -1)
    return (finite & (state[:, 0] > 0.7)
            & _within(state[:, 1], -0.2, 0.2))
