"""Episodes of a folder as they are stored, whatever their layout.

Nothing is converted or refused here: the validator wants to see float16
rewards and missing keys as they are.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets import hdf5
from dreamerv2_base.errors import UserError

Arrays = dict[str, np.ndarray]


def layout(path: Path) -> str | None:
    """'minari', 'mapped', 'npz' or 'hdf5': what lies directly at a path.

    None when there are no episodes. A single hdf5 file is a set too.
    """
    if path.is_file():
        return 'hdf5' if path.suffix in hdf5.SUFFIXES else None
    if not path.is_dir():
        return None
    if (path / 'data' / 'main_data.hdf5').exists():
        return 'minari'
    if (path / 'index.json').exists() and (path / 'image.npy').exists():
        return 'mapped'
    if next(path.glob('*.npz'), None) is not None:
        return 'npz'
    return 'hdf5' if hdf5.shard_files(path) else None


def find_sets(path: Path) -> list[Path]:
    """Folders (or the one file) below a path that hold episodes, sorted.

    Hidden folders, and so the mapped arrays beside episodes, are passed over.
    """
    if layout(path):
        return [path]
    if not path.is_dir():
        return []
    inner = sorted(folder for folder in path.iterdir()
                   if folder.is_dir() and not folder.name.startswith('.'))
    return [found for folder in inner for found in find_sets(folder)]


def episode_files(path: Path) -> list[Path]:
    """The files of a set, in name order (hdf5: in the order of numbers)."""
    if layout(path) == 'npz':
        return sorted(path.glob('*.npz'))
    return hdf5.shard_files(path)


def load_npz(path: Path) -> Arrays:
    """Every array of an `.npz` file; nothing is unpickled.

    Raises UserError for a file that cannot be read to its end.
    """
    try:
        with path.open('rb') as stream, np.load(
                stream, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError('no zip archive')
            return {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, KeyError, RuntimeError,
            AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f'{path}: expected an episode (.npz), found a broken '
                        f'file ({error}); replace it') from None


def read_file(path: Path) -> Iterator[tuple[str, Arrays]]:
    """(name, arrays) of the episodes of one file, one at a time.

    Raises UserError for a file that cannot be read.
    """
    if path.suffix == '.npz':
        yield path.name, load_npz(path)
    else:
        yield from hdf5.episodes([hdf5.inspect(path)])


def digest(arrays: Arrays) -> str:
    """sha256 over names, types, shapes and bytes of arrays."""
    found = hashlib.sha256()
    for key in sorted(arrays):
        value = np.ascontiguousarray(arrays[key])
        found.update(f'{key}/{value.dtype.str}/{value.shape}/'.encode())
        found.update(value.tobytes() if value.dtype.kind in 'OSU'
                     else value.data)
    return found.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, '' where it cannot be read."""
    try:
        with path.open('rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest()
    except OSError:
        return ''
