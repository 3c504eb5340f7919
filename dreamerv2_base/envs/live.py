"""Environments whose episodes go on from one call to the next.

Online training alternates between a few steps in the environments and a few
updates, so it cannot wait for whole episodes as `Rollout.run` does. What is
under way can be put into a checkpoint: an episode is brought back by its seed
and its actions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dreamerv2_base.envs.rollout import (
    EpisodeUnderWay,
    Finished,
    Rollout,
    finished,
)

Arrays = dict[str, np.ndarray]


class LiveRollout(Rollout):
    """N environments in child processes, each in an episode of its own.

    Args:
      make_env, envs, workers, timeout: as of `Rollout`.
      seed_of: number of an episode -> its seed.
    """

    def __init__(self, make_env: Callable[[], Any], envs: int, workers: int,
                 seed_of: Callable[[int], int], timeout: float = 120.0):
        super().__init__(make_env, envs, workers, timeout)
        self._seed_of = seed_of
        self._runs: dict[int, EpisodeUnderWay] = {}
        self._begun = 0

    @property
    def envs(self) -> int:
        """N."""
        return self._envs

    @property
    def ready(self) -> int:
        """How many environments would move at the next `step`."""
        return sum(not run.ended for run in self._runs.values())

    def observation(self) -> Arrays | None:
        """The newest row of every environment, [N, ...]; None at the start."""
        if not self._runs:
            return None
        return self._batch(self._runs, list(self._runs))

    def step(self, actions: np.ndarray) -> list[tuple[int, Finished]]:
        """Move every environment on: by its action [N, A] or, where an
        episode has ended, to the first row of the next one.

        Returns (seed, episode) of those that ended now, in the order of the
        environments. Raises UserError when the environment does or when an
        episode loses its process three times.
        """
        still = np.zeros(self.action_size, np.float32)
        following = {
            slot: self._runs[slot] if self._goes_on(slot) else self._next()
            for slot in range(self._envs)}
        given = {slot: np.array(actions[slot], np.float32) if run.rows
                 else still for slot, run in following.items()}
        found = self._exchange(following, {
            slot: ('step', given[slot]) if run.rows else ('reset', run.seed)
            for slot, run in following.items()})
        for slot, run in following.items():
            row, background = found[slot]
            if not run.rows:
                run.background = background
            run.rows.append({**row, 'action': given[slot]})
        self._runs = following
        return [(run.seed, finished(run, True))
                for run in following.values() if run.ended]

    def state(self) -> Arrays:
        """What brings the episodes under way back (`load`)."""
        arrays = {'begun': np.array(self._begun)}
        for slot, run in self._runs.items():
            arrays[f'{slot}/number'] = np.array(run.number)
            arrays[f'{slot}/action'] = np.stack(
                [row['action'] for row in run.rows])
            arrays[f'{slot}/reward'] = np.array(
                [row['reward'] for row in run.rows], np.float64)
        return arrays

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Bring the episodes of `state()` back.

        Raises RuntimeError when seeds and actions do not give the same
        rewards again.
        """
        self._begun = int(arrays['begun'])
        slots = [slot for slot in range(self._envs)
                 if f'{slot}/number' in arrays]
        goals = {slot: arrays[f'{slot}/action'] for slot in slots}
        self._runs = {slot: self._numbered(int(arrays[f'{slot}/number']))
                      for slot in slots}
        for t in range(max(map(len, goals.values()), default=0)):
            moving = {slot: run for slot, run in self._runs.items()
                      if t < len(goals[slot])}
            found = self._exchange(moving, {
                slot: ('step', goals[slot][t]) if t else ('reset', run.seed)
                for slot, run in moving.items()})
            for slot, run in moving.items():
                row, background = found[slot]
                if row['reward'] != arrays[f'{slot}/reward'][t]:
                    raise RuntimeError(
                        f'episode {run.number}: expected the rewards of its '
                        f'seed and actions again, found another at row {t}')
                run.rows.append({**row, 'action': goals[slot][t]})
                if t == 0:
                    run.background = background

    def _goes_on(self, slot: int) -> bool:
        return slot in self._runs and not self._runs[slot].ended

    def _next(self) -> EpisodeUnderWay:
        self._begun += 1
        return self._numbered(self._begun - 1)

    def _numbered(self, number: int) -> EpisodeUnderWay:
        return EpisodeUnderWay(number, self._seed_of(number))
