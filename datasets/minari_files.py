"""Minari's data sets on disk, as Minari 0.5.4 writes and reads them.

`data/metadata.json` and `data/main_data.hdf5` with a group `episode_I` each:
attributes `id` and `total_steps` (T), `observations` [T + 1, ...], and
`actions`, `rewards`, `terminations`, `truncations` [T]. Row t + 1 of our
episodes is the observation after action t, with that action and its reward.
Frames are stored as they are, not as JPEG, which loses; Minari knows that
choice since 0.5.4 and earlier ones cannot read it.

What this layout cannot say (the reset's own action and reward, flags in odd
places, further keys) lies under `infos`, [T + 1] rows of each, and file names
and the order of keys in attributes, so nothing is lost.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from datasets.hdf5 import BLOCK, Arrays
from dreamerv2_base.errors import UserError

VERSION = '0.5.4'
DATA, META = Path('data', 'main_data.hdf5'), Path('data', 'metadata.json')


def names(path: Path) -> list[str]:
    """Of the episodes of a set; those of others have none, ''."""
    with _open(path) as file:
        return [str(file[f'episode_{number}'].attrs.get('name', ''))
                for number in range(_count(path, file))]


def episodes(path: Path) -> Iterator[Arrays]:
    """Arrays as stored in `.npz` of every episode, one at a time.

    Sets of others give image, action, reward, the three flags and what is in
    `infos`. Raises UserError for observations that are no frames.
    """
    jpeg = _metadata(path).get('jpeg_encoding', True)
    with _open(path) as file:
        for number in range(_count(path, file)):
            group = file[f'episode_{number}']
            try:
                stored = {key: value[()] for key, value in group.items()
                          if isinstance(value, h5py.Dataset)}
                stored['observations'] = _frames(
                    stored['observations'], jpeg)
                infos = {key: value[()] for key, value
                         in group.get('infos', {}).items()
                         if isinstance(value, h5py.Dataset)}
                keys = json.loads(group.attrs.get('keys', '[]'))
                yield decode(stored, infos, keys)
            except (KeyError, ValueError, OSError) as error:
                raise UserError(
                    f'{path}: episode_{number}: expected observations that '
                    'are frames, actions, rewards, terminations and '
                    f'truncations, found others ({error}); only such sets '
                    'are read') from None


def decode(stored: Arrays, infos: Arrays, keys: Sequence[str]) -> Arrays:
    """Our rows of an episode of Minari; `keys` limits and orders them."""
    rows = len(stored['observations'])
    first, last = np.zeros(rows, bool), np.zeros(rows, bool)
    terminal = _later(stored['terminations'].astype(bool))
    first[0] = True
    last[-1] = True
    found = {'image': stored['observations'],
             'action': _later(stored['actions']),
             'reward': _later(stored['rewards']),
             'is_first': first, 'is_last': last, 'is_terminal': terminal,
             **{key: value for key, value in infos.items()
                if len(value) == rows}}
    return {key: found[key] for key in keys} if keys else found


def encode(episode: Arrays) -> tuple[Arrays, Arrays]:
    """(arrays of the group, infos) that `decode` gives back exactly."""
    last = episode.get('is_last', _ends(episode)).astype(bool)
    terminal = episode.get('is_terminal', np.zeros_like(last)).astype(bool)
    stored = {'observations': episode['image'],
              'actions': episode['action'][1:],
              'rewards': episode['reward'][1:],
              'terminations': terminal[1:],
              'truncations': (last & ~terminal)[1:]}
    back = decode(stored, {}, ())
    infos = {key: value for key, value in episode.items()
             if key not in back or not _equal(value, back[key])}
    return stored, infos


def write(folder: Path, name: str,
          source: Iterator[tuple[str, Arrays]]) -> int:
    """Write a set into an empty folder; returns how many episodes.

    `name` is its identity in Minari, as `walker-v0`. Raises UserError for
    episodes whose frames or actions differ in shape or type from the first's.
    """
    (folder / DATA).parent.mkdir()
    count = steps = 0
    like: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    with h5py.File(folder / DATA, 'w', track_order=True) as file:
        for count, (label, episode) in enumerate(source, 1):
            kinds = {key: (value.dtype, value.shape[1:])
                     for key, value in episode.items()
                     if key in ('image', 'action')}
            like = like or kinds
            if kinds != like:
                raise UserError(
                    f'{label}: expected frames and actions {like}, found '
                    f'{kinds}; convert sets of one kind each')
            steps += _add(file, count - 1, label, episode)
    image, action = like['image'], like['action']
    words = {
        'total_episodes': count, 'total_steps': steps, 'data_format': 'hdf5',
        'jpeg_encoding': False, 'dataset_id': name,
        'minari_version': VERSION,
        'dataset_size': round((folder / DATA).stat().st_size / 1e6, 1),
        'observation_space': _box(*image, 0, 255),
        'action_space': _box(*action, -1.0, 1.0)}
    (folder / META).write_text(json.dumps(words))
    return count


def _add(file: h5py.File, number: int, label: str, episode: Arrays) -> int:
    stored, infos = encode(episode)
    group = file.create_group(f'episode_{number}')
    steps = len(stored['rewards'])
    group.attrs.update({'id': number, 'total_steps': steps, 'name': label,
                        'keys': json.dumps(list(episode))})
    for key, value in stored.items():
        squeeze = ({'chunks': (min(BLOCK, len(value)), *value.shape[1:]),
                    'compression': 'gzip'} if key == 'observations' else {})
        group.create_dataset(key, data=value, **squeeze)
    for key, value in infos.items():
        group.create_dataset(f'infos/{key}', data=value)
    return steps


def _box(dtype: np.dtype, shape: tuple[int, ...], low: float,
         high: float) -> str:
    """A gymnasium Box in Minari's words."""
    return json.dumps({'type': 'Box', 'dtype': dtype.name,
                       'shape': list(shape),
                       'low': np.full(shape, low).tolist(),
                       'high': np.full(shape, high).tolist()})


