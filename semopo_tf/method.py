"""What the loop knows of a method: phases, a policy, variables, pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dreamerv2_base.errors import UserError

Batch = Mapping[str, np.ndarray]


class BatchSource(Protocol):
    """Batches by update number: a pure function of (seed, phase, update)."""

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The batch of one update (NumPy arrays, images uint8)."""

    def describe(self) -> dict[str, Any]:
        """Counts for the log: episodes loaded, reachable, dropped, …"""


class ChunkSource(BatchSource, Protocol):
    """Batches of chunks of episodes, which it can name."""

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Episodes [B] and first rows [B] of the batch of one update."""


@dataclass(frozen=True)
class Phase:
    """One stretch of training.

    Attributes:
      name: as in the run folder's records (`model`, `agent`, `train`).
      updates: how many calls of `train`.
      train: one update, `train(batch, step) -> metrics` (scalar tensors or
        floats). `batch` is what `prepare` makes of a batch, the batch itself
        without; None when `source` is, and without `prefetch`.
      source: makes the batch source from the episode store; None if the
        method draws its own data.
      evaluate_every: evaluate before each block of so many updates; 0 never.
      video_every: reconstruction videos every so many updates; 0 never.
      start: called once before update 0 (not on resume).
      finish: called once after the last update (not on resume past it).
      over: asked before each update whether the phase ends early; what it
        depends on is part of the method's state.
      prepare: what `train` wants done to a batch first, in the thread that
        makes batches.
      prefetch: False: batches depend on what is collected meanwhile; `train`
        gets None and asks its source itself.
      log_every, save_every: updates between two rows of metrics and two
        checkpoints; 0: `log_updates` and `save_updates`. For phases whose
        updates are long.
    """

    name: str
    updates: int
    train: Callable[[Any, int], Mapping[str, Any]]
    source: Callable[[Any], BatchSource] | None
    evaluate_every: int = 0
    video_every: int = 0
    start: Callable[[], None] | None = None
    finish: Callable[[], None] | None = None
    over: Callable[[], bool] = lambda: False
    prepare: Callable[[Batch], Any] | None = None
    prefetch: bool = True
    log_every: int = 0
    save_every: int = 0


class Method(Protocol):
    """A way of learning a policy from a folder of episodes.

    Constructed as `Method(config, store)`, where `store` is an EpisodeStore
    or, for evaluating a finished run, None with `action_size` given:
    `Method(config, None, action_size=A)`. One that also has `acting()`, the
    variables that `policy` reads, by name, can be exported.
    """

    def phases(self) -> Sequence[Phase]:
        """The phases, in order."""

    def policy(self, observation: Batch, state: Any, key: int,
               ) -> tuple[np.ndarray, Any]:
        """Actions [N, A] for a batch of observations of N environments.

        `state` is None at the first step; `key` fixes the random draws of a
        whole rollout.
        """

    def state(self) -> Mapping[str, np.ndarray]:
        """Everything a resumed run needs, by name, as it is now."""

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore `state()`. Raises UserError on a missing or odd entry."""

    def parameters(self) -> dict[str, int]:
        """Number of weights per module."""

    def videos(self, batch: Batch, key: int) -> dict[str, np.ndarray]:
        """Pictures of what was learned: {name: float [T, h, w, C] in 0…1}."""


def expect_frames(observation: Batch, side: int) -> None:
    """Raises UserError where `image` is not uint8 [n, side, side, 3].

    Anything else (floats, other sizes, one frame without an axis in front)
    would be seen as noise, and acted on without a word.
    """
    image = observation['image']
    if image.dtype != np.uint8 or image.shape[1:] != (side, side, 3):
        raise UserError(
            f'policy: expected image uint8 [n, {side}, {side}, 3], found '
            f'{image.dtype} {list(image.shape)}; give rendered frames as they '
            'are, with an axis of environments in front')


def size_of_actions(store: Any, given: int | None) -> int:
    """A of a method: the store's, or what is given where there is none."""
    if store is not None:
        return store.action_size
    if given is None:
        raise ValueError('method: expected a store or an action_size, found '
                         'neither')
    return given
