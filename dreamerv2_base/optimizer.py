"""Adam as DreamerV2 uses it: clip, multiplicative decay, loss scaling.

Spec section 4 ("Optimizer (all)"). Written out, so that its whole state has
names, goes into the checkpoint and can be compared with a trace.
"""

from __future__ import annotations

from collections.abc import Mapping

from dreamerv2_base.nets import Scope
from dreamerv2_base.sums import total
from dreamerv2_base.tf import tf

Grads = Mapping[str, tf.Tensor]


class LossScale(tf.Module):
    """Dynamic loss scaling for float16; the identity for other dtypes.

    The scale doubles after `GROW_EVERY` finite updates in a row and halves at
    each update with a non-finite gradient (which is skipped).
    """

    GROW_EVERY = 2000
    START = 2.0 ** 15

    def __init__(self, scope: Scope, label: str):
        super().__init__()
        self._label = label  # of its metrics: there are several in a method
        self.active = scope.dtype == tf.float16
        if self.active:
            self._scale = scope.constant('scale', (), self.START)
            self._good = scope.constant('good', ())
            self._skipped = scope.constant('skipped', ())

    def scale(self, loss: tf.Tensor) -> tf.Tensor:
        return loss * self._scale if self.active else loss

    def unscale(self, grads: Grads) -> dict[str, tf.Tensor]:
        if not self.active:
            return dict(grads)
        return {name: grad / self._scale for name, grad in grads.items()}

    def update(self, finite: tf.Tensor) -> dict[str, tf.Tensor]:
        """Adapt the scale to whether all gradients were finite."""
        if not self.active:
            return {}
        good = tf.where(finite, self._good + 1, 0.0)
        grow = good >= self.GROW_EVERY
        self._scale.assign(tf.where(
            finite, tf.where(grow, self._scale * 2, self._scale),
            tf.maximum(self._scale / 2, 1.0)))
        self._good.assign(tf.where(grow, 0.0, good))
        self._skipped.assign_add(tf.where(finite, 0.0, 1.0))
        return {f'{self._label}_loss_scale': tf.identity(self._scale),
                f'{self._label}_skipped_updates': tf.identity(self._skipped)}


def global_norm(grads: Grads) -> tf.Tensor:
    """sqrt(Σ ‖g‖²) over all gradients, float32 []."""
    squares = [tf.reduce_sum(tf.square(g)) for g in grads.values()]
    return tf.sqrt(total(squares))


def clip(grads: Grads, norm: tf.Tensor, limit: float) -> dict[str, tf.Tensor]:
    """Scale gradients so that their global norm is at most `limit`."""
    if not limit:
        return dict(grads)
    factor = limit / tf.maximum(norm, limit)
    return {name: grad * factor for name, grad in grads.items()}


class Optimizer(tf.Module):
    """Adam(β 0.9, 0.999) on clipped gradients after multiplicative decay.

    Every variable, biases included, is multiplied by (1 − wd) just before its
    Adam update; wd is not scaled by the learning rate. `eps` is added to the
    root of the uncorrected second moment (Keras's form; baselines 0.2).
    """

    BETA1, BETA2 = 0.9, 0.999

    def __init__(self, scope: Scope, name: str,
                 variables: Mapping[str, tf.Variable], lr: float,
                 eps: float = 1e-5, clip: float = 100.0, wd: float = 0.0,
                 opt: str = 'adam'):
        super().__init__()
        assert opt == 'adam', opt
        self.label = name
        self._lr, self._eps, self._clip, self._wd = lr, eps, clip, wd
        self._vars = dict(sorted(variables.items()))
        scope = scope / 'optimizer' / name
        self._count = scope.constant('count', ())
        self._first = [scope.constant(f'first/{key}', value.shape)
                       for key, value in self._vars.items()]
        self._second = [scope.constant(f'second/{key}', value.shape)
                        for key, value in self._vars.items()]

    @property
    def targets(self) -> dict[str, tf.Variable]:
        """The variables that are trained, by name."""
        return self._vars

    def select(self, grads: Grads) -> dict[str, tf.Tensor]:
        """The gradients of this optimizer's variables; 0 where unconnected."""
        return {
            name: (tf.zeros_like(variable) if grads[name] is None
                   else tf.convert_to_tensor(grads[name]))
            for name, variable in self._vars.items()}

    def apply(self, grads: Grads, finite: tf.Tensor | None = None,
              ) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """One update. Returns metrics and the clipped gradients.

        `finite` (float16 only): a boolean; where False nothing changes.
        """
        grads = self.select(grads)
        norm = global_norm(grads)
        clipped = clip(grads, norm, self._clip)
        if finite is None:
            self._adam(clipped)
        else:
            tf.cond(finite, lambda: self._adam(clipped), lambda: None)
        return {f'{self.label}_grad_norm': norm}, clipped

    def _adam(self, grads):
        self._count.assign_add(1.0)
        slots = zip(self._vars.items(), self._first, self._second,
                    strict=True)
        for (name, variable), first, second in slots:
            if self._wd:
                variable.assign(variable * (1 - self._wd))
            # One fused kernel for what this class's docstring says.
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle, m=first.handle, v=second.handle,
                beta1_power=self.BETA1 ** self._count,
                beta2_power=self.BETA2 ** self._count, lr=self._lr,
                beta1=self.BETA1, beta2=self.BETA2, epsilon=self._eps,
                grad=grads[name])
