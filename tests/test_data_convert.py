"""`run.py data convert`: every layout to every other, nothing lost."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from datasets import convert, hdf5, minari_files, readers
from dreamerv2_base.episodes import write_episode
from dreamerv2_base.errors import UserError
from tests.helpers import ROOT, call, make_episode, make_folder

LAYOUTS = ('hdf5', 'minari', 'mapped')


def contents(folder: Path) -> dict:
    return dict(episode for file in readers.episode_files(folder)
                for episode in readers.read_file(file))


def assert_equal_sets(one: Path, other: Path) -> None:
    left, right = contents(one), contents(other)
    assert list(left) == list(right)
    for name, arrays in left.items():
        assert set(arrays) == set(right[name]), name
        for key, value in arrays.items():
            back = right[name][key]
            assert (value.dtype, value.shape) == (back.dtype, back.shape), key
            # Bits: not-a-numbers and negative zeros, too.
            assert value.tobytes() == back.tobytes(), (name, key)


def odd_folder(folder: Path) -> Path:
    """Episodes with all that is unusual and allowed."""
    folder.mkdir()
    for number, rows in enumerate((7, 12, 1)):
        episode = make_episode(number, rows=rows, size=64)
        episode['reward'] = episode['reward'].astype(np.float16)
        episode['reward'][0] = -0.0
        episode['action'][0] = 0.25  # not a reset's
        episode['discount'] = np.linspace(1, 0.9, rows).astype(np.float32)
        episode['log_speed'] = np.full(rows, np.nan, np.float64)
        episode['position'] = np.arange(2 * rows).reshape(rows, 2)
        episode['is_terminal'][-1] = number == 2
        write_episode(folder, episode, number, 'a' * 32)
    return folder


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('size', [64, 84])
def test_there_and_back(tmp_path, layout, size):
    first = make_folder(tmp_path / 'first', 3, rows=20, size=size)
    convert.convert(first, tmp_path / 'other', layout)
    convert.convert(tmp_path / 'other', tmp_path / 'back', 'npz')
    assert_equal_sets(first, tmp_path / 'back')
    for file in first.glob('*.npz'):  # the very files of our own writer
        assert (tmp_path / 'back' / file.name).read_bytes() == (
            file.read_bytes())


@pytest.mark.parametrize('layout', LAYOUTS)
def test_nothing_unusual_is_lost(tmp_path, layout):
    first = odd_folder(tmp_path / 'first')
    convert.convert(first, tmp_path / 'other', layout)
    convert.convert(tmp_path / 'other', tmp_path / 'back', 'npz')
    assert_equal_sets(first, tmp_path / 'back')


def test_old_layout_without_flags(tmp_path):
    """Dreamer's and TIA's: `discount` alone."""
    first = tmp_path / 'first'
    first.mkdir()
    episode = {key: value for key, value in make_episode(rows=9).items()
               if not key.startswith('is_')}
    episode['discount'] = np.ones(9, np.float16)
    write_episode(first, episode, 0, 'b' * 32)
    here = first
    for number, layout in enumerate((*LAYOUTS, 'npz')):
        convert.convert(here, tmp_path / f'{number}', layout)
        here = tmp_path / f'{number}'
    assert_equal_sets(first, here)


def test_shards_are_cut_between_episodes(tmp_path):
    first = make_folder(tmp_path / 'first', 5, rows=6)
    convert.convert(first, tmp_path / 'shards', 'hdf5', shards=2)
    files = hdf5.shard_files(tmp_path / 'shards')
    assert [file.name for file in files] == [
        'episodes_1_of_2.hdf5', 'episodes_2_of_2.hdf5']
    assert [hdf5.inspect(file).rows for file in files] == [18, 12]
    convert.convert(tmp_path / 'shards', tmp_path / 'back', 'npz')
    assert_equal_sets(first, tmp_path / 'back')


def vd4rl_files(folder: Path, cuts: list[int], rows=6, episodes=3):
    """Files as V-D4RL's converter and its splitter make them."""
    found = [make_episode(number, rows=rows, size=84)
             for number in range(episodes)]
    steps = np.ones((episodes, rows))  # float64
    steps[:, 0], steps[:, -1] = 0, 2
    discount = np.ones(episodes * rows, np.float32)
    discount[-1] = 0  # which makes no terminal row of it (9.5)
    whole = {
        'observation': np.concatenate(
            [one['image'].transpose(0, 3, 1, 2) for one in found]),
        'action': np.concatenate([one['action'] for one in found]),
        'reward': np.concatenate([one['reward'] for one in found]),
        'discount': discount, 'step_type': steps.ravel()}
    folder.mkdir()
    edges = [0, *cuts, episodes * rows]
    for number, (begin, end) in enumerate(
            itertools.pairwise(edges)):
        with h5py.File(folder / f'walker_{number}_shard.hdf5', 'w') as file:
            for key, value in whole.items():
                file[key] = value[begin:end]
    return found


