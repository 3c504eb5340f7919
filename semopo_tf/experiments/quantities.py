"""What a trained world model is looked at for: figures 2, 3, 5, 7 and 8.

Specification of the baselines 10.4 and 10.5. States are chosen by the seed
and the data alone, so all methods of a set are measured on the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dreamerv2_base.config import Config
from dreamerv2_base.distributions import DiagonalNormal, OneHot
from dreamerv2_base.errors import UserError
from dreamerv2_base.noise import generator
from dreamerv2_base.rssm import EnsembleRSSM
from dreamerv2_base.store import EpisodeStore
from dreamerv2_base.tf import tf
from semopo_tf import penalties
from semopo_tf.experiments.streams import (
    Arrays,
    Filter,
    features,
    places,
    states_at,
)
from semopo_tf.separated_model import SeparatedWorldModel

FRAMES = 8      # of figure 3
EPISODES = 3    # of figure 5 …
SPACED = 10     # … and rows of each
NEXT = np.array([0, 1])  # from (episode, t) to (episode, t + 1)


# Uncertainty.


def uncertainty(filtered: Filter, store: EpisodeStore, samples: int, seed: int,
                ) -> Arrays:
    """`uncertainty/<stream>/{u,md,vlp,log_prob,…}` on `samples` transitions.

    Transition t is judged where it arrives: all K heads on the deterministic
    state that the data's own action t leads to, against the posterior sample
    of row t + 1, or (`vlp_prior`, `log_prob_prior`) against a sample of one
    of the heads: 10.5 leaves open which. Also `uncertainty/index` [n, 2], the
    (episode, t), and `uncertainty/penalty`, what u is (`penalty_of`).
    """
    index = places(store.rows, samples, seed, 'uncertainty')
    states = states_at(filtered, store, index + NEXT)
    name = penalty_of(filtered.model.config)
    found = {'uncertainty/index': index, 'uncertainty/penalty': np.array(name)}
    for stream in filtered.streams:
        rng = generator(seed, 'measure', 'prior', stream.name)
        for key, value in ensemble_uncertainty(
                stream.rssm, states[stream.name], name, rng).items():
            found[f'uncertainty/{stream.name}/{key}'] = value
    return found


def penalty_of(config: Config) -> str:
    """The penalty that is measured as a run's u: its own.

    Its mean disagreement where it has no `offline_penalty_type` (LOMPO, whose
    penalties are of a kind of their own, and runs without any).
    """
    name = config.offline_penalty_type
    name = penalties.RELEASED_NAMES.get(name, name)
    return 'mean_disagreement' if name == 'none' else name


def ensemble_uncertainty(
        rssm: EnsembleRSSM, state: Mapping[str, np.ndarray], penalty: str,
        rng: np.random.Generator | None = None) -> Arrays:
    """How far the K heads are apart in states [n, ...].

    Returns those of `judged`, float32; with `rng` those that depend on the
    next state also as `…_prior`, for one that a head foretells.
    """
    parts = []
    # All heads of many states at once would not fit.
    for first in range(0, len(state['deter']), 100):
        part = slice(first, first + 100)
        stats = rssm.ensemble_stats(tf.cast(state['deter'][part], rssm.dtype))
        found = judged(stats, tf.constant(state['stoch'][part]), penalty)
        if rng is not None:
            foretold = judged(
                stats, tf.constant(head_sample(stats, rng)), penalty)
            found |= {f'{key}_prior': foretold[key]
                      for key in ('vlp', 'log_prob')}
        parts.append(found)
    return {key: np.concatenate([part[key] for part in parts])
            for key in parts[0]}


def judged(stats: penalties.Stats, stoch: tf.Tensor, penalty: str) -> Arrays:
    """Uncertainties of K heads' statistics [K, n, ...], float32.

    'u' [n]: the `penalty` of that name.
    'md' [n]: the released `meandis` (LOMPO's `mean` for Gaussian latents).
    'vlp' [n]: the standard deviation over heads of log p_k(stoch), which is
    what both code bases compute under a name that says variance.
    'log_prob' [n, K]: the log p_k themselves, so that either can be had.
    """
    stats = {key: tf.cast(value, tf.float32) for key, value in stats.items()}
    stoch = tf.cast(stoch, tf.float32)
    dist = (OneHot(stats['logit']) if 'logit' in stats
            else DiagonalNormal(stats['mean'], stats['std']))
    own = penalties.penalty_by_name(penalty)
    return {'u': own(stats, stoch).numpy(),
            'md': penalties.mean_disagreement(stats, stoch).numpy(),
            'vlp': penalties.log_prob(stats, stoch).numpy(),
            'log_prob': tf.transpose(dist.log_prob(stoch)).numpy()}


def head_sample(stats: penalties.Stats, rng: np.random.Generator,
                ) -> np.ndarray:
    """A sample [n, ...] of one of K heads, drawn anew for each state.

    `stats`: the K heads' statistics [K, n, ...].
    """
    values = {key: tf.cast(value, tf.float32).numpy()
              for key, value in stats.items()}
    heads, count = next(iter(values.values())).shape[:2]
    head = rng.integers(heads, size=count)
    own = {key: value[head, np.arange(count)]
           for key, value in values.items()}
    if 'logit' in own:  # the largest of logits and Gumbel noise is a draw
        noisy = own['logit'] + rng.gumbel(size=own['logit'].shape)
        classes = np.eye(noisy.shape[-1], dtype=np.float32)
        return classes[noisy.argmax(-1)]
    noise = rng.standard_normal(own['mean'].shape)
    return (own['mean'] + own['std'] * noise).astype(np.float32)


# What actions decide.


def action_information(filtered: Filter, store: EpisodeStore, samples: int,
                       seed: int) -> Arrays:
    """`action_information/<stream>` [n], nats, of streams that see actions.

    KL(q_{t+1} ‖ p(· | s_t, a')) − KL(q_{t+1} ‖ p(· | s_t, a_t)) on
    transitions t of the data, a' being the action of another one: its mean
    estimates I(next state; action | state). Near 0 where a stream holds
    nothing that actions move (ours; starts.py judges by it).
    Raises UserError where there is no other transition.
    """
    if samples < 2:
        raise UserError('action_information: expected at least 2 samples, '
                        f'found {samples}; give --samples 1000')
    index = places(store.rows, samples, seed, 'action_information')
    before = states_at(filtered, store, index)
    after = states_at(filtered, store, index + NEXT)
    action = tf.constant(np.stack([
        store.slice(int(number), int(row) + 1, 1)['action'][0]
        for number, row in index]))
    found = {'action_information/index': index}
    for stream in filtered.streams:
        if stream.acts:
            own, other = (stream.rssm.surprise(
                before[stream.name], taken, after[stream.name])
                for taken in (action, tf.roll(action, 1, 0)))
            found[f'action_information/{stream.name}'] = (other - own).numpy()
    return found


# Frames with their uncertainty.


def frames(filtered: Filter, store: EpisodeStore, seed: int) -> Arrays:
    """FRAMES frames and u of the transition into each, by stream.

    `frames/index` [F, 2] is (episode, row) of the frame shown,
    `frames/penalty` what u is (`penalty_of`).
    """
    index = places(store.rows, FRAMES, seed, 'frames') + NEXT
    states = states_at(filtered, store, index)
    name = penalty_of(filtered.model.config)
    found = {'frames/index': index, 'frames/image': images(store, index),
             'frames/penalty': np.array(name)}
    for stream in filtered.streams:
        found[f'frames/{stream.name}/u'] = ensemble_uncertainty(
            stream.rssm, states[stream.name], name)['u']
    return found


def images(store: EpisodeStore, index: np.ndarray) -> np.ndarray:
    """Frames of rows `index` [n, 2], uint8 [n, h, w, 3]."""
    return np.stack([store.slice(int(number), int(row), 1)['image'][0]
                     for number, row in index])


# Reconstructions.


def reconstruction(filtered: Filter, store: EpisodeStore, seed: int) -> Arrays:
    """Frames and what the model makes of their posteriors, [E, T, h, w, C].

    `model` is the model's mean; of a separated model also the unmasked means
    of both mask decoders, as the released report shows them, and the mask.
    """
    index = spaced(store.rows, seed)
    states = states_at(filtered, store, index)
    shown = decoded(filtered, states)
    shown['image'] = images(store, index)
    shape = (-1, SPACED)
    found = {f'reconstruction/{name}': value.reshape(
        *shape, *value.shape[1:]) for name, value in shown.items()}
    return {'reconstruction/index': index.reshape(*shape, 2), **found}


def spaced(rows: np.ndarray, seed: int) -> np.ndarray:
    """SPACED rows of each of at most EPISODES episodes, int [E·T, 2]."""
    rng = generator(seed, 'measure', 'reconstruction')
    count = min(EPISODES, len(rows))
    episodes = np.sort(rng.choice(len(rows), count, replace=False))
    return np.array([
        (episode, row) for episode in episodes for row in
        np.linspace(0, rows[episode] - 1, SPACED + 1).round()[1:]], int)


def decoded(filtered: Filter, states: Mapping[str, Arrays]) -> Arrays:
    """Means uint8 [n, h, w, 3] of states [n, ...]; 'mask' float32."""
    model = filtered.model
    feat = {stream.name: features(stream.rssm, states[stream.name])
            for stream in filtered.streams}
    count = len(next(iter(feat.values())))
    parts = []
    for first in range(0, count, 100):
        some = {name: tf.cast(value[first:first + 100], model.dtype)
                for name, value in feat.items()}
        parts.append(_decode(model, some))
    return {key: np.concatenate([part[key] for part in parts])
            for key in parts[0]}


def _decode(model, feat: Mapping[str, tf.Tensor]) -> Arrays:
    if not isinstance(model, SeparatedWorldModel):
        return {'model': _uint8(model.decode(feat['joint']))}
    means = model.decoder(feat['endogenous'], feat['exogenous'])
    return {'model': _uint8(means['joint']),
            'endogenous': _uint8(means['endogenous']),
            'exogenous': _uint8(means['exogenous']),
            'mask': means['mask'].numpy().astype(np.float32)}


def _uint8(mean: tf.Tensor) -> np.ndarray:
    """A mean in [-0.5, 0.5] as an image."""
    image = (tf.cast(mean, tf.float32) + 0.5).numpy() * 255
    return np.clip(image.round(), 0, 255).astype(np.uint8)
