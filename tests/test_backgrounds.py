"""Videos behind the robot."""

from __future__ import annotations

import os
import shutil
import warnings

import imageio
import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from semopo_tf import backgrounds
from semopo_tf.backgrounds import (
    composite,
    decode_folder,
    faded,
    first_difference,
    load_background,
    video_order,
)
from semopo_tf.environments import Distracted

LEVELS = {'a': 40, 'b': 120, 'c': 200}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'semopo'


@pytest.fixture
def folder(tmp_path):
    """Three videos of four frames, each of one shade, brighter on top."""
    folder = tmp_path / 'videos'
    folder.mkdir()
    for name, level in LEVELS.items():
        frame = np.full((32, 64, 3), level, np.uint8)
        frame[:16] += 40
        imageio.mimwrite(folder / f'{name}.mp4', [frame] * 4, fps=10,
                         macro_block_size=16)
    (folder / 'LICENCE.txt').write_text('not a video')
    return folder


def shades(frames):
    """Which video each frame is of."""
    level = frames[:, -2:].astype(float).mean((1, 2, 3))
    names = np.array(list(LEVELS))
    distance = np.abs(level[:, None] - list(LEVELS.values()))
    assert (distance.min(1) < 8).all()
    return ''.join(names[distance.argmin(1)])


def test_composite_is_strict():
    frame = np.array([[[10, 10, 11], [10, 11, 11], [11, 10, 11], [9, 8, 9],
                       [0, 0, 0], [255, 0, 1], [0, 0, 1]]], np.uint8)
    background = np.full((1, 7, 1), 99, np.uint8)
    replaced = (composite(frame, background) == 99).all(-1)[0]
    assert replaced.tolist() == [True, False, False, False, False, False,
                                 True]
    kept = ~replaced
    np.testing.assert_array_equal(
        composite(frame, background)[0, kept], frame[0, kept])


def test_composite_takes_colour():
    frame = np.zeros((2, 2, 3), np.uint8)
    frame[0, 0, 2] = 9
    background = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    found = composite(frame, background)
    assert found[0, 0].tolist() == [0, 1, 2]
    assert found.dtype == np.uint8
    assert found.sum() == 3


def test_folder_is_shuffled_by_the_seed_and_cut(folder):
    files = backgrounds.video_files(folder)
    assert [path.stem for path in files] == ['a', 'b', 'c']
    orders = set()
    for seed in range(8):
        frames = decode_folder(files, (8, 8), True, seed, 10)
        assert frames.shape == (10, 8, 8, 1)
        found = shades(frames)
        if seed < 2:  # decoding takes a while
            assert found == shades(
                decode_folder(files, (8, 8), True, seed, 10))
        # Whole videos, one after the other; the last one is cut.
        assert found == found[0] * 4 + found[4] * 4 + found[8] * 2
        assert len(set(found)) == 3
        orders.add(found)
    assert len(orders) > 1


def test_the_order_for_the_records_is_that_of_the_frames(folder):
    files = backgrounds.video_files(folder)
    for seed in range(3):
        order = video_order(str(folder), seed)
        assert ''.join(name[0] * 4 for name, _ in order) == shades(
            decode_folder(files, (8, 8), True, seed, 12))
        assert {name: size for name, size in order} == {
            path.name: path.stat().st_size for path in files}
    assert video_order('none', 0) == video_order('procedural', 0) == []
    with pytest.raises(UserError, match='nothing at'):
        video_order(str(folder / 'absent'), 0)


def test_the_first_difference_of_two_orders():
    one = [['a.mp4', 1000], ['b.mp4', 2]]
    assert first_difference(one, [['a.mp4', 1000], ['b.mp4', 2]]) == ''
    assert first_difference(one, [['a.mp4', 1001], ['c.mp4', 2]]) == (
        'video 1 was a.mp4 (1,000 bytes) and is a.mp4 (1,001 bytes)')
    assert first_difference(one, one[:1]) == (
        'video 2 was b.mp4 (2 bytes) and is none')


def test_files_come_again_until_there_are_enough(folder):
    frames = decode_folder(
        backgrounds.video_files(folder), (4, 4), True, 0, 30)
    found = shades(frames)
    assert sorted(found[:12]) == sorted(found[12:24])
    assert len(found) == 30


def test_frames_are_upright_and_squeezed(folder):
    frames = load_background(str(folder), (6, 8), False, 0, 12)
    assert frames.shape == (12, 6, 8, 3)
    # No cropping: the halves are 40 apart, top brighter.
    step = frames[:, 0].astype(int) - frames[:, -1]
    assert np.abs(step - 40).max() < 8


def test_frames_are_resized_bilinearly_without_anti_aliasing(tmp_path):
    """A fourth of the size: only the inner 2 x 2 of 4 x 4 pixels count."""
    frame = np.uint8([[255, 0, 255, 0, 0, 255, 0, 255],
                      [0, 10, 30, 255, 255, 200, 100, 0],
                      [255, 50, 70, 0, 0, 120, 80, 255],
                      [0, 255, 0, 255, 255, 0, 255, 0]])
    # A lossless codec.
    imageio.mimwrite(tmp_path / 'a.mkv', [frame] * 2, fps=10, codec='ffv1',
                     pixelformat='gray', macro_block_size=1)
    found = decode_folder([tmp_path / 'a.mkv'], (1, 2), True, 0, 2)
    assert found.tolist() == [[[[40], [125]]]] * 2


