"""Does the model know what actions do? Its answer beside the simulator's.

From the same states two constant actions are held for the horizon of policy
learning; which of them earns more is what a policy gradient is made of. A
model that predicts rewards well on its data may still know nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets.state_episodes import StateTask
from dreamerv2_base.config import Config
from dreamerv2_base.noise import CounterDraws, generator
from dreamerv2_base.tf import tf
from dreamerv2_base.world_model import WorldModel
from semopo_tf.experiments.fresh import FreshEpisode

Arrays = dict[str, np.ndarray]

# Imagined futures that a predicted reward is the mean of: one alone differs
# from another by as much as two actions do.
FUTURES = 16


def action_effects(config: Config, model: WorldModel,
                   fresh: Sequence[FreshEpisode], index: np.ndarray,
                   start: Arrays, seed: int) -> Arrays:
    """Predicted and true differences of reward between two actions.

    Args:
      config: of the run (task, `action_repeat`, `imag_horizon`).
      index: rows [n, 2] (episode, row) to start from.
      start: posterior states [n, ...] there, of the stream that acts.
      seed: of the actions (corners of [-1, 1]^A, the second one the first
        one's opposite) and of the model's draws, the same for both.

    Returns: `action_effects/predicted`, `action_effects/true` [n]: reward of
    the first action less that of the second, summed over the horizon;
    `action_effects/correlation` [] of both, NaN where one never changes.
    """
    size, horizon = model.action_size, config.imag_horizon
    rng = generator(seed, 'measure', 'action_effects')
    first = rng.choice([-1.0, 1.0], (len(index), size)).astype(np.float32)
    task = StateTask(config.task.partition('_')[2],
                     action_repeat=config.action_repeat)
    states = [fresh[episode].physics[row] for episode, row in index]
    predicted = np.subtract(*(
        imagined(model, start, sign * first, horizon, seed)
        for sign in (1, -1)))
    true = np.subtract(*(
        np.array([simulated(task, state, sign * action, horizon)
                  for state, action in zip(states, first, strict=True)])
        for sign in (1, -1)))
    return {f'action_effects/{key}': np.asarray(value, np.float32)
            for key, value in {
                'predicted': predicted, 'true': true,
                'correlation': correlation(predicted, true),
                'horizon': horizon}.items()}


def imagined(model: WorldModel, start: Arrays, action: np.ndarray,
             horizon: int, seed: int) -> np.ndarray:
    """Predicted rewards of states 1 … H, summed: the mean of FUTURES, [n]."""
    rssm = model.rssm
    held = tf.repeat(tf.constant(action)[:, None], horizon, 1)
    start = {key: tf.cast(value, rssm.dtype) for key, value in start.items()}

    def future(number: int) -> np.ndarray:
        draws = CounterDraws(seed, 'measure/action_effects',
                             tf.constant(number, tf.int64))
        states = rssm.imagine(held, start, draws)
        reward = model.heads['reward'](rssm.get_feat(states)).mode()
        return tf.reduce_sum(reward, 1).numpy()

    return np.mean([future(number) for number in range(FUTURES)], 0)


def simulated(task: StateTask, state: np.ndarray, action: np.ndarray,
              horizon: int) -> float:
    """The simulator's reward of holding an action from a state."""
    task.reset(0)
    task.set_state(state)
    total = 0.0
    for _ in range(horizon):
        row = task.step(action)
        total += float(row['reward'])
        if row['is_last']:
            break
    return total


def correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Pearson's, NaN where one of both is constant."""
    if not (np.ptp(left) > 0 and np.ptp(right) > 0):
        return float('nan')
    return float(np.corrcoef(left, right)[0, 1])