def test_files_of_vd4rl(tmp_path):
    found = vd4rl_files(tmp_path / 'theirs', [6])
    convert.convert(tmp_path / 'theirs', tmp_path / 'npz', 'npz')
    mine = contents(tmp_path / 'npz')
    assert [name[:15] for name in mine] == [
        f'20000101T00000{number}' for number in range(3)]
    assert all(name.endswith('-5.npz') for name in mine)
    for arrays, episode in zip(mine.values(), found, strict=True):
        assert set(arrays) == {*episode, 'discount'}
        for key, value in episode.items():
            np.testing.assert_array_equal(arrays[key], value)
            assert arrays[key].dtype == value.dtype
    assert [arrays['discount'].tolist() for arrays in mine.values()] == [
        [1] * 6, [1] * 6, [1] * 5 + [0]]


def test_files_without_step_type_are_cut_every_501_rows(tmp_path):
    with h5py.File(tmp_path / 'theirs.hdf5', 'w') as file:
        file['observation'] = np.zeros((1002, 3, 1, 1), np.uint8)
        file['action'] = np.zeros((1002, 1), np.float32)
        file['reward'] = np.arange(1002, dtype=np.float32)
    convert.convert(tmp_path / 'theirs.hdf5', tmp_path / 'npz', 'npz')
    found = list(contents(tmp_path / 'npz').values())
    assert [one['reward'][[0, -1]].tolist() for one in found] == [
        [0, 500], [501, 1001]]
    for one in found:
        assert np.flatnonzero(one['is_first']).tolist() == [0]
        assert np.flatnonzero(one['is_last']).tolist() == [500]
        assert not one['is_terminal'].any()


@pytest.mark.parametrize('cuts', [[7], [2, 4, 13], [6, 7]])
def test_episodes_cut_by_files_are_joined_when_asked(tmp_path, cuts):
    found = vd4rl_files(tmp_path / 'theirs', cuts)
    with pytest.raises(UserError, match=r'inside an episode.*--join-shards'):
        convert.convert(tmp_path / 'theirs', tmp_path / 'npz', 'npz')
    assert not (tmp_path / 'npz').exists()
    convert.convert(tmp_path / 'theirs', tmp_path / 'npz', 'npz', join=True)
    mine = list(contents(tmp_path / 'npz').values())
    assert len(mine) == 3
    for arrays, episode in zip(mine, found, strict=True):
        np.testing.assert_array_equal(arrays['image'], episode['image'])


def test_many_names(tmp_path):
    """More than an attribute of an hdf5 file may hold as a list."""
    names = [f'{number:0200d}.npz' for number in range(5000)]
    with h5py.File(tmp_path / 'a.hdf5', 'w') as file:
        hdf5.write_words(file, names, ['image'])
    with h5py.File(tmp_path / 'a.hdf5') as file:
        assert hdf5.read_words(file) == (names, ['image'])


