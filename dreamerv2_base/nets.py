"""Layers, MLP heads, image encoder and decoder. Spec section 2.

Variables are float32, named by their place (`world_model/encoder/conv0/kernel`)
and created at once, so that a model's shapes are known before any data.
Activations are in the compute dtype; what leaves a network towards a
distribution is float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dreamerv2_base import noise
from dreamerv2_base.distributions import Bernoulli, UnitNormal
from dreamerv2_base.errors import UserError
from dreamerv2_base.sums import branches
from dreamerv2_base.tf import tf

ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    'none': tf.identity,
    'elu': tf.nn.elu,
    'relu': tf.nn.relu,
    'swish': tf.nn.silu,
    'tanh': tf.tanh,
}


def activation(name: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """Activation by config name. Raises UserError for an unknown one."""
    if name not in ACTIVATIONS:
        raise UserError(
            f'activation: expected one of {sorted(ACTIVATIONS)}, found '
            f'{name!r}; give --.*[.]act NAME')
    return ACTIVATIONS[name]


class Scope:
    """A place in the tree of variables: names them and draws initial values.

    Initial values depend on (seed, full name) alone, so adding a layer does
    not change the others.
    """

    def __init__(self, seed: int, path: str = '',
                 dtype: tf.DType = tf.float32):
        self.seed, self.path, self.dtype = seed, path, dtype

    def __truediv__(self, name: str) -> Scope:
        path = f'{self.path}/{name}' if self.path else name
        return Scope(self.seed, path, self.dtype)

    def constant(self, name: str, shape: Sequence[int],
                 value: float = 0.0) -> tf.Variable:
        return self._make(name, np.full(shape, value, np.float32))

    def glorot(self, name: str, shape: Sequence[int]) -> tf.Variable:
        """Glorot uniform; the last two axes are (in, out) or (out, in)."""
        receptive = math.prod(shape[:-2])
        limit = math.sqrt(6.0 / (receptive * (shape[-2] + shape[-1])))
        return self._draw(
            name, lambda rng: rng.uniform(-limit, limit, shape))

    def orthogonal(self, name: str, shape: Sequence[int],
                   gain: float = 1.0) -> tf.Variable:
        """Orthogonal columns; the last axis is the output."""
        return self._draw(name, lambda rng: gain * _orthogonal(rng, shape))

    def draw(self, name: str, shape: Sequence[int],
             sample: Callable[[np.random.Generator], np.ndarray],
             ) -> tf.Variable:
        """Initial values from `sample(rng)`, an array of `shape`."""
        return self._draw(name, lambda rng: sample(rng).reshape(shape))

    def _draw(self, name, sample):
        rng = noise.generator(self.seed, 'init', f'{self.path}/{name}')
        return self._make(name, sample(rng).astype(np.float32))

    def _make(self, name, value):
        return tf.Variable(value, name=f'{self.path}/{name}')


def _orthogonal(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    rows, columns = math.prod(shape[:-1]), shape[-1]
    flat = rng.standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(flat)
    q *= np.sign(np.diag(r))
    return (q if rows >= columns else q.T).reshape(shape)


def variables_by_name(*modules: tf.Module) -> dict[str, tf.Variable]:
    """All variables of the modules by their full name, sorted."""
    found = {v.name.removesuffix(':0'): v
             for module in modules for v in module.variables}
    return dict(sorted(found.items()))


def values_by_name(*modules: tf.Module) -> dict[str, np.ndarray]:
    """Copies of all variables of the modules by their full name, sorted.

    For a checkpoint see `checkpoint.Live`, which holds no second copy.
    """
    return {name: variable.numpy()
            for name, variable in variables_by_name(*modules).items()}


def follow(targets: Sequence[tf.Module], sources: Sequence[tf.Module],
           share: float | tf.Tensor) -> None:
    """targets ← share · sources + (1 − share) · targets, all variables.

    Args:
      targets, sources: networks of the same shapes, which differ in the
        first parts of their variables' names alone, in the same order.
      share: 0 … 1, a float32 [] where it is a tensor.
    """
    for slow, fast in zip(targets, sources, strict=True):
        pairs = zip(variables_by_name(slow).values(),
                    variables_by_name(fast).values(), strict=True)
        for target, source in pairs:
            target.assign(share * source + (1.0 - share) * target)


class Dense(tf.Module):
    """y = x W + b on the last axis."""

    def __init__(self, scope: Scope, inputs: int, units: int):
        super().__init__()
        self._dtype = scope.dtype
        self.kernel = scope.glorot('kernel', (inputs, units))
        self.bias = scope.constant('bias', (units,))

    def __call__(self, x: tf.Tensor,
                 product: Callable[[tf.Tensor], tf.Tensor] | None = None,
                 ) -> tf.Tensor:
        bias = tf.cast(self.bias, self._dtype)
        if product is not None:
            return product(x) + bias
        return affine(x, self.cast_kernel(), bias)

    def cast_kernel(self) -> tf.Tensor:
        """The kernel in the compute dtype."""
        return tf.cast(self.kernel, self._dtype)


def affine(x: tf.Tensor, kernel: tf.Tensor,
           bias: tf.Tensor | None = None) -> tf.Tensor:
    """x W + b on the last axis: [..., inputs] -> [..., units].

    As one matrix product: `tf.matmul` of [A, B, inputs] would make A kernel
    gradients and add them up.
    """
    units = kernel.shape[-1]
    x = tf.cast(x, kernel.dtype)
    flat = tf.reshape(x, (-1, kernel.shape[0]))
    y = tf.matmul(flat, kernel)
    if bias is not None:
        y = tf.nn.bias_add(y, bias)
    if x.shape.rank == 2:
        return tf.ensure_shape(y, (x.shape[0], units))
    y = tf.reshape(y, tf.concat([tf.shape(x)[:-1], [units]], 0))
    return tf.ensure_shape(y, (*x.shape[:-1], units))


class Conv(tf.Module):
    """Strided convolution without padding, NHWC."""

    def __init__(self, scope: Scope, inputs: int, filters: int, kernel: int,
                 stride: int = 2):
        super().__init__()
        self._dtype, self._stride = scope.dtype, stride
        self.kernel = scope.glorot('kernel', (kernel, kernel, inputs, filters))
        self.bias = scope.constant('bias', (filters,))

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        kernel = tf.cast(self.kernel, self._dtype)
        y = tf.nn.conv2d(x, kernel, self._stride, 'VALID')
        return tf.nn.bias_add(y, tf.cast(self.bias, self._dtype))


class ConvTranspose(tf.Module):
    """Transposed convolution of stride 2 without padding, NHWC.

    `pixel` 'product' computes the case of one input pixel, which spreads over
    the whole output, as the matrix product that it is: several times faster
    than the convolution kernels ('convolution') on it.
    """

    STRIDE = 2

    def __init__(self, scope: Scope, inputs: int, filters: int, kernel: int,
                 pixel: str = 'product'):
        super().__init__()
        self._dtype = scope.dtype
        self._filters, self._pixel = filters, pixel
        self.kernel = scope.glorot('kernel', (kernel, kernel, filters, inputs))
        self.bias = scope.constant('bias', (filters,))

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        size = (x.shape[1] - 1) * self.STRIDE + self.kernel.shape[0]
        shape = tf.stack([tf.shape(x)[0], size, size, self._filters])
        kernel = tf.cast(self.kernel, self._dtype)
        if x.shape[1] == 1 and self._pixel == 'product':
            flat = tf.reshape(kernel, (-1, kernel.shape[-1]))
            y = tf.matmul(x[:, 0, 0], flat, transpose_b=True)
            y = tf.reshape(y, shape)
        else:
            y = tf.nn.conv2d_transpose(
                x, kernel, shape, self.STRIDE, 'VALID')
        y = tf.nn.bias_add(y, tf.cast(self.bias, self._dtype))
        return tf.ensure_shape(y, (None, size, size, self._filters))


class LayerNorm(tf.Module):
    """Layer norm over the last axis, in float32, returned in compute dtype.

    `epsilon` is Keras's 1e-3 for the Dreamer family, PyTorch's 1e-5 for DrQ.
    """

    def __init__(self, scope: Scope, size: int, epsilon: float = 1e-3):
        super().__init__()
        self._dtype, self._epsilon = scope.dtype, epsilon
        self.gamma = scope.constant('gamma', (size,), 1.0)
        self.beta = scope.constant('beta', (size,))

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        x = tf.cast(x, tf.float32)
        x, seen = branches(x, 2)
        mean, variance = tf.nn.moments(seen, -1, keepdims=True)
        scale = self.gamma * tf.math.rsqrt(variance + self._epsilon)
        return tf.cast((x - mean) * scale + self.beta, self._dtype)


class GRUCell(tf.Module):
    """GRU with a layer norm over all gates together. Spec section 2.

    new = u tanh(σ(reset) · candidate) + (1 − u) state, u = σ(update − 1):
    the reset gate multiplies the candidate before the tanh.
    """

    UPDATE_BIAS = -1.0

    def __init__(self, scope: Scope, inputs: int, size: int):
        super().__init__()
        self.size = size
        self._inputs = inputs
        self._dense = Dense(scope, inputs + size, 3 * size)
        self._norm = LayerNorm(scope / 'norm', 3 * size)

    @property
    def kernel(self) -> tf.Tensor:
        """[inputs + size, 3 size] in the compute dtype."""
        return self._dense.cast_kernel()

    def __call__(self, x: tf.Tensor, state: tf.Tensor,
                 product: Callable[[tf.Tensor], tf.Tensor] | None = None,
                 ) -> tf.Tensor:
        """x [..., inputs], state [..., size] -> new state [..., size].

        `product` multiplies by `kernel`, where a loop has its own way.
        """
        both = tf.concat([x, state], -1)
        gates = self._norm(self._dense(both, product))
        reset, candidate, update = tf.split(gates, 3, -1)
        candidate = tf.tanh(tf.sigmoid(reset) * candidate)
        update = tf.sigmoid(update + self.UPDATE_BIAS)
        return update * candidate + (1 - update) * state


class MLP(tf.Module):
    """`layers` dense layers of `units`, then a linear output.

    `dist`: 'mse' (unit-variance normal around a scalar), 'binary'
    (Bernoulli), 'none' (the raw output, float32).
    """

    def __init__(self, scope: Scope, inputs: int, layers: int, units: int,
                 act: str = 'elu', dist: str = 'mse', norm: str = 'none',
                 outputs: int | None = None):
        super().__init__()
        _plain_norm(norm)
        self._act, self._dist = activation(act), dist
        sizes = [inputs] + [units] * layers
        self._hidden = [
            Dense(scope / f'dense{i}', sizes[i], units) for i in range(layers)]
        self._scalar = outputs is None
        self._out = Dense(scope / 'out', sizes[-1], outputs or 1)

    def hidden(self, x: tf.Tensor) -> tf.Tensor:
        """Output of the last hidden layer, [..., units]."""
        for layer in self._hidden:
            x = self._act(layer(x))
        return x

    def output(self, hidden: tf.Tensor) -> tf.Tensor:
        """[..., units] -> the output layer's [..., outputs], float32."""
        return tf.cast(self._out(hidden), tf.float32)

    def __call__(self, x: tf.Tensor) -> Any:
        """[..., inputs] -> a distribution of shape [...], or the output."""
        out = self.output(self.hidden(x))
        if self._scalar:
            out = tf.squeeze(out, -1)
        if self._dist == 'mse':
            return UnitNormal(out)
        if self._dist == 'binary':
            return Bernoulli(out)
        return out


