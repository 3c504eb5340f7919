"""Returns of LQV-D4RL's episodes, as far as this project knows Table 3.

Known are the extremes that the selection by return bands and the normalised
score rest on (baselines 6.6, 10.1 and 10.6). The other numbers of
the table were not at hand when this was written: they are None, are printed
as "not known here", and are compared as soon as someone fills them in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Statistics:
    """Of the returns of a set's episodes; None where not known.

    `std` of the table is compared with the population's (divided by the
    count): which of the two the paper prints is not known, and they differ
    by 0.25 % for 200 episodes.
    """

    mean: float | None = None
    std: float | None = None
    minimum: float | None = None
    quartile1: float | None = None
    median: float | None = None
    quartile3: float | None = None
    maximum: float | None = None

    def known(self) -> dict[str, float]:
        """The numbers that are known, by name."""
        return {name: value for name, value in asdict(self).items()
                if value is not None}


def statistics(returns: Sequence[float] | np.ndarray) -> Statistics:
    """Statistics of returns [n], n > 0; quartiles interpolated linearly."""
    values = np.asarray(returns, np.float64)
    low, first, middle, third, high = np.percentile(
        values, [0, 25, 50, 75, 100])
    return Statistics(
        float(values.mean()), float(values.std()), float(low), float(first),
        float(middle), float(third), float(high))


# By task and level. Printed to one decimal in the paper, car racing's random
# mean too; cheetah's is known to no decimal (and so compared to none).
TABLE = {
    ('walker_walk', 'random'): Statistics(maximum=199.1),
    ('walker_walk', 'medium_replay'): Statistics(maximum=398.2),
    ('walker_walk', 'medium'): Statistics(minimum=401.5, maximum=598.0),
    ('cheetah_run', 'random'): Statistics(mean=78.0, maximum=198.2),
    ('cheetah_run', 'medium_replay'): Statistics(maximum=396.5),
    ('cheetah_run', 'medium'): Statistics(minimum=300.5, maximum=403.2),
    ('hopper_hop', 'random'): Statistics(median=0.0, maximum=19.5),
    ('hopper_hop', 'medium_replay'): Statistics(maximum=39.9),
    ('hopper_hop', 'medium'): Statistics(minimum=40.3, maximum=84.9),
    ('humanoid_walk', 'random'): Statistics(maximum=5.7),
    ('humanoid_walk', 'medium_replay'): Statistics(maximum=359.0),
    ('humanoid_walk', 'medium'): Statistics(minimum=526.5, maximum=609.4),
    ('car_racing', 'random'): Statistics(
        mean=10.3, minimum=-82.0, maximum=149.2),
    ('car_racing', 'medium_replay'): Statistics(
        minimum=-82.0, maximum=297.3),
    ('car_racing', 'medium'): Statistics(minimum=302.3, maximum=449.9),
}

# Smallest and largest return over a task's three sets: S_min and S_max of
# the normalised score (10.1). The smallest belongs to one of the two lower
# sets, which of them is not known (car racing: both).
RANGES = {
    'walker_walk': (5.0, 598.0), 'cheetah_run': (1.7, 403.2),
    'hopper_hop': (0.0, 84.9), 'humanoid_walk': (0.0, 609.4),
    'car_racing': (-82.0, 449.9),
}

# Numbers known less exactly than to one decimal: how far they may be off.
COARSE = {('cheetah_run', 'random', 'mean'): 0.5}


def tolerance(task: str, level: str, name: str, value: float) -> float:
    """How far a set's number may lie from the table's and still be it.

    Half a unit of the last printed digit, and what sums of 500 rewards at
    half precision (2^-11 of each) can add.
    """
    printed = COARSE.get((task, level, name), 0.05)
    return printed + abs(value) * 2 ** -11
