"""The loop that every method shares: phases, records, evaluation, resume.

Batch i of a phase, the draws of update i and evaluation k are pure functions
of the seed, so a checkpoint holds weights, counters, how long the records were
and what is not in them yet, and a resumed run goes on with the same numbers.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dreamerv2_base.checkpoint import Checkpoints
from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.logger import Progress
from dreamerv2_base.noise import fold
from dreamerv2_base.replay import Prefetcher
from semopo_tf import export
from semopo_tf.evaluation import Evaluator
from semopo_tf.method import Method, Phase
from semopo_tf.run_folder import RunFolder

SLOW_DATA = 0.1  # share of the time spent waiting for data that is told


class Interrupted(Exception):
    """The user asked to stop; everything is saved."""


class NotFinite(Exception):
    """A loss became NaN or infinite; see the folder `failure`."""


@dataclass
class Position:
    """Where a run stands: phase, updates done in it, and open records."""

    phase: int = 0
    step: int = 0
    started: bool = False      # what comes before the first update was done
    evaluated: int = -1        # step of the last evaluation in this phase
    finished: bool = False
    pending: dict[str, list[float]] = field(default_factory=dict)

    def count(self, phases: Sequence[Phase]) -> int:
        """A number that grows with everything that is saved."""
        before = sum(phase.updates + 2 for phase in phases[:self.phase])
        evaluated = int(self.evaluated == self.step)
        return 2 * (before + self.step) + evaluated + self.finished


def saved_state(at: Position, records: Mapping[str, Any] | None,
                data: str | None) -> dict[str, Any]:
    """What a checkpoint holds beside the method's arrays.

    Args:
      records: where its rows end (`Logger.position`); None: it has none.
      data: `EpisodeStore.digest` of its data; None: any will do.
    """
    return {'at': dict(vars(at)), 'records': records, 'data': data}


class Loop:
    """Trains a method through its phases in a run folder."""

    def __init__(self, config: Config, method: Method, store: Any,
                 run: RunFolder, evaluator: Evaluator):
        self.config, self.method, self.store = config, method, store
        self.run, self.evaluator = run, evaluator
        self.phases = list(method.phases())
        self.at = Position()
        self._block: list[Mapping[str, Any]] = []
        self._stop = False
        self._said_slow = False

    def train(self) -> None:
        """Run (or go on) until the final evaluation is done.

        Raises Interrupted after SIGINT or SIGTERM, NotFinite when a loss is
        not finite; in both cases a checkpoint has been written.
        """
        self._resume()
        previous = [signal.signal(s, self._on_signal)
                    for s in (signal.SIGINT, signal.SIGTERM)]
        try:
            while self.at.phase < len(self.phases):
                self._run_phase(self.phases[self.at.phase])
                self.at = Position(self.at.phase + 1)
                self._save(pin=True)
            self._evaluate_final()
        finally:
            for number, handler in zip((signal.SIGINT, signal.SIGTERM),
                                       previous, strict=True):
                signal.signal(number, handler)

    # One phase.

    def _run_phase(self, phase: Phase) -> None:
        # Checkpoints older than `started` say it by the other two.
        if not self.at.started and self.at.step == 0 and (
                self.at.evaluated < 0 and phase.start):
            phase.start()
        self.at.started = True
        source = phase.source(self.store) if phase.source else None
        if source is not None:
            found = source.describe()
            self.run.write(f'sampling_{phase.name}.json', found)
            _say_what_is_left_out(found)
        batches = (Prefetcher(source, self.at.step, phase.updates,
                              prepare=phase.prepare)
                   if source is not None and phase.prefetch else None)
        bar = Progress(phase.updates, self.at.step, phase.name)
        try:
            self._updates(phase, source, batches, bar)
            if phase.video_every and source is not None:
                self._videos(phase, source, phase.updates)
        finally:
            bar.close()
            if batches is not None:
                batches.close()
        if phase.finish:
            phase.finish()

    def _updates(self, phase, source, batches, bar):
        started, done = time.monotonic(), 0
        log_every = phase.log_every or self.config.log_updates
        save_every = phase.save_every or self.config.save_updates
        while self.at.step < phase.updates and not phase.over():
            self._before_update(phase, source)
            if self._stop:
                self._save()
                raise Interrupted
            batch = batches.next()[1] if batches is not None else None
            self._block.append(phase.train(batch, self.at.step))
            self.at.step += 1
            done += 1
            bar.update(1)
            if self.at.step % log_every == 0 or phase.over() or (
                    self.at.step == phase.updates):
                self._log_block(phase, bar)
                seconds = time.monotonic() - started
                wait = batches.wait_share if batches is not None else 0.0
                self._log_timing(phase, done, seconds, wait)
                started, done = time.monotonic(), 0
            if self.at.step % save_every == 0:
                self._save()

    def _before_update(self, phase: Phase, source) -> None:
        step = self.at.step
        if (phase.evaluate_every and step % phase.evaluate_every == 0
                and self.at.evaluated < step):
            self._evaluate(phase.name, step, self.config.eval_eps)
            self.at.evaluated = step
            self._save()
        if (phase.video_every and source is not None and step
                and step % phase.video_every == 0):
            self._videos(phase, source, step)

    # Records.

    def _log_block(self, phase: Phase, bar) -> None:
        pending = self._collect()
        self.at.pending, self._block = {}, []
        self._check_finite(phase, pending)
        means = block_means(pending)
        self.run.logger.scalars(phase.name, self.at.step, means)
        bar.show(means)

    def _collect(self) -> dict[str, list[float]]:
        """The open block's metrics as floats, those of before first."""
        pending = {name: list(v) for name, v in self.at.pending.items()}
        for metrics in self._block:
            for name, value in metrics.items():
                pending.setdefault(name, []).append(float(value))
        return pending

    def _check_finite(self, phase, pending) -> None:
        for name, values in pending.items():
            bad = [i for i, value in enumerate(values)
                   if not np.isfinite(value)]
            if not name.endswith('loss') or not bad:
                continue
            step = self.at.step - len(values) + bad[0]
            self._save_failure(phase, name, step)
            raise NotFinite(
                f'{name} is not finite at update {step} of phase '
                f'{phase.name}; weights and the batch indices are in '
                f'{self.run.path / "failure"}')

    def _save_failure(self, phase, name, step) -> None:
        record: dict[str, Any] = {
            'phase': phase.name, 'update': step, 'metric': name}
        if phase.source is not None:
            source = phase.source(self.store)
            if hasattr(source, 'indices'):
                episodes, starts = source.indices(step)
                record['episodes'] = [
                    self.store.names[int(e)] for e in episodes]
                record['starts'] = [int(s) for s in starts]
        Checkpoints(self.run.path / 'failure').save(
            self.at.count(self.phases), self.method.state(), record)

    def _log_timing(self, phase, done, seconds, wait) -> None:
        self.run.logger.timings(phase.name, self.at.step, {
            'updates_per_second': done / max(seconds, 1e-9),
            'data_wait': wait, 'seconds': seconds})
        # The first block waits for the first batch, whatever the disk.
        if wait > SLOW_DATA and self.at.step > done and not self._said_slow:
            self._said_slow = True
            print(f'warning: {wait:.0%} of the last {done} updates went into '
                  'waiting for data; put the episodes or --cache_dir on a '
                  'local disk', file=sys.stderr)

    def _videos(self, phase: Phase, source, step: int) -> None:
        # A source without images has another way to give them.
        batch = getattr(source, 'video_batch', source.batch)(step)
        videos = self.method.videos(batch, step)
        for name, frames in videos.items():
            self.run.logger.video(phase.name, step, name, _uint8(frames))

    # Evaluation.

    def _evaluate(self, phase: str, step: int, episodes: int,
                  final: bool = False) -> None:
        key = fold(self.config.seed, 'evaluation', phase, step, final)
        found = self.evaluator.run(self.method, episodes, key)
        for number, episode in enumerate(found.episodes):
            self.run.logger.episode({
                'phase': phase, 'step': step, 'final': final,
                'episode': number, **episode})
        returns = [episode['return'] for episode in found.episodes]
        prefix = 'final_' if final else ''
        self.run.logger.scalars(phase, step, {
            f'{prefix}eval_return': float(np.mean(returns)),
            f'{prefix}eval_return_std': float(np.std(returns))})
        if found.frames is not None:
            self.run.logger.video(phase, step, 'policy', found.frames)

    def _evaluate_final(self) -> None:
        if self.at.finished:
            return
        last = self.phases[-1]
        self._evaluate(last.name, last.updates, self.config.final_eval_eps,
                       final=True)
        self.at.finished = True
        self._save(pin=True)

    # Checkpoints.

    def _save(self, pin: bool = False) -> None:
        self.at.pending = self._collect()
        self._block = []
        self.run.checkpoints.save(
            self.at.count(self.phases), self.method.state(), saved_state(
                self.at, self.run.logger.position(), self.store.digest), pin)

    def _resume(self) -> None:
        if not self.run.checkpoints.positions():
            if self.run.logger.position()['metrics.jsonl']:
                print(f'warning: {self.run.path}: no complete checkpoint, so '
                      'the run begins anew; its records are written again',
                      file=sys.stderr)
            self.run.logger.rewind(None)
            return
        arrays, state = self.run.checkpoints.load()
        export.expect_whole(self.run.path, state)
        if state['data'] not in (None, self.store.digest):
            raise UserError(
                f'{self.run.path}: expected the data that this run was '
                'started with, found other episodes in offline_dir; restore '
                'them or give another --logdir')
        self.method.load(arrays)
        self.run.logger.rewind(state['records'])
        self.at = Position(**state['at'])
        if not self.at.finished:
            name = (self.phases[self.at.phase].name
                    if self.at.phase < len(self.phases) else 'evaluation')
            print(f'resuming in phase {name} at update {self.at.step}',
                  file=sys.stderr)

    def _on_signal(self, number, frame) -> None:
        if self._stop:
            raise KeyboardInterrupt
        self._stop = True
        print('\nstopping after this update; the same command resumes',
              file=sys.stderr)


