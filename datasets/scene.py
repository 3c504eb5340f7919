"""What is behind the robot: seen in the frames alone.

Baselines 9.2 and traps 15 and 16: a set collected in the scene of
DBC and TIA keeps a grey checkered floor, a dark band right across the frame,
while in the stock scene the videos cover the floor too; and grayscale videos
have equal colour channels, colour videos do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

FRAMES = 16  # looked at per episode, evenly spread

# Rows of 64 that stand for the sky (no robot there), and the rows in which a
# floor can begin.
SKY, HORIZON = 12, 16
BAND = 3  # rows of 64 that a floor covers at least (hopper: 4)
# The grey floor under the suite's lights, measured in rendered frames of
# walker, cheetah and hopper: rows of mean 29 to 60, no pixel above 100. Other
# pixels in those rows are the robot's and its reflection's, which are orange.
BRIGHT, MEAN, ORANGE = 105.0, 70.0, 12.0
FLOOR_TASKS = ('walker', 'cheetah', 'hopper')


@dataclass(frozen=True)
class Look:
    """Measures of the frames of one episode, shares in [0, 1].

    Attributes:
      equal: of sky pixels whose three channels are equal.
      plain: of pixels with blue above red and green, outside of the robot and
        of a dark band: in frames without video nearly all, for those are what
        videos replace.
      band: of frames with a dark band of floor across them.
      level: mean brightness of those bands, None without any.
      motion: mean absolute difference of the sky between frames.
    """

    equal: float
    plain: float
    band: float
    level: float | None
    motion: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def look(image: np.ndarray) -> Look:
    """Measure frames uint8 [L, H, W, 3] of an episode, L > 0."""
    places = np.unique(np.linspace(0, len(image) - 1, FRAMES).astype(int))
    frames = image[places].astype(np.float32)
    rows = max(1, round(frames.shape[1] * SKY / 64))
    sky = frames[:, :rows]
    spread = sky.max(-1) - sky.min(-1)
    bands = [_band(frame) for frame in frames]
    levels = [band[2] for band in bands if band]
    after = np.minimum(places + 1, len(image) - 1)
    motion = np.abs(image[after, :rows].astype(np.float32) - sky)
    plain = [_blue(frame, band)
             for frame, band in zip(frames, bands, strict=True)]
    return Look(
        float((spread < 1).mean()), float(np.mean(plain)),
        len(levels) / len(frames),
        float(np.mean(levels)) if levels else None, float(motion.mean()))


def judge(looks: Sequence[Look], task: str) -> dict[str, str]:
    """What the episodes of a set have behind the robot.

    Returns 'background' ('plain', 'grayscale video', 'colour video', 'mixed'
    or 'unclear') and 'floor' ('grey floor', 'video floor', 'plain floor',
    'mixed', 'unclear', or why it cannot be told); car racing's are its own.
    """
    if task == 'car_racing':
        return {'background': 'its own', 'floor': 'its own'}
    kinds = [_background(one) for one in looks]
    background = kinds[0] if len(set(kinds)) == 1 else 'mixed'
    if not task.startswith(FLOOR_TASKS):
        why = ('both scenes have the same' if task.startswith('humanoid')
               else 'known for walker, cheetah and hopper alone')
        return {'background': background, 'floor': f'not told ({why})'}
    if background == 'plain':
        return {'background': background, 'floor': 'plain floor'}
    share = float(np.mean([one.band for one in looks]))
    levels = [one.level for one in looks if one.level is not None]
    # A dark video makes bands too, but neither in every frame nor alike.
    alike = bool(levels) and float(np.std(levels)) < 8
    floor = ('grey floor' if share > 0.9 and alike else
             'video floor' if share < 0.6 else 'unclear')
    return {'background': background, 'floor': floor}


def _background(one: Look) -> str:
    if one.plain > 0.85:
        return 'plain'
    if one.equal > 0.9:
        return 'grayscale video'
    return 'colour video' if one.equal < 0.6 else 'unclear'


def _blue(frame: np.ndarray, band: tuple[int, int, float] | None) -> float:
    """Share of blue pixels among those that are no robot and no floor."""
    red, green, blue = np.moveaxis(frame, -1, 0)
    seen = ~_orange(frame)
    grey = np.abs(red - blue) < ORANGE / 2
    if band:
        seen[band[0]:band[1]] &= ~grey[band[0]:band[1]]
    return float(((blue > red) & (blue > green))[seen].mean()
                 if seen.any() else 0)


def _orange(frame: np.ndarray) -> np.ndarray:
    """Pixels of the robot and its reflection [H, W]; grass is greener."""
    red, green, blue = np.moveaxis(frame, -1, 0)
    return (red - blue > ORANGE) & (red > green)


def _band(frame: np.ndarray) -> tuple[int, int, float] | None:
    """(first row, behind the last, mean brightness) of the widest floor."""
    robot = _orange(frame)
    grey = np.where(robot, np.nan, frame.mean(-1))
    grey[robot.all(1)] = 255.0  # rows of robot alone are no floor
    bright = np.nanpercentile(grey, 98, axis=1)
    mean = np.nanmean(grey, axis=1)
    floor = (bright < BRIGHT) & (mean < MEAN)
    height = len(frame)
    floor[:round(height * HORIZON / 64)] = False
    edges = np.flatnonzero(np.diff(np.r_[0, floor.astype(np.int8), 0]))
    runs = edges.reshape(-1, 2)
    if not len(runs):
        return None
    begin, end = runs[np.argmax(runs[:, 1] - runs[:, 0])]
    if end - begin < round(height * BAND / 64):
        return None
    return int(begin), int(end), float(np.nanmean(grey[begin:end]))
