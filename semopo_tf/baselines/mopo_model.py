"""MOPO's dynamics: a probabilistic ensemble, its hold-out, its penalties.

Baselines 8.1 and 8.2. The K networks are one: kernels
[K, inputs, outputs]. Outputs are the reward, then the change of the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from dreamerv2_base.distributions import safe_sqrt
from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import Scope, activation
from dreamerv2_base.noise import Draws
from dreamerv2_base.optimizer import Optimizer
from dreamerv2_base.sums import gradient, total
from dreamerv2_base.tf import tf
from semopo_tf import penalties

Metrics = dict[str, tf.Tensor]
Rows = dict[str, tf.Tensor]
Actor = Callable[[tf.Tensor, Draws], tf.Tensor]
# Means and standard deviations of all networks [K, N, 1 + S] -> u [N].
Penalty = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

MIN_SCALE = 1e-12  # inputs that vary less are left as they are


class StackedDense(tf.Module):
    """K dense layers at once: [K or 1, N, inputs] -> [K, N, units].

    `decay` is the coefficient of ½ ‖kernel‖². Truncated normal of std
    1/(2 √inputs), cut at two of them; bias 0.
    """

    def __init__(self, scope: Scope, members: int, inputs: int, units: int,
                 decay: float):
        super().__init__()
        std = 0.5 / math.sqrt(inputs)
        shape = (members, inputs, units)
        self.kernel = scope.draw('kernel', shape, lambda rng: (
            stats.truncnorm.rvs(-2, 2, scale=std, size=shape,
                                random_state=rng)))
        self.bias = scope.constant('bias', (members, 1, units))
        self._decay = decay

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.matmul(x, self.kernel) + self.bias

    def decay(self) -> tf.Tensor:
        """c ½ Σ kernel², over all networks."""
        return self._decay * tf.nn.l2_loss(self.kernel)


class DynamicsEnsemble(tf.Module):
    """K Gaussian networks for p(r, s' − s | s, a).

    Released: targets as they are. With `scale_targets` the networks predict
    them in units of their standard deviations in the data, and penalties and
    hold-out errors are in these units: log-variances start below 0.5, far
    less than the variance of a joint's velocity in DM Control.

    Args:
      settings: the configuration's group `mopo`.
      state_size, action_size: S and A.
      scope: `model` by convention.

    Attributes:
      elites: int64 [E], the networks that rollouts sample from.
    Raises UserError for settings that do not fit each other.
    """

    def __init__(self, settings, state_size: int, action_size: int,
                 scope: Scope):
        super().__init__()
        _check(settings)
        self.members, self._settings = settings.ensemble, settings
        inputs, outputs = state_size + action_size, state_size + 1
        self.shift = scope.constant('scaler/mean', (inputs,))
        self.scale = scope.constant('scaler/std', (inputs,), 1.0)
        self.target_shift = scope.constant('targets/mean', (outputs,))
        self.target_scale = scope.constant('targets/std', (outputs,), 1.0)
        sizes = [inputs] + [settings.units] * settings.layers
        self._hidden = [
            StackedDense(scope / f'dense{i}', self.members, sizes[i],
                         sizes[i + 1], settings.decays[i])
            for i in range(settings.layers)]
        self._mean, self._logvar = (
            StackedDense(scope / name, self.members, sizes[-1], outputs, decay)
            for name, decay in (('mean', settings.decays[-1]),
                                ('logvar', settings.logvar_decay)))
        low, high = settings.logvar_range
        self.lowest = scope.constant('logvar_min', (outputs,), low)
        self.highest = scope.constant('logvar_max', (outputs,), high)
        self.elites = tf.Variable(
            # No int32: a GPU keeps none of these, and XLA wants it there.
            np.arange(settings.elites, dtype=np.int64),
            name=f'{scope.path}/elites')
        self._act = activation(settings.act)
        trained = {v.name.removesuffix(':0'): v for v in (
            *self.stacked, self.lowest, self.highest)}
        self._optimizer = Optimizer(
            scope, 'dynamics', trained, settings.lr, settings.eps, clip=0.0)

    @property
    def _layers(self) -> list[StackedDense]:
        return [*self._hidden, self._mean, self._logvar]

    @property
    def stacked(self) -> list[tf.Variable]:
        """The variables with a leading axis K: kernels and biases."""
        return [v for layer in self._layers
                for v in (layer.kernel, layer.bias)]

    def fit_scaler(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Standardise by the mean and std of the training rows [n, S+A].

        Targets [n, 1 + S] are read with `scale_targets` alone.
        """
        pairs = [(self.shift, self.scale, inputs)]
        if self._settings.scale_targets:
            pairs.append((self.target_shift, self.target_scale, targets))
        for shift, scale, rows in pairs:
            std = rows.std(0, dtype=np.float64)
            shift.assign(rows.mean(0, dtype=np.float64))
            scale.assign(np.where(std < MIN_SCALE, 1.0, std))

    def __call__(self, inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Means and log-variances [K, N, 1 + S] of all networks, scaled.

        Args:
          inputs: state and action, [K, N, S+A], or [N, S+A] for all.
        """
        x = (inputs - self.shift) / self.scale
        if x.shape.rank == 2:
            x = x[None]
        for layer in self._hidden:
            x = self._act(layer(x))
        return self._mean(x), self._bounded(self._logvar(x))

    def loss(self, inputs: tf.Tensor, targets: tf.Tensor,
             ) -> tuple[tf.Tensor, Metrics]:
        """Σ_k [mean (μ−y)² e^−l + mean l] + decays + 0.01 Σ (max − min).

        Args:
          inputs: [K, B, S+A]; targets: [K, B, 1 + S], reward first.
        """
        mean, logvar = self(inputs)
        errors = tf.square(mean - self._scaled(targets))
        fit = tf.reduce_mean(errors * tf.exp(-logvar) + logvar, [1, 2])
        decay = total([layer.decay() for layer in self._layers])
        bounds = self._settings.bound_weight * (
            tf.reduce_sum(self.highest) - tf.reduce_sum(self.lowest))
        loss = tf.reduce_sum(fit) + decay + bounds
        return loss, {'model_loss': loss, 'decay': decay,
                      'train_mse': tf.reduce_mean(errors)}

    def train(self, inputs: tf.Tensor, targets: tf.Tensor) -> Metrics:
        """One Adam update; arguments as of `loss`."""
        with tf.GradientTape() as tape:
            loss, metrics = self.loss(inputs, targets)
        grads = gradient(tape, loss, self._optimizer.targets)
        return {**metrics, **self._optimizer.apply(grads)[0]}

    def errors(self, inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """MSE of every network's mean on the same rows, [K]."""
        away = self(inputs)[0] - self._scaled(targets)
        return tf.reduce_mean(tf.square(away), [1, 2])

    def step(self, state: tf.Tensor, action: tf.Tensor, noise: tf.Tensor,
             pick: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, Rows]:
        """One imagined step: reward [N], next state [N, S], statistics.

        Every network's Gaussian is sampled; row n takes the sample of
        elite number pick[n]. The statistics, means and standard deviations
        [K, N, 1 + S], are those of the (scaled) targets.

        Args:
          noise: standard normal [K, N, 1 + S]; pick: [N] in [0, E).
        """
        mean, logvar = self(tf.concat([state, action], -1))
        std = tf.exp(0.5 * logvar)
        samples = tf.transpose(mean + std * noise, [1, 0, 2])
        chosen = tf.gather(samples, tf.gather(self.elites, pick),
                           batch_dims=1)
        chosen = self.target_shift + self.target_scale * chosen
        return chosen[:, 0], state + chosen[:, 1:], {
            'mean': mean, 'std': std}

    def _scaled(self, targets: tf.Tensor) -> tf.Tensor:
        return (targets - self.target_shift) / self.target_scale

    def _bounded(self, raw: tf.Tensor) -> tf.Tensor:
        below = self.highest - tf.nn.softplus(self.highest - raw)
        return self.lowest + tf.nn.softplus(below - self.lowest)


class HoldOut(tf.Module):
    """Early stopping: each network's best weights, and when to end.

    A network's snapshot is renewed when its hold-out error falls by more
    than `improvement` (relative); training ends when no network's was for
    more than `patience` epochs. All of it is variables, so it is saved.

    Args:
      settings: the configuration's group `mopo`.
      model: the ensemble. scope: `holdout` by convention.
    """

    def __init__(self, settings, model: DynamicsEnsemble, scope: Scope):
        super().__init__()
        self._settings, self._model = settings, model
        self.best = scope.constant('error', (model.members,), np.inf)
        self._stale = scope.constant('stale', ())
        self._epochs = scope.constant('epochs', ())
        self._over = scope.constant('over', ())
        self._kept = [
            tf.Variable(tf.identity(v), name='/'.join((
                scope.path, 'best', v.name.removesuffix(':0'))))
            for v in model.stacked]

    @property
    def over(self) -> bool:
        """Whether training has ended."""
        return bool(self._over.numpy())

    @property
    def epochs(self) -> int:
        """Epochs that were trained."""
        return int(self._epochs.numpy())

    def update(self, errors: np.ndarray) -> None:
        """Take the hold-out errors [K] after an epoch."""
        best = self.best.numpy()
        better = np.asarray(errors) < best * (1 - self._settings.improvement)
        self.best.assign(np.where(better, errors, best))
        for kept, now in zip(self._kept, self._model.stacked, strict=True):
            kept.assign(tf.where(better[:, None, None], now, kept))
        stale = 0.0 if better.any() else float(self._stale.numpy()) + 1
        self._stale.assign(stale)
        self._epochs.assign_add(1.0)
        self._over.assign(float(stale > self._settings.patience))

    def restore(self) -> None:
        """Put every network's best weights back and choose the elites.

        The bounds of the log-variance stay as they are. The elites have the
        lowest errors, lowest first.
        """
        for kept, now in zip(self._kept, self._model.stacked, strict=True):
            now.assign(kept)
        order = np.argsort(self.best.numpy(), kind='stable')
        self._model.elites.assign(order[:self._settings.elites])


def imagine(model: DynamicsEnsemble, actor: Actor, ends, penalty: Penalty,
            weight: float, horizon: int, start: tf.Tensor,
            draws: Draws) -> Rows:
    """Rollouts of `horizon` steps from states [N, S].

    The reward is the sampled one minus weight · u, u over all networks. A
    row whose `ends(next_state)` was True is no longer `alive`.

    Args:
      ends: next states [N, S] -> bool [N].
      draws: per step t the sites t/action, t/noise, t/elite.

    Returns FIELDS of mopo_data, `penalty` and `alive` (bool: the transition
    counts), each [H, N, ...].
    """
    state, steps = start, []
    alive = tf.ones(start.shape[:1], tf.bool)
    count, outputs = start.shape[0], start.shape[1] + 1
    for t in range(horizon):
        here = draws.scope(str(t))
        action = actor(state, here)
        reward, following, found = model.step(
            state, action,
            here.normal('noise', (model.members, count, outputs)),
            here.integers('elite', (count,), model.elites.shape[0]))
        doubt = penalty(found['mean'], found['std'])
        terminal = ends(following)
        steps.append({
            'state': state, 'action': action,
            'reward': reward - weight * doubt, 'next_state': following,
            'terminal': tf.cast(terminal, tf.float32), 'penalty': doubt,
            'alive': alive})
        state, alive = following, alive & ~terminal
    return {key: tf.stack([step[key] for step in steps]) for key in steps[0]}


# Penalties: u [N] from means and standard deviations [K, N, 1 + S].


def aleatoric(mean: tf.Tensor, std: tf.Tensor) -> tf.Tensor:
    """max_k ‖σ_k‖, standard deviations, the reward's too. As released."""
    return tf.reduce_max(tf.norm(std, axis=-1), 0)


def covariance(mean: tf.Tensor, std: tf.Tensor) -> tf.Tensor:
    """max_k ‖Σ_k‖_F, the norm of the variances. The paper's form."""
    return penalties.max_aleatoric({'mean': mean, 'std': std}, None)


def disagreement(mean: tf.Tensor, std: tf.Tensor) -> tf.Tensor:
    """max_k ‖μ_k − μ̄‖ over the next state. Released, flag False."""
    means = mean[..., 1:]
    away = means - tf.reduce_mean(means, 0, keepdims=True)
    return tf.reduce_max(safe_sqrt(tf.reduce_sum(away ** 2, -1)), 0)


def max_pairwise(mean: tf.Tensor, std: tf.Tensor) -> tf.Tensor:
    """max_{i,j} ‖μ_i − μ_j‖ over the next state. The slides' form."""
    return penalties.max_pairwise(
        {'mean': mean[..., 1:], 'std': std[..., 1:]}, None)


def total_variance(mean: tf.Tensor, std: tf.Tensor) -> tf.Tensor:
    """Σ_d [mean_k σ² + mean_k μ² − μ̄²]: the mixture's variance."""
    return penalties.ensemble_variance({'mean': mean, 'std': std}, None)


def none(mean: tf.Tensor, std: tf.Tensor) -> tf.Tensor:
    """No penalty."""
    return tf.zeros_like(mean[0, ..., 0])


PENALTIES: dict[str, Penalty] = {
    'aleatoric': aleatoric, 'covariance': covariance,
    'disagreement': disagreement, 'max_pairwise': max_pairwise,
    'total_variance': total_variance, 'none': none}


def penalty_by_name(name: str) -> Penalty:
    """The function of a `mopo.penalty`. Raises UserError for another."""
    if name not in PENALTIES:
        raise UserError(
            f'mopo.penalty: expected one of {", ".join(PENALTIES)}, found '
            f'{name!r}; give --mopo.penalty aleatoric')
    return PENALTIES[name]


def _check(settings) -> None:
    decays: Sequence[float] = settings.decays
    if len(decays) != settings.layers + 1:
        raise UserError(
            f'mopo.decays: expected {settings.layers + 1} numbers (one per '
            f'hidden layer and the mean), found {len(decays)}; give '
            '--mopo.decays 1e-4,…')
    if not 1 <= settings.elites <= settings.ensemble:
        raise UserError(
            f'mopo.elites: expected 1 to {settings.ensemble} '
            f'(mopo.ensemble), found {settings.elites}; give --mopo.elites '
            f'{settings.ensemble}')
