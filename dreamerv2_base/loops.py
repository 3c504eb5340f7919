"""A recurrence over time, as a graph loop or unrolled."""

from __future__ import annotations

from collections.abc import Callable
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


def _unrolled(step, state, inputs, length):
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
    traced = tf.function(step).get_concrete_function(specs(state), slices)
    return tuple(tf.TensorSpec(x.shape, x.dtype)
                 for x in traced.structured_outputs[1])
