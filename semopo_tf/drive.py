"""A drawn drive: a moving background that needs no download.

Seen from a car: a bending road with lane marks, verges, a skyline, trees and
poles at the roadside, oncoming traffic. All motions have whole numbers of
periods, so the last frame leads to the first.

Lengths are metres; x to the right of the middle of the road, z ahead.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

EYE = 3.0       # height of the camera
FOCAL = 0.7     # focal length over width of the frame
HORIZON = 0.42  # its row over height of the frame
SPEED = 0.5     # per frame
DASH = 8.0      # from one lane mark to the next
ROAD = 3.0      # half the width
NEAR, FAR = 3.0, 110.0

ASPHALT, GRASS, PAINT = (88, 87, 90), (74, 104, 52), (225, 225, 215)
SKY_HIGH, SKY_LOW = (92, 140, 205), (205, 220, 235)


@dataclass(frozen=True)
class Thing:
    """Something upright: `pace` 1 stands still, 2 comes towards us."""

    kind: str
    x: float
    z: float
    width: float
    height: float
    colour: tuple[int, int, int]
    pace: int = 1


def draw_drive(size: tuple[int, int], count: int) -> np.ndarray:
    """Frames uint8 [count, height, width, 3] of one lap, always the same."""
    rng = np.random.default_rng(7)
    # A whole number of lane marks makes the lap close.
    lap = DASH * max(1, round(count * SPEED / DASH))
    view = _View(2 * size[0], 2 * size[1])  # drawn twice as large
    things = _things(rng, lap)
    grain = rng.uniform(0.7, 1.15, (256, 64))
    skyline = _skyline(rng)
    frames = np.empty((count, *size, 3), np.uint8)
    for i in range(count):
        phase = 2 * np.pi * i / count
        bend = 0.005 * np.sin(3 * phase) + 0.003 * np.sin(5 * phase + 1)
        turn = 0.3 * np.cos(3 * phase) + 0.1 * np.cos(5 * phase + 1)
        image = view.sky(skyline, turn)
        view.ground(image, grain, lap * i / count, lap, bend)
        ahead = [((thing.z - thing.pace * lap * i / count) % lap, thing)
                 for thing in things]
        for z, thing in sorted(ahead, key=lambda pair: -pair[0]):
            if NEAR < z < FAR:
                view.upright(image, thing, z, bend)
        frames[i] = cv2.resize(
            image, size[::-1], interpolation=cv2.INTER_AREA)
    return frames


class _View:
    """Draws in perspective into images [height, width, 3]."""

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width
        self.horizon = int(HORIZON * height)
        below = np.arange(height - self.horizon) + 0.5
        self._z = np.minimum(EYE * FOCAL * width / below, 4 * FAR)[:, None]
        self._x = (np.arange(width)[None] + 0.5 - width / 2) * (
            self._z / (FOCAL * width))

    def sky(self, skyline: np.ndarray, turn: float) -> np.ndarray:
        """Sky and the buildings at the horizon, turned by `turn` radians."""
        share = np.linspace(0, 1, self.horizon)[:, None, None]
        sky = np.multiply(SKY_HIGH, 1 - share) + np.multiply(SKY_LOW, share)
        image = np.zeros((self.height, self.width, 3), np.uint8)
        image[:self.horizon] = sky
        column = np.arange(self.width) / self.width + turn
        index = (column * 128).astype(int) % len(skyline)
        height, shade = skyline[index].T
        up = self.horizon - np.arange(self.horizon)[:, None]
        solid = up <= height * self.horizon
        # Rows of windows, so that there is something to see in a wall.
        window = (up // 4 % 2 == 0) & (index // 2 % 2 == 0)
        wall = shade * (1 + 0.35 * window)
        image[:self.horizon][solid] = np.clip(
            wall[..., None] * (150, 138, 128), 0, 255)[solid]
        return image

    def ground(self, image: np.ndarray, grain: np.ndarray, way: float,
               lap: float, bend: float) -> None:
        """Road and verges after `way` metres of `lap`."""
        x = self._x - bend * np.minimum(self._z, FAR) ** 2 / 2
        z = (self._z + way) % lap
        row = (z * 2).astype(int) % len(grain)
        texture = grain[row, (np.abs(x) * 4).astype(int) % grain.shape[1]]
        on_road = np.abs(x) < ROAD
        mark = (np.abs(x) < 0.12) & (z % DASH < DASH / 2)
        edge = np.abs(np.abs(x) - 0.93 * ROAD) < 0.1
        texture = np.where(on_road, 0.8 + 0.2 * texture, texture)[..., None]
        colour = np.where(on_road[..., None], ASPHALT, GRASS) * texture
        colour = np.where((mark | edge)[..., None], PAINT, colour)
        image[self.horizon:] = np.clip(colour, 0, 255)

    def upright(self, image: np.ndarray, thing: Thing, z: float,
                bend: float) -> None:
        """A thing at distance z."""
        scale = FOCAL * self.width / z
        x = self.width / 2 + scale * (thing.x + bend * z ** 2 / 2)
        foot = self.horizon + scale * EYE
        half, tall = scale * thing.width / 2, scale * thing.height
        if thing.kind == 'tree':
            _box(image, x, foot, half / 5, tall / 2, (70, 52, 38))
            cv2.ellipse(image, (int(x), int(foot - 0.65 * tall)),
                        (int(half), int(0.4 * tall)), 0, 0, 360,
                        thing.colour, -1)
            return
        _box(image, x, foot, half, tall, thing.colour)
        if thing.kind == 'car':
            _box(image, x, foot - 0.55 * tall, 0.8 * half, 0.35 * tall,
                 (35, 42, 50))
            for side in (-0.7, 0.7):
                _box(image, x + side * half, foot - 0.25 * tall, 0.2 * half,
                     0.15 * tall, (250, 245, 200))


def _box(image: np.ndarray, x: float, foot: float, half: float, tall: float,
         colour: tuple[int, int, int]) -> None:
    cv2.rectangle(image, (int(x - half), int(foot - tall)),
                  (int(x + half), int(foot)), colour, -1)


def _things(rng: np.random.Generator, lap: float) -> list[Thing]:
    """Roadside and traffic of a lap."""
    things = []
    for z in np.arange(0, lap, 7.0):
        green = int(rng.integers(55, 115))
        things.append(Thing(
            'tree', rng.choice((-1, 1)) * rng.uniform(5, 11), float(z),
            rng.uniform(2, 4), rng.uniform(4, 8), (green // 2, green, 30)))
    for z in np.arange(0, lap, 24.0):
        things.append(Thing('pole', 4.2, float(z), 0.25, 6.5, (60, 60, 62)))
    for z in np.arange(10, lap, 55.0):
        red, green, blue = (int(c) for c in rng.integers(30, 230, 3))
        things.append(Thing('car', -1.6, float(z), 1.9, 1.6,
                            (red, green, blue), 2))
    return things


def _skyline(rng: np.random.Generator) -> np.ndarray:
    """(height over the horizon's row, brightness) per column, [512, 2]."""
    blocks = np.stack([rng.uniform(0.08, 0.55, 64),
                       rng.uniform(0.55, 1.1, 64)], 1)
    return np.repeat(blocks, 8, 0)
