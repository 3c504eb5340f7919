"""Gym's Car Racing as a pixel environment; our choices, none are published.

The paper names the environment and the frame size only (baselines
9.6). Chosen here: CarRacing-v2 of gym 0.26, its own 96x96 frame resized
bilinearly, action repeat 2, 1000 control steps, the frame's dashboard kept.
"""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

import cv2
import numpy as np

from dreamerv2_base.errors import UserError

Observation = dict[str, Any]

ID = 'CarRacing-v2'
PACKAGES = ('gym', 'box2d', 'pygame-ce')


class CarRacing:
    """Steering, gas and brake; 3 actions in [-1, 1].

    Args:
      size: (height, width) of the frames.
      action_repeat: control steps per action; their rewards are summed.
      time_limit: control steps of an episode; 0 for gym's 1000.

    -1 is no gas and no brake, as [-1, 1] is mapped to the bounds of each.
    Raises UserError when gym, Box2D or pygame are missing.
    """

    def __init__(self, size: tuple[int, int] = (64, 64),
                 action_repeat: int = 2, time_limit: int = 0):
        self._env = _load()
        self._size, self._repeat = size, action_repeat
        self._limit, self._count = time_limit, 0
        space = self._env.action_space
        self._low, self._high = np.float64(space.low), np.float64(space.high)
        self.action_size = int(np.prod(space.shape))

    def reset(self, seed: int) -> Observation:
        """Start an episode that depends on `seed` alone."""
        frame, _ = self._env.reset(seed=seed)
        self._count = 0
        return self._observation(frame, 0.0, first=True)

    def step(self, action: np.ndarray) -> Observation:
        """Hold an action [3] in [-1, 1] for `action_repeat` steps."""
        action = np.clip(np.asarray(action, np.float64), -1, 1)
        control = self._low + (action + 1) / 2 * (self._high - self._low)
        total = 0.0
        for _ in range(self._repeat):
            frame, reward, terminal, cut, _ = self._env.step(control)
            self._count += 1
            total += float(reward)
            last = terminal or cut or self._count == self._limit
            if last:
                break
        return self._observation(frame, total, last=last, terminal=terminal)

    def close(self) -> None:
        self._env.close()

    def _observation(self, frame: np.ndarray, reward: float,
                     first: bool = False, last: bool = False,
                     terminal: bool = False) -> Observation:
        image = cv2.resize(
            frame, self._size[::-1], interpolation=cv2.INTER_LINEAR)
        return {'image': image, 'reward': reward, 'is_first': first,
                'is_last': bool(last), 'is_terminal': bool(terminal)}


def _load() -> Any:
    os.environ.setdefault('SDL_VIDEODRIVER', 'dummy')  # no display needed
    os.environ.setdefault('PYGAME_HIDE_SUPPORT_PROMPT', '1')
    try:
        # gym prints four lines about its successor at every import.
        with contextlib.redirect_stderr(io.StringIO()):
            import gym
        # The checker trips over NumPy 2 and costs time.
        return gym.make(ID, disable_env_checker=True)
    except (ImportError, AttributeError) as error:
        raise _missing(error) from None
    except Exception as error:
        # gym's own error for Box2D and pygame derives from Exception alone.
        if type(error).__name__ != 'DependencyNotInstalled':
            raise
        raise _missing(error) from None


def _missing(error: Exception) -> UserError:
    return UserError(
        'car_racing: expected gym 0.26, Box2D and pygame, found '
        f'{type(error).__name__}: {error}; install them: pip install '
        'gym==0.26.2 box2d==2.3.10 pygame-ce==2.5.8')
