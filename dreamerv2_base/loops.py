"""A recurrence over time, as a graph loop or unrolled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dreamerv2_base.tf import tf

Tensors = tuple[tf.Tensor, ...]


def scan(step: Callable[[Tensors, Tensors], tuple[Tensors, Tensors]],
         state: Tensors, inputs: Tensors, length: int,
         mode: str = 'while') -> tuple[Tensors, Tensors]:
    """Run `state, out = step(state, inputs[t])` for t = 0 … length − 1.

    Args:
      step: maps the state and one time slice of the inputs to both results.
      state: tensors of fixed shape.
      inputs: tensors [length, ...].
      length: number of steps, static (XLA needs it for gradients).
      mode: 'while' builds one graph loop (short start-up), 'unroll' copies
        the body `length` times, as the released code does.

    Returns: the last state, and the outputs stacked to [length, ...].
    """
    if mode == 'unroll' or length == 1:
        return _unrolled(step, state, inputs, length)
    return _looped(step, state, inputs, length)


def _unrolled(step, state: Tensors, inputs: Tensors, length: int,
              ) -> tuple[Tensors, Tensors]:
    outputs: list[Any] = []
    for t in range(length):
        state, out = step(state, tuple(x[t] for x in inputs))
        outputs.append(out)
    return state, tuple(tf.stack(x, 0) for x in zip(*outputs, strict=True))


def _looped(step, state, inputs, length):
    sources = [
        tf.TensorArray(x.dtype, length, element_shape=x.shape[1:]).unstack(x)
        for x in inputs]
    shapes = _output_specs(step, state, inputs)
    sinks = tuple(
        tf.TensorArray(spec.dtype, length, element_shape=spec.shape)
        for spec in shapes)

    def body(t, state, sinks):
        state, out = step(state, tuple(x.read(t) for x in sources))
        return t + 1, state, tuple(
            sink.write(t, x) for sink, x in zip(sinks, out, strict=True))

    _, state, sinks = tf.while_loop(
        lambda t, *_: t < length, body, (0, state, sinks),
        maximum_iterations=length)
    return state, tuple(sink.stack() for sink in sinks)


def _output_specs(step, state, inputs):
    # Traces the body once on symbols, to learn the outputs' shapes.
    specs = lambda xs: tuple(  # noqa: E731
        tf.TensorSpec(x.shape, x.dtype) for x in xs)
    slices = tuple(tf.TensorSpec(x.shape[1:], x.dtype) for x in inputs)
    traced = tf.function(step, autograph=False).get_concrete_function(
        specs(state), slices)
    return tuple(tf.TensorSpec(x.shape, x.dtype)
                 for x in traced.structured_outputs[1])


class Deferred:
    """Products x_t W inside a loop whose kernel gradients are taken after it.

    dL/dW = Σ_t x_tᵀ g_t is one product over all steps. Left to the loop's own
    gradient it is a product and an addition of the kernel's size in every
    step. Here W is a constant inside the loop; the gradient g_t is collected
    in offsets of value zero that are added to the products, and meets the
    inputs x_t, which the loop gives out, in the backward pass.

    Args:
      kernels: {name: [inputs, units]}.
      lead: (T, B), the loop's length and the batch.
      learn: False where no gradient is taken: plain products, no offsets.
    """

    def __init__(self, kernels: Mapping[str, tf.Tensor],
                 lead: tuple[int, int], learn: bool = True):
        self._kernels, self._learn = dict(kernels), learn
        self._inputs: dict[str, tf.Tensor] = {}
        self.offsets = [self._offset(name, kernel, lead)
                        for name, kernel in self._kernels.items() if learn]

    def at(self, offsets: Sequence[tf.Tensor]) -> Products:
        """The products of one step, from its slices of `offsets`."""
        return Products(self._kernels, offsets if self._learn else None)

    def record(self, inputs: Sequence[tf.Tensor]) -> None:
        """What the products were made of, [T, B, inputs] in order."""
        if self._learn:
            self._inputs = dict(zip(self._kernels, inputs, strict=True))

    def _offset(self, name, kernel, lead):
        @tf.custom_gradient
        def offset(kernel):
            def gradient(upstream):
                x, g = self._inputs[name], upstream
                return tf.matmul(tf.reshape(x, (-1, x.shape[-1])),
                                 tf.reshape(g, (-1, g.shape[-1])),
                                 transpose_a=True)
            return tf.zeros((*lead, kernel.shape[-1]), kernel.dtype), gradient
        return offset(kernel)


class Products:
    """The products of one step; see `Deferred`. Each name is used once."""

    def __init__(self, kernels: Mapping[str, tf.Tensor],
                 offsets: Sequence[tf.Tensor] | None):
        self._kernels = kernels
        self._offsets = (None if offsets is None else
                         dict(zip(kernels, offsets, strict=True)))
        self._seen: dict[str, tf.Tensor] = {}

    def __call__(self, name: str, x: tf.Tensor) -> tf.Tensor:
        """x W for x [B, inputs]."""
        if self._offsets is None:
            return tf.matmul(x, self._kernels[name])
        self._seen[name] = x
        kernel = tf.stop_gradient(self._kernels[name])
        return tf.matmul(x, kernel) + self._offsets[name]

    @property
    def inputs(self) -> tuple[tf.Tensor, ...]:
        """What the products were made of, in order; () without learning."""
        if self._offsets is None:
            return ()
        return tuple(self._seen[name] for name in self._kernels)