class Encoder(tf.Module):
    """Convolutional image encoder: [..., H, W, 3] -> [..., size].

    Strided convolutions with depths d, 2d, 4d, 8d, ELU, flattened in (height,
    width, channel) order: 64x64x3 -> 2·2·8d.
    """

    def __init__(self, scope: Scope, image: Sequence[int], cnn_depth: int,
                 cnn_kernels: Sequence[int], act: str = 'elu',
                 norm: str = 'none'):
        super().__init__()
        _plain_norm(norm)
        self._act = activation(act)
        self._dtype = scope.dtype
        self._layers = []
        size, channels = image[0], image[-1]
        for i, kernel in enumerate(cnn_kernels):
            depth = cnn_depth * 2 ** i
            self._layers.append(
                Conv(scope / f'conv{i}', channels, depth, kernel))
            size, channels = (size - kernel) // 2 + 1, depth
        if size < 1:
            raise UserError(
                f'encoder: expected images of 64x64, found {image[0]}x'
                f'{image[1]}, too small for kernels {list(cnn_kernels)}; set '
                '--render_size 64 64')
        self.size = size * size * channels

    def __call__(self, image: tf.Tensor) -> tf.Tensor:
        lead = tf.shape(image)[:-3]
        static = image.shape[:-3]
        x = tf.cast(image, self._dtype)
        x = tf.reshape(x, tf.concat([[-1], tf.shape(image)[-3:]], 0))
        x = tf.ensure_shape(x, (None, *image.shape[-3:]))
        for layer in self._layers:
            x = self._act(layer(x))
        x = tf.reshape(x, tf.concat([lead, [self.size]], 0))
        return tf.ensure_shape(x, (*static, self.size))


