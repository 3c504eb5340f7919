"""How much memory a configuration needs, from its shapes.

An estimate, with its derivation: what a training step must keep for the
backward pass, counted array by array, times the bytes of an activation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from dreamerv2_base.config import Config
from dreamerv2_base.errors import NoRoomError
from semopo_tf.registry import method_name
from semopo_tf.settings import exo_only_c

GIB = 2 ** 30
ENCODER_SIZES = (31, 14, 6, 2)     # feature maps of a 64-pixel image
DECODER_SIZES = (5, 13, 30, 64)


NO_ROOM = ('memory: expected room for an update, found the device full; give '
           '--slice_frames 400, or smaller batches '
           '(--offline_model_dataset.batch, --drq.batch_size); what was saved '
           'stays')


def available() -> int:
    """Bytes that a new process can have: free ones and the files' cache.

    Of the machine; a limit of a container or of a cluster's job is not seen.
    """
    return int(psutil.virtual_memory().available)


@contextlib.contextmanager
def expecting_room() -> Iterator[None]:
    """Say in one line that the device is full. Raises NoRoomError."""
    from dreamerv2_base.tf import is_full
    try:
        yield
    except Exception as error:
        if is_full(error):
            raise NoRoomError(NO_ROOM) from error
        raise


@dataclass(frozen=True)
class Estimate:
    """Bytes by purpose; `total` and a printable derivation."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def lines(self) -> list[str]:
        rows = [f'{name:<58}{size / GIB:6.2f} GiB'
                for name, size in self.parts.items()]
        return [*rows, f'{"sum":<58}{self.total / GIB:6.2f} GiB']


def training(config: Config, weights: int) -> Estimate:
    """Peak device memory of a model update at the configured batch.

    Each convolution keeps its output before and after the activation (the
    gradient of ELU reads the latter, that of the convolution its input); the
    gradients flowing back need about the two largest maps once more. Of
    encoders and decoders, `slice_frames` frames at a time.
    """
    size = config.offline_model_dataset
    frames = size.batch * size.length
    at_once = min(config.slice_frames or frames, frames)
    item = 4 if config.precision == '32' else 2
    depth, streams = config.encoder.cnn_depth, 2 if config.separate_wm else 1
    encoder = 2 * sum(s * s * depth * 2 ** i
                      for i, s in enumerate(ENCODER_SIZES)) + 64 * 64 * 3
    decoders = _decoder_elements(config)
    rssm = _recurrent_elements(config)
    last = 64 * 64 * 6 + 30 * 30 * config.decoder.cnn_depth * 2
    parts = {
        f'weights, gradients, Adam: 4 x {weights:,} x 4 B': 16.0 * weights,
        f'frames, uint8 and {item} B: {frames} x 12288': (
            frames * 12288.0 * (1 + item)),
        f'encoders: {streams} x {at_once} x {encoder:,} x {item} B': (
            float(streams * at_once * encoder * item)),
        f'decoders: {at_once} x {decoders:,} x {item} B': (
            float(at_once * decoders * item)),
        f'image likelihoods: {2 * streams} x {at_once} x 12288 x 4 B': (
            2.0 * streams * at_once * 12288 * 4),
        f'recurrence: {streams} x {frames} x {rssm:,} x {item} B': (
            float(streams * frames * rssm * item)),
        f'backward pass: 2 x {at_once} x {last:,} x {item} B': (
            2.0 * at_once * last * item),
        'TensorFlow and CUDA context (assumed)': 1.0 * GIB,
    }
    return Estimate(parts)


