"""Frames a slice at a time: less memory for some more arithmetic.

Encoders and decoders keep far more numbers per frame for their gradient than
they take in or give out. Here nothing is kept: the backward pass makes the
activations of a slice again, uses them and forgets them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dreamerv2_base.tf import tf


def in_slices(function: Callable[..., tf.Tensor], frames: int,
              *inputs: tf.Tensor) -> tf.Tensor:
    """function(*inputs), at most `frames` rows at a time.

    Args:
      function: maps tensors [n, ...] to one tensor [n, ...], each row by
        itself; the gradient reaches the variables it reads.
      frames: 0, or at least all rows: all at once, with nothing made again
        (and always so without a graph, `jit` eager).
      inputs: float tensors [B, T, ...] of fixed shape.

    Returns: [B, T, ...].
    """
    lead = inputs[0].shape[:2]
    rows = lead[0] * lead[1]
    if not frames or frames >= rows or tf.executing_eagerly():
        return function(*inputs)
    size = next(n for n in range(frames, 0, -1) if rows % n == 0)

    @tf.custom_gradient
    def run(*inputs):
        parts = tuple(_cut(x, rows // size, size) for x in inputs)

        def gradient(upstream, variables=()):
            found, sums = _backward(
                function, parts, _cut(upstream, rows // size, size), variables)
            found = [tf.reshape(g, x.shape)
                     for g, x in zip(found, inputs, strict=True)]
            return (found, sums) if variables else found

        output = _forward(function, parts)
        return tf.reshape(output, (*lead, *output.shape[2:])), gradient

    return run(*inputs)


def _cut(x: tf.Tensor, count: int, size: int) -> tf.Tensor:
    """[B, T, ...] -> [count, size, ...]."""
    return tf.reshape(x, (count, size, *x.shape[2:]))


def _forward(function, parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """[count, size, ...]; one slice after the other."""
    shapes = [tf.TensorSpec(x.shape[1:], x.dtype) for x in parts]
    traced = tf.function(function, autograph=False).get_concrete_function(
        *shapes).structured_outputs
    return tf.map_fn(
        lambda part: function(*part), tuple(parts), parallel_iterations=1,
        fn_output_signature=tf.TensorSpec(traced.shape, traced.dtype))


def _backward(function, parts: Sequence[tf.Tensor], upstream: tf.Tensor,
              variables: Sequence[tf.Variable],
              ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Gradients of inputs [count, size, ...], and of variables."""
    count = upstream.shape[0]
    sinks = tuple(tf.TensorArray(x.dtype, count, element_shape=x.shape[1:])
                  for x in parts)
    sums = tuple(tf.zeros(v.shape, v.dtype) for v in variables)

    def body(i, sums, sinks):
        part = [x[i] for x in parts]
        # Added two by two, in a fixed order: see `sums`.
        found = tf.gradients(
            function(*part), [*part, *variables], upstream[i],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
            aggregation_method=tf.AggregationMethod.EXPERIMENTAL_TREE)
        inputs, weights = found[:len(part)], found[len(part):]
        return (i + 1,
                tuple(s + g for s, g in zip(sums, weights, strict=True)),
                tuple(sink.write(i, g)
                      for sink, g in zip(sinks, inputs, strict=True)))

    _, sums, sinks = tf.while_loop(
        lambda i, *_: i < count, body, (0, sums, sinks),
        parallel_iterations=1, maximum_iterations=count)
    return [sink.stack() for sink in sinks], [*sums]
