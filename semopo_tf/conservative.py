"""Conservative sampling: which trajectories may be drawn, and when.

Paper section 3.4; spec section 8. Three schemes, each a window over an order
of the episodes, as a function of the gradient step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

# The released growth per step is counted on the steps that were asked for.
RELEASED_PLANNED = 25001


def paper_window(step: int, count: int, epoch_updates: int = 1) -> int:
    """min(m, n) trajectories in epoch m = 1, 2, …"""
    return min(step // epoch_updates + 1, count)


def released_window(step: int, count: int, start: int = 10,
                    grow_updates: int = 100, planned: int = RELEASED_PLANNED,
                    cap_last: bool = True) -> int:
    """The released window: `start`, then larger after every block.

    After each `grow_updates` steps it grows by max(⌊n·grow/planned⌋, 1), up
    to n − 1 (so that the last trajectory is never drawn).
    """
    growth = max(count * grow_updates // planned, 1)
    window = start + step // grow_updates * growth
    most = count - 1 if cap_last and count > 1 else count
    return max(1, min(window, most))


@dataclass(frozen=True)
class Schedule:
    """An order of episodes and the window over it.

    Attributes:
      scheme: paper, released or random.
      order: episode numbers in the order in which the window opens.
      window: how many of them may be drawn at a gradient step.
      loaded: episodes in the store.
      collapsed: episodes dropped because another has the same return.
    """

    scheme: str
    order: np.ndarray
    window: Callable[[int], int]
    loaded: int
    collapsed: int = 0

    def frozen(self, step: int) -> Schedule:
        """The window that the last of `step` updates had, kept."""
        final = self.window(max(step - 1, 0))
        return replace(self, window=lambda _: final)

    def describe(self, updates: int) -> dict[str, Any]:
        """Counts for the log: what is loaded, reachable, never drawn."""
        reachable = self.window(max(updates - 1, 0))
        return {'sampling': self.scheme, 'episodes_loaded': self.loaded,
                'dropped_as_equal_returns': self.collapsed,
                'window_at_start': self.window(0),
                'window_at_end': reachable,
                'never_drawn': self.loaded - reachable}


def collapse_equal_returns(order: np.ndarray,
                           returns: np.ndarray) -> np.ndarray:
    """Of episodes with exactly equal returns the last in `order` stays.

    What a dictionary keyed by return does in the released code: hopper
    random, where most returns are 0, loses most of its data.
    """
    last = {float(returns[number]): number for number in order}
    kept = set(last.values())
    return np.array([number for number in order if number in kept], int)


def order_episodes(returns: np.ndarray, by_return: bool,
                   reverse: bool) -> np.ndarray:
    """Episode numbers in time order (by name) or by ascending return."""
    order = (np.argsort(returns, kind='stable') if by_return
             else np.arange(len(returns)))
    return order[::-1].copy() if reverse else order


def schedule_from(config, scheme: str, store) -> Schedule:
    """The schedule of a configuration over the episodes of a store."""
    returns = store.returns
    count = len(returns)
    if scheme == 'random':
        order = np.arange(count)
        return Schedule('random', order, lambda step: count, count)
    order = order_episodes(
        returns, config.replay.sort_rewards, config.replay.reverse)
    if scheme == 'paper':
        return Schedule(
            'paper', order, lambda step: paper_window(
                step, count, config.sampling_epoch_updates), count)
    if config.replay.sort_rewards and config.sampling_collapse_equal:
        order = collapse_equal_returns(order, returns)
    size = len(order)

    def window(step: int) -> int:
        return released_window(
            step, size, config.sampling_start, config.sampling_grow_updates,
            config.offline_model_train_steps, config.sampling_cap_last)

    return Schedule('released', order, window, count, count - size)
