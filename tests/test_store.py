"""The conversion to mapped arrays: reuse, races, space, verification."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dreamerv2_base import mapped
from dreamerv2_base.episodes import write_episode
from dreamerv2_base.errors import UserError
from dreamerv2_base.store import open_store
from tests.test_episodes import ROOT, convert_and_kill, fill, make, marks


def test_short_episodes_are_noticed_in_an_old_conversion(tmp_path):
    fill(tmp_path)
    short = fill(tmp_path, 1, first=4, rows=5)[0]
    assert len(open_store([tmp_path])) == 5
    with pytest.raises(UserError, match='at least 6 rows, found 5') as error:
        open_store([tmp_path], min_length=6)
    assert short.name in str(error.value)
    before = marks(tmp_path)
    store = open_store([tmp_path], min_length=6, skip_broken=True)
    assert store.offsets.tolist() == [0, 12, 24, 36, 48]
    assert [name for name, _ in store.skipped] == [short.name]
    assert marks(tmp_path) == before
    with pytest.raises(UserError, match='5 shorter ones alone'):
        open_store([tmp_path], min_length=50, skip_broken=True)


@pytest.mark.parametrize('damage', [
    lambda place: (place / 'image.npy').unlink(),
    lambda place: (place / 'image.npy').write_bytes(b'no array'),
    lambda place: (place / 'index.json').write_text('{}'),
    lambda place: (place / 'index.json').write_text('[1'),
    lambda place: np.save(place / 'reward.npy', np.zeros(3, np.float32)),
])
def test_damaged_conversions_are_made_anew(tmp_path, damage):
    fill(tmp_path)
    open_store([tmp_path])
    damage(tmp_path / '.mapped')
    store = open_store([tmp_path])
    np.testing.assert_array_equal(store.episode(3)['image'], make(3)['image'])
    np.testing.assert_array_equal(
        store.episode(3)['reward'], make(3)['reward'])


def test_leftovers_of_a_killed_conversion_are_cleared(tmp_path):
    fill(tmp_path, 40, size=48, rows=60)
    convert_and_kill(tmp_path)
    assert list(tmp_path.glob('.mapping-*'))
    open_store([tmp_path])
    assert not list(tmp_path.glob('.mapping-*'))


@pytest.mark.parametrize('locks', [True, False])
def test_processes_may_convert_at_once(tmp_path, locks):
    fill(tmp_path, 20, size=32, rows=40)
    code = '''
import fcntl, sys
from unittest import mock
from dreamerv2_base.store import open_store
fail = mock.patch.object(fcntl, 'flock', side_effect=OSError)
if sys.argv[2] == 'False':
    fail.start()
print(open_store([sys.argv[1]]).digest)
'''
    children = [subprocess.Popen(
        [sys.executable, '-c', code, str(tmp_path), str(locks)], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    said = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0] * 4, said
    assert len({out for out, _ in said}) == 1
    assert {path.name for path in tmp_path.iterdir()
            if path.suffix != '.npz'} == {'.mapped', '.mapped.lock'}


def test_a_faster_process_wins(tmp_path, monkeypatch):
    # Without locks: another conversion lands just before ours.
    fill(tmp_path)
    rename, calls = os.rename, []

    def late(source, target):
        if target == tmp_path / '.mapped' and not calls:
            calls.append(source)
            shutil.copytree(source, target)
        rename(source, target)

    monkeypatch.setattr(os, 'rename', late)
    store = open_store([tmp_path])
    assert calls
    np.testing.assert_array_equal(store.episode(3)['image'], make(3)['image'])
    assert not list(tmp_path.glob('.mapping-*'))


def test_disk_space_is_checked_before(tmp_path, monkeypatch):
    fill(tmp_path)
    needed = sum(value.nbytes + 128 for value in make().values()) * 4
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        shutil, 'disk_usage', lambda path: usage._replace(free=needed - 1))
    with pytest.raises(UserError, match=f'{needed:,} free bytes'):
        open_store([tmp_path])
    assert not list(tmp_path.glob('.mapping-*'))


def test_full_disk(tmp_path, monkeypatch):
    fill(tmp_path)

    def full(writer, path):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(mapped._Writer, 'read', full)
    with pytest.raises(UserError, match='found the disk full'):
        open_store([tmp_path])
    assert not list(tmp_path.glob('.mapping-*'))


def test_what_was_written_is_verified(tmp_path, monkeypatch):
    fill(tmp_path)
    finish = mapped._Writer.finish

    def spoil(writer):
        file = writer._files['reward']
        file.seek(200)
        file.write(b'x')
        finish(writer)

    monkeypatch.setattr(mapped._Writer, 'finish', spoil)
    with pytest.raises(UserError, match='reward: expected to read what was'):
        open_store([tmp_path])


def test_wrong_images_are_noticed_before_converting(tmp_path):
    fill(tmp_path)
    with pytest.raises(UserError, match='frames of 64x64, found 8x8'):
        open_store([tmp_path], image_size=(64, 64), skip_broken=True)
    assert not (tmp_path / '.mapped').exists()


def test_a_first_file_of_another_size_is_left_out(tmp_path):
    odd = write_episode(tmp_path, make(9, size=6), 0, 'a' * 32)
    fill(tmp_path, first=1)
    with pytest.raises(UserError, match='frames of 8x8, found 6x6'):
        open_store([tmp_path], image_size=(8, 8))
    store = open_store([tmp_path], image_size=(8, 8), skip_broken=True)
    assert len(store) == 4
    assert store.image_size == (8, 8)
    (name, reason), = store.skipped
    assert name == odd.name
    assert 'frames of 8x8, found 6x6' in reason


def test_extra_and_ignored_keys(tmp_path):
    for i in range(3):
        speed = np.full((12, 4), i, np.float16)
        write_episode(tmp_path, {**make(i), 'speed': speed}, i, f'{i:032x}')
    assert open_store([tmp_path]).ignored == ['speed']
    store = open_store([tmp_path], extra_keys=['speed'])
    chunk = store.gather(np.array([2]), np.array([0]), 5)
    assert chunk['speed'].dtype == np.float32
    assert (chunk['speed'] == 2).all()
    assert not store.ignored


def test_damaged_arrays_are_made_again(tmp_path):
    fill(tmp_path, 2)
    right = open_store([tmp_path]).gather(np.array([1]), np.array([0]), 3)
    path = tmp_path / '.mapped' / 'reward.npy'
    data = bytearray(path.read_bytes())
    data[-2] ^= 255
    path.write_bytes(data)
    again = open_store([tmp_path])
    np.testing.assert_array_equal(
        again.gather(np.array([1]), np.array([0]), 3)['reward'],
        right['reward'])
    assert path.read_bytes() != bytes(data)


def test_the_digest_is_of_all_folders(tmp_path):
    one, two, three = (tmp_path / name for name in 'abc')
    for number, folder in enumerate((one, two, three)):
        fill(folder, 1, first=number)
    found = {open_store(folders).digest for folders in (
        [one], [one, two], [one, three], [three, one])}
    assert len(found) == 4


def test_discount_in_some_files_alone(tmp_path):
    with_discount = {**make(9), 'discount': np.ones(12, np.float32)}
    fill(tmp_path / 'a', 1)
    write_episode(tmp_path / 'a', with_discount, 9, f'{9:032x}')
    with pytest.raises(UserError, match='discount: expected rows of shape '
                       'none'):
        open_store([tmp_path / 'a'])
    fill(tmp_path / 'b', 1)
    (tmp_path / 'c').mkdir()
    write_episode(tmp_path / 'c', with_discount, 9, f'{9:032x}')
    store = open_store([tmp_path / 'b', tmp_path / 'c'])
    assert store.ignored == ['discount']
    assert 'discount' not in store.keys


def test_another_conversion_in_its_place_does_no_harm(tmp_path, monkeypatch):
    fill(tmp_path, 3)
    monkeypatch.setattr(mapped, '_install', lambda job, work, place: None)
    store = open_store([tmp_path])
    np.testing.assert_array_equal(store.episode(2)['image'], make(2)['image'])


def test_files_that_change_meanwhile_are_an_error(tmp_path, monkeypatch):
    fill(tmp_path, 3)
    install = mapped._install

    def late(job, work, place):
        os.utime(job.files[0], (1, 1))
        install(job, work, place)
    monkeypatch.setattr(mapped, '_install', late)
    with pytest.raises(UserError, match='changed while they were read'):
        open_store([tmp_path])