def _later(value: np.ndarray) -> np.ndarray:
    """A row of zeros, that of the reset, before the others."""
    return np.concatenate([np.zeros_like(value, shape=(
        1, *value.shape[1:])), value])


def _ends(episode: Arrays) -> np.ndarray:
    last = np.zeros(len(episode['reward']), bool)
    last[-1:] = True
    return last


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    # Bit by bit: a negative zero is not zero.
    return (one.dtype == other.dtype and one.shape == other.shape
            and one.tobytes() == other.tobytes())


def _frames(stored: np.ndarray, jpeg: bool) -> np.ndarray:
    if stored.ndim == 4 and stored.dtype == np.uint8:
        return stored
    if not jpeg or stored.ndim not in (1, 2):
        raise ValueError(f'observations {stored.dtype} {list(stored.shape)}')
    from PIL import Image
    return np.stack([np.asarray(Image.open(io.BytesIO(
        np.asarray(code, np.uint8).tobytes())).convert('RGB'))
        for code in stored])


def _metadata(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / META).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f'{path / META}: expected the description of a '
                        f'Minari set, found none that can be read ({error}); '
                        'copy the whole set again') from None


def _count(path: Path, file: h5py.File) -> int:
    said, found = _metadata(path).get('total_episodes'), len(file)
    missing = [name for name in (f'episode_{n}' for n in range(found))
               if name not in file]
    if missing or said not in (None, found) or not found:
        raise UserError(
            f'{path}: expected {said} episodes (metadata.json), found '
            f'{found}{f", no {missing[0]}" if missing else ""}; copy the '
            'whole set again')
    return found


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path / DATA, 'r')
    except OSError as error:
        raise UserError(f'{path / DATA}: expected an hdf5 file, found one '
                        f'that cannot be read ({error}); copy it again'
                        ) from None
