"""Several world models begun, the best one goes on (ours; off by default).

Nothing in the losses says which of the two streams is the endogenous one but
rewards and actions. Where rewards say little, chance decides in the first
fifty updates which stream draws the robot, and nothing changes it later
(docs/results/mini.md). As with every mixture that may swap its parts, the
remedy is to begin more than once and keep the lowest loss: the right
assignment costs less, since actions foretell the robot and rewards are read
from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dreamerv2_base.checkpoint import restore
from dreamerv2_base.errors import UserError
from semopo_tf.method import Batch, ChunkSource, Phase

PHASE = 'starts'
PREFIX = 'starts/'  # of its arrays in a checkpoint
JUDGED = 50         # last updates of a start, whose mean loss decides

Arrays = Mapping[str, np.ndarray]


class Starts:
    """`count` beginnings of `updates` updates each, on the same batches.

    Args:
      fresh: initial values of all variables of start k, by name; those of
        start 0 are the run's own.
      variables: the model's variables, by name.
      train: one model update, `train(batch, step) -> metrics`.
      image_scale: the image's weight in the loss (`loss_scales.image`).
    """

    def __init__(self, count: int, updates: int,
                 fresh: Callable[[int], Arrays],
                 variables: Mapping[str, Any],
                 train: Callable[[Batch | None, int], Mapping[str, Any]],
                 image_scale: float = 1.0):
        self._updates, self._fresh = updates, fresh
        self._variables, self._train = variables, train
        self._image_scale = image_scale
        self._losses = np.zeros(count)
        self._kept: dict[str, np.ndarray] = {}

    def phase(self, source: Callable[[Any], ChunkSource],
              prepare: Callable[[Batch], Any]) -> Phase:
        """The phase before the model's."""
        return Phase(
            PHASE, len(self._losses) * self._updates, self.update,
            lambda store: _Again(source(store), self._updates),
            finish=self.finish, prepare=prepare)

    def update(self, batch: Batch | None, step: int) -> dict[str, Any]:
        """Update `step` of all starts; metrics with the number of the start.

        At the last update of each, `start_loss`: the mean of what its last
        updates minimised.
        """
        start, step = divmod(step, self._updates)
        if step == 0 and start:
            restore(self._variables, self._fresh(start), f'start {start}')
        metrics = dict(self._train(batch, step))
        metrics['start'] = start
        judged = min(JUDGED, self._updates)
        if step >= self._updates - judged:
            self._losses[start] += minimised(
                metrics, self._image_scale) / judged
        if step == self._updates - 1:
            metrics['start_loss'] = self._losses[start]
            if self._losses[start] <= self._losses[:start + 1].min():
                self._kept = {name: variable.numpy() for name, variable
                              in self._variables.items()}
        return metrics

    def finish(self) -> None:
        """The best start's variables become the model's."""
        restore(self._variables, self._kept, PHASE)
        self._kept = {}

    @property
    def losses(self) -> np.ndarray:
        """`start_loss` of every start, [starts]."""
        return self._losses.copy()

    def state(self) -> dict[str, np.ndarray]:
        """What a resumed run needs beside the variables."""
        kept = {f'{PREFIX}kept/{name}': value
                for name, value in self._kept.items()}
        return {f'{PREFIX}losses': self._losses, **kept}

    def load(self, arrays: Arrays) -> None:
        """Take `state()` back. Raises UserError for another number."""
        losses = arrays[f'{PREFIX}losses']
        if losses.shape != self._losses.shape:
            raise UserError(
                f'checkpoint: expected {len(self._losses)} starts, found '
                f'{len(losses)}; give --model_starts {len(losses)}')
        self._losses = np.array(losses)
        kept = f'{PREFIX}kept/'
        self._kept = {name.removeprefix(kept): value
                      for name, value in arrays.items()
                      if name.startswith(kept)}


def minimised(metrics: Mapping[str, Any], image_scale: float = 1.0) -> float:
    """The sum of all weighted terms of one model update.

    Both streams' losses hold the image's term; here it counts once.
    """
    loss = float(metrics['model_loss'])
    if 'disen_loss' in metrics:
        image = image_scale * float(metrics['image_loss'])
        loss += float(metrics['disen_loss']) - image
    return loss


class _Again:
    """The same batches for every start, so that losses can be compared."""

    def __init__(self, source: ChunkSource, updates: int):
        self._source, self._updates = source, updates

    def batch(self, step: int) -> dict[str, np.ndarray]:
        return self._source.batch(step % self._updates)

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Episodes and first rows of a batch, for the record of a failure."""
        return self._source.indices(step % self._updates)

    def describe(self) -> dict[str, Any]:
        return self._source.describe()
