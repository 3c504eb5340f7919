"""MOPO as a method of the loop: dynamics, then SAC on imagined steps.

Baselines 8. It learns from states, not from images:
the parent of the idea of an uncertainty-penalised MDP.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamerv2_base.checkpoint import Live, restore
from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import Scope, variables_by_name
from dreamerv2_base.noise import CounterDraws, Draws
from dreamerv2_base.replay import batch_generator
from dreamerv2_base.store import EpisodeStore
from dreamerv2_base.tf import CountedGraph, tf
from semopo_tf.baselines.mopo_data import (
    FIELDS,
    EpochPlan,
    MixedPlaces,
    Pool,
    TransitionFiles,
    transitions,
)
from semopo_tf.baselines.mopo_model import (
    DynamicsEnsemble,
    HoldOut,
    imagine,
    penalty_by_name,
)
from semopo_tf.method import Batch, Phase, size_of_actions
from semopo_tf.sac import SAC
from semopo_tf.terminations import termination

Arrays = dict[str, np.ndarray]

POOL = 'pool/'  # prefix of the pool's arrays in a checkpoint
AT_ONCE = 5000  # rows imagined together: bounds memory, changes no meaning


class MOPO:
    """Model-based offline policy optimisation on states.

    Args:
      config: the resolved configuration (preset `mopo`).
      store: data of `mopo_data.open_states`; None for acting only, when the
        networks are made by `load`.
      action_size: A, where there is no store.

    Raises UserError for settings that the method cannot run with, and for
    data without states.
    """

    def __init__(self, config: Config,
                 store: EpisodeStore | TransitionFiles | None = None,
                 action_size: int | None = None):
        check(config)
        self.config = config
        self._action_size = size_of_actions(store, action_size)
        self._ends = termination(
            config.mopo.termination, config.mopo.termination_quirk)
        self._penalty = penalty_by_name(config.mopo.penalty)
        self.pool = Pool(config.mopo.rollout_rounds)
        self.data: Arrays = {}
        if store is not None:
            self.data = transitions(store)
            self.plan = EpochPlan(
                config.mopo, config.seed, len(self.data['reward']))
            self._inputs, self._targets = _pairs(self.data)
            self._build(self.data['state'].shape[1], self._action_size)

    # The interface of semopo_tf.method.

    def phases(self) -> list[Phase]:
        """Epochs of the dynamics, then policy updates.

        An update of phase `model` is one epoch, logged and saved by itself.
        The hold-out ends them, at most after `mopo.max_epochs`.
        """
        config = self.config
        return [
            Phase('model', config.mopo.max_epochs, self.train_epoch,
                  lambda store: self.plan, start=self.begin,
                  finish=self.choose, over=lambda: self.stopper.over,
                  log_every=1, save_every=1),
            Phase('agent', config.steps, self.update_agent,
                  lambda store: MixedPlaces(
                      config.seed, config.sac.batch, config.mopo.real_share,
                      len(self.data['reward'])),
                  config.agent_train_steps),
        ]

    def policy(self, observation: Batch, state: Any, key: int,
               ) -> tuple[np.ndarray, Any]:
        """tanh of the policy's mean, [N, A]; nothing is drawn.

        Raises UserError for observations without `state`.
        """
        if 'state' not in observation:
            raise UserError(
                'task: expected an environment of states for method mopo, '
                f'found {self.config.task} with '
                f'{", ".join(sorted(observation))}; give --task '
                'state_walker_walk')
        seen = tf.constant(observation['state'], tf.float32)
        return self._graphs['act']({'state': seen}, 0).numpy(), ()

    def state(self) -> Arrays:
        """All variables (early stopping too), and the pool."""
        arrays = dict(Live(self._variables()))
        arrays.update({POOL + name: value
                       for name, value in self.pool.state().items()})
        return arrays

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore `state()`, making the networks if there are none yet."""
        if not self._built:
            if 'model/scaler/mean' not in state:
                raise UserError(
                    'checkpoint: expected one of method mopo, missing '
                    'model/scaler/mean; give the run folder of such a run')
            size = len(state['model/scaler/mean'])
            self._build(size - self._action_size, self._action_size)
        restore(self._variables(), {
            name: value for name, value in state.items()
            if not name.startswith(POOL)}, 'checkpoint')
        self.pool.load({name.removeprefix(POOL): value
                        for name, value in state.items()
                        if name.startswith(POOL)}, POOL[:-1])

    def parameters(self) -> dict[str, int]:
        """Weights per module, optimizers left out."""
        modules = {'dynamics': self.model.stacked,
                   'policy': self.agent.policy.variables,
                   'critics': _all(self.agent.critics),
                   'targets': _all(self.agent.targets)}
        return {name: sum(int(np.prod(v.shape)) for v in found)
                for name, found in modules.items()}

    def videos(self, batch: Batch, key: int) -> Arrays:
        """None: there are no pictures."""
        return {}

    # The phases.

    def begin(self) -> None:
        """Standardise by the training rows, before the first epoch."""
        rows = self.plan.training
        self.model.fit_scaler(
            self._inputs.numpy()[rows], self._targets.numpy()[rows])

    def train_epoch(self, batch: Batch, step: int) -> dict[str, float]:
        """One epoch of the dynamics; nothing once training has ended."""
        if self.stopper.over:
            return {'stopped': 1.0, 'epochs': float(self.stopper.epochs)}
        found: dict[str, list[tf.Tensor]] = {}
        for rows in self.plan.batches(step):
            metrics = self._graphs['model']({'rows': rows}, step)
            for name, value in metrics.items():
                found.setdefault(name, []).append(value)
        errors = self.holdout_errors()
        self.stopper.update(errors)
        # Read at the end: to read each would wait for each update.
        means = {name: float(np.mean([float(value) for value in values]))
                 for name, values in found.items()}
        return {**means,
                'holdout_mse': float(errors.mean()),
                'holdout_best': float(self.stopper.best.numpy().mean()),
                'stopped': 0.0, 'epochs': float(self.stopper.epochs)}

    def choose(self) -> None:
        """Best weights of every network and the elites, at the end."""
        self.stopper.restore()
        errors = ' '.join(f'{e:.4g}' for e in self.stopper.best.numpy())
        print(f'dynamics: {self.stopper.epochs} epochs, hold-out errors '
              f'{errors}, elites {self.model.elites.numpy().tolist()}',
              file=sys.stderr)
        if not self.stopper.over:
            print('warning: mopo.max_epochs was reached before the hold-out '
                  'ended training; more may help', file=sys.stderr)

    def update_agent(self, batch: Batch, step: int) -> dict[str, Any]:
        """One SAC update, a share `mopo.real_share` of data, the rest imagined.

        Before it, every `mopo.rollout_every`: a new round in the pool.
        `batch` holds the places (see MixedPlaces).
        """
        every, more = self.config.mopo.rollout_every, {}
        if step % every == 0:
            more = self.rollout(step // every)
        imagined = self.pool.sample(batch['model'])
        rows = {name: np.concatenate([
            self.data[name][batch['real']], imagined[name]])
            for name in FIELDS}
        return {**self._graphs['agent'](rows, step), **more}

    def rollout(self, number: int) -> dict[str, float]:
        """Imagine one round from states of the data; means of it."""
        settings, weight = self.config.mopo, self.config.offline_lmbd
        rng = batch_generator(self.config.seed, 'mopo_starts', number)
        places = rng.integers(
            len(self.data['reward']), size=settings.rollout_rows)
        parts = []
        for i, start in enumerate(range(0, len(places), AT_ONCE)):
            part = places[start:start + AT_ONCE]
            rows = self._graphs['rollout'](
                {'state': self.data['state'][part]}, number * 2 ** 20 + i)
            alive = rows.pop('alive').numpy()
            parts.append({name: value.numpy()[alive]
                          for name, value in rows.items()})
        rows = {name: np.concatenate([part[name] for part in parts])
                for name in parts[0]}
        cost = weight * float(rows.pop('penalty').mean())
        self.pool.add(rows)
        return {'penalty_mean': cost, 'lambda': float(weight),
                'model_reward': float(rows['reward'].mean()) + cost,
                'model_ends': float(rows['terminal'].mean()),
                'pool_rows': float(len(self.pool))}

    def holdout_errors(self) -> np.ndarray:
        """MSE of every network on the hold-out rows, [K]."""
        return self._graphs['holdout']({'rows': self.plan.holdout}, 0).numpy()

    # Graphs: each maps arrays and the draws of its call.

    def _model_update(self, batch, draws: Draws):
        rows = batch['rows']
        return self.model.train(tf.gather(self._inputs, rows),
                                tf.gather(self._targets, rows))

    def _holdout(self, batch, draws: Draws):
        rows = batch['rows']
        return self.model.errors(tf.gather(self._inputs, rows),
                                 tf.gather(self._targets, rows))

    def _rollout(self, batch, draws: Draws):
        def actor(state, site):
            return self.agent.act(state, site, deterministic=False)

        return imagine(
            self.model, actor, self._ends, self._penalty,
            self.config.offline_lmbd, self.config.mopo.horizon,
            batch['state'], draws)

    def _act(self, batch, draws: Draws):
        return self.agent.act(batch['state'], None, deterministic=True)

    # Construction.

    @property
    def _built(self) -> bool:
        return hasattr(self, 'model')

    def _build(self, state_size: int, action_size: int) -> None:
        config, root = self.config, Scope(self.config.seed)
        self.model = DynamicsEnsemble(
            config.mopo, state_size, action_size, root / 'model')
        self.stopper = HoldOut(config.mopo, self.model, root / 'holdout')
        self.agent = SAC(config.sac, state_size, action_size, root / 'sac')
        self._graphs = {
            name: self._graph(name, function) for name, function in {
                'model': self._model_update, 'holdout': self._holdout,
                'agent': self.agent.update, 'rollout': self._rollout,
                'act': self._act}.items()}

    def _graph(self, purpose: str, function) -> CountedGraph:
        """`function(arrays, counter)` as one graph, its draws for `purpose`."""
        def call(batch, counter):
            return function(batch, CounterDraws(
                self.config.seed, f'mopo_{purpose}', counter))

        return CountedGraph(call, self.config.jit)

    def _variables(self) -> dict[str, tf.Variable]:
        return variables_by_name(self.model, self.stopper, self.agent)


def check(config) -> None:
    """Raises UserError for settings that MOPO cannot run with."""
    if config.precision != '32':
        raise UserError('method mopo: precision: expected 32, found '
                        f'{config.precision}; give --precision 32')


def _pairs(data: Arrays) -> tuple[tf.Tensor, tf.Tensor]:
    """Inputs (s, a) [n, S+A] and targets (r, s' − s) [n, 1+S]."""
    change = data['next_state'] - data['state']
    return (tf.constant(np.concatenate([data['state'], data['action']], 1)),
            tf.constant(np.concatenate(
                [data['reward'][:, None], change], 1)))


def _all(modules) -> list[tf.Variable]:
    return [v for module in modules for v in module.variables]
