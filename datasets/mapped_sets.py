"""A set as the mapped arrays of `dreamerv2_base.mapped`, and back.

The same files: one `.npy` per key with all rows, and `index.json`. Numbers
are float32 and flags are there, as training wants them; the index also says
which keys and types each episode had, so that it comes back as it was.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datasets import readers
from dreamerv2_base import mapped
from dreamerv2_base.errors import UserError

Arrays = dict[str, np.ndarray]
SINGLE = ('action', 'reward', 'discount')  # in single precision
FLAGS = ('is_first', 'is_last', 'is_terminal')


def names(path: Path) -> list[str]:
    """Of the episodes of a mapped folder."""
    return [entry['name'] for entry in _index(path)['episodes']]


def episodes(path: Path) -> Iterator[Arrays]:
    """Arrays of every episode, of the types that it had when it was mapped.

    Folders mapped by training have the types of training.
    """
    index = _index(path)
    arrays = _load(path, index)
    for entry in index['episodes']:
        begin, end = entry['offset'], entry['offset'] + entry['rows']
        types = entry.get('types') or {
            key: array.dtype.str for key, array in arrays.items()}
        yield {key: np.array(arrays[key][begin:end]).astype(kind)
               for key, kind in types.items()}


def write(folder: Path, source: Iterator[tuple[str, Arrays]]) -> int:
    """Write a set into an empty folder; returns how many episodes.

    Raises UserError for numbers that training's types cannot hold, and for
    episodes of different keys or shapes.
    """
    entries: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        columns: dict[str, _Column] = {}
        for name, episode in source:
            found = _standard(name, episode)
            if not columns:
                columns = {key: stack.enter_context(contextlib.closing(
                    _Column(folder / f'{key}.npy', value)))
                    for key, value in found.items()}
            _expect_alike(name, found, columns)
            entries.append(_entry(name, episode, columns['reward'].rows))
            for key, column in columns.items():
                column.add(found[key])
        sums = {key: column.sum for key, column in columns.items()}
        rows = columns['reward'].rows
    (folder / 'index.json').write_text(json.dumps({
        # No `.npz` files stand behind this folder.
        'listing': {'format': mapped.FORMAT, 'extra_keys': [], 'files': []},
        'keys': sorted(sums), 'rows': rows, 'episodes': entries,
        'skipped': [], 'ignored': [], 'crc32': sums}, indent=1))
    return len(entries)


class _Column:
    """One key's `.npy` file, its length in the header known at the end."""

    def __init__(self, path: Path, like: np.ndarray):
        self.like, self.rows, self.sum = like[:0], 0, 0
        self._file = path.open('wb')
        self._header()

    def add(self, value: np.ndarray) -> None:
        data = np.ascontiguousarray(value).data
        self._file.write(data)
        self.sum = zlib.crc32(data, self.sum)
        self.rows += len(value)

    def close(self) -> None:
        self._file.seek(0)
        self._header()
        self._file.close()

    def _header(self) -> None:
        # NumPy pads it to one size for any number of rows.
        np.lib.format.write_array_header_2_0(self._file, {
            'descr': np.lib.format.dtype_to_descr(self.like.dtype),
            'fortran_order': False,
            'shape': (self.rows, *self.like.shape[1:])})


def _standard(name: str, episode: Arrays) -> Arrays:
    """An episode with the keys and types of training (`read_episode`)."""
    first = np.zeros(len(episode['reward']), bool)
    last = first.copy()
    first[:1] = True
    last[-1:] = True
    terminal = (episode['discount'] == 0 if 'discount' in episode
                else np.zeros_like(first))
    found = {'is_first': first, 'is_last': last, 'is_terminal': terminal,
             **episode}
    for key in (*SINGLE, *FLAGS):
        if key not in found:
            continue
        kind = np.dtype(np.float32 if key in SINGLE else bool)
        value, found[key] = found[key], found[key].astype(kind)
        if found[key].astype(value.dtype).tobytes() != value.tobytes():
            raise UserError(
                f'{name}: {key}: expected values that {kind} holds exactly, '
                f'found {value.dtype} beyond; convert to npz or hdf5')
    return found


def _expect_alike(name: str, found: Arrays,
                  columns: dict[str, _Column]) -> None:
    mine = {key: (value.dtype, value.shape[1:])
            for key, value in found.items()}
    first = {key: (column.like.dtype, column.like.shape[1:])
             for key, column in columns.items()}
    different = sorted(key for key in {*mine, *first}
                       if mine.get(key) != first.get(key))
    if different:
        key = different[0]
        raise UserError(
            f'{name}: {key}: expected {first.get(key, "none")} as in the '
            f'first episode, found {mine.get(key, "none")}; convert sets of '
            'one kind each')


def _entry(name: str, episode: Arrays, offset: int) -> dict[str, Any]:
    return {'name': name, 'offset': offset, 'rows': len(episode['reward']),
            'return': float(episode['reward'].astype(np.float64).sum()),
            'sha256': readers.digest(episode),
            'types': {key: value.dtype.str
                      for key, value in episode.items()}}


def _index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads((path / 'index.json').read_text())
        if not {'episodes', 'keys', 'rows'} <= set(index):
            raise ValueError(f'keys {sorted(index)}')
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f'{path / "index.json"}: expected the index of mapped '
                        f'arrays, found none that can be read ({error!r}); '
                        'convert again') from None
    return index


def _load(path: Path, index: dict[str, Any]) -> Arrays:
    arrays = {}
    for key in index['keys']:
        try:
            arrays[key] = np.load(path / f'{key}.npy', mmap_mode='r')
        except (OSError, ValueError) as error:
            raise UserError(f'{path / key}.npy: expected an array, found none '
                            f'that can be read ({error}); convert again'
                            ) from None
        if len(arrays[key]) != index['rows']:
            raise UserError(f'{path / key}.npy: expected {index["rows"]} rows,'
                            f' found {len(arrays[key])}; convert again')
    return arrays
