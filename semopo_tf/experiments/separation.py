"""Does the learned mask find the robot? Intersection over union.

The truth is the simulator's own segmentation of fresh frames: pixels of
moving bodies, against floor, sky and scenery.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dreamerv2_base.noise import generator
from semopo_tf.experiments.fresh import FreshEpisode

Arrays = dict[str, np.ndarray]

THRESHOLD = 0.5  # a pixel counts as the robot's where the mask is at least so
SHOWN = 8


def choose_rows(lengths: Sequence[int], samples: int, earliest: int,
                seed: int) -> np.ndarray:
    """At most `samples` different rows, int [n, 2]: episode, row.

    Rows before `earliest` are left out where an episode has later ones: the
    filter has hardly seen anything there.
    """
    every = np.concatenate([
        np.stack([np.full(length, number), np.arange(length)], 1)
        [min(earliest, length - 1):]
        for number, length in enumerate(lengths)])
    rng = generator(seed, 'measure', 'separation')
    count = min(samples, len(every))
    return every[np.sort(rng.choice(len(every), count, replace=False))]


def separation(fresh: Sequence[FreshEpisode], index: np.ndarray,
               mask: np.ndarray) -> Arrays:
    """How well masks [n, h, w, 1] match the robot in rows `index` [n, 2].

    `separation/iou` [n] at `separation/threshold`; `separation/chance` [n] is
    the intersection over union of a mask that claims every pixel (the robot's
    share of the frame), `separation/swapped` [n] that of the pixels which the
    learned mask leaves to the exogenous stream (larger than `iou`: the streams
    have changed places), `separation/claimed` [n] the share that it claims,
    `separation/ranking` [n] needs no threshold: the probability
    that a pixel of the robot has a larger mask value than another (NaN where
    a frame shows no robot). `image`, `mask` and `truth` of SHOWN frames.
    """
    truth = np.stack([fresh[e].robot[row] for e, row in index])
    value = mask[..., 0].astype(np.float32)
    claimed = value >= THRESHOLD
    shown = np.linspace(0, len(index) - 1, min(SHOWN, len(index))).astype(int)
    image = np.stack([fresh[e].arrays['image'][row]
                      for e, row in index[shown]])
    found = {
        'iou': intersection_over_union(claimed, truth),
        'chance': intersection_over_union(np.ones_like(truth), truth),
        'swapped': intersection_over_union(~claimed, truth),
        'claimed': claimed.mean((1, 2)).astype(np.float32),
        'ranking': np.array([ranking(*pair) for pair in zip(
            value, truth, strict=True)], np.float32),
        'threshold': np.float32(THRESHOLD), 'index': index,
        'image': image, 'mask': value[shown], 'truth': truth[shown]}
    return {f'separation/{key}': np.asarray(value)
            for key, value in found.items()}


def intersection_over_union(mask: np.ndarray, truth: np.ndarray,
                            ) -> np.ndarray:
    """|A ∩ B| / |A ∪ B| of bool [n, h, w], float32 [n]; 1 where both are
    empty."""
    both = (mask & truth).sum((1, 2))
    either = (mask | truth).sum((1, 2))
    return np.where(either, both / np.maximum(either, 1), 1).astype(
        np.float32)


def ranking(value: np.ndarray, truth: np.ndarray) -> float:
    """P(value of a true pixel > of a false one), ties ½; NaN for one class."""
    from sklearn.metrics import roc_auc_score
    if truth.all() or not truth.any():
        return float('nan')
    return float(roc_auc_score(truth.ravel(), value.ravel()))
