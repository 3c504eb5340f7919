"""Episode files and the mapped store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dreamerv2_base.episodes import read_episode, write_episode
from dreamerv2_base.errors import UserError
from dreamerv2_base.store import open_store
from tests.helpers import make_folder

ROOT = Path(__file__).resolve().parents[1]


def make(seed=0, rows=12, size=8, actions=2):
    """A valid episode of noise."""
    rng = np.random.default_rng(seed)
    place = np.arange(rows)
    action = rng.uniform(-1, 1, (rows, actions)).astype(np.float32)
    reward = rng.random(rows).astype(np.float32)
    action[0], reward[0] = 0, 0
    return {'image': rng.integers(0, 256, (rows, size, size, 3), np.uint8),
            'action': action, 'reward': reward, 'is_first': place == 0,
            'is_last': place == rows - 1, 'is_terminal': place > rows}


def old(episode, kind=np.float32):
    """The layout of Dreamer and TIA: discount instead of flags."""
    discount = 1 - episode['is_terminal'].astype(kind)
    return {'image': episode['image'], 'discount': discount,
            'action': episode['action'].astype(kind),
            'reward': episode['reward'].astype(kind)}


def fill(folder, count=4, first=0, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    return [write_episode(folder, make(i, **settings), i, f'{i:032x}')
            for i in range(first, first + count)]


def saved(tmp_path, episode):
    path = tmp_path / 'episode.npz'
    np.savez_compressed(path, **episode)
    return path


def said(path, **settings):
    """The message of the UserError of reading a file."""
    with pytest.raises(UserError) as error:
        read_episode(path, **settings)
    message = str(error.value)
    assert path.name in message
    assert '\n' not in message
    return message


# Writing.


def test_written_episodes_read_back(tmp_path):
    episode = make()
    found = read_episode(write_episode(tmp_path, episode, 3, 'a' * 32))
    assert set(found) == set(episode)
    for key, value in episode.items():
        assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key], value)


def test_names_sort_by_index_and_count_rows_less_one(tmp_path):
    indices = [0, 1, 59, 60, 3600, 86_400 * 31]
    paths = [write_episode(tmp_path, make(i), index, f'{99 - i:032x}')
             for i, index in enumerate(indices)]
    assert sorted(paths) == paths
    assert [path.stem.split('-')[-1] for path in paths] == ['11'] * 6
    assert paths[2].name == f'20000101T000059-{97:032x}-11.npz'


def test_same_content_gives_same_bytes(tmp_path):
    first = write_episode(tmp_path, make(), 0, 'a' * 32).read_bytes()
    reordered = dict(reversed(make().items()))
    second = write_episode(tmp_path, reordered, 9, 'b' * 32).read_bytes()
    assert first == second
    assert [path.suffix for path in tmp_path.iterdir()] == ['.npz'] * 2


# Reading: the two layouts.


def test_flags_are_derived_for_the_old_layout(tmp_path):
    episode = make()
    episode['is_terminal'][-1] = True
    found = read_episode(saved(tmp_path, old(episode)))
    for key in ('is_first', 'is_last', 'is_terminal'):
        assert found[key].dtype == bool
        np.testing.assert_array_equal(found[key], episode[key])
    assert found['discount'][-1] == 0


def test_present_flags_win_over_discount(tmp_path):
    episode = {**make(), 'discount': np.zeros(12, np.float32)}
    assert not read_episode(saved(tmp_path, episode))['is_terminal'].any()


def test_half_precision_becomes_single_before_summing(tmp_path):
    # Trap 23: at half precision a sum of ones stops at 2,048.
    episode = make(rows=2500, size=1)
    episode['reward'][:] = 1
    path = saved(tmp_path, old(episode, np.float16))
    found = read_episode(path)
    for key in ('action', 'reward', 'discount'):
        assert found[key].dtype == np.float32
    assert open_store([tmp_path]).returns.tolist() == [2500.0]


def test_both_length_conventions_of_names_are_read(tmp_path):
    path = write_episode(tmp_path, make(rows=12), 0, 'a' * 32)
    path.rename(path.with_name('20000101T000000-x-12.npz'))
    write_episode(tmp_path, make(rows=13), 1, 'b' * 32)
    assert open_store([tmp_path]).rows.tolist() == [12, 13]


def test_other_keys_are_named_and_log_keys_dropped(tmp_path):
    position = np.arange(12, dtype=np.float64)[:, None]
    path = saved(tmp_path, {
        **make(), 'log_x': position, 'position': position, 'velocity': position
    })
    ignored = set()
    found = read_episode(path, ['position'], ignored)
    assert ignored == {'velocity'}
    assert set(found) == set(make()) | {'position'}
    assert found['position'].dtype == np.float32


# Reading: what is wrong is said.

WRONG = {
    'no image': ({'image': None}, 'image: expected in the file'),
    'no action': ({'action': None}, 'action: expected in the file'),
    'no reward': ({'reward': None}, 'reward: expected in the file'),
    'float image': (
        {'image': np.zeros((12, 8, 8, 3))}, 'found float64 [12, 8, 8, 3]'),
    'channels first': (
        {'image': np.zeros((12, 3, 8, 8), np.uint8)},
        'image: expected uint8 [L, height, width, 3]'),
    'short image': (
        {'image': np.zeros((11, 8, 8, 3), np.uint8)},
        'image: expected 12 rows, found 11 rows'),
    'short action': (
        {'action': np.zeros((11, 2))}, 'action: expected 12 rows, found 11'),
    'flat action': ({'action': np.zeros(12)}, 'numbers with 2 axes'),
    'large action': (
        {'action': np.full((12, 2), 1.01)},
        'action: expected values in [-1, 1], found 1.01'),
    'text action': ({'action': np.full((12, 2), 'a')}, 'found <U1'),
    'NaN action': (
        {'action': np.where(np.arange(12) == 7, np.nan, 0)[:, None]},
        'action: expected finite numbers, found NaN or infinity in row 7'),
    'infinite reward': (
        {'reward': np.where(np.arange(12) == 3, np.inf, 0)},
        'reward: expected finite numbers, found NaN or infinity in row 3'),
    'one reward': ({'reward': np.zeros(())}, 'numbers with 1 axes'),
    'no rows': ({'reward': np.zeros(0)}, 'expected at least 1 row'),
    'float flags': (
        {'is_terminal': np.zeros(12)}, 'is_terminal: expected booleans'),
    'long flags': (
        {'is_last': np.zeros(13, bool)}, 'is_last: expected 12 rows'),
    'two episodes': (
        {'is_first': np.arange(12) % 6 == 0},
        'is_first: expected True in row 0 alone, found rows [0, 6]'),
    'no first row': ({'is_first': np.zeros(12, bool)}, 'found rows []'),
    'NaN discount': (
        {'discount': np.full(12, np.nan)}, 'discount: expected finite'),
}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_arrays(tmp_path, name):
    change, expected = WRONG[name]
    episode = {**make(), **change}
    path = saved(tmp_path, {k: v for k, v in episode.items() if v is not None})
    message = said(path)
    assert expected in message
    assert '--skip_broken True' in message


def test_actions_of_one_half_precision_unit_above_1_pass(tmp_path):
    episode = make()
    episode['action'][3] = np.nextafter(np.float16(1), np.float16(2))
    assert read_episode(saved(tmp_path, episode))['action'].max() > 1


def test_missing_extra_key(tmp_path):
    message = said(saved(tmp_path, make()), extra_keys=['position'])
    assert 'position: expected in the file' in message


def test_missing_file(tmp_path):
    assert 'found no file' in said(tmp_path / 'none.npz')


@pytest.mark.parametrize('damage', [
    'empty', 'truncated', 'flipped', 'text', 'array', 'objects', 'encrypted'])
def test_broken_files(tmp_path, damage, recwarn):
    path = write_episode(tmp_path, make(), 0, 'a' * 32)
    content = bytearray(path.read_bytes())
    if damage == 'empty':
        path.write_bytes(b'')
    elif damage == 'truncated':
        path.write_bytes(content[:-200])
    elif damage == 'flipped':
        middle = content.index(b'image.npy') + 700
        content[middle] ^= 0xff
        path.write_bytes(content)
    elif damage == 'text':
        path.write_text('not an episode')
    elif damage == 'array':
        with path.open('wb') as file:
            np.save(file, np.zeros(3))
    elif damage == 'objects':
        np.savez(path, **{**make(), 'reward': np.array([{}] * 12)})
    else:
        entry = content.rindex(b'PK\x01\x02')
        content[entry + 8] |= 1
        path.write_bytes(content)
    assert 'broken file' in said(path)
    assert not [w for w in recwarn if w.category is ResourceWarning]


def test_random_damage_never_escapes_as_another_error(tmp_path):
    content = write_episode(tmp_path, make(), 0, 'a' * 32).read_bytes()
    rng, path, broken = np.random.default_rng(0), tmp_path / 'x.npz', 0
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_episode(path)
        except UserError:
            broken += 1
    assert broken > 200


# The store.


def test_store_holds_the_files(tmp_path):
    fill(tmp_path / 'a', 2, rows=12)
    fill(tmp_path / 'b', 3, first=5, rows=15)
    store = open_store([tmp_path / 'b', tmp_path / 'a'])
    seeds = [5, 6, 7, 0, 1]
    assert len(store) == 5
    assert store.rows.tolist() == [15, 15, 15, 12, 12]
    assert (store.action_size, store.image_size) == (2, (8, 8))
    for number, seed in enumerate(seeds):
        wanted = make(seed, rows=int(store.rows[number]))
        assert f'{seed:032x}' in store.names[number]
        assert store.returns[number] == wanted['reward'].astype(float).sum()
        for key, value in store.episode(number).items():
            np.testing.assert_array_equal(value, wanted[key])


def test_gather_cuts_chunks_across_folders(tmp_path):
    fill(tmp_path / 'a', 2)
    fill(tmp_path / 'b', 2, first=2)
    store = open_store([tmp_path / 'a', tmp_path / 'b'])
    numbers, starts = np.array([3, 0, 3]), np.array([7, 0, 2])
    chunk = store.gather(numbers, starts, 5)
    assert chunk['image'].shape == (3, 5, 8, 8, 3)
    for row, (number, start) in enumerate(zip(numbers, starts, strict=True)):
        for key, value in make(int(number)).items():
            np.testing.assert_array_equal(
                chunk[key][row], value[start:start + 5])


def marks(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in (folder / '.mapped').iterdir()}


def test_conversion_is_used_again_until_the_files_change(tmp_path):
    paths = fill(tmp_path)
    digest = open_store([tmp_path]).digest
    before = marks(tmp_path)
    assert open_store([tmp_path]).digest == digest
    assert marks(tmp_path) == before
    fill(tmp_path, 1, first=4)
    assert len(open_store([tmp_path])) == 5
    paths[0].unlink()
    again = open_store([tmp_path])
    assert len(again) == 4
    assert again.digest != digest
    # Other content of the same size and name.
    os.utime(paths[1], ns=(1, 1))
    assert open_store([tmp_path]).digest == again.digest
    assert marks(tmp_path) != before


def test_broken_files_stop_or_are_counted(tmp_path):
    paths = fill(tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:500])
    with pytest.raises(UserError, match=r'skip_broken True') as error:
        open_store([tmp_path])
    assert paths[2].name in str(error.value)
    store = open_store([tmp_path], skip_broken=True)
    assert len(store) == 3
    assert [name for name, _ in store.skipped] == [paths[2].name]
    # Not even from a conversion that left it out.
    with pytest.raises(UserError, match=r'skip_broken True'):
        open_store([tmp_path])


@pytest.mark.parametrize('make', [
    lambda path: path.mkdir(), lambda path: path.symlink_to('nowhere')])
def test_what_is_no_file_is_a_broken_one(tmp_path, make):
    fill(tmp_path)
    make(tmp_path / 'zz.npz')
    with pytest.raises(UserError, match=r'zz.npz: .*skip_broken True'):
        open_store([tmp_path])
    store = open_store([tmp_path], skip_broken=True)
    assert len(store) == 4
    assert [name for name, _ in store.skipped] == ['zz.npz']


def test_folders_without_a_readable_file(tmp_path):
    with pytest.raises(UserError, match='found nothing at'):
        open_store([tmp_path / 'none'])
    with pytest.raises(UserError, match='found none'):
        open_store([tmp_path])
    (tmp_path / 'x.npz').write_bytes(b'')
    with pytest.raises(UserError, match=r'found a file .*--to npz'):
        open_store([tmp_path / 'x.npz'])
    make_folder(tmp_path / 'above' / 'random', count=1)
    with pytest.raises(UserError, match=r'offline_dir .*/above/random$'):
        open_store([tmp_path / 'above'])
    with pytest.raises(UserError, match='found 1 broken'):
        open_store([tmp_path], skip_broken=True)
    assert not (tmp_path / '.mapped').exists()


@pytest.mark.parametrize(
    ('settings', 'words'), [({'actions': 3}, 'action'), ({'size': 6}, 'image')]
)
def test_files_of_several_tasks(tmp_path, settings, words):
    first, *_ = fill(tmp_path / 'a', 2)
    other = fill(tmp_path / 'a', 1, first=2, **settings)[0]
    with pytest.raises(UserError) as error:
        open_store([tmp_path / 'a'])
    for part in (first.name, other.name, words):
        assert part in str(error.value)
    fill(tmp_path / 'b', 1, **settings)
    other.unlink()
    with pytest.raises(UserError, match='of one task'):
        open_store([tmp_path / 'a', tmp_path / 'b'])


def test_wrong_image_size_and_short_episodes(tmp_path):
    fill(tmp_path)
    with pytest.raises(UserError, match='frames of 64x64, found 8x8'):
        open_store([tmp_path], image_size=(64, 64))
    fresh = tmp_path / 'fresh'
    fill(fresh)
    with pytest.raises(UserError, match='at least 50 rows, found 12'):
        open_store([fresh], min_length=50)
    short = fill(tmp_path, 1, first=4, rows=5)[0]
    store = open_store([tmp_path], skip_broken=True, min_length=6)
    assert len(store) == 4
    assert store.skipped[0][0] == short.name


def test_cache_leaves_the_folder_alone(tmp_path):
    fill(tmp_path / 'data')
    store = open_store([tmp_path / 'data'], cache=tmp_path / 'cache')
    assert len(store) == 4
    assert not (tmp_path / 'data' / '.mapped').exists()
    assert list((tmp_path / 'cache').glob('data-*/image.npy'))


def convert_and_kill(folder):
    """A process that is killed in the middle of converting a folder."""
    code = ('import sys; from dreamerv2_base.store import open_store; '
            'open_store([sys.argv[1]])')
    child = subprocess.Popen([sys.executable, '-c', code, str(folder)],
                             cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list(folder.glob('.mapping-*/image*')):
        assert child.poll() is None
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL


def test_killed_conversion_is_not_taken_for_finished(tmp_path):
    settings = {'size': 48, 'rows': 60}
    fill(tmp_path, 40, **settings)
    convert_and_kill(tmp_path)
    assert list(tmp_path.glob('.mapping-*'))
    assert not (tmp_path / '.mapped').exists()
    store = open_store([tmp_path])
    for number in (0, 39):
        np.testing.assert_array_equal(
            store.episode(number)['image'], make(number, **settings)['image'])


def test_gathering_does_not_load_the_store(tmp_path):
    # 96 MB of images; batches touch a small part of them.
    episode = make(rows=500, size=64)
    for i in range(16):
        with zipfile.ZipFile(tmp_path / f'{i:02}.npz', 'w') as archive:
            for key, value in episode.items():
                with archive.open(f'{key}.npy', 'w') as file:
                    np.lib.format.write_array(file, value)
    code = '''
import sys
from pathlib import Path
import numpy as np
from dreamerv2_base.store import open_store
from tests.helpers import make_folder
def resident():
    text = Path('/proc/self/smaps_rollup').read_text()
    return int(text.split('Rss:')[1].split()[0]) / 1024
store = open_store([sys.argv[1]])
before = resident()
chunk = store.gather(np.arange(4), np.zeros(4, int), 50)
print(resident() - before, chunk['image'].nbytes / 2 ** 20)
'''
    run = subprocess.run([sys.executable, '-c', code, str(tmp_path)],
                         cwd=ROOT, capture_output=True, text=True, check=True)
    grown, size = map(float, run.stdout.split())
    # The batch itself, its pages of the file and some read-ahead.
    assert size < 3
    assert grown < 30
