"""Which episodes of a training run make a set. Baselines 6.6."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dreamerv2_base.errors import UserError


def select(returns: Sequence[float], band: tuple[float, float], count: int,
           pick: str, where: str, more: str) -> list[int]:
    """Numbers of `count` episodes, ascending: the order of collection stays.

    Args:
      returns: of all episodes [n], in the order of collection.
      band: returns [low, high) that are allowed.
      pick: 'first' of those in the band, 'order': evenly spaced among them,
        or 'spread': their returns as even over the band as there are.
      where: what the episodes are, and `more`: what gives more of them, for
        the message.

    Raises UserError when too few lie in the band.
    """
    values = np.asarray(returns, np.float64)
    allowed = np.flatnonzero((values >= band[0]) & (values < band[1]))
    if len(allowed) < count:
        fewer = f'--episodes {len(allowed)}, or ' if len(allowed) else ''
        raise UserError(
            f'{where}: expected {count} episodes with returns in '
            f'[{band[0]:g}, {band[1]:g}), found {len(allowed)} of '
            f'{len(values)}; give {fewer}a new --buffer with {more}')
    if pick == 'spread':
        return sorted(allowed[_spread(values[allowed], count)].tolist())
    if pick == 'order':
        places = np.linspace(0, len(allowed) - 1, count).round().astype(int)
        return allowed[places].tolist()
    assert pick == 'first', pick
    return allowed[:count].tolist()


def _spread(values: np.ndarray, count: int) -> list[int]:
    """Places of values as even as possible between the extremes.

    The range is cut into `count` goals; each takes the nearest value that is
    left, the goals with the fewest values around them first.
    """
    goals = np.linspace(values.min(), values.max(), count)
    distance = np.abs(goals[:, None] - values)
    chosen: list[int] = []
    for goal in np.argsort(-distance.min(1), kind='stable'):
        free = np.where(np.isin(np.arange(len(values)), chosen),
                        np.inf, distance[goal])
        chosen.append(int(free.argmin()))
    return chosen
