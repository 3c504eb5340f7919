"""Floating-point operations of an update, counted from the shapes.

A multiply-add counts as two. Elementwise work is left out: the count is what
the matrix products and convolutions of the fast formulation must do.
"""

from __future__ import annotations

from dreamerv2_base.config import Config
from semopo_tf.settings import exo_only_c

BACKWARD = 3  # forward, gradient of the inputs, gradient of the weights


def model_update(config: Config, frames: int, actions: int,
                 plain: bool = False) -> float:
    """One update of the world model on `frames` = B·T frames.

    `plain`: as the preset of that name does it: all K heads at each step,
    and a second backward pass through the joint decoder (whose gradient
    TensorFlow's graph optimizer recognises as the first one's, and drops).
    Not counted: the inner updates of the exogenous reward head.
    """
    streams = 2 if config.separate_wm else 1
    feat, head = _feat(config), _head(config)
    per_frame = streams * (
        encoder(config.encoder.cnn_depth) + recurrence(config, actions))
    again = 0
    if config.separate_wm:
        joint = 2 * decoder(config.decoder.cnn_depth, feat, 6)
        per_frame, again = per_frame + joint, (BACKWARD - 1) * joint
        if exo_only_c(config):
            per_frame += decoder(config.decoder.cnn_depth, feat, 3)
    else:
        per_frame += decoder(config.decoder.cnn_depth, feat, 3)
    per_frame += _mlp(feat, config.reward_head.layers,
                     config.reward_head.units, 1)
    if plain:
        per_frame += streams * (config.rssm.ensemble - 1) * head
    return float(frames * (BACKWARD * per_frame + plain * again))


def policy_update(config: Config, frames: int, actions: int,
                  plain: bool = False) -> float:
    """One update of actor and critic from `frames` start states.

    World model and slow critic only pass gradients on. Embeddings are given;
    `plain`: they are not, all K heads are evaluated at each imagined step,
    the actor is evaluated again for its entropy, and gradients are taken of
    states that none reaches.
    """
    rssm, steps = config.rssm, config.imag_horizon
    feat, head = _feat(config), _head(config)
    flat = feat - rssm.deter
    heads = rssm.ensemble if plain else 1
    step = (_dense(flat + actions, rssm.hidden)
            + _dense(rssm.hidden + rssm.deter, 3 * rssm.deter) + heads * head)
    actor = _mlp(feat, config.actor.layers, config.actor.units, 2 * actions)
    critic = _mlp(feat, config.critic.layers, config.critic.units, 1)
    reward = _mlp(feat, config.reward_head.layers, config.reward_head.units, 1)
    priced = rssm.ensemble * head + reward
    filtering = recurrence(config, actions) - head + plain * encoder(
        config.encoder.cnn_depth)
    forward = steps * step + (steps + 1) * (priced + critic)
    back = (steps * step + (steps - 1 + 2 * plain) * priced
            + (steps + plain) * critic)
    trained = BACKWARD * (steps * (actor + critic)
                          + plain * (steps - 1) * actor)
    return float(frames * (filtering + forward + back + trained))


def _feat(config: Config) -> int:
    rssm = config.rssm
    return rssm.stoch * (rssm.discrete or 1) + rssm.deter


def _head(config: Config) -> int:
    rssm = config.rssm
    return (_dense(rssm.deter, rssm.hidden)
            + _dense(rssm.hidden, rssm.stoch * (rssm.discrete or 2)))


def encoder(d: int) -> int:
    """Per frame of 64x64."""
    return (_conv(31, 4, 3, d) + _conv(14, 4, d, 2 * d)
            + _conv(6, 4, 2 * d, 4 * d) + _conv(2, 4, 4 * d, 8 * d))


def decoder(d: int, feat: int, channels: int) -> int:
    """Per frame; a transposed convolution works on its input's pixels."""
    return (_dense(feat, 32 * d) + _conv(1, 5, 32 * d, 4 * d)
            + _conv(5, 5, 4 * d, 2 * d) + _conv(13, 6, 2 * d, d)
            + _conv(30, 6, d, channels))


def recurrence(config: Config, actions: int) -> int:
    """One filtering step: input, GRU, posterior and one prior head."""
    rssm = config.rssm
    flat = rssm.stoch * (rssm.discrete or 1)
    stats = rssm.stoch * (rssm.discrete or 2)
    embed = 4 * 8 * config.encoder.cnn_depth
    return (_dense(flat + actions, rssm.hidden)
            + _dense(rssm.hidden + rssm.deter, 3 * rssm.deter)
            + _dense(rssm.deter + embed, rssm.hidden)
            + _dense(rssm.deter, rssm.hidden)
            + 2 * _dense(rssm.hidden, stats))


def _mlp(inputs: int, layers: int, units: int, outputs: int) -> int:
    return (_dense(inputs, units) + (layers - 1) * _dense(units, units)
            + _dense(units, outputs))


def _dense(inputs: int, units: int) -> int:
    return 2 * inputs * units


def _conv(pixels: int, kernel: int, inputs: int, filters: int) -> int:
    return 2 * pixels ** 2 * kernel ** 2 * inputs * filters
