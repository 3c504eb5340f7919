"""The conversion of a folder of episodes into memory-mapped arrays.

Streaming and atomic: written episode by episode into a temporary folder that
is renamed when complete and verified. An interrupted conversion leaves
nothing that could be taken for a finished one, and the next one clears it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from dreamerv2_base.episodes import Episode, read_episode
from dreamerv2_base.errors import UserError
from dreamerv2_base.files import expect_space

FORMAT = 3
BLOCK = 2 ** 22  # bytes read at once
# What needs space, and where there is more.
ARRAYS = 'the mapped arrays'
ROOM = 'free some or give --cache_dir FOLDER on another disk'


@dataclass(frozen=True)
class MappedFolder:
    """One converted folder: arrays by key and the index of its episodes."""

    source: Path
    arrays: dict[str, np.ndarray]
    index: dict[str, Any]

    @property
    def image_size(self) -> tuple[int, int]:
        height, width = self.arrays['image'].shape[1:3]
        return height, width

    @property
    def first(self) -> Path:
        """The first episode file."""
        return self.source / self.index['episodes'][0]['name']

    def without(self, reasons: dict[str, str]) -> MappedFolder:
        """The same folder, the named episodes skipped."""
        kept = [entry for entry in self.index['episodes']
                if entry['name'] not in reasons]
        skipped = [*self.index['skipped'], *map(list, reasons.items())]
        return replace(self, index={
            **self.index, 'episodes': kept, 'skipped': skipped})


def map_folder(folder: Path, cache: Path | None, skip_broken: bool,
               image_size: tuple[int, int] | None,
               extra_keys: tuple[str, ...]) -> MappedFolder:
    """The arrays of a folder, converted now or before.

    A conversion is used again while names, sizes and times of the files are
    the same; a folder of mapped arrays without files is used as it is. The
    arguments and errors are those of `store.open_store`.
    """
    if not folder.is_dir():
        raise UserError(
            f'offline_dir: expected a folder of episodes, found '
            f'{"a file" if folder.exists() else "nothing"} at {folder}; '
            + (f'make one with run.py data convert {folder} FOLDER --to npz'
               if folder.exists() else 'give --offline_dir FOLDER'))
    files = sorted(folder.glob('*.npz'))
    given = _given(folder, image_size) if not files else None
    if given is not None:
        return given
    if not files:
        raise UserError(_no_episodes(folder))
    job = _Job(folder, files, _listing(files, extra_keys), skip_broken,
               image_size, extra_keys)
    places = _places(folder, cache)
    found = next(filter(None, (_mapped(job, p) for p in places)), None)
    if found is None:
        found = _convert_once(job, places)
    if found.index['skipped'] and not skip_broken:
        raise UserError(found.index['skipped'][0][1])
    _check_size(job, found.first, found.image_size)
    return found


def _no_episodes(folder: Path) -> str:
    """What is there instead, and what makes episodes of it."""
    other = next(chain(
        sorted(folder.glob('*.hdf5')), sorted(folder.glob('data/*.hdf5'))),
        None)
    below = sorted({str(path.parent) for path in folder.glob('*/*.npz')
                    if path.parent.name[0] != '.'})
    if other:
        found = str(other.relative_to(folder))
        mend = f'run.py data convert {folder} FOLDER --to npz makes some'
    elif (folder / 'index.json').exists():
        found = 'mapped arrays that are damaged or of another version'
        mend = 'make them anew: run.py data convert'
    elif below:
        found = f'folders with some ({len(below)})'
        mend = f'give --offline_dir {" ".join(below[:3])}'
    else:
        found = 'none'
        mend = 'run.py collect or data build make some, data list names sets'
    return (f'offline_dir: expected .npz episodes in {folder}, found {found}; '
            f'{mend}')


def _given(folder: Path, image_size: tuple[int, int] | None,
           ) -> MappedFolder | None:
    """A folder of mapped arrays itself (`run.py data convert`)."""
    job = _Job(folder, [], _listing([], ()), False, image_size, ())
    found = _mapped(job, folder)
    if found is not None:
        _check_size(job, found.first, found.image_size)
    return found


@dataclass(frozen=True)
class _Job:
    folder: Path
    files: list[Path]
    listing: dict[str, Any]
    skip_broken: bool
    image_size: tuple[int, int] | None
    extra_keys: tuple[str, ...]


def _listing(files: list[Path], extra: tuple[str, ...]) -> dict[str, Any]:
    """What a conversion must have been made from to be used again."""
    # A link to nothing is a broken file: reading it says so.
    stats = [(path.name, path.stat() if path.exists() else path.lstat())
             for path in files]
    return {'format': FORMAT, 'extra_keys': sorted(extra),
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


def _mapped(job: _Job, place: Path) -> MappedFolder | None:
    """The finished conversion at a place, None if it is not for this job."""
    try:
        index = json.loads((place / 'index.json').read_text())
        if index['listing'] != job.listing:
            return None
        arrays = {key: np.load(place / f'{key}.npy', mmap_mode='r')
                  for key in index['keys']}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if any(len(array) != index['rows'] for array in arrays.values()):
        return None
    # All but the frames, which are too many to read at every start.
    sums = index.get('crc32', {})
    if any(zlib.crc32(np.ascontiguousarray(array).data) != sums[key]
           for key, array in arrays.items() if key in sums and key != 'image'):
        return None
    return MappedFolder(job.folder, arrays, index)


def _convert_once(job: _Job, places: list[Path]) -> MappedFolder:
    place = next(filter(_writable, places), None)
    if place is None:
        tried = ' or '.join(str(place.parent) for place in reversed(places))
        raise UserError(f'{job.folder}: expected to write its arrays to '
                        f'{tried}, found it read-only; give --cache_dir '
                        'FOLDER, one that can be written')
    with _lock(place):
        # Another process may have done it while this one waited.
        found = _mapped(job, place)
        if found is not None:
            return found
        expect_space(place.parent, _needed(job), ARRAYS, ROOM)
        try:
            found = _convert(job, place)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f'{place}: expected {_needed(job):,} free bytes for {ARRAYS}, '
                f'found the disk full; {ROOM}') from None
    if found is None or _changed(job):
        raise UserError(f'{job.folder}: expected files at rest, found them '
                        'changed while they were read; start again when they '
                        'are complete')
    return found


@contextlib.contextmanager
def _lock(place: Path) -> Iterator[None]:
    """Only one process converts to a place; the kernel frees a dead one's."""
    with (place.parent / f'.{place.name.lstrip(".")}.lock').open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            # A file system without locks: a double conversion is harmless.
            yield
            return
        for prefix in ('mapping', 'stale'):
            for left in place.parent.glob(_prefix(prefix, place) + '*'):
                shutil.rmtree(left, ignore_errors=True)
        yield


