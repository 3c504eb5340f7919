"""Entropy of the actions that training batches hold: figure 6.

Specification of the baselines 10.6. Batches are functions of the seed and
the update's number, so nothing is trained and no image is read.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import digamma, gammaln

from datasets.entropy import gaussian_entropy, histogram_entropy
from dreamerv2_base.config import Config
from dreamerv2_base.noise import generator
from dreamerv2_base.replay import ChunkSampler
from dreamerv2_base.store import EpisodeStore
from semopo_tf.conservative import schedule_from
from semopo_tf.settings import model_updates, sampling_of

Arrays = dict[str, np.ndarray]

EPOCHS = 30
NEIGHBOURS = 2000  # points of the nearest-neighbour estimate


def entropy(config: Config, store: EpisodeStore, seed: int) -> Arrays:
    """`entropy/{random,conservative}/{histogram,gaussian,nearest}` [epochs].

    An epoch is the block of updates after which the window grows: 100 as
    published (`sampling_grow_updates`), one in the paper's scheme
    (`sampling_epoch_updates`). There are EPOCHS, or as many as the run had.
    Conservative is the scheme of the run, or the released one where it
    sampled at random.
    `entropy/updates` [epochs] is the number of updates at the end of each,
    `entropy/open` [epochs] whether its first update may draw from everything
    that the window will ever hold: the samplings are alike from there on.
    """
    own = sampling_of(config)
    schemes = {'random': 'random',
               'conservative': 'released' if own == 'random' else own}
    block = (config.sampling_epoch_updates
             if schemes['conservative'] == 'paper'
             else config.sampling_grow_updates)
    trained = model_updates(config)
    epochs = max(1, min(EPOCHS, trained // block))
    actions = np.concatenate([
        store.slice(number, 0, int(rows))['action']
        for number, rows in enumerate(store.rows)])
    window = schedule_from(config, schemes['conservative'], store).window
    most = window(trained + len(store.rows) * block)
    found = {'entropy/updates': block * np.arange(1, epochs + 1),
             'entropy/open': np.array([
                 window(block * epoch) == most for epoch in range(epochs)])}
    for name, scheme in schemes.items():
        sampler = sampler_of(config, store, scheme)
        rows = [_estimates(actions, drawn(
            sampler, store, range(block * epoch, block * (epoch + 1))), seed)
            for epoch in range(epochs)]
        for key in rows[0]:
            found[f'entropy/{name}/{key}'] = np.array(
                [row[key] for row in rows], np.float32)
    return found


def sampler_of(config: Config, store: EpisodeStore, scheme: str,
               ) -> ChunkSampler:
    """The sampler of a run's model phase, under a sampling scheme."""
    size, schedule = config.offline_model_dataset, schedule_from(
        config, scheme, store)
    return ChunkSampler(
        store, size.batch, size.length, config.seed, 'model', schedule.order,
        schedule.window, config.replay.prioritize_ends)


def drawn(sampler: ChunkSampler, store: EpisodeStore, updates: range,
          ) -> np.ndarray:
    """How often each row of the data is in the batches of some updates.

    int [all rows], in the order of the store.
    """
    count = np.zeros(store.offsets[-1] + 1, int)
    for update in updates:
        episodes, starts = sampler.indices(update)
        first = store.offsets[episodes] + starts
        np.add.at(count, first, 1)
        np.add.at(count, first + sampler.length, -1)
    return np.cumsum(count)[:-1]


def _estimates(actions: np.ndarray, count: np.ndarray,
               seed: int) -> dict[str, float]:
    there = count > 0
    actions, weight = actions[there].astype(np.float64), count[there]
    return {'histogram': histogram_entropy(actions, weight),
            'gaussian': gaussian_entropy(actions, weight),
            'nearest': nearest_entropy(actions, seed)}


def nearest_entropy(actions: np.ndarray, seed: int) -> float:
    """Kozachenko and Leonenko's estimate from nearest neighbours, nats.

    ψ(n) − ψ(1) + log V + (A/n) Σ log r_i, with V the volume of the unit ball
    and r_i the distance to the nearest neighbour, among at most NEIGHBOURS
    different actions. Rows drawn several times count once: their distance
    would be 0. Returns −inf for fewer than two actions.
    """
    points = np.unique(actions, axis=0)
    if len(points) > NEIGHBOURS:
        rng = generator(seed, 'measure', 'nearest')
        points = points[rng.choice(len(points), NEIGHBOURS, replace=False)]
    count, size = points.shape
    if count < 2:
        return -np.inf
    distance = cKDTree(points).query(points, 2)[0][:, 1]
    ball = 0.5 * size * np.log(np.pi) - gammaln(0.5 * size + 1)
    return float(digamma(count) - digamma(1) + ball
                 + size * np.log(distance).mean())