def test_layout_of_hdf5(tmp_path):
    first = tmp_path / 'first'
    first.mkdir()
    for number in range(2):
        episode = make_episode(number, rows=5, size=84)
        episode['is_terminal'][-1] = number == 1
        write_episode(first, episode, number, f'{number:032x}')
    convert.convert(first, tmp_path / 'set.hdf5', 'hdf5')
    with h5py.File(tmp_path / 'set.hdf5') as file:
        assert file['observation'].shape == (10, 3, 84, 84)
        assert file['observation'].dtype == np.uint8
        assert file['step_type'][:].tolist() == [0, 1, 1, 1, 2] * 2
        # Not stored: 0 at a true end.
        assert file['discount'][:].tolist() == [1.0] * 9 + [0.0]
        assert {file[key].compression for key in hdf5.KEYS} == {'gzip'}
        name = sorted(file.name for file in first.glob('*.npz'))[1]
        image = readers.load_npz(first / name)['image']
        np.testing.assert_array_equal(
            file['observation'][7], image[2].transpose(2, 0, 1))


def test_layout_of_minari(tmp_path):
    """As tried with Minari 0.5.4 itself (datasets/README.md)."""
    first = make_folder(tmp_path / 'first', 2, rows=5, size=64)
    convert.convert(first, tmp_path / 'walker random-v3', 'minari')
    data = tmp_path / 'walker random-v3' / 'data'
    words = json.loads((data / 'metadata.json').read_text())
    assert words['dataset_id'] == 'walker_random-v3'
    assert (words['total_episodes'], words['total_steps']) == (2, 8)
    assert words['jpeg_encoding'] is False
    space = json.loads(words['observation_space'])
    assert (space['type'], space['dtype'], space['shape']) == (
        'Box', 'uint8', [64, 64, 3])
    episode = next(iter(contents(first).values()))
    with h5py.File(data / 'main_data.hdf5') as file:
        group = file['episode_0']
        assert dict(group.attrs)['total_steps'] == 4
        assert group.attrs['id'] == 0
        # Row t + 1 is what action t led to.
        np.testing.assert_array_equal(group['observations'], episode['image'])
        np.testing.assert_array_equal(group['actions'], episode['action'][1:])
        np.testing.assert_array_equal(group['rewards'], episode['reward'][1:])
        assert group['truncations'][:].tolist() == [False] * 3 + [True]
        assert not group['terminations'][:].any()
        assert 'infos' not in group


@pytest.mark.parametrize(('folder', 'identity'), [
    ('walker random-v3', 'walker_random-v3'), ('walker', 'walker-v0'),
    ('a-v1-v2', 'a-v1-v2'), ('-v4', 'episodes-v4'), ('-v', 'v-v0'),
    ('two\nlines-v1', 'two_lines-v1'), ('line\n', 'line-v0')])
def test_identity_is_a_name_that_minari_takes(folder, identity):
    assert convert._identity(folder) == identity


def test_minari_set_of_others(tmp_path):
    """With JPEG frames and infos, no attributes of ours."""
    import io

    from PIL import Image
    codes = []
    for level in (10, 200, 90):
        buffer = io.BytesIO()
        Image.new('RGB', (40, 40), (level,) * 3).save(buffer, 'JPEG')
        codes.append(np.frombuffer(buffer.getvalue(), np.uint8))
    (tmp_path / 'a' / 'data').mkdir(parents=True)
    with h5py.File(tmp_path / 'a' / minari_files.DATA, 'w') as file:
        group = file.create_group('episode_0')
        data = group.create_dataset(
            'observations', (3,), h5py.vlen_dtype(np.uint8))
        for number, code in enumerate(codes):
            data[number] = code
        group['actions'] = np.float32([[0.5], [-0.5]])
        group['rewards'] = np.float64([1, 2])
        group['terminations'] = np.array([False, True])
        group['truncations'] = np.array([False, False])
        group['infos/speed'] = np.float32([1, 2, 3])
    (tmp_path / 'a' / minari_files.META).write_text(
        json.dumps({'total_episodes': 1, 'jpeg_encoding': True}))
    convert.convert(tmp_path / 'a', tmp_path / 'b', 'npz')
    episode, = contents(tmp_path / 'b').values()
    assert episode['image'][:, 5, 5, 0].tolist() == [10, 200, 90]
    assert episode['action'].tolist() == [[0], [0.5], [-0.5]]
    assert episode['reward'].tolist() == [0, 1, 2]
    assert episode['is_first'].tolist() == [True, False, False]
    assert episode['is_terminal'].tolist() == [False, False, True]
    assert episode['speed'].tolist() == [1, 2, 3]


