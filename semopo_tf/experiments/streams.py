"""The latent streams of a trained world model, filtered on real episodes.

A model has the streams `endogenous` and `exogenous` (SeMOPO and its
ablations) or `joint` alone (Offline DV2, LOMPO).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.logger import Progress
from dreamerv2_base.noise import CounterDraws, generator
from dreamerv2_base.rssm import EnsembleRSSM, State
from dreamerv2_base.store import EpisodeStore
from dreamerv2_base.tf import tensors, tf
from dreamerv2_base.world_model import WorldModel
from semopo_tf import registry
from semopo_tf.separated_model import SeparatedWorldModel

Arrays = dict[str, np.ndarray]
States = dict[str, Arrays]  # by stream

EARLIEST = 10  # first row from which a transition is measured (10.5)
CHUNK = 50     # rows that a filter sees at most, as in training
BLOCK = 25     # chunks filtered at a time; fixed, so that numbers repeat


@dataclass(frozen=True)
class Stream:
    """One latent stream; `acts`: its RSSM is given the actions."""

    name: str
    encoder: tf.Module
    rssm: EnsembleRSSM
    acts: bool = True


def model_of(method: Any, config: Config) -> WorldModel:
    """The world model of a SeMOPO, Offline DV2 or LOMPO."""
    if registry.method_name(config) == 'lompo':
        return method.model
    return method.agent.world_model


def streams_of(model: WorldModel) -> list[Stream]:
    """The streams of a model, the one that the policy uses first."""
    if not isinstance(model, SeparatedWorldModel):
        return [Stream('joint', model.encoder, model.rssm)]
    return [Stream('endogenous', model.encoder, model.rssm),
            Stream('exogenous', model.exo_encoder, model.exo_rssm,
                   model.config.disen_action_type != 'none')]


class Filter:
    """Posterior states of chunks or whole episodes, all streams at once.

    Draws are functions of (`seed`, `purpose`, number of the call): two
    quantities of the same purpose see the same states.
    """

    def __init__(self, model: WorldModel, seed: int, purpose: str):
        self.model, self.streams = model, streams_of(model)
        self._seed, self._purpose = seed, purpose

    def __call__(self, batch: Mapping[str, np.ndarray], counter: int,
                 ) -> dict[str, State]:
        """Sampled posteriors [B, T, ...] by stream.

        `batch` holds image, action, reward, is_first, is_terminal [B, T, …].
        """
        return self._run(tensors(batch), tf.constant(counter, tf.int64))

    @functools.partial(tf.function, autograph=False)
    def _run(self, batch, counter):
        draws = CounterDraws(self._seed, f'measure/{self._purpose}', counter)
        data = self.model.preprocess(batch)
        found = {}
        for stream in self.streams:
            action = data['action']
            if not stream.acts:
                action = tf.zeros_like(action)
            found[stream.name], _ = stream.rssm.observe(
                stream.encoder(data['image']), action, data['is_first'],
                draws.scope(stream.name), learn=False)
        return found


def places(rows: np.ndarray, count: int, seed: int, purpose: str,
           ) -> np.ndarray:
    """`count` transitions as int [count, 2]: episode, row t.

    An episode is uniform among those that are long enough, t uniform in
    EARLIEST … rows − 2, with replacement: a function of the seed, the purpose
    and the episodes' lengths alone. Specification of the baselines 10.5.
    Raises UserError when all episodes are too short.
    """
    long = np.flatnonzero(rows >= EARLIEST + 2)
    if not len(long):
        raise UserError(
            f'measure: expected episodes of at least {EARLIEST + 2} rows, '
            f'found at most {rows.max(initial=0)}; give other data')
    rng = generator(seed, 'measure', purpose)
    episodes = long[rng.integers(len(long), size=count)]
    return np.stack([
        episodes, rng.integers(EARLIEST, rows[episodes] - 1)], 1)


def states_at(filtered: Filter, store: EpisodeStore, index: np.ndarray,
              ) -> States:
    """States of rows `index` int [n, 2] (episode, row), by stream.

    Each is filtered from the start of the chunk of CHUNK rows that ends with
    it, or from the start of the episode. Arrays [n, ...] float32: 'stoch'
    (sampled), 'deter' and the statistics.
    """
    parts: dict[str, list[Arrays]] = {s.name: [] for s in filtered.streams}
    bar = Progress(len(index), 0, 'states')
    for number, first in enumerate(range(0, len(index), BLOCK)):
        some = index[first:first + BLOCK]
        # Filled up, so that one graph serves all.
        full = np.concatenate([some, np.repeat(some[-1:], BLOCK - len(some),
                                               0)])
        batch, last = chunks_ending_at(store, full)
        for name, state in filtered(batch, number).items():
            parts[name].append({
                key: tf.gather(value, last, batch_dims=1).numpy()
                [:len(some)].astype(np.float32)
                for key, value in state.items()})
        bar.update(len(some))
    bar.close()
    return {name: {key: np.concatenate([part[key] for part in found])
                   for key in found[0]} for name, found in parts.items()}


def chunks_ending_at(store: EpisodeStore, index: np.ndarray,
                     ) -> tuple[Arrays, np.ndarray]:
    """Chunks [n, CHUNK, ...] and where in each the row of `index` is, [n].

    Rows that an episode does not have are zeros; they follow the wanted one,
    so that a filter never sees them before it. `is_first` is as in training.
    """
    starts = np.maximum(index[:, 1] + 1 - CHUNK, 0)
    cut = []
    for (number, _), start in zip(index, starts, strict=True):
        rows = min(int(store.rows[number]) - int(start), CHUNK)
        cut.append(store.slice(int(number), int(start), rows))
    batch = stacked(cut, CHUNK)
    return batch, index[:, 1] - starts


def stacked(episodes: Sequence[Mapping[str, np.ndarray]], length: int,
            ) -> Arrays:
    """Episodes or parts of them -> one batch [n, length, ...], padded."""
    keys = ('image', 'action', 'reward', 'is_terminal')
    batch = {}
    for key in keys:
        sample = episodes[0][key]
        batch[key] = np.zeros(
            (len(episodes), length, *sample.shape[1:]), sample.dtype)
        for row, episode in enumerate(episodes):
            batch[key][row, :len(episode[key])] = episode[key]
    batch['is_first'] = np.zeros((len(episodes), length), bool)
    batch['is_first'][:, 0] = True
    return batch


def whole_episodes(filtered: Filter,
                   episodes: list[Mapping[str, np.ndarray]]) -> list[States]:
    """States [L, ...] of every row of some episodes, float32, by stream.

    Each is filtered from its start, as when acting.
    """
    longest = max(len(one['reward']) for one in episodes)
    found, bar = [], Progress(len(episodes), 0, 'episodes')
    for number, episode in enumerate(episodes):
        rows = len(episode['reward'])
        states = filtered(stacked([episode], longest), number)
        found.append({name: {
            key: value[0, :rows].numpy().astype(np.float32)
            for key, value in state.items()}
            for name, state in states.items()})
        bar.update(1)
    bar.close()
    return found


def rows_of(states: list[States], index: np.ndarray) -> States:
    """Rows `index` [n, 2] of the states of episodes, [n, ...] by stream."""
    return {name: {
        key: np.stack([states[e][name][key][row] for e, row in index])
        for key in state} for name, state in states[0].items()}


def features(rssm: EnsembleRSSM, state: Mapping[str, np.ndarray],
             ) -> np.ndarray:
    """Features [n, F] of states [n, ...], float32."""
    return rssm.get_feat({key: tf.cast(value, rssm.dtype)
                          for key, value in state.items()}).numpy().astype(
                              np.float32)
