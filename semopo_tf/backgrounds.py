"""Videos behind the robot: a folder of them, or a drawn one.

Spec of the baselines 9.1. A background is an array of frames uint8
[N, height, width, C], C = 1 for grayscale; an environment starts anywhere in
it at each reset and moves on by one frame per action, cyclically.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np

from dreamerv2_base.errors import UserError

PROCEDURAL_FRAMES = 600


def composite(frame: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Replace pixels where blue is larger than both red and green.

    frame uint8 [h, w, 3], background uint8 [h, w, 1 or 3].
    """
    red, green, blue = np.moveaxis(frame, -1, 0)
    masked = (blue > red) & (blue > green)
    return np.where(masked[..., None], background, frame)


def load_background(kind: str, size: tuple[int, int], grayscale: bool,
                    seed: int, total_frames: int) -> np.ndarray | None:
    """Frames of `video_dir`: 'none', 'procedural' or a folder of videos.

    Decoded folders are cached, so that ten processes do not decode ten times.
    Raises UserError for a folder that is missing or holds no readable video.
    """
    if kind == 'none':
        return None
    if kind == 'procedural':
        key = f'procedural-1/{size}/{grayscale}'
        return _cached(key, lambda: draw_driving(size, grayscale))
    files = video_files(Path(kind).expanduser())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns)
             for path in files]
    key = f'folder-1/{stats}/{size}/{grayscale}/{seed}/{total_frames}'
    return _cached(key, lambda: decode_folder(
        files, size, grayscale, seed, total_frames))


def video_files(folder: Path) -> list[Path]:
    """Video files of a folder, sorted by name. Raises UserError if none."""
    if not folder.is_dir():
        raise UserError(f'video_dir: expected a folder of videos, found '
                        f'nothing at {folder}; give --video_dir FOLDER, or '
                        '--video_dir procedural')
    endings = {'.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg',
               '.gif'}
    files = sorted(path for path in folder.iterdir()
                   if path.suffix.lower() in endings)
    if not files:
        raise UserError(f'video_dir: expected videos ({" ".join(endings)}) '
                        f'in {folder}, found none; give --video_dir FOLDER, '
                        'or --video_dir procedural')
    return files


def decode_folder(files: list[Path], size: tuple[int, int], grayscale: bool,
                  seed: int, total_frames: int) -> np.ndarray:
    """The first `total_frames` frames of the files in a seeded order.

    Each frame is resized bilinearly to (height, width), whatever its aspect
    ratio. Files are used again in another order until there are enough.
    """
    rng = np.random.default_rng(seed)
    channels = 1 if grayscale else 3
    frames = np.empty((total_frames, *size, channels), np.uint8)
    filled = 0
    while filled < total_frames:
        before = filled
        for number in rng.permutation(len(files)):
            for frame in _decode(files[number], size, grayscale):
                if filled == total_frames:
                    return frames
                frames[filled] = frame
                filled += 1
        if filled == before:
            raise UserError(f'video_dir: expected videos with frames, found '
                            f'none in {files[0].parent}')
    return frames


def _decode(path: Path, size: tuple[int, int], grayscale: bool):
    import cv2
    import imageio_ffmpeg
    channels = 1 if grayscale else 3
    reader = imageio_ffmpeg.read_frames(
        str(path), pix_fmt='gray' if grayscale else 'rgb24',
        bits_per_pixel=8 * channels)
    try:
        width, height = next(reader)['size']
        for raw in reader:
            frame = np.frombuffer(raw, np.uint8).reshape(
                height, width, channels)
            small = cv2.resize(frame, size[::-1],
                               interpolation=cv2.INTER_LINEAR)
            yield small.reshape(*size, channels)
    except (OSError, RuntimeError, StopIteration) as error:
        raise UserError(f'video_dir: expected a video, found an unreadable '
                        f'file {path} ({str(error)[:200]}); remove it'
                        ) from None
    finally:
        reader.close()