def _prefix(what: str, place: Path) -> str:
    return f'.{what}-{place.name.lstrip(".")}-'


def _needed(job: _Job) -> int:
    """Bytes of the arrays, from the directories of the zip files."""
    total = 0
    for path in job.files:
        with contextlib.suppress(OSError, zipfile.BadZipFile):
            with zipfile.ZipFile(path) as archive:
                total += sum(entry.file_size for entry in archive.infolist())
    return total


def _changed(job: _Job) -> bool:
    """Whether the files are not those any more that the job began with."""
    try:
        return _listing(job.files, job.extra_keys) != job.listing
    except OSError:
        return True


def _convert(job: _Job, place: Path) -> MappedFolder | None:
    """Write the arrays to a temporary folder, then rename it into place.

    What is returned was opened before: without locks another process may put
    its own conversion there, which holds the same.
    """
    work = Path(tempfile.mkdtemp(
        prefix=_prefix('mapping', place), dir=place.parent))
    # Others who share the data may read it (temporary folders are private).
    work.chmod(0o755)
    try:
        with contextlib.ExitStack() as stack:
            writer = _Writer(work, job, stack)
            for path in _progress(job.files):
                writer.read(path)
            writer.finish()
        found = _mapped(job, work)
        _install(job, work, place)
        return found
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _install(job: _Job, work: Path, place: Path) -> None:
    while _mapped(job, place) is None:
        stale = Path(tempfile.mkdtemp(
            prefix=_prefix('stale', place), dir=place.parent))
        with contextlib.suppress(FileNotFoundError):
            os.rename(place, stale / 'old')
        shutil.rmtree(stale)
        try:
            os.rename(work, place)
        except OSError as error:
            # Without locks another process may have been faster.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            continue
        return


