"""Floating-point operations of an update, counted from the shapes.

A multiply-add counts as two. Elementwise work is left out: the count is what
the matrix products and convolutions of the fast formulation must do.
"""

from __future__ import annotations

BACKWARD = 3  # forward, gradient of the inputs, gradient of the weights


def model_update(config, frames: int, actions: int) -> float:
    """One update of the world model on `frames` = B·T frames."""
    streams = 2 if config.separate_wm else 1
    feat = config.rssm.stoch * (
        config.rssm.discrete or 1) + config.rssm.deter
    per_frame = streams * (
        encoder(config.encoder.cnn_depth) + recurrence(config, actions))
    if config.separate_wm:
        per_frame += 2 * decoder(config.decoder.cnn_depth, feat, 6)
        if config.exo_only_decoder and config.disen_scales.disen_only:
            per_frame += decoder(config.decoder.cnn_depth, feat, 3)
    else:
        per_frame += decoder(config.decoder.cnn_depth, feat, 3)
    per_frame += mlp(feat, config.reward_head.layers,
                     config.reward_head.units, 1)
    return float(BACKWARD * frames * per_frame)


def policy_update(config, frames: int, actions: int) -> float:
    """One update of actor and critic from `frames` start states, embeddings
    given. World model and slow critic only pass gradients on."""
    rssm, steps = config.rssm, config.imag_horizon
    flat = rssm.stoch * (rssm.discrete or 1)
    stats = rssm.stoch * (rssm.discrete or 2)
    feat = flat + rssm.deter
    head = dense(rssm.deter, rssm.hidden) + dense(rssm.hidden, stats)
    step = (dense(flat + actions, rssm.hidden)
            + dense(rssm.hidden + rssm.deter, 3 * rssm.deter) + head)
    actor = mlp(feat, config.actor.layers, config.actor.units, 2 * actions)
    critic = mlp(feat, config.critic.layers, config.critic.units, 1)
    reward = mlp(feat, config.reward_head.layers, config.reward_head.units, 1)
    filtering = recurrence(config, actions) - head
    frozen = 2 * (steps * step + (steps + 1) * (
        rssm.ensemble * head + reward + critic))
    trained = BACKWARD * (steps * actor + (steps - 1) * actor
                          + steps * critic)
    return float(frames * (filtering + frozen + trained))


def encoder(d: int) -> int:
    """Per frame of 64x64."""
    return (conv(31, 4, 3, d) + conv(14, 4, d, 2 * d)
            + conv(6, 4, 2 * d, 4 * d) + conv(2, 4, 4 * d, 8 * d))


def decoder(d: int, feat: int, channels: int) -> int:
    """Per frame; a transposed convolution works on its input's pixels."""
    return (dense(feat, 32 * d) + conv(1, 5, 32 * d, 4 * d)
            + conv(5, 5, 4 * d, 2 * d) + conv(13, 6, 2 * d, d)
            + conv(30, 6, d, channels))


def recurrence(config, actions: int) -> int:
    """One filtering step: input, GRU, posterior and one prior head."""
    rssm = config.rssm
    flat = rssm.stoch * (rssm.discrete or 1)
    stats = rssm.stoch * (rssm.discrete or 2)
    embed = 4 * 8 * config.encoder.cnn_depth
    return (dense(flat + actions, rssm.hidden)
            + dense(rssm.hidden + rssm.deter, 3 * rssm.deter)
            + dense(rssm.deter + embed, rssm.hidden)
            + dense(rssm.deter, rssm.hidden)
            + 2 * dense(rssm.hidden, stats))


def mlp(inputs: int, layers: int, units: int, outputs: int) -> int:
    return (dense(inputs, units) + (layers - 1) * dense(units, units)
            + dense(units, outputs))


def dense(inputs: int, units: int) -> int:
    return 2 * inputs * units


def conv(pixels: int, kernel: int, inputs: int, filters: int) -> int:
    return 2 * pixels ** 2 * kernel ** 2 * inputs * filters