def draw_driving(size: tuple[int, int], grayscale: bool,
                 count: int = PROCEDURAL_FRAMES) -> np.ndarray:
    """A drawn drive: road with lane marks, verges, skyline and traffic.

    Cyclic, uint8 [count, height, width, 1 or 3].
    """
    rng = np.random.default_rng(7)
    height, width = size
    horizon = int(0.42 * height)
    verge = rng.uniform(0.5, 1.0, (64, 256))
    skyline = _skyline(rng, 512, horizon)
    y = np.arange(height)[:, None]
    x = (np.arange(width)[None] + 0.5) / width - 0.5
    depth = 1.0 / np.maximum(y - horizon + 0.7, 0.3) * height
    ground = (y > horizon) & (x == x)
    frames = np.empty((count, height, width, 3), np.uint8)
    for i in range(count):
        turn = np.sin(2 * np.pi * i / count)
        frame = _sky(height, width, horizon, skyline, int(
            512 * i / count + 40 * turn))
        bend = 0.004 * turn * depth ** 1.5 / height
        across = (x - bend) * depth * 0.9
        along = depth * 6 + 8.0 * i * 256 / count
        road = _ground(across, along, verge)
        frame[ground] = road[ground]
        _car(frame, horizon, (i * 3 % count) / count, turn)
        frames[i] = np.clip(255 * frame, 0, 255)
    if grayscale:
        weights = np.array([.299, .587, .114])
        return (frames @ weights).astype(np.uint8)[..., None]
    return frames


def _skyline(rng, length: int, horizon: int) -> np.ndarray:
    """Heights of buildings and trees along a turn of the camera."""
    heights = np.repeat(rng.uniform(0.1, 0.75, length // 16), 16)
    return heights * horizon


def _sky(height, width, horizon, skyline, shift) -> np.ndarray:
    frame = np.zeros((height, width, 3))
    fade = np.linspace(0.55, 0.9, horizon + 1)[:, None, None]
    frame[:horizon + 1] = fade * np.array([0.75, 0.85, 1.0])
    column = (np.arange(width) + shift) % len(skyline)
    above = horizon - np.arange(height)[:, None]
    solid = (above >= 0) & (above < skyline[column][None])
    shade = 0.25 + 0.3 * ((column // 16 * 7919) % 10) / 10
    colour = shade[:, None] * np.array([1.0, 0.9, 0.8])
    frame[solid] = np.broadcast_to(colour, frame.shape)[solid]
    return frame


def _ground(across, along, verge) -> np.ndarray:
    texture = verge[(np.abs(across) * 9).astype(int) % 64,
                    along.astype(int) % 256 + 0 * across.astype(int)]
    grass = texture[..., None] * np.array([0.35, 0.5, 0.25])
    asphalt = (0.28 + 0.08 * texture)[..., None] * np.ones(3)
    ground = np.where((np.abs(across) < 1.6)[..., None], asphalt, grass)
    dash = (np.abs(across) < 0.07) & (along % 64 < 32)
    edge = np.abs(np.abs(across) - 1.5) < 0.06
    return np.where((dash | edge)[..., None], 0.92, ground)


def _car(frame: np.ndarray, horizon: int, age: float, turn: float) -> None:
    """An oncoming car that grows as it comes nearer."""
    height, width = frame.shape[:2]
    near = age ** 3
    bottom = int(horizon + 1 + near * (height - horizon))
    size = max(1, int(0.3 * near * height))
    centre = int(width * (0.5 - 0.02 * turn - 0.28 * near))
    frame[max(0, bottom - size):bottom,
          max(0, centre - size):max(0, centre + size // 2)] = (.6, .1, .1)


def _cached(key: str, make) -> np.ndarray:
    """The array of `key`, mapped from the cache folder or made anew."""
    root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    folder = Path(root).expanduser() / 'semopo'
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    path = folder / f'background-{name}.npy'
    if path.exists():
        return np.load(path, mmap_mode='r')
    array = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
                dir=folder, suffix='.npy', delete=False) as file:
            np.save(file, array)
        os.replace(file.name, path)
    except OSError:
        pass  # a cache that cannot be written costs time, nothing else
    return array
