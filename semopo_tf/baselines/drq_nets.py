"""Networks, augmentation and policy noise of the DrQ family.

Baselines 3.2-3.4. Orthogonal kernels (gain √2 for convolutions), zero
biases, layer norm with PyTorch's epsilon. Images are NHWC; a stack of three
RGB frames has nine channels, oldest first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import LayerNorm, Scope
from dreamerv2_base.tf import tf

TORCH_EPS = 1e-5
# Actions stay this far inside [-1, 1] (baselines 3.3).
MARGIN = 1e-6
Layer = tuple[int, int, int]  # filters, kernel, stride


def drq_layers(filters: int) -> list[Layer]:
    """The encoder's convolutions: 84 -> 41 -> 39 -> 37 -> 35 (G13)."""
    return [(filters, 3, 2)] + [(filters, 3, 1)] * 3


def conv_sizes(size: int, layers: Sequence[Layer]) -> list[int]:
    """Height after each valid convolution, for square images."""
    sizes = []
    for _, kernel, stride in layers:
        size = (size - kernel) // stride + 1
        sizes.append(size)
    return sizes


class Linear(tf.Module):
    """y = x W (+ b), W orthogonal."""

    def __init__(self, scope: Scope, inputs: int, units: int,
                 bias: bool = True):
        super().__init__()
        self.kernel = scope.orthogonal('kernel', (inputs, units))
        self.bias = scope.constant('bias', (units,)) if bias else None

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        # As one matrix: a product per row of the batch would hold a kernel
        # gradient per row.
        y = tf.matmul(tf.reshape(x, (-1, x.shape[-1])), self.kernel)
        y = tf.reshape(y, tf.concat([tf.shape(x)[:-1], [y.shape[-1]]], 0))
        y = tf.ensure_shape(y, (*x.shape[:-1], self.kernel.shape[-1]))
        return y if self.bias is None else y + self.bias


class Trunk(tf.Module):
    """Dense -> layer norm -> tanh: the bottleneck before every head."""

    def __init__(self, scope: Scope, inputs: int, units: int):
        super().__init__()
        self._dense = Linear(scope, inputs, units)
        self._norm = LayerNorm(scope / 'norm', units, TORCH_EPS)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.tanh(self._norm(self._dense(x)))


class Head(tf.Module):
    """Two hidden ReLU layers, then a linear output of the given size."""

    def __init__(self, scope: Scope, inputs: int, hidden: int, outputs: int):
        super().__init__()
        sizes = [inputs, hidden, hidden, outputs]
        self._layers = [Linear(scope / f'dense{i}', sizes[i], sizes[i + 1])
                        for i in range(3)]

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        for layer in self._layers[:-1]:
            x = tf.nn.relu(layer(x))
        return self._layers[-1](x)


class PixelEncoder(tf.Module):
    """Stacked frames 0…255 [B, S, S, C] -> flat features [B, size].

    Normalised to x/255 − 0.5 here, after augmentation (baselines 0.3).
    Flattened in (height, width, channel) order.

    Raises UserError for images that the convolutions do not fit into.
    """

    def __init__(self, scope: Scope, image: tuple[int, int],
                 layers: Sequence[Layer]):
        super().__init__()
        side, channels = image
        self.sides = conv_sizes(side, layers)
        if self.sides[-1] < 1:
            raise UserError(
                f'drq.image_size: expected 84, found {side}, too small for '
                'the convolutions; give --drq.image_size 84')
        self._kernels, self._biases = [], []
        for i, (filters, kernel, _) in enumerate(layers):
            place = scope / f'conv{i}'
            self._kernels.append(place.orthogonal(
                'kernel', (kernel, kernel, channels, filters), math.sqrt(2)))
            self._biases.append(place.constant('bias', (filters,)))
            channels = filters
        self._strides = [stride for _, _, stride in layers]
        self.size = self.sides[-1] ** 2 * channels
        self._shape = (side, side, image[1])

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        images = tf.ensure_shape(images, (None, *self._shape))
        x = tf.cast(images, tf.float32) / 255.0 - 0.5
        for kernel, bias, stride in zip(
                self._kernels, self._biases, self._strides, strict=True):
            x = tf.nn.conv2d(x, kernel, stride, 'VALID')
            x = tf.nn.relu(tf.nn.bias_add(x, bias))
        return tf.reshape(x, (-1, self.size))


class Actor(tf.Module):
    """Features [..., F] -> the mean action μ [..., A] in (-1, 1)."""

    def __init__(self, scope: Scope, inputs: int, feature: int, hidden: int,
                 actions: int):
        super().__init__()
        self._trunk = Trunk(scope / 'trunk', inputs, feature)
        self._policy = Head(scope / 'policy', feature, hidden, actions)

    def __call__(self, features: tf.Tensor) -> tf.Tensor:
        return tf.tanh(self._policy(self._trunk(features)))


