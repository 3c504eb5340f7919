"""Networks of InfoGating: mask network, encoder, energy. Baselines 7.1.

NHWC throughout. Encoder and energy start orthogonal as in DrQ, the mask
network as PyTorch's layers do (uniform within ±1/√fan-in).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dreamerv2_base.nets import Scope
from dreamerv2_base.tf import tf
from semopo_tf.baselines.drq_nets import (
    TORCH_EPS,
    Layer,
    Linear,
    PixelEncoder,
    Trunk,
    straight_through,
)

# Down- and up-sampling between the five levels, and their widths as multiples
# of the first.
DOWN_WIDTHS, UP_WIDTHS = (1, 1, 2, 2, 2), (2, 2, 1, 1, 1)
GROUPS = 8


def gating_layers(filters: int) -> list[Layer]:
    """The encoder's convolutions: 84 -> 14 -> 14 -> 12 -> 5 (G13)."""
    return [(filters, 6, 6), (filters, 1, 1), (filters, 3, 1),
            (2 * filters, 4, 2)]


def mask_sizes(size: int) -> list[int]:
    """Heights of the mask network's levels: 84, 42, 21, 10, 5."""
    return [size // 2 ** level for level in range(len(DOWN_WIDTHS))]


class FeatureEncoder(tf.Module):
    """Convolutions, then dense -> layer norm -> tanh: [B, feature]."""

    def __init__(self, scope: Scope, image: tuple[int, int],
                 layers: Sequence[Layer], feature: int):
        super().__init__()
        self._convs = PixelEncoder(scope, image, layers)
        self._feature = Trunk(scope / 'feature', self._convs.size, feature)

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        return self._feature(self._convs(images))


class TorchLayer(tf.Module):
    """Kernel and bias, uniform within ±1/√fan-in; no activation.

    `shape` is [in, out], or [h, w, in, out] for a convolution that keeps the
    image's size.
    """

    def __init__(self, scope: Scope, shape: Sequence[int],
                 bias: bool = True):
        super().__init__()
        limit = 1.0 / math.sqrt(math.prod(shape[:-1]))

        def uniform(size):
            return lambda rng: rng.uniform(-limit, limit, size)

        self.kernel = scope.draw('kernel', shape, uniform(shape))
        self.bias = scope.draw(
            'bias', shape[-1:], uniform(shape[-1:])) if bias else None

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        if len(self.kernel.shape) == 2:
            y = tf.matmul(x, self.kernel)
        else:
            y = tf.nn.conv2d(x, self.kernel, 1, 'SAME')
        return y if self.bias is None else tf.nn.bias_add(y, self.bias)


class Block(tf.Module):
    """3x3 convolution without bias -> group norm of 8 groups -> ReLU."""

    def __init__(self, scope: Scope, inputs: int, filters: int):
        super().__init__()
        self._conv = TorchLayer(scope, (3, 3, inputs, filters), bias=False)
        self.gamma = scope.constant('gamma', (filters,), 1.0)
        self.beta = scope.constant('beta', (filters,))

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        x = self._conv(x)
        mean = self._grouped(tf.reduce_mean(x, [1, 2], keepdims=True))
        variance = self._grouped(tf.reduce_mean(
            tf.square(x - mean), [1, 2], keepdims=True))
        scale = self.gamma * tf.math.rsqrt(variance + TORCH_EPS)
        return tf.nn.relu((x - mean) * scale + self.beta)

    def _grouped(self, channel: tf.Tensor) -> tf.Tensor:
        """Averages [B, 1, 1, C] over the channels of each group."""
        size = channel.shape[-1]
        groups = tf.reshape(channel, (-1, 1, GROUPS, size // GROUPS))
        mean = tf.reduce_mean(groups, -1, keepdims=True)
        return tf.reshape(
            tf.repeat(mean, size // GROUPS, -1), (-1, 1, 1, size))


class MaskNetwork(tf.Module):
    """U-Net: stack 0…255 [B, S, S, 3·F] -> one logit map per frame
    [B, S, S, F].

    Args:
      image: side and channels of a stack.
      frames: F.
      filters: width of the first level. units: of the bottleneck.
    """

    def __init__(self, scope: Scope, image: tuple[int, int], frames: int,
                 filters: int, units: int):
        super().__init__()
        side, channels = image
        self._sides = mask_sizes(side)
        down = [filters * width for width in DOWN_WIDTHS]
        up = [filters * width for width in UP_WIDTHS]
        inputs = [channels, *down[:-1]]
        self._down = [Block(scope / f'down{i}', inputs[i], width)
                      for i, width in enumerate(down)]
        inputs = [down[-1], *up[:-1]]
        self._up = [Block(scope / f'up{i}', inputs[i] + down[-1 - i], width)
                    for i, width in enumerate(up)]
        flat = self._sides[-1] ** 2 * down[-1]
        sizes = [flat, units, units, flat]
        self._middle = [TorchLayer(scope / f'mlp{i}', sizes[i:i + 2])
                        for i in range(3)]
        self._final = TorchLayer(scope / 'final', (1, 1, up[-1], frames))

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        x = tf.cast(images, tf.float32) / 255.0 - 0.5
        skips = []
        for level, block in enumerate(self._down):
            if level:
                x = resized(x, self._sides[level])
            x = block(x)
            skips.append(x)
        y = tf.reshape(x, (-1, math.prod(x.shape[1:])))
        for layer in self._middle:
            y = tf.nn.relu(layer(y))
        x = tf.reshape(y, (-1, *x.shape[1:]))
        for level, block in enumerate(self._up):
            if level:
                x = resized(x, self._sides[-1 - level])
            x = block(tf.concat([x, skips[-1 - level]], -1))
        return self._final(x)


def resized(x: tf.Tensor, size: int) -> tf.Tensor:
    """Nearest neighbour to size x size; output i takes input ⌊i·in/out⌋.

    Written as slices and copies, or as a product with a 0/1 matrix where the
    sizes do not divide: exact, and its gradient is deterministic everywhere.
    """
    old, channels = x.shape[1], x.shape[3]
    if size < old and old // size == 2:
        return x[:, :2 * size:2, :2 * size:2]
    if size % old == 0:
        times = size // old
        x = tf.reshape(x, (-1, old, 1, old, 1, channels))
        x = tf.broadcast_to(x, (
            tf.shape(x)[0], old, times, old, times, channels))
        return tf.reshape(x, (-1, size, size, channels))
    picks = np.zeros((size, old), np.float32)
    picks[np.arange(size), np.arange(size) * old // size] = 1.0
    return tf.einsum('ij,kl,bjlc->bikc', picks, picks, x)


def mask_of(logits: tf.Tensor) -> tf.Tensor:
    """m = relu(tanh g): 0 hides, 1 shows."""
    return tf.nn.relu(tf.tanh(logits))


def perturbed(logits: tf.Tensor, normal: tf.Tensor, std: float,
              clip: float) -> tf.Tensor:
    """g + clip(std·ε, ±clip), kept in [−1, 1] straight through."""
    noise = tf.clip_by_value(std * normal, -clip, clip)
    return straight_through(logits + noise, -1.0, 1.0)


def gated(images: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Frames times their masks: hidden pixels become 0, black (trap 20).

    Args:
      images: [B, S, S, 3·F], 0…255. mask: [B, S, S, F], one per frame, for
        its red, green and blue alike.
    """
    images = tf.cast(images, tf.float32)
    return images * tf.repeat(mask, images.shape[-1] // mask.shape[-1], -1)


class BatchNorm(tf.Module):
    """Batch normalisation over all axes but the last, training mode.

    Running statistics are kept as PyTorch keeps them (weight 0.1 on the new
    value, unbiased variance); nothing of the method reads them.
    """

    MOMENTUM = 0.1

    def __init__(self, scope: Scope, size: int):
        super().__init__()
        self.gamma = scope.constant('gamma', (size,), 1.0)
        self.beta = scope.constant('beta', (size,))
        self.running_mean = scope.constant('running_mean', (size,))
        self.running_var = scope.constant('running_var', (size,), 1.0)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        axes = list(range(x.shape.rank - 1))
        mean = tf.reduce_mean(x, axes)
        variance = tf.reduce_mean(tf.square(x - mean), axes)
        rows = tf.cast(tf.size(x) / x.shape[-1], tf.float32)
        self._keep(self.running_mean, mean)
        self._keep(self.running_var, variance * rows / (rows - 1.0))
        scale = self.gamma * tf.math.rsqrt(variance + TORCH_EPS)
        return (x - mean) * scale + self.beta

    def _keep(self, running: tf.Variable, value: tf.Tensor) -> None:
        running.assign_add(self.MOMENTUM * (
            tf.stop_gradient(value) - running))


class Energy(tf.Module):
    """e(z, z_k, a) for several actions of each pair, [B, n].

    Dense without bias on (z, z_k, a) -> batch norm -> ReLU -> dense 1.
    """

    def __init__(self, scope: Scope, feature: int, action_size: int,
                 units: int):
        super().__init__()
        self._hidden = Linear(
            scope / 'hidden', 2 * feature + action_size, units, bias=False)
        self._norm = BatchNorm(scope / 'norm', units)
        self._out = Linear(scope / 'out', units, 1)
        self._split = 2 * feature

    @property
    def trained(self) -> dict[str, tf.Variable]:
        """Variables that an optimizer steps: all but running statistics."""
        return {v.name.removesuffix(':0'): v
                for v in self.trainable_variables
                if 'running_' not in v.name}

    def __call__(self, now: tf.Tensor, later: tf.Tensor,
                 actions: tf.Tensor) -> tf.Tensor:
        """now, later [B, F], actions [B, n, A]."""
        # The pair's share is the same for all its actions: computed once.
        kernel = self._hidden.kernel
        pair = tf.matmul(tf.concat([now, later], -1), kernel[:self._split])
        hidden = pair[:, None] + tf.einsum(
            'bna,ah->bnh', actions, kernel[self._split:])
        return tf.squeeze(self._out(tf.nn.relu(self._norm(hidden))), -1)
