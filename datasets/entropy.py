"""Entropy of actions, two estimators (baselines 10.6 a and b).

Of all rows alike, or each weighted by how often it was drawn.
"""

from __future__ import annotations

import numpy as np

BINS = 50  # per dimension, on [-1, 1]


def histogram_shares(actions: np.ndarray,
                     weight: np.ndarray | None = None) -> np.ndarray:
    """What share of the actions lies in each bin, [A, BINS].

    actions [n, A], n > 0, clipped to [-1, 1]; weight [n], by default 1 each.
    """
    total = len(actions) if weight is None else weight.sum()
    return np.stack([
        np.histogram(column, BINS, (-1, 1), weights=weight)[0] / total
        for column in np.clip(actions, -1, 1).T])


def histogram_entropy(actions: np.ndarray,
                      weight: np.ndarray | None = None) -> float:
    """Σ over dimensions of the discrete entropy of the bins, in nats.

    actions [n, A], n > 0; weight [n], by default 1 each.
    """
    total = 0.0
    for shares in histogram_shares(actions, weight):
        shares = shares[shares > 0]
        total -= float((shares * np.log(shares)).sum())
    return total


def gaussian_entropy(actions: np.ndarray,
                     weight: np.ndarray | None = None) -> float:
    """½ log det(2πe Σ), in nats; −inf where Σ is singular.

    Σ [A, A] is the population's covariance. actions [n, A], n > 0; weight
    [n], by default 1 each.
    """
    covariance = np.atleast_2d(np.cov(actions.T, aweights=weight, ddof=0))
    sign, log_det = np.linalg.slogdet(2 * np.pi * np.e * covariance)
    return 0.5 * float(log_det) if sign > 0 else -np.inf