def test_mapped_arrays_are_those_of_training(tmp_path):
    """Same files as a mapping by `open_store`, readable as a set."""
    from dreamerv2_base.store import open_store
    first = make_folder(tmp_path / 'first', 3, rows=5)
    open_store([first])
    convert.convert(first, tmp_path / 'mine', 'mapped')
    theirs = first / '.mapped'
    for file in theirs.glob('*.npy'):
        assert (tmp_path / 'mine' / file.name).read_bytes() == (
            file.read_bytes()), file.name
    mine, other = (json.loads((folder / 'index.json').read_text())
                   for folder in (tmp_path / 'mine', theirs))
    for key in ('keys', 'rows', 'crc32'):
        assert mine[key] == other[key]
    convert.convert(theirs, tmp_path / 'back', 'npz')
    assert_equal_sets(first, tmp_path / 'back')


def test_training_reads_mapped_arrays_without_files(tmp_path):
    """From V-D4RL's hdf5 straight to training."""
    from dreamerv2_base.store import open_store
    found = vd4rl_files(tmp_path / 'theirs', [6])
    convert.convert(tmp_path / 'theirs', tmp_path / 'mapped', 'mapped')
    store = open_store([tmp_path / 'mapped'], image_size=(84, 84))
    assert store.rows.tolist() == [6, 6, 6]
    chunk = store.gather(np.array([2, 0]), np.array([1, 3]), 2)
    np.testing.assert_array_equal(
        chunk['image'], [found[2]['image'][1:3], found[0]['image'][3:5]])
    assert chunk['reward'].dtype == np.float32
    assert store.returns[1] == pytest.approx(
        found[1]['reward'].sum(dtype=np.float64))
    with pytest.raises(UserError, match='frames of 64x64, found 84x84'):
        open_store([tmp_path / 'mapped'], image_size=(64, 64))
    path = tmp_path / 'mapped' / 'reward.npy'
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 255]))
    with pytest.raises(UserError, match=r'found mapped arrays that are damaged'
                       r'.*run\.py data convert'):
        open_store([tmp_path / 'mapped'])


def test_mapped_arrays_refuse_what_they_cannot_hold(tmp_path):
    episode = make_episode(rows=5)
    episode['reward'] = np.full(5, 0.1)  # float64
    write_episode(tmp_path, episode, 0, 'a')
    with pytest.raises(UserError, match=r'reward: expected values that float'):
        convert.convert(tmp_path, tmp_path / 'x', 'mapped')


def test_resizing(tmp_path):
    """Bicubic to larger frames (9.5), areas to smaller ones."""
    import cv2
    first = make_folder(tmp_path / 'first', 1, rows=3, size=64)
    convert.convert(first, tmp_path / 'large.hdf5', 'hdf5', size=84)
    small, = contents(first).values()
    convert.convert(tmp_path / 'large.hdf5', tmp_path / 'large', 'npz')
    large, = contents(tmp_path / 'large').values()
    assert large['image'].shape == (3, 84, 84, 3)
    np.testing.assert_array_equal(large['image'][1], cv2.resize(
        small['image'][1], (84, 84), interpolation=cv2.INTER_CUBIC))
    np.testing.assert_array_equal(large['action'], small['action'])
    squares = np.kron([[0, 100], [200, 40]], np.ones((2, 2)))
    frames = np.repeat(squares[None, :, :, None], 3, -1).astype(np.uint8)
    assert convert.resize(frames, 2)[0, :, :, 1].tolist() == [
        [0, 100], [200, 40]]
    assert convert.resize(frames, 1)[0, 0, 0].tolist() == [85] * 3