class _Writer:
    """Appends episodes to one `.npy` file per key."""

    def __init__(self, folder: Path, job: _Job, stack: contextlib.ExitStack):
        self._folder, self._job, self._stack = folder, job, stack
        self._rows, self._first = 0, Path()
        self._entries: list[dict[str, Any]] = []
        self._skipped: list[list[str]] = []
        self._ignored: set[str] = set()
        self._files: dict[str, Any] = {}
        self._likes: Episode = {}
        self._sums: dict[str, int] = {}

    def read(self, path: Path) -> None:
        """Add a file, or note why not where that is allowed."""
        try:
            episode = read_episode(path, self._job.extra_keys, self._ignored)
            # Before anything is written. The first of this size decides on
            # everything else.
            if not self._files:
                _check_size(self._job, path, episode['image'].shape[1:3])
            self._check_alike(path, episode)
        except UserError as error:
            if not self._job.skip_broken:
                raise
            self._skipped.append([path.name, str(error)])
            return
        if not self._files:
            self._open(path, episode)
        self._add(path, episode)

    def finish(self) -> None:
        """Complete and verify the files; write the index last."""
        if not self._entries:
            raise UserError(f'{self._job.folder}: expected readable episodes, '
                            f'found {len(self._skipped)} broken ones, first '
                            f'{self._skipped[0][1]}')
        for key, file in self._files.items():
            file.seek(0)
            self._header(key, self._rows)
            file.flush()
            os.fsync(file.fileno())
            self._verify(key)
        index = {
            'listing': self._job.listing, 'keys': sorted(self._files),
            'rows': self._rows, 'episodes': self._entries,
            'skipped': self._skipped, 'ignored': sorted(self._ignored),
            'crc32': self._sums}
        with (self._folder / 'index.json').open('w') as file:
            json.dump(index, file, indent=1)
            file.flush()
            os.fsync(file.fileno())

    def _open(self, path: Path, episode: Episode) -> None:
        self._first = path
        for key, value in episode.items():
            self._likes[key] = value[:0]
            self._files[key] = self._stack.enter_context(
                (self._folder / f'{key}.npy').open('w+b'))
            self._sums[key] = 0
            self._header(key, 0)

    def _add(self, path: Path, episode: Episode) -> None:
        for key, file in self._files.items():
            data = np.ascontiguousarray(episode[key]).data
            file.write(data)
            self._sums[key] = zlib.crc32(data, self._sums[key])
        self._entries.append({
            'name': path.name, 'offset': self._rows,
            'rows': len(episode['reward']),
            'return': float(episode['reward'].astype(np.float64).sum()),
            'sha256': _sha256(path)})
        self._rows += len(episode['reward'])

    def _header(self, key: str, rows: int) -> None:
        # NumPy pads the header, so that it has one size for any number of
        # rows and can be written again when that is known.
        like = self._likes[key]
        np.lib.format.write_array_header_2_0(self._files[key], {
            'descr': np.lib.format.dtype_to_descr(like.dtype),
            'fortran_order': False, 'shape': (rows, *like.shape[1:])})

    def _verify(self, key: str) -> None:
        file, like, found = self._files[key], self._likes[key], 0
        file.seek(0)
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_2_0(file)
        while block := file.read(BLOCK):
            found = zlib.crc32(block, found)
        if shape != (self._rows, *like.shape[1:]) or (
                found != self._sums[key]):
            raise UserError(
                f'{self._folder}: {key}: expected to read what was written, '
                'found something else; check the disk, or give --cache_dir '
                'FOLDER on another')

    def _check_alike(self, path: Path, episode: Episode) -> None:
        for key in sorted(set(self._likes or episode) | set(episode)):
            like = (self._likes or episode).get(key)
            expected = 'none' if like is None else list(like.shape[1:])
            mine = episode.get(key)
            found = 'none' if mine is None else list(mine.shape[1:])
            if found != expected:
                raise UserError(
                    f'{path}: {key}: expected rows of shape {expected} as in '
                    f'{self._first}, found {found}; give a folder of one '
                    'task, or leave the file out with --skip_broken True')


def _check_size(job: _Job, path: Path, size: tuple[int, ...]) -> None:
    if job.image_size is not None and tuple(size) != tuple(job.image_size):
        raise UserError(
            f'{path}: image: expected frames of {job.image_size[0]}x'
            f'{job.image_size[1]}, found {size[0]}x{size[1]}; give run.py '
            f'data convert FOLDER NEW --to npz --size {job.image_size[0]} (or, '
            'to a method that takes other frames than 64x64, --image_size '
            f'{size[0]} --render_size {size[0]} {size[0]})')


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _progress(files: list[Path]):
    from tqdm import tqdm
    return tqdm(files, desc='mapping episodes', unit='file', leave=False,
                disable=not sys.stderr.isatty())
