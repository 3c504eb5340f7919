"""Videos behind the robot: a folder of them, or a drawn one.

Baselines 9.1. A background is an array of frames uint8
[N, height, width, C], C = 1 for grayscale; an environment starts anywhere in
it at each reset and moves on by one frame per action, cyclically.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dreamerv2_base.errors import UserError
from dreamerv2_base.files import whole
from semopo_tf.drive import draw_drive

ENDINGS = ('.avi', '.gif', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg',
           '.webm')


def is_background(frame: np.ndarray) -> np.ndarray:
    """Pixels where blue is larger than both red and green, bool [h, w].

    frame uint8 [h, w, 3], without a video.
    """
    red, green, blue = np.moveaxis(frame, -1, 0)
    return (blue > red) & (blue > green)


def composite(frame: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Put a video's frame in place of the background.

    frame uint8 [h, w, 3], background uint8 [h, w, 1 or 3].
    """
    return np.where(is_background(frame)[..., None], background, frame)


def faded(background: np.ndarray, alpha: float) -> np.ndarray:
    """Frames at opacity `alpha` in [0, 1] over black, rounded down.

    The Distracting Control Suite's name for how strong a video is; 1 is the
    video as it is, and the paper's.
    """
    if alpha == 1:
        return background
    return (background * np.float32(alpha)).astype(np.uint8)


def load_background(kind: str, size: tuple[int, int], grayscale: bool,
                    seed: int, total_frames: int) -> np.ndarray | None:
    """Frames of `video_dir`: 'none', 'procedural' or a folder of videos.

    `seed` decides the order of the files. The array is made once and then
    read from a cache folder, so that ten processes do not decode ten times.
    Raises UserError for a folder that is missing or holds no readable video.
    """
    if kind == 'none':
        return None
    if kind == 'procedural':
        key = f'drive-2/{size}/{grayscale}/{total_frames}'
        return _cached(key, lambda: _drive(size, grayscale, total_frames))
    files = video_files(Path(kind).expanduser())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns)
             for path in files]
    key = f'folder-2/{stats}/{size}/{grayscale}/{seed}/{total_frames}'
    return _cached(key, lambda: decode_folder(
        files, size, grayscale, seed, total_frames))


def video_files(folder: Path) -> list[Path]:
    """Video files of a folder, sorted by name. Raises UserError if none."""
    if not folder.is_dir():
        raise UserError(f'video_dir: expected a folder of videos, found '
                        f'nothing at {folder}; give --video_dir FOLDER, or '
                        '--video_dir procedural')
    files = sorted(path for path in folder.iterdir()
                   if path.suffix.lower() in ENDINGS)
    if not files:
        raise UserError(f'video_dir: expected videos ({" ".join(ENDINGS)}) '
                        f'in {folder}, found none; give --video_dir FOLDER, '
                        'or --video_dir procedural')
    return files


def decode_folder(files: list[Path], size: tuple[int, int], grayscale: bool,
                  seed: int, total_frames: int) -> np.ndarray:
    """The first `total_frames` frames of the files in a seeded order.

    Each frame is resized bilinearly to (height, width), whatever its aspect
    ratio. Files are used again in another order until there are enough.
    Returns uint8 [total_frames, height, width, 1 or 3].
    """
    frames = np.empty((total_frames, *size, 1 if grayscale else 3), np.uint8)
    shown = (frame for path in _shuffled(files, seed)
             for frame in _decode(path, size, grayscale))
    for filled, frame in enumerate(itertools.islice(shown, total_frames)):
        frames[filled] = frame
    return frames


def video_order(kind: str, seed: int) -> list[list[Any]]:
    """Which videos `load_background` decodes, in which order, for records.

    Returns [name, bytes] of each, as JSON holds it; of a folder with fewer
    frames than are wanted the first pass; nothing where `kind` is no folder.
    How many frames a file has only decoding would tell. Raises UserError for
    a folder that is missing or holds no video.
    """
    if kind in ('none', 'procedural'):
        return []
    files = video_files(Path(kind).expanduser())
    return [[path.name, path.stat().st_size]
            for path in itertools.islice(_shuffled(files, seed), len(files))]


def first_difference(there: list[list[Any]], here: list[list[Any]]) -> str:
    """Where two results of `video_order` part; '' where they do not."""
    for number, pair in enumerate(itertools.zip_longest(there, here), 1):
        if pair[0] != pair[1]:
            old, new = ('none' if one is None else
                        f'{one[0]} ({one[1]:,} bytes)' for one in pair)
            return f'video {number} was {old} and is {new}'
    return ''


def _shuffled(files: list[Path], seed: int) -> Iterator[Path]:
    """The files in a seeded order, again and again in another one."""
    rng = np.random.default_rng(seed)
    while True:
        for number in rng.permutation(len(files)):
            yield files[number]


def _decode(path: Path, size: tuple[int, int], grayscale: bool,
            ) -> Iterator[np.ndarray]:
    """Frames uint8 [height, width, 1 or 3]; at least one, or UserError."""
    import imageio_ffmpeg
    channels = 1 if grayscale else 3
    reader = imageio_ffmpeg.read_frames(
        str(path), pix_fmt='gray' if grayscale else 'rgb24',
        bits_per_pixel=8 * channels)
    count, reason = 0, 'no frames'
    try:
        width, height = next(reader)['size']
        for raw in reader:
            frame = np.frombuffer(raw, np.uint8).reshape(
                height, width, channels)
            small = cv2.resize(frame, size[::-1],
                               interpolation=cv2.INTER_LINEAR)
            yield small.reshape(*size, channels)
            count += 1
    except (OSError, RuntimeError, StopIteration) as error:
        reason, count = ' '.join(str(error).split()) or reason, 0
    finally:
        reader.close()
    if not count:
        raise UserError(
            f'video_dir: expected a video, found {path}, which cannot be read'
            f' ({reason[-200:]}); remove it or encode it anew')


def _drive(size: tuple[int, int], grayscale: bool, count: int) -> np.ndarray:
    frames = draw_drive(size, count)
    if not grayscale:
        return frames
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
                     for frame in frames])[..., None]


def cache_folder() -> Path:
    """Where made backgrounds are kept: XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(root).expanduser() / 'semopo'


def _cached(key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array of `key`, mapped from the cache folder or made anew."""
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    path = cache_folder() / f'background-{name}.npy'
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix('.lock').open('w')
    except OSError as error:
        warnings.warn(f'backgrounds are made anew in every process: {error}; '
                      'set XDG_CACHE_HOME to a folder that can be written',
                      stacklevel=2)
        return make()
    with lock:
        # The others wait for the one that makes it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            array = make()
            with whole(path) as partial, partial.open('wb') as file:
                np.save(file, array)
        return np.load(path, mmap_mode='r')
