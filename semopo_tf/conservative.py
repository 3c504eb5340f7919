"""Conservative sampling: which trajectories may be drawn, and when.

Paper section 3.4; spec section 8. Three schemes, each a window over an order
of the episodes, as a function of the gradient step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.store import EpisodeStore

# The released growth per step is counted on the steps that were asked for.
RELEASED_PLANNED = 25001


def paper_window(step: int, count: int, epoch_updates: int = 1) -> int:
    """min(m, n) trajectories in epoch m = 1, 2, … (paper section 3.4).

    `step` counts from 0; an epoch is `epoch_updates` gradient steps.
    """
    return min(step // epoch_updates + 1, count)


def released_window(step: int, count: int, start: int = 10,
                    grow_updates: int = 100, planned: int = RELEASED_PLANNED,
                    cap_last: bool = True) -> int:
    """The released window: `start`, then larger after every block.

    Spec section 8; of the baselines 10.6. After each `grow_updates` steps it
    grows by max(⌊n·grow/planned⌋, 1), up to n − 1 (so that the last
    trajectory is never drawn) or, without `cap_last`, to n.

    Of n = 400, updates 0 … 25,099 draw from at most 10 + 250 = 260: the last
    update lies in block 250, counted from 0. The 261 = 10 + 251 of 10.6 is
    what the counter says after the last block, when no model update is left
    (the policy phase keeps the window of the last model update, 260).
    """
    growth = max(count * grow_updates // planned, 1)
    window = start + step // grow_updates * growth
    most = count - 1 if cap_last and count > 1 else count
    return max(1, min(window, most))


@dataclass(frozen=True)
class Schedule:
    """An order of n episodes and the window over it.

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

    def frozen(self, updates: int) -> Schedule:
        """The window that the last of `updates` updates had, kept."""
        final = self.window(max(updates - 1, 0))
        return replace(self, window=lambda _: final)

    def describe(self, updates: int) -> dict[str, Any]:
        """Counts for the log: what is loaded, reachable, never drawn.

        `never_drawn` holds those dropped for equal returns too.
        """
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


def order_episodes(order: np.ndarray, returns: np.ndarray, by_return: bool,
                   reverse: bool) -> np.ndarray:
    """`order` as it is or by ascending return [n], or the reverse of that.

    Equal returns stay in the order in which they were loaded.
    """
    if by_return:
        order = order[np.argsort(returns[order], kind='stable')]
    return order[::-1].copy() if reverse else order


def schedule_from(config: Config, scheme: str, store: EpisodeStore,
                  ) -> Schedule:
    """The schedule of a configuration over the episodes of a store.

    Args:
      config: `replay.sort_rewards`, `replay.reverse` and the `sampling_` keys.
      scheme: paper, released or random.
      store: has `returns` [n], in the order of the names, which is by time:
        the order of loading. The released loader shuffles once unless
        temporal order is asked for; its permutation is not recorded.

    Raises UserError for an unknown scheme.
    """
    count = len(store.returns)
    order = np.arange(count)
    if scheme == 'random':
        return Schedule('random', order, lambda step: count, count)
    by_return, reverse = config.replay.sort_rewards, config.replay.reverse
    if scheme == 'paper':
        epoch = config.sampling_epoch_updates
        order = order_episodes(order, store.returns, by_return, reverse)
        return Schedule('paper', order,
                        lambda step: paper_window(step, count, epoch), count)
    if scheme != 'released':
        raise UserError('sampling: expected paper, released or random, found '
                        f'{scheme!r}; give --sampling paper')
    if by_return and config.sampling_collapse_equal:
        # Before sorting: the dictionary is filled while loading.
        order = collapse_equal_returns(order, store.returns)
    order = order_episodes(order, store.returns, by_return, reverse)
    return Schedule('released', order, _released(config, len(order)), count,
                    count - len(order))


def _released(config: Config, count: int) -> Callable[[int], int]:
    start, grow = config.sampling_start, config.sampling_grow_updates
    # 0 updates: a world model is given, and the whole phase that it had is
    # taken to be the released one.
    planned = config.offline_model_train_steps or RELEASED_PLANNED
    cap_last = config.sampling_cap_last
    return lambda step: released_window(
        step, count, start, grow, planned, cap_last)