def test_gray_of_a_coloured_video(tmp_path):
    folder = tmp_path / 'colour'
    folder.mkdir()
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 250
    imageio.mimwrite(folder / 'red.mp4', [red] * 3, fps=10)
    colour = load_background(str(folder), (4, 4), False, 0, 3)
    gray = load_background(str(folder), (4, 4), True, 0, 3)
    assert colour[..., 0].min() > 200
    assert colour[..., 1:].max() < 50
    assert gray.shape[-1] == 1
    assert np.abs(gray.astype(int) - 75).max() < 12  # 0.299 · 250


def test_made_once(folder, cache, monkeypatch):
    first = load_background(str(folder), (4, 4), True, 0, 6)
    assert isinstance(first, np.memmap)
    monkeypatch.setattr(backgrounds, 'decode_folder', None)
    again = load_background(str(folder), (4, 4), True, 0, 6)
    np.testing.assert_array_equal(first, again)
    for other in ((6, 4), True, 0, 6), ((4, 4), False, 0, 6), (
            (4, 4), True, 1, 6), ((4, 4), True, 0, 7):
        with pytest.raises(TypeError):  # not in the cache
            load_background(str(folder), *other)
    os.utime(folder / 'a.mp4', (1, 1))
    with pytest.raises(TypeError):
        load_background(str(folder), (4, 4), True, 0, 6)
    assert [path.suffix for path in cache.iterdir()].count('.npy') == 1


def test_no_cache_folder_is_said(folder, cache):
    cache.parent.write_text('a file, no folder')
    with pytest.warns(UserWarning, match='XDG_CACHE_HOME'):
        frames = load_background(str(folder), (4, 4), True, 0, 6)
    assert frames.shape == (6, 4, 4, 1)


def test_user_errors(folder, tmp_path):
    with pytest.raises(UserError, match=r'nothing at .*absent'):
        load_background(str(tmp_path / 'absent'), (4, 4), True, 0, 6)
    empty = tmp_path / 'empty'
    empty.mkdir()
    with pytest.raises(UserError, match='found none'):
        load_background(str(empty), (4, 4), True, 0, 6)
    broken = empty / 'broken.mp4'
    broken.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(UserError, match=r'broken\.mp4') as caught:
        load_background(str(empty), (4, 4), True, 0, 6)
    assert '\n' not in str(caught.value)
    shutil.copy(folder / 'a.mp4', broken)
    assert len(load_background(str(empty), (4, 4), True, 0, 6)) == 6


def test_faded_is_the_video_over_black():
    video = np.array([[[[0], [3], [10], [255]]]], np.uint8)
    assert faded(video, 0.5).ravel().tolist() == [0, 1, 5, 127]
    assert faded(video, 0.0).max() == 0
    assert faded(video, 1.0) is video


def test_none_is_none():
    assert load_background('none', (4, 4), True, 0, 6) is None


def test_drive_moves_and_closes():
    frames = load_background('procedural', (32, 32), False, 0, 96)
    assert frames.shape == (96, 32, 32, 3)
    change = np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3))
    assert change.min() > 1  # never still
    seam = np.abs(frames[-1].astype(int) - frames[0]).mean()
    assert seam < 2 * change.max()
    spread = frames[:, :, :].std((1, 2)).mean()
    assert spread > 20  # textured enough to distract
    # Sky above, road below: upright.
    blue = frames[..., 2].astype(int) - frames[..., 0]
    assert blue[:, :4].mean() > 20
    assert abs(blue[:, -4:].mean()) < 20


def test_drive_in_gray():
    colour = load_background('procedural', (16, 16), False, 0, 8)
    gray = load_background('procedural', (16, 16), True, 0, 8)
    luma = colour @ np.array([.299, .587, .114])
    assert np.abs(gray[..., 0] - luma).max() < 1.5


class Blank:
    """All pixels are blue: everything is replaced."""

    action_size = 1

    def reset(self, seed):
        return self.step(None)

    def step(self, action):
        image = np.zeros((4, 4, 3), np.uint8)
        image[..., 2] = 255
        return {'image': image}

    def close(self):
        pass


def test_start_is_drawn_at_each_reset_and_moves_on_by_one():
    frames = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 4, 4, 1), np.uint8)
    env, starts = Distracted(Blank(), frames), []
    for seed in range(40):
        shown = [env.reset(seed)['image']]
        starts.append(env.background)
        shown += [env.step(None)['image'] for _ in range(12)]
        # Gray: three equal channels.
        assert all(np.ptp(image) == 0 for image in shown)
        assert [int(image.max()) for image in shown] == [
            (starts[-1] + i) % 10 for i in range(13)]
    assert set(starts) == set(range(10))
    env.reset(17)
    assert env.background == starts[17]


def test_no_warning_in_the_usual_case(folder):
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        load_background(str(folder), (4, 4), True, 0, 6)
