"""Adam as PyTorch computes it: no clipping, no decay. Baselines 0.2.

θ ← θ − lr · m̂ / (√v̂ + ε): ε is added after the bias correction, where Keras
and TensorFlow 1 add it before.
"""

from __future__ import annotations

from collections.abc import Mapping

from dreamerv2_base.nets import Scope
from dreamerv2_base.sums import gradient
from dreamerv2_base.tf import tf


class TorchAdam(tf.Module):
    """Adam(β 0.9, 0.999) over named variables; slots are named too.

    Args:
      scope: root of the variables' names; slots go below `optimizer/NAME`.
      name: of this optimizer.
      variables: what it trains, by name.
      lr, eps: step size and ε (PyTorch's default is 1e-8).
    """

    BETA1, BETA2 = 0.9, 0.999

    def __init__(self, scope: Scope, name: str,
                 variables: Mapping[str, tf.Variable], lr: float,
                 eps: float):
        super().__init__()
        self.label, self._lr, self._eps = name, lr, eps
        self._targets = dict(sorted(variables.items()))
        place = scope / 'optimizer' / name
        self.count = place.constant('count', ())
        self._slots = {
            key: (place.constant(f'first/{key}', value.shape),
                  place.constant(f'second/{key}', value.shape))
            for key, value in self._targets.items()}

    @property
    def targets(self) -> dict[str, tf.Variable]:
        """The variables that are trained, by name."""
        return self._targets

    def apply(self, grads: Mapping[str, tf.Tensor]) -> None:
        """One update; `grads` has every target (others are not looked at)."""
        self.count.assign_add(1.0)
        power1, power2 = self.BETA1 ** self.count, self.BETA2 ** self.count
        # The fused kernel adds its epsilon to √v, not to √v̂.
        eps = self._eps * tf.sqrt(1.0 - power2)
        for key, variable in self._targets.items():
            first, second = self._slots[key]
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle, m=first.handle, v=second.handle,
                beta1_power=power1, beta2_power=power2, lr=self._lr,
                beta1=self.BETA1, beta2=self.BETA2, epsilon=eps,
                grad=tf.convert_to_tensor(grads[key]))


def step(tape: tf.GradientTape, loss: tf.Tensor,
         *optimizers: TorchAdam) -> None:
    """Differentiate once, then let the optimizers step in the given order."""
    targets = {key: value for optimizer in optimizers
               for key, value in optimizer.targets.items()}
    grads = gradient(tape, loss, targets)
    for optimizer in optimizers:
        optimizer.apply(grads)
