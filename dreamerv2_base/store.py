"""Folders of episodes as contiguous memory-mapped arrays.

On first use a folder is converted once, episode by episode, into one array
per key beside it (`FOLDER/.mapped`), or below a cache folder when it cannot
be written. Later uses map the arrays; no folder is ever held in memory.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dreamerv2_base.episodes import KEYS, Episode, read_episode
from dreamerv2_base.errors import UserError

FORMAT = 2


@dataclass(frozen=True)
class MappedFolder:
    """One converted folder: arrays by key and the index of its episodes."""

    source: Path
    arrays: dict[str, np.ndarray]
    index: dict[str, Any]


class EpisodeStore:
    """Episodes of one or several folders, in folder and name order.

    Attributes:
      names: file names [E]; rows: int64 [E]; returns: float64 [E].
      skipped: (file, reason) of broken files that were left out.
    """

    def __init__(self, folders: Sequence[MappedFolder]):
        self._folders = list(folders)
        entries = [(part, entry) for part in self._folders
                   for entry in part.index['episodes']]
        self._where = [(part.arrays, entry['offset'])
                       for part, entry in entries]
        self.names = [entry['name'] for _, entry in entries]
        self.rows = np.array([entry['rows'] for _, entry in entries], int)
        self.returns = np.array([entry['return'] for _, entry in entries])
        self.skipped = [tuple(pair) for part in self._folders
                        for pair in part.index['skipped']]
        self.keys = sorted(set.intersection(
            *(set(part.arrays) for part in self._folders)))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def action_size(self) -> int:
        return self._folders[0].arrays['action'].shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        return tuple(self._folders[0].arrays['image'].shape[1:3])

    @cached_property
    def digest(self) -> str:
        """sha256 over the content of all episode files, in order."""
        parts = [entry['sha256'] for part in self._folders
                 for entry in part.index['episodes']]
        return hashlib.sha256('\n'.join(parts).encode()).hexdigest()

    def episode(self, number: int) -> Episode:
        """All rows of one episode (views of the mapped arrays)."""
        return self.slice(number, 0, int(self.rows[number]))

    def slice(self, number: int, start: int, length: int) -> Episode:
        """`length` rows of an episode from row `start` (views)."""
        arrays, offset = self._where[number]
        begin = offset + start
        return {key: arrays[key][begin:begin + length] for key in self.keys}

    def gather(self, episodes: np.ndarray, starts: np.ndarray,
               length: int) -> Episode:
        """Chunks [B, length, ...] of the given episodes [B] and starts [B]."""
        chunks: Episode = {}
        sample = self._folders[0].arrays
        for key in self.keys:
            shape = (len(episodes), length, *sample[key].shape[1:])
            out = np.empty(shape, sample[key].dtype)
            for row, (number, start) in enumerate(
                    zip(episodes, starts, strict=True)):
                arrays, offset = self._where[int(number)]
                begin = offset + int(start)
                out[row] = arrays[key][begin:begin + length]
            chunks[key] = out
        return chunks


def open_store(folders: Sequence[Path], cache: Path | None = None,
               skip_broken: bool = False,
               image_size: tuple[int, int] | None = None,
               min_length: int = 2) -> EpisodeStore:
    """Open folders of episodes, converting those not yet converted.

    Args:
      folders: with `.npz` files each.
      cache: where to put the arrays of folders that cannot be written.
      skip_broken: leave out unreadable and too short files, counted.
      image_size: required (height, width).
      min_length: rows an episode must have.

    Raises UserError for missing or empty folders, broken files, images of
    another size, actions of different sizes and a full disk.
    """
    parts = [_open_folder(Path(folder).expanduser(), cache, skip_broken,
                          min_length) for folder in folders]
    _check_same(parts)
    store = EpisodeStore(parts)
    if image_size is not None and store.image_size != tuple(image_size):
        raise UserError(
            f'{folders[0]}: image: expected frames of {image_size[0]}x'
            f'{image_size[1]}, found {store.image_size[0]}x'
            f'{store.image_size[1]}; give --image_size '
            f'{store.image_size[0]}, or convert the data')
    return store


def _check_same(parts: list[MappedFolder]) -> None:
    for key, what in (('action', 'action sizes'), ('image', 'image sizes')):
        for part in parts[1:]:
            mine = part.arrays[key].shape[1:]
            theirs = parts[0].arrays[key].shape[1:]
            if mine != theirs:
                raise UserError(
                    f'offline_dir: expected equal {what}, found '
                    f'{list(theirs)} in {parts[0].source} and {list(mine)} '
                    f'in {part.source}; give folders of one task')


def _open_folder(folder: Path, cache: Path | None, skip_broken: bool,
                 min_length: int) -> MappedFolder:
    if not folder.is_dir():
        raise UserError(f'offline_dir: expected a folder of episodes, found '
                        f'nothing at {folder}; give --offline_dir FOLDER')
    files = sorted(folder.glob('*.npz'))
    if not files:
        raise UserError(f'offline_dir: expected .npz episodes in {folder}, '
                        'found none; see run.py collect --help')
    listing = _listing(files, skip_broken, min_length)
    for place in _places(folder, cache):
        found = _mapped(folder, place, listing)
        if found is not None:
            return found
    place = next((p for p in _places(folder, cache) if _writable(p)), None)
    if place is None:
        raise UserError(f'{folder}: expected a folder that can be written, '
                        'found it read-only; give --cache_dir FOLDER')
    try:
        _convert(files, place, listing, skip_broken, min_length)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f'{place}: expected space for the mapped arrays, '
                        'found the disk full; free some or give --cache_dir '
                        'FOLDER on another disk') from None
    found = _mapped(folder, place, listing)
    assert found is not None, place
    return found


def _listing(files: list[Path], skip_broken: bool,
             min_length: int) -> dict[str, Any]:
    """What a conversion must have been made from to be used again."""
    stats = [(path.name, path.stat()) for path in files]
    return {'format': FORMAT, 'skip_broken': skip_broken,
            'min_length': min_length if skip_broken else 0,
            'files': [[name, stat.st_size, stat.st_mtime_ns]
                      for name, stat in stats]}


def _places(folder: Path, cache: Path | None) -> list[Path]:
    places = [folder / '.mapped']
    if cache is not None:
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        places.insert(0, Path(cache).expanduser() / f'{folder.name}-{name}')
    return places


def _writable(place: Path) -> bool:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent):
            return True
    except OSError:
        return False


def _mapped(folder: Path, place: Path,
            listing: dict[str, Any]) -> MappedFolder | None:
    try:
        index = json.loads((place / 'index.json').read_text())
    except (OSError, ValueError):
        return None
    if index['listing'] != listing:
        return None
    arrays = {key: np.load(place / f'{key}.npy', mmap_mode='r')
              for key in index['keys']}
    if any(len(array) != index['rows'] for array in arrays.values()):
        return None
    return MappedFolder(folder, arrays, index)


def _convert(files: list[Path], place: Path, listing: dict[str, Any],
             skip_broken: bool, min_length: int) -> None:
    """Write the arrays to a temporary folder, then rename it into place.

    Of two processes that convert at once the later rename wins; both wrote
    the same.
    """
    work = Path(tempfile.mkdtemp(prefix='.mapping-', dir=place.parent))
    try:
        writer = _Writer(work)
        for path in _progress(files):
            try:
                episode = _checked(path, min_length)
                writer.add(path, episode)
            except UserError as error:
                if not skip_broken:
                    raise
                writer.skipped.append([path.name, str(error)])
        writer.finish(listing)
        if place.exists():
            stale = Path(tempfile.mkdtemp(prefix='.stale-', dir=place.parent))
            os.replace(place, stale / 'old')
            shutil.rmtree(stale)
        os.replace(work, place)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _checked(path: Path, min_length: int) -> Episode:
    episode = read_episode(path)
    rows = len(episode['reward'])
    if rows < min_length:
        raise UserError(
            f'{path}: expected at least {min_length} rows, found {rows}; give '
            'a smaller --offline_model_dataset.length, or leave it out with '
            '--skip_broken True')
    return episode


class _Writer:
    """Appends episodes to one `.npy` file per key."""

    def __init__(self, folder: Path):
        self.skipped: list[list[str]] = []
        self._folder, self._rows = folder, 0
        self._entries: list[dict[str, Any]] = []
        self._files: dict[str, Any] = {}
        self._likes: dict[str, np.ndarray] = {}
        self._first = ''

    def add(self, path: Path, episode: Episode) -> None:
        keys = [*KEYS, *(['discount'] if 'discount' in episode else [])]
        if not self._files:
            self._first = path.name
            for key in keys:
                self._likes[key] = episode[key][:0]
                self._files[key] = (self._folder / f'{key}.raw').open('wb')
        self._check_alike(path, episode)
        for key, file in self._files.items():
            file.write(np.ascontiguousarray(episode[key]).data)
        self._entries.append({
            'name': path.name, 'offset': self._rows,
            'rows': len(episode['reward']),
            'return': float(episode['reward'].astype(np.float64).sum()),
            'sha256': _sha256(path)})
        self._rows += len(episode['reward'])

    def finish(self, listing: dict[str, Any]) -> None:
        if not self._entries:
            raise UserError(f'{self._folder.parent}: expected readable '
                            f'episodes, found {len(self.skipped)} broken '
                            f'ones, first {self.skipped[0]}')
        for key, file in self._files.items():
            file.close()
            like = self._likes[key]
            _add_header(self._folder, key, like, self._rows)
        (self._folder / 'index.json').write_text(json.dumps({
            'listing': listing, 'keys': sorted(self._files),
            'rows': self._rows, 'episodes': self._entries,
            'skipped': self.skipped}, indent=1))

    def _check_alike(self, path: Path, episode: Episode) -> None:
        for key, like in self._likes.items():
            found = episode[key].shape[1:] if key in episode else 'none'
            if found != like.shape[1:]:
                raise UserError(
                    f'{path}: {key}: expected rows of shape '
                    f'{list(like.shape[1:])} as in {self._first}, found '
                    f'{found if found == "none" else list(found)}; give a '
                    'folder of one task, or leave the file out with '
                    '--skip_broken True')


def _add_header(folder: Path, key: str, like: np.ndarray, rows: int) -> None:
    """Turn raw bytes into an `.npy` file of [rows, ...] without loading."""
    raw = folder / f'{key}.raw'
    with (folder / f'{key}.npy').open('wb') as target, raw.open('rb') as data:
        np.lib.format.write_array_header_2_0(target, {
            'descr': np.lib.format.dtype_to_descr(like.dtype),
            'fortran_order': False, 'shape': (rows, *like.shape[1:])})
        shutil.copyfileobj(data, target, 2 ** 22)
        target.flush()
        os.fsync(target.fileno())
    raw.unlink()


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _progress(files: list[Path]):
    from tqdm import tqdm
    return tqdm(files, desc='mapping episodes', unit='file', leave=False,
                disable=not sys.stderr.isatty())
