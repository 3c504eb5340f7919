"""The distributions of the latents, heads and the actor.

Parameters are cast to float32 before anything is computed: half precision
log-probabilities are wrong or missing in TensorFlow Probability. Random
numbers come in as arguments (see `dreamerv2_base.noise`).
This is the only module that imports TensorFlow Probability.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from dreamerv2_base.tf import tf

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@functools.cache
def _tfd():
    # Imported on first use: it takes seconds, and few places need it.
    import tensorflow_probability as tfp
    return tfp.distributions


def safe_sqrt(x: tf.Tensor) -> tf.Tensor:
    """Square root whose gradient is 0, not NaN, where x is 0."""
    positive = x > 0
    return tf.where(
        positive, tf.sqrt(tf.where(positive, x, tf.ones_like(x))),
        tf.zeros_like(x))


@dataclass(frozen=True)
class OneHot:
    """A product of S one-hot categoricals, logits [..., S, C].

    `logits` must be float32. Spec section 2 (Ensemble RSSM).
    """

    logits: tf.Tensor

    @property
    def log_probs(self) -> tf.Tensor:
        """Of every class, [..., S, C]."""
        return tf.nn.log_softmax(self.logits)

    @property
    def probs(self) -> tf.Tensor:
        """Of every class, [..., S, C]."""
        return tf.nn.softmax(self.logits)

    def sample(self, uniform: tf.Tensor) -> tf.Tensor:
        """Gumbel-max draw with straight-through gradient, [..., S, C]."""
        return self._hot(self.logits - tf.math.log(-tf.math.log(uniform)))

    def mode(self) -> tf.Tensor:
        """The likeliest classes, straight-through gradient, [..., S, C]."""
        return self._hot(self.logits)

    def _hot(self, scores: tf.Tensor) -> tf.Tensor:
        index = tf.argmax(scores, -1)
        hot = tf.one_hot(index, self.logits.shape[-1], dtype=tf.float32)
        probs = self.probs
        return hot + probs - tf.stop_gradient(probs)

    def log_prob(self, value: tf.Tensor) -> tf.Tensor:
        """Sum over the S categoricals, [...].

        No gradient reaches `value`: the class that was drawn is a fact (this
        is what the published computation does too, unlike for normals).
        """
        value = tf.stop_gradient(value)
        return tf.reduce_sum(value * self.log_probs, [-2, -1])

    def entropy(self) -> tf.Tensor:
        """Sum over the S categoricals, in nats, [...]."""
        return -tf.reduce_sum(self.probs * self.log_probs, [-2, -1])

    def kl(self, other: OneHot) -> tf.Tensor:
        """KL(self || other) summed over the S categoricals, [...]."""
        ratio = self.log_probs - other.log_probs
        return tf.reduce_sum(self.probs * ratio, [-2, -1])

    def stopped(self) -> OneHot:
        """The same without gradient."""
        return OneHot(tf.stop_gradient(self.logits))


@dataclass(frozen=True)
class DiagonalNormal:
    """Independent normals over the last axis, mean and std [..., S]."""

    mean: tf.Tensor
    std: tf.Tensor

    def sample(self, normal: tf.Tensor) -> tf.Tensor:
        """Mean and deviation times draws [..., S] of N(0, 1)."""
        return self.mean + self.std * normal

    def mode(self) -> tf.Tensor:
        """The mean, [..., S]."""
        return self.mean

    def log_prob(self, value: tf.Tensor) -> tf.Tensor:
        """Of values [..., S], summed over the last axis: [...]."""
        scaled = (value - self.mean) / self.std
        terms = 0.5 * scaled ** 2 + tf.math.log(self.std) + HALF_LOG_2PI
        return -tf.reduce_sum(terms, -1)

    def entropy(self) -> tf.Tensor:
        """Sum over the last axis, in nats, [...]."""
        terms = 0.5 + HALF_LOG_2PI + tf.math.log(self.std)
        return tf.reduce_sum(terms, -1)

    def kl(self, other: DiagonalNormal) -> tf.Tensor:
        """KL(self || other) summed over the last axis, [...]."""
        ratio = (self.std / other.std) ** 2
        shift = ((self.mean - other.mean) / other.std) ** 2
        return 0.5 * tf.reduce_sum(
            ratio + shift - 1.0 - tf.math.log(ratio), -1)

    def stopped(self) -> DiagonalNormal:
        """The same without gradient."""
        return DiagonalNormal(
            tf.stop_gradient(self.mean), tf.stop_gradient(self.std))


@dataclass(frozen=True)
class UnitNormal:
    """Unit-variance normal around `mean`; the last `event_dims` axes are one
    event (image: 3, scalar head: 0). Spec section 2."""

    mean: tf.Tensor
    event_dims: int = 0

    def mode(self) -> tf.Tensor:
        """The mean."""
        return self.mean

    def log_prob(self, value: tf.Tensor) -> tf.Tensor:
        """Of values of the shape of `mean`, summed over the event axes."""
        squares = tf.math.squared_difference(
            tf.cast(value, tf.float32), self.mean)
        if not self.event_dims:
            return -0.5 * squares - HALF_LOG_2PI
        axes = list(range(-self.event_dims, 0))
        size = math.prod(self.mean.shape[-self.event_dims:])
        return -0.5 * tf.reduce_sum(squares, axes) - size * HALF_LOG_2PI


@dataclass(frozen=True)
class Bernoulli:
    """Discount head: logits [...]. Targets may be soft (γ)."""

    logits: tf.Tensor

    @property
    def mean(self) -> tf.Tensor:
        """Probabilities, [...]."""
        return tf.sigmoid(self.logits)

    def log_prob(self, value: tf.Tensor) -> tf.Tensor:
        """Of targets [...] in [0, 1]: minus the cross entropy, [...]."""
        return -tf.nn.sigmoid_cross_entropy_with_logits(
            tf.cast(value, tf.float32), self.logits)


@dataclass(frozen=True)
class TruncatedNormal:
    """Normal truncated to [-1, 1]; the last axis is the event. [..., A]

    Spec section 2 (Actor).
    """

    loc: tf.Tensor
    scale: tf.Tensor

    EDGE = 1e-6  # samples are clipped to ±(1 - EDGE)
    TAIL = 1e-7  # the argument of the inverse CDF stays away from 0 and 1

    def sample(self, uniform: tf.Tensor) -> tf.Tensor:
        """Inverse-CDF draw, clipped with a straight-through gradient."""
        low = _normal_cdf((-1.0 - self.loc) / self.scale)
        high = _normal_cdf((1.0 - self.loc) / self.scale)
        level = tf.clip_by_value(
            low + uniform * (high - low), self.TAIL, 1.0 - self.TAIL)
        raw = self.loc + self.scale * tf.math.ndtri(level)
        edge = 1.0 - self.EDGE
        return raw + tf.stop_gradient(tf.clip_by_value(raw, -edge, edge) - raw)

    def mode(self) -> tf.Tensor:
        """loc, which tanh keeps inside the bounds."""
        return self.loc

    def log_prob(self, value: tf.Tensor) -> tf.Tensor:
        """Of actions [..., A], summed over the last axis: [...]."""
        return tf.reduce_sum(self._tfp.log_prob(value), -1)

    def entropy(self) -> tf.Tensor:
        """Sum over the last axis, in nats, [...]."""
        return tf.reduce_sum(self._tfp.entropy(), -1)

    @property
    def _tfp(self):
        return _tfd().TruncatedNormal(self.loc, self.scale, -1.0, 1.0)


def _normal_cdf(x: tf.Tensor) -> tf.Tensor:
    return 0.5 * tf.math.erfc(-x * math.sqrt(0.5))