def _say_what_is_left_out(sampling: Mapping[str, Any]) -> None:
    if sampling.get('dropped_as_equal_returns'):
        print(f'note: {sampling["dropped_as_equal_returns"]} of '
              f'{sampling["episodes_loaded"]} episodes have the same return '
              'as another and are left out, as in the published code '
              '(sampling_collapse_equal)', file=sys.stderr)


def block_means(pending: Mapping[str, list[float]]) -> dict[str, float]:
    """Means of a block of updates, by metric.

    With float16 an update that overflows is skipped and has no finite
    gradient norm, which would spoil the block's (baselines 10.7):
    such norms are left out, and `<name>_left_out` counts them.
    """
    means: dict[str, float] = {}
    for name, values in pending.items():
        kept = values
        if name.endswith('grad_norm'):
            kept = [value for value in values if np.isfinite(value)]
            if len(kept) < len(values):
                means[f'{name}_left_out'] = float(len(values) - len(kept))
        means[name] = float(np.mean(kept)) if kept else float('nan')
    return means


def _uint8(frames: np.ndarray) -> np.ndarray:
    """[T, h, w, 1 or 3] in 0…1 -> uint8 [T, h, w, 3]."""
    frames = (np.clip(frames, 0, 1) * 255).astype(np.uint8)
    return np.repeat(frames, 3, -1) if frames.shape[-1] == 1 else frames
