"""A run's records: JSON lines, TensorBoard, films and a progress bar.

metrics.jsonl and episodes.jsonl hold nothing that depends on the clock, so
that an interrupted and resumed run has the same bytes as an undisturbed one.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dreamerv2_base.errors import UserError
from dreamerv2_base.files import whole

FPS = 20  # of films
RECORDS = ('metrics.jsonl', 'episodes.jsonl', 'timings.jsonl')


class Logger:
    """Appends to the records of one run folder.

    Args:
      folder: the run folder.
      tensorboard: also write event files for TensorBoard.
    """

    def __init__(self, folder: Path, tensorboard: bool = True):
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._files = {name: (self._folder / name).open('ab')
                       for name in RECORDS}
        self._use_tensorboard = tensorboard
        self._events: Any = None
        self._offsets: dict[str, int] = {}

    def scalars(self, phase: str, step: int,
                values: Mapping[str, float]) -> None:
        """One row of metrics.jsonl: {"phase", "step", name: value}."""
        row = {name: _plain(values[name]) for name in sorted(values)}
        self._append('metrics.jsonl', {'phase': phase, 'step': step, **row})
        self._to_tensorboard(phase, step, values)

    def timings(self, phase: str, step: int,
                values: Mapping[str, float]) -> None:
        """One row of timings.jsonl: whatever depends on the clock."""
        self._append('timings.jsonl', {
            'phase': phase, 'step': step,
            **{name: _plain(value) for name, value in values.items()}})

    def episode(self, row: Mapping[str, Any]) -> None:
        """One row of episodes.jsonl: an evaluation episode."""
        self._append('episodes.jsonl', row)

    def video(self, phase: str, step: int, name: str, frames: np.ndarray,
              ) -> Path | None:
        """Write uint8 frames [T, h, w, 3] as an mp4 that browsers play.

        Returns None, after a warning, where films cannot be encoded: no run
        ends for a picture.
        """
        folder = self._folder / 'videos'
        folder.mkdir(exist_ok=True)
        path = folder / f'{phase}_{step:07d}_{name}.mp4'
        try:
            write_video(path, frames)
        except UserError as error:
            print(f'warning: {error}', file=sys.stderr)
            return None
        return path

    def position(self) -> dict[str, int]:
        """Bytes written so far, to be kept in a checkpoint."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def rewind(self, position: Mapping[str, int] | None) -> None:
        """Forget rows written after a checkpoint (all of them for None).

        The clock's records are kept, but for a line torn by a crash. Raises
        UserError for a record that has become shorter than it was.
        """
        for name, file in self._files.items():
            if name == 'timings.jsonl':
                drop_torn_line(self._folder / name)
            else:
                _cut(file, (position or {}).get(name, 0))
            file.seek(0, os.SEEK_END)
        if self._events is not None:
            self._events.close()
            self._events = None
        shutil.rmtree(self._folder / 'tensorboard', ignore_errors=True)
        for row in read_rows(self._folder / 'metrics.jsonl'):
            phase, step = row.pop('phase'), row.pop('step')
            self._to_tensorboard(phase, step, row)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        if self._events is not None:
            self._events.close()

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        file = self._files[name]
        file.write(json.dumps(row).encode() + b'\n')
        file.flush()

    def _to_tensorboard(self, phase, step, values) -> None:
        if not self._use_tensorboard:
            return
        if self._events is None:
            from dreamerv2_base.tf import tf
            self._events = tf.summary.create_file_writer(
                str(self._folder / 'tensorboard'))
        from dreamerv2_base.tf import tf
        with self._events.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(f'{phase}/{name}', float(value))


def _cut(file: BinaryIO, length: int) -> None:
    found = file.seek(0, os.SEEK_END)
    if found < length:
        path = Path(file.name)
        raise UserError(
            f'{path}: expected the {length} bytes that were written before '
            f'the checkpoint, found {found}; restore the file, or train anew '
            'with another --logdir')
    file.truncate(length)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a record. A last line torn by a crash is left out.

    Raises UserError for a damaged line.
    """
    if not path.exists():
        return []
    rows = []
    # What follows the last newline is nothing, or a torn line.
    for number, line in enumerate(path.read_bytes().split(b'\n')[:-1], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f'{path}, line {number}: expected a row of a record, '
                f'found {error}; mend or remove the line') from None
    return rows


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a record, in place of a last line torn by a crash."""
    if path.exists():
        drop_torn_line(path)
    with path.open('ab') as file:
        file.write(json.dumps(row).encode() + b'\n')