class ConvDecoder(tf.Module):
    """Features [..., F] -> [..., 64, 64, channels], no output activation.

    Dense to 32d, then transposed convolutions of depths 4d, 2d, d, channels.
    """

    def __init__(self, scope: Scope, inputs: int, channels: int,
                 cnn_depth: int, cnn_kernels: Sequence[int],
                 act: str = 'elu', norm: str = 'none',
                 pixel: str = 'product'):
        super().__init__()
        _plain_norm(norm)
        self._act = activation(act)
        self._start = Dense(scope / 'convin', inputs, 32 * cnn_depth)
        depth, self._layers = 32 * cnn_depth, []
        count = len(cnn_kernels)
        for i, kernel in enumerate(cnn_kernels):
            last = i == count - 1
            filters = channels if last else cnn_depth * 2 ** (count - i - 2)
            self._layers.append(ConvTranspose(
                scope / f'conv{i}', depth, filters, kernel, pixel=pixel))
            depth = filters

    def __call__(self, feat: tf.Tensor) -> tf.Tensor:
        lead, static = tf.shape(feat)[:-1], feat.shape[:-1]
        x = self._start(feat)
        x = tf.reshape(x, (-1, 1, 1, x.shape[-1]))
        for layer in self._layers[:-1]:
            x = self._act(layer(x))
        x = self._layers[-1](x)
        size = x.shape[1:]
        x = tf.reshape(x, tf.concat([lead, size], 0))
        return tf.cast(tf.ensure_shape(x, (*static, *size)), tf.float32)


def _plain_norm(norm: str) -> None:
    if norm != 'none':
        raise UserError(
            f"norm: expected 'none' (the only one that any published run "
            f'uses), found {norm!r}; give --.*[.]norm none')