def pixel_training(config: Config, weights: int) -> Estimate:
    """Peak memory of an update of the pixel methods (DrQ+BC, DrQ+CQL, BC,
    InfoGating) at `drq.batch_size`, 32 bits.

    A convolution keeps its output before and after the activation; the
    gradients flowing back need the two largest maps once more.
    """
    from semopo_tf.baselines.drq_nets import conv_sizes, drq_layers
    drq, name = config.drq, method_name(config)
    gating = name == 'infogating'
    with_next = name.startswith('drq') or (
        gating and config.infogating.head == 'drq_bc')
    pixels = drq.image_size ** 2 * 3 * drq.frame_stack
    stacks = drq.batch_size * (1 + with_next + gating)
    parts = {
        f'weights, gradients, Adam: 4 x {weights:,} x 4 B': 16.0 * weights,
        f'stacks, uint8 twice and 4 B: {stacks} x {pixels:,}': (
            6.0 * stacks * pixels)}
    if gating:
        parts |= _gating_parts(config)
    else:
        layers = drq_layers(drq.filters)
        sides = conv_sizes(drq.image_size, layers)
        maps = [side ** 2 * drq.filters for side in sides]
        kept = 2 * sum(maps) + 2 * max(maps) + with_next * 2 * max(maps)
        parts[f'encoder: {drq.batch_size} x {kept:,} x 4 B'] = (
            4.0 * drq.batch_size * kept)
        rows = drq.batch_size * (
            1 + (3 * drq.cql_samples if name == 'drq_cql' else 0))
        heads = 1 if name == 'bc' else 2
        parts[f'heads: {heads} x {rows} x 6 x {drq.hidden_dim} x 4 B'] = (
            24.0 * heads * rows * drq.hidden_dim)
    parts['TensorFlow (assumed)'] = 0.6 * GIB
    return Estimate(parts)


def _gating_parts(config: Config) -> dict[str, float]:
    """InfoGating's encoder, mask network and energy, two stacks a row."""
    from semopo_tf.baselines.drq_nets import conv_sizes
    from semopo_tf.baselines.infogating_nets import (
        DOWN_WIDTHS,
        UP_WIDTHS,
        gating_layers,
        mask_sizes,
    )
    drq, gate = config.drq, config.infogating
    rows = 2 * drq.batch_size
    layers = gating_layers(gate.filters)
    encoder = 2 * sum(side ** 2 * layer[0] for side, layer in zip(
        conv_sizes(drq.image_size, layers), layers, strict=True))
    encoder += 2 * drq.image_size ** 2 * 3 * drq.frame_stack  # gated, shown
    sides = mask_sizes(drq.image_size)
    levels = [*zip(sides, DOWN_WIDTHS, strict=True),
              *zip(sides[::-1], UP_WIDTHS, strict=True)]
    # A block: convolution, centred, scaled, after ReLU; up: its inputs too.
    masks = sum((4 + 2 * (i >= len(sides))) * side ** 2 * width
                for i, (side, width) in enumerate(levels))
    masks *= gate.mask_filters
    pairs = drq.batch_size * (gate.negatives + 1)
    return {
        f'encoder: {rows} x {encoder:,} x 4 B': 4.0 * rows * encoder,
        f'mask network: {rows} x {masks:,} x 4 B': 4.0 * rows * masks,
        f'energy: {pairs:,} x 8 x {gate.energy_units} x 4 B': (
            32.0 * pairs * gate.energy_units)}


def dataset_disk(rows: int, image_size: int, action_size: int) -> int:
    """Bytes of the mapped arrays of a folder with `rows` rows."""
    return rows * (image_size ** 2 * 3 + 4 * action_size + 4 + 3)


def _decoder_elements(config: Config) -> int:
    depth = config.decoder.cnn_depth

    def maps(channels: int) -> int:
        widths = (4 * depth, 2 * depth, depth)
        hidden = sum(2 * s * s * w for s, w in
                     zip(DECODER_SIZES, widths, strict=False))
        return 32 * depth + hidden + 64 * 64 * channels

    if not config.separate_wm:
        return maps(3)
    both = 2 * maps(6) + 64 * 64 * (6 + 1 + 3)
    return both + (maps(3) if exo_only_c(config) else 0)


def _recurrent_elements(config: Config) -> int:
    rssm = config.rssm
    stats = rssm.stoch * (rssm.discrete or 2)
    # Input layer, GRU (gates three times), both heads, samples and draws.
    return (4 * rssm.hidden + 12 * rssm.deter + 8 * stats
            + 2 * (rssm.stoch * (rssm.discrete or 1)))