def drop_torn_line(path: Path) -> None:
    """Cut a record back to its last newline, so that rows can follow."""
    with path.open('r+b') as file:
        file.truncate(file.read().rfind(b'\n') + 1)


def read_record(path: Path) -> Any:
    """A JSON record of a run. Raises UserError for a missing or damaged one.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f'{path}: expected the record of a trained run, found none; '
            'give the folder of a run: run.py train') from None
    except ValueError as error:
        raise UserError(f'{path}: expected the record of a run, found a '
                        f'damaged one ({error}); restore it') from None


def write_video(path: Path, frames: np.ndarray) -> None:
    """uint8 frames [T, h, w, 3] -> mp4 (H.264, 4:2:0), whole or not at all.

    Odd sizes get a black line, because the codec wants even ones; small
    frames are enlarged, because players blur them. Raises UserError where
    ffmpeg is not there or cannot do that.
    """
    import imageio.v2 as imageio
    frames = np.asarray(frames)
    scale = max(1, 256 // frames.shape[2])
    frames = frames.repeat(scale, 1).repeat(scale, 2)
    pad = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    try:
        with whole(path) as partial:
            writer = imageio.get_writer(
                partial, format='.mp4', fps=FPS, codec='libx264',
                macro_block_size=1, pixelformat='yuv420p', quality=7,
                output_params=['-f', 'mp4'])
            with writer:
                for frame in np.pad(frames, pad):
                    writer.append_data(frame)
            _expect_film(partial)
    except (OSError, RuntimeError, ValueError) as error:
        if getattr(error, 'errno', None):  # the disk's, not ffmpeg's
            raise
        raise UserError(
            f'{path}: expected to encode a film, found ffmpeg unable to '
            f'({str(error).strip().splitlines()[0]}); pip install '
            'imageio-ffmpeg') from None


def _expect_film(path: Path) -> None:
    # What ffmpeg returns at the end, imageio does not tell.
    import cv2
    if cv2.VideoCapture(str(path)).read()[0]:
        return
    if shutil.disk_usage(path.parent).free < 2 ** 20:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    raise ValueError('what it wrote cannot be read')


class Progress:
    """A bar with rate, time left and a few losses; plain lines in a file.

    Args:
      total: updates, or whatever is counted. initial: those done already.
      label: what stands before the bar.
    """

    SHOWN = ('model_loss', 'image_loss', 'model_kl', 'reward_loss',
             'actor_loss', 'critic_loss', 'actor_bc_loss', 'q_loss',
             'policy_loss', 'inverse_loss', 'reward_mean')
    EVERY = 30.0  # seconds between lines where there is no terminal

    def __init__(self, total: int, initial: int, label: str):
        from tqdm import tqdm
        self._bar = tqdm(total=total, initial=initial, desc=label,
                         disable=not sys.stderr.isatty(), smoothing=0.05)
        self._label, self._total, self._done = label, total, initial
        self._first, self._since = initial, time.monotonic()
        self._said = self._since

    def update(self, count: int) -> None:
        self._done += count
        self._bar.update(count)

    def show(self, values: Mapping[str, float]) -> None:
        """Show the most telling of the values beside the bar."""
        shown = {k: f'{values[k]:.4g}' for k in self.SHOWN if k in values}
        self._bar.set_postfix(shown, refresh=False)
        now = time.monotonic()
        if self._bar.disable and now - self._said > self.EVERY:
            self._said = now
            self._line(now, shown)

    def close(self) -> None:
        if self._bar.disable and self._done > self._first:
            self._line(time.monotonic(), {})
        self._bar.close()

    def _line(self, now, shown) -> None:
        rate = (self._done - self._first) / max(now - self._since, 1e-9)
        left = (self._total - self._done) / max(rate, 1e-9) / 60
        text = ' '.join(f'{k} {v}' for k, v in shown.items())
        print(f'{self._label} {self._done}/{self._total}, {rate:.2f}/s, '
              f'{left:.0f} min left {text}', file=sys.stderr, flush=True)


def _plain(value: float) -> float | str:
    value = float(value)
    return value if math.isfinite(value) else str(value)