class Critic(tf.Module):
    """One trunk, two heads on (trunk output, action)."""

    HEADS = ('q1', 'q2')

    def __init__(self, scope: Scope, inputs: int, feature: int, hidden: int,
                 actions: int):
        super().__init__()
        self.trunk = Trunk(scope / 'trunk', inputs, feature)
        self._heads = [Head(scope / name, feature + actions, hidden, 1)
                       for name in self.HEADS]

    def __call__(self, features: tf.Tensor, action: tf.Tensor,
                 ) -> list[tf.Tensor]:
        """[Q1, Q2], each [B], of features [B, F] and actions [B, A]."""
        return self.scores(self.trunk(features), action)

    def scores(self, bottleneck: tf.Tensor, action: tf.Tensor,
               ) -> list[tf.Tensor]:
        """[Q1, Q2], each [...], of trunk outputs and actions [..., A].

        Several actions per row need the small trunk output repeated, never
        the encoding (baselines 4): the trunk acts on rows, with equal numbers.
        """
        pair = tf.concat([bottleneck, action], -1)
        return [tf.squeeze(head(pair), -1) for head in self._heads]


# Augmentation.


def random_shift(images: tf.Tensor, offsets: tf.Tensor,
                 pad: int = 4) -> tf.Tensor:
    """Crop of the replicate-padded images, [B, S, S, C] (baselines 3.2).

    Pixel (r, c) is padded pixel (r + y, c + x), with one pair (x, y) of
    `offsets` [B, 2], integers 0 … 2·pad, for all channels of a stack.
    Replicate padding is a clipped index, so nothing is padded or
    interpolated.
    """
    rows, columns = images.shape[1:3]
    down = tf.range(rows)[None] + offsets[:, 1:] - pad
    right = tf.range(columns)[None] + offsets[:, :1] - pad
    if tf.config.list_physical_devices('GPU'):
        # No kernel of a GPU gathers bytes; on a CPU the cast costs more time
        # than the gathers do.
        images = tf.cast(images, tf.float32)
    images = tf.gather(
        images, tf.clip_by_value(down, 0, rows - 1), axis=1, batch_dims=1)
    return tf.gather(
        images, tf.clip_by_value(right, 0, columns - 1), axis=2, batch_dims=1)


# Policy noise.


def schedule(text: str, iteration: tf.Tensor | float) -> tf.Tensor:
    """σ at an iteration of the released loop, [] (baselines 3.4).

    `text` is a number or `linear(FROM,TO,ITERATIONS)`. Raises UserError for
    anything else.
    """
    number = r'\s*([-+0-9.eE]+)\s*'
    found = re.fullmatch(rf'linear\({number},{number},{number}\)', text)
    try:
        if found is None:
            return tf.constant(float(text), tf.float32)
        first, last, duration = map(float, found.groups())
    except ValueError:
        raise UserError(
            'drq.stddev_schedule: expected a number or '
            f'linear(FROM,TO,ITERATIONS), found {text!r}; give '
            "--drq.stddev_schedule 'linear(1.0,0.1,250000)'") from None
    share = tf.clip_by_value(tf.cast(iteration, tf.float32) / duration, 0, 1)
    return (1.0 - share) * first + share * last


def straight_through(x: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """x clipped to [low, high], with the gradient of x itself."""
    return x + tf.stop_gradient(tf.clip_by_value(x, low, high) - x)


def noisy_action(mean: tf.Tensor, std: tf.Tensor, clip: float,
                 normal: tf.Tensor) -> tf.Tensor:
    """μ + clip(σ ε, ±clip), kept inside (-1, 1); gradient 1 in μ (3.3)."""
    noise = tf.clip_by_value(std * normal, -clip, clip)
    return straight_through(mean + noise, MARGIN - 1.0, 1.0 - MARGIN)


def log_prob(mean: tf.Tensor, std: tf.Tensor,
             action: tf.Tensor) -> tf.Tensor:
    """Log-density of the untruncated normal, summed over A: [...]."""
    z = (action - mean) / std
    each = -0.5 * tf.square(z) - tf.math.log(std) - 0.5 * math.log(
        2 * math.pi)
    return tf.reduce_sum(each, -1)


def entropy(std: tf.Tensor, actions: int) -> tf.Tensor:
    """Entropy of the untruncated normal in A dimensions, []."""
    return actions * (0.5 + 0.5 * math.log(2 * math.pi) + tf.math.log(std))
