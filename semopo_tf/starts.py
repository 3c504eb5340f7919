"""Several world models begun, the best one goes on (ours; off by default).

Nothing in the losses says which of the two streams is the endogenous one but
rewards and actions. Where rewards say little, chance decides in the first
fifty updates which stream draws the robot, and nothing changes it later
(docs/results/mini.md). As with every mixture that may swap its parts, the
remedy is to begin more than once. Judged is what the endogenous stream is by
definition: how much of it the actions decide
(`SeparatedWorldModel.action_information`). The loss does not tell: in its
first updates it differs more by the quality of the pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dreamerv2_base.checkpoint import Live, restore
from dreamerv2_base.errors import UserError
from semopo_tf.method import Batch, ChunkSource, Phase

PHASE = 'starts'
PREFIX = 'starts/'  # of its arrays in a checkpoint
JUDGED = 10         # last updates of a start, on whose batches it is judged

Arrays = Mapping[str, np.ndarray]


class Starts:
    """At most `count` beginnings of `updates` updates each, same batches.

    No other is begun after one whose worth is `enough`.

    Args:
      fresh: initial values of all variables of start k, by name; those of
        start 0 are the run's own.
      variables: the model's variables, by name.
      train: one model update, `train(batch, step) -> metrics`.
      judge: the model's worth on a batch, `judge(batch, step)`; the start of
        the highest mean goes on.
    """

    def __init__(self, count: int, updates: int, enough: float,
                 fresh: Callable[[int], Arrays],
                 variables: Mapping[str, Any],
                 train: Callable[[Batch | None, int], Mapping[str, Any]],
                 judge: Callable[[Any, int], Any]):
        self._updates, self._enough, self._fresh = updates, enough, fresh
        self._variables, self._train = variables, train
        self._judge = judge
        self._worth = np.zeros(count)
        self._ended = 0
        self._kept: dict[str, np.ndarray] = {}

    def phase(self, source: Callable[[Any], ChunkSource],
              prepare: Callable[[Batch], Any]) -> Phase:
        """The phase before the model's."""
        return Phase(
            PHASE, len(self._worth) * self._updates, self.update,
            lambda store: _Again(source(store), self._updates),
            finish=self.finish, over=self.over, prepare=prepare)

    def update(self, batch: Batch | None, step: int) -> dict[str, Any]:
        """Update `step` of all starts; metrics with the number of the start.

        At the last update of each `start_worth`, its mean worth on the
        batches of its last updates.
        """
        start, step = divmod(step, self._updates)
        if step == 0 and start:
            restore(self._variables, self._fresh(start), f'start {start}')
        metrics = dict(self._train(batch, step))
        metrics['start'] = start
        judged = min(JUDGED, self._updates)
        if step >= self._updates - judged:
            self._worth[start] += float(self._judge(batch, step)) / judged
        if step == self._updates - 1:
            metrics['start_worth'] = self._worth[start]
            if self._worth[start] >= self._worth[:start + 1].max():
                self._kept = dict(Live(self._variables))
            self._ended = start + 1
        return metrics

    def over(self) -> bool:
        """Whether a start that ended is worth enough."""
        return bool((self.worth >= self._enough).any())

    def finish(self) -> None:
        """The best start's variables become the model's.

        Says so when even that one's worth is no sign of a right one.
        """
        if not self.over():
            shown = ', '.join(f'{worth:.3f}' for worth in self._worth)
            print('warning: in no start do actions decide much of the '
                  f'endogenous stream ({shown} nats; model_start_worth asks '
                  f'for {self._enough:g}): the streams may have changed places;'
                  ' look at the masks, or begin more: --model_starts '
                  f'{2 * len(self._worth)} and another --logdir',
                  file=sys.stderr)
        restore(self._variables, self._kept, PHASE)
        self._kept = {}

    @property
    def worth(self) -> np.ndarray:
        """`start_worth` of every start that ended, [starts]."""
        return self._worth[:self._ended].copy()

    def state(self) -> dict[str, np.ndarray]:
        """What a resumed run needs beside the variables."""
        kept = {f'{PREFIX}kept/{name}': value
                for name, value in self._kept.items()}
        return {f'{PREFIX}worth': self._worth,
                f'{PREFIX}ended': np.array(self._ended), **kept}

    def load(self, arrays: Arrays) -> None:
        """Take `state()` back.

        Raises UserError for another number of starts, or a state of a
        version that judged or ended them otherwise.
        """
        for name in (f'{PREFIX}worth', f'{PREFIX}ended'):
            if name not in arrays:
                raise UserError(
                    f'checkpoint: expected {name}, found a state without: its '
                    'run is of a version that judged starts otherwise; train '
                    'into another --logdir')
        worth = arrays[f'{PREFIX}worth']
        if worth.shape != self._worth.shape:
            raise UserError(
                f'checkpoint: expected {len(self._worth)} starts, found '
                f'{len(worth)}; give --model_starts {len(worth)}')
        self._worth = np.array(worth)
        self._ended = int(arrays[f'{PREFIX}ended'])
        kept = f'{PREFIX}kept/'
        self._kept = {name.removeprefix(kept): value
                      for name, value in arrays.items()
                      if name.startswith(kept)}


class _Again:
    """The same batches for every start, so that they can be compared."""

    def __init__(self, source: ChunkSource, updates: int):
        self._source, self._updates = source, updates

    def batch(self, step: int) -> dict[str, np.ndarray]:
        return self._source.batch(step % self._updates)

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Episodes and first rows of a batch, for the record of a failure."""
        return self._source.indices(step % self._updates)

    def describe(self) -> dict[str, Any]:
        return self._source.describe()