@pytest.mark.parametrize('size', [-1, 0, 1025, 100000])
def test_sizes_that_cannot_be(tmp_path, size):
    first = make_folder(tmp_path / 'first', 1, rows=3)
    done = call('data', 'convert', first, tmp_path / 'x', '--to', 'npz',
                '--size', size)
    assert done.returncode == 2
    assert done.stderr == (f'error: --size: expected 1 to 1024 pixels, found '
                           f'{size}; give --size 64\n')
    assert [path.name for path in tmp_path.iterdir()] == ['first']


def test_target_is_never_overwritten(tmp_path):
    first = make_folder(tmp_path / 'first', 1, rows=3)
    (tmp_path / 'there').mkdir()
    (tmp_path / 'there' / 'thesis.txt').write_text('x')
    with pytest.raises(UserError, match='give another TARGET'):
        convert.convert(first, tmp_path / 'there', 'npz')
    with pytest.raises(UserError, match='give another TARGET'):
        convert.convert(first, first, 'npz')
    assert (tmp_path / 'there' / 'thesis.txt').exists()


def test_broken_source_leaves_nothing(tmp_path):
    first = make_folder(tmp_path / 'first', 3, rows=3)
    broken = sorted(first.glob('*.npz'))[2]
    broken.write_bytes(broken.read_bytes()[:-50])
    for layout in ('npz', *LAYOUTS):
        with pytest.raises(UserError, match=broken.name):
            convert.convert(first, tmp_path / 'target', layout)
    assert [path.name for path in tmp_path.iterdir()] == ['first']


@pytest.mark.parametrize('layout', ['hdf5', 'minari'])
def test_a_full_disk_is_noticed_before_hdf5_is(tmp_path, monkeypatch, layout):
    first = make_folder(tmp_path / 'first', 3, rows=3)
    usage, asked = shutil.disk_usage(tmp_path), []

    def filling(folder):
        asked.append(folder)
        return usage._replace(free=10 ** 8 if len(asked) < 3 else 10 ** 6)
    monkeypatch.setattr(shutil, 'disk_usage', filling)
    with pytest.raises(UserError, match=r'free bytes .* found 1,000,000; .*'
                       'TARGET on another disk'):
        convert.convert(first, tmp_path / 'target', layout)
    assert len(asked) == 3
    assert [path.name for path in tmp_path.iterdir()] == ['first']


@pytest.mark.parametrize(('change', 'words'), [
    ({'image': np.zeros((3, 4, 4), np.uint8)}, 'expected image'),
    ({'text': np.array(['a', 'b', 'c'])}, 'text: expected numbers'),
    ({'short': np.zeros(2)}, 'short: expected numbers with 3 rows'),
    ({'log_all': np.float32(1)}, 'log_all: expected numbers')])
def test_what_no_layout_holds_is_named(tmp_path, change, words):
    folder = tmp_path / 'first'
    folder.mkdir()
    write_episode(folder, {**make_episode(rows=3), **change}, 0, 'a')
    with pytest.raises(UserError, match=words):
        convert.convert(folder, tmp_path / 'target', 'hdf5')


def test_command(tmp_path):
    first = make_folder(tmp_path / 'first', 2, rows=3)
    done = call('data', 'convert', first, tmp_path / 'a.hdf5', '--to', 'hdf5')
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'2 episodes in {tmp_path / "a.hdf5"} (hdf5)\n'
    done = call('data', 'convert', tmp_path, tmp_path / 'b', '--to', 'npz',
                '--shards', '3')
    assert done.returncode == 2
    assert done.stderr.startswith('error: ')
    assert len(done.stderr.splitlines()) == 1


def test_killed_conversion_leaves_no_target_and_goes_again(tmp_path):
    first = make_folder(tmp_path / 'first', 12, rows=60)
    words = [sys.executable, str(ROOT / 'run.py'), 'data', 'convert',
             str(first), str(tmp_path / 'target'), '--to', 'minari']
    child = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    partial = tmp_path / '.target.partial'
    while not (partial / minari_files.DATA).exists():
        time.sleep(0.01)
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / 'target').exists()
    convert.convert(first, tmp_path / 'target', 'minari')
    assert not partial.exists()
    convert.convert(tmp_path / 'target', tmp_path / 'back', 'npz')
    assert_equal_sets(first, tmp_path / 'back')
