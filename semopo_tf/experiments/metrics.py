"""Statistics of final returns (specification of the baselines, section 10).

Scores are arranged as (runs, sets): 4 × 9 with one mean per seed, 200 × 9 with
every episode. Episodes of one seed are not independent runs, so an interval of
200 × 9 says how well these trained policies are known, one of 4 × 9 how well
the method is. Intervals and profiles are rliable's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from datasets.table3 import RANGES
from dreamerv2_base.errors import UserError

Returns = TypeVar('Returns', float, np.ndarray)  # one, or an array of them

RESAMPLES = 2000
LEVEL = 0.95

CAR_PUBLISHED_MINIMUM = 10.3  # the random set's mean, where −82 was meant
# Where Table 1 prints |std − S_min| / (S_max − S_min): in these columns of
# these tasks, and in every column of car racing (10.1).
AFFINE_SYSTEMS = frozenset({'SeMOPO', 'Offline DV2', 'LOMPO', 'InfoGating'})
AFFINE_TASKS = frozenset({'walker_walk', 'cheetah_run'})


# Normalised return (10.1).


@dataclass(frozen=True)
class Range:
    """S_min and S_max of a task, and where they come from."""

    low: float
    high: float
    source: str = 'published'

    def __post_init__(self):
        if not self.low < self.high:
            raise UserError(
                f'normalised return: expected a smallest return below the '
                f'largest, found {self.low} and {self.high} ({self.source}); '
                'look at the data: run.py data validate')

    def mean(self, value: Returns) -> Returns:
        """(S − S_min) / (S_max − S_min)."""
        return (value - self.low) / (self.high - self.low)

    def std(self, value: float) -> float:
        """A standard deviation of returns, in normalised units."""
        return value / (self.high - self.low)


def published_range(task: str) -> Range | None:
    """The paper's S_min and S_max by its own definition; None if unknown."""
    return Range(*RANGES[task]) if task in RANGES else None


def published_style(task: str, system: str, mean: float, std: float | None,
                    ) -> tuple[float, float | None] | None:
    """A cell of Table 1 as the paper computed it from one of Table 5 (10.1).

    Car racing is normalised with 10.3 for −82.0, and where the paper mapped
    the standard deviation like a mean, so does this. Returns (mean, std), or
    None for a task without published constants.
    """
    span = published_range(task)
    if span is None:
        return None
    if task == 'car_racing':
        span = Range(CAR_PUBLISHED_MINIMUM, span.high)
    if std is not None:
        std = (abs(span.mean(std)) if affine_std(task, system)
               else span.std(std))
    return span.mean(mean), std


def affine_std(task: str, system: str) -> bool:
    """Whether Table 1's standard deviation is mapped like a mean."""
    return task == 'car_racing' or (
        task in AFFINE_TASKS and system in AFFINE_SYSTEMS)


# Mean and standard deviation over seeds.


@dataclass(frozen=True)
class Summary:
    """Mean over seeds of each seed's mean return, raw.

    Attributes:
      mean: over seeds. std: over seeds; None for a single one.
      seeds: how many. episodes: of each seed; (50, 50, 50, 50).
    """

    mean: float
    std: float | None
    seeds: int
    episodes: tuple[int, ...]

    @property
    def count(self) -> str:
        """`4×50`, or `50+50+49` where the seeds differ."""
        if len(set(self.episodes)) == 1:
            return f'{self.seeds}×{self.episodes[0]}'
        return '+'.join(str(count) for count in self.episodes)


def summarise(returns: Sequence[Sequence[float]], sample: bool = False,
              ) -> Summary:
    """Summary of the final returns of each seed, [seeds][episodes].

    `sample` divides the squared deviations by seeds − 1, otherwise they are
    divided by the seeds (population), which is this project's default: the
    paper does not say (10.2). Raises UserError for a seed without episodes.
    """
    if not returns or not all(len(seed) for seed in returns):
        raise UserError('results: expected final episodes of every seed, '
                        'found a run without any; see run.py results OUT')
    means = np.array([np.mean(np.asarray(seed, float)) for seed in returns])
    std = float(means.std(ddof=int(sample))) if len(means) > 1 else None
    return Summary(float(means.mean()), std, len(means),
                   tuple(len(seed) for seed in returns))


# Aggregates over sets (10.3).


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % percentile interval, and the scores' shape."""

    value: float
    low: float
    high: float
    runs: int
    sets: int


def iqm(scores: np.ndarray, seed: int = 0, resamples: int = RESAMPLES,
        ) -> Estimate:
    """Interquartile mean of scores [runs, sets] over all of them."""
    from rliable import library, metrics
    with seeded(seed):
        values, intervals = library.get_interval_estimates(
            {'x': scores}, lambda x: np.array([metrics.aggregate_iqm(x)]),
            reps=resamples, confidence_interval_size=LEVEL)
    return _estimate(values['x'], intervals['x'], scores)


def probability_of_improvement(
        x: np.ndarray, y: np.ndarray, seed: int = 0,
        resamples: int = RESAMPLES) -> Estimate:
    """P(X > Y): mean over sets of the share of pairs that x wins.

    x [runs_x, sets], y [runs_y, sets]; ties count ½. Runs are resampled for
    every set and for x and y on their own.
    """
    from rliable import library
    with seeded(seed):
        values, intervals = library.get_interval_estimates(
            {'pair': [x, y]}, lambda x, y: np.array([wins(x, y)]),
            reps=resamples, confidence_interval_size=LEVEL)
    return _estimate(values['pair'], intervals['pair'], x)


def wins(x: np.ndarray, y: np.ndarray) -> float:
    """The share of pairs that x wins, as rliable's metric.

    That one asks scipy for a p value too, set by set and resample by
    resample, which takes minutes.
    """
    found = []
    for column, other in zip(x.T, np.sort(y, axis=0).T, strict=True):
        below = np.searchsorted(other, column, 'left')
        upto = np.searchsorted(other, column, 'right')
        found.append((below + upto).sum() / (2 * len(x) * len(y)))
    return float(np.mean(found))


@dataclass(frozen=True)
class Profile:
    """Share of scores above each threshold, with a pointwise 95 % band.

    All arrays are [thresholds].
    """

    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


def profiles(scores: Mapping[str, np.ndarray], thresholds: np.ndarray,
             seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Profile]:
    """Performance profiles of scores [runs, sets] of several systems."""
    from rliable import library
    found = {}
    for name, values in scores.items():
        with seeded(seed):  # anew, so that no system depends on the others
            share, band = library.create_performance_profile(
                {name: values}, thresholds, custom_profile_func=above,
                reps=resamples, confidence_interval_size=LEVEL)
        found[name] = Profile(share[name], *band[name])
    return found


def above(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of all scores above each threshold, as rliable's but sorted."""
    ordered = np.sort(scores, axis=None)
    return 1 - np.searchsorted(ordered, thresholds, 'right') / len(ordered)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """NumPy's global generator at a seed, afterwards as it was.

    Only for rliable: its bootstrap draws from the global generator whatever
    `random_state` it is given (10.3). Nothing else here draws from it.
    """
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def _estimate(value: np.ndarray, interval: np.ndarray, scores: np.ndarray,
              ) -> Estimate:
    low, high = np.ravel(interval)
    return Estimate(float(value[0]), float(low), float(high), *scores.shape)
