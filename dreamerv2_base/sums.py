"""Sums in a fixed order, so that a seed fixes the last bit too.

TensorFlow's `AddN` starts with whichever input's buffer is free, which depends
on timing. Of three or more inputs the sum then differs in its last bit from
run to run, even under `enable_op_determinism`; two commute. TensorFlow puts
it wherever a tensor with several uses gets its gradient, and its graph
optimizer makes one of a + b + c (which `prepare_devices` turns off).
`tests/test_sums.py` holds that none with more than two inputs is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dreamerv2_base.tf import tf


def total(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Σ values, tensors of one shape."""
    return tf.reduce_sum(tf.stack(values), 0)


def gradient(tape: tf.GradientTape, loss: tf.Tensor,
             targets: Mapping[str, tf.Variable],
             ) -> dict[str, tf.Tensor | None]:
    """dloss/dtarget by name; None where the loss does not depend on it.

    In a graph the gradients of a tensor's uses are added two by two, in the
    order of the uses. Without one (`jit` eager) the tape adds them.
    """
    if tf.executing_eagerly():
        found = tape.gradient(loss, list(targets.values()))
    else:
        found = tf.gradients(
            loss, list(targets.values()),
            aggregation_method=tf.AggregationMethod.EXPERIMENTAL_TREE)
    return dict(zip(targets, found, strict=True))


def branches(x: tf.Tensor, count: int) -> list[tf.Tensor]:
    """x, `count` times: gradients of its uses are added two by two.

    For the body of a graph loop, whose gradient `gradient` does not take
    itself: one use each.
    """
    uses = []
    for _ in range(count - 1):
        uses.append(x)
        x = tf.identity(x)
    return [*uses, x]
