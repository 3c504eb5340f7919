"""A set in another layout: `run.py data convert SOURCE TARGET --to LAYOUT`.

npz files, V-D4RL's hdf5 (one file or several), mapped arrays and Minari's
data sets, each to each. Episodes go through one at a time, whole, with all
their keys, types and names. Frames stay as they are unless a size is given
(baselines 9.5): bicubic to a larger one, as V-D4RL's converter
does from 64 to 84; averaging over areas to a smaller one, which is our choice.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import cv2
import numpy as np

from datasets import hdf5, mapped_sets, minari_files, readers
from datasets.facts import is_image
from dreamerv2_base.episodes import write_episode
from dreamerv2_base.errors import UserError
from dreamerv2_base.files import expect_space

Arrays = dict[str, np.ndarray]

# More bytes than HDF5 holds back (chunks, its own tables) until it closes.
UNWRITTEN = 2 ** 26
# Pixels along a frame's side: an episode of 501 such frames has 1.6 GB.
LARGEST = 1024


@dataclass(frozen=True)
class Source:
    """A set to read.

    Attributes: `path`; `layout`; `names` of its episodes in their order, as
    the set has them; `join`: put episodes cut by hdf5 borders together.
    """

    path: Path
    layout: str
    names: list[str]
    join: bool = False

    def episodes(self) -> Iterator[Arrays]:
        """Arrays of every episode, in the order of the names."""
        if self.layout == 'minari':
            yield from minari_files.episodes(self.path)
        elif self.layout == 'mapped':
            yield from mapped_sets.episodes(self.path)
        elif self.layout == 'npz':
            for name in self.names:
                yield readers.load_npz(self.path / name)
        else:
            shards = [hdf5.inspect(file)
                      for file in hdf5.shard_files(self.path)]
            for _, arrays in hdf5.episodes(shards, self.join):
                yield arrays


def convert(path: Path, target: Path, layout: str, size: int | None = None,
            shards: int = 1, join: bool = False) -> str:
    """Write the set at `path` to `target`; returns a line on what was done.

    Args:
      layout: 'npz', 'hdf5', 'mapped' or 'minari'.
      size: of the new frames, 1 to LARGEST pixels; None: as they are.
      shards: hdf5 files to write. join: hdf5 files to read may be cut inside
        of episodes.

    `target` appears when it is complete and not before. Raises UserError when
    something is there already, and for sets that cannot be converted without
    loss.
    """
    source = open_source(path, join)
    if size is not None and not 1 <= size <= LARGEST:
        raise UserError(f'--size: expected 1 to {LARGEST} pixels, found '
                        f'{size}; give --size 64')
    if shards != 1 and layout != 'hdf5':
        raise UserError(f'--shards: expected --to hdf5, found {layout}; leave '
                        'it out')
    if not 1 <= shards <= len(source.names):
        raise UserError(f'--shards: expected 1 to {len(source.names)}, as '
                        f'many as episodes, found {shards}')
    names = episode_names(source)
    stream = _stream(source, names, size)
    single = layout == 'hdf5' and target.suffix in hdf5.SUFFIXES
    if single and shards != 1:
        raise UserError(f'{target}: expected a folder for {shards} files, '
                        'found the name of one; leave its ending out')
    _expect_free(target)
    with _work_folder(target) as work:
        count = _write(layout, work, target, shards, len(source.names),
                       stream)
        if single:
            (work / _shard_name(0, 1)).replace(target)
        else:
            if target.exists():
                target.rmdir()
            work.rename(target)
    return f'{count} episodes in {target} ({layout})'


def open_source(path: Path, join: bool = False) -> Source:
    """What is at a path. Raises UserError for paths without episodes.

    hdf5 files whose borders cut episodes need `join`.
    """
    layout = readers.layout(path)
    if layout is None:
        raise UserError(f'{path}: expected .npz or .hdf5 episodes, mapped '
                        'arrays or a Minari set, found none directly there; '
                        'give the folder of one set')
    if layout == 'minari':
        names = minari_files.names(path)
    elif layout == 'mapped':
        names = mapped_sets.names(path)
    elif layout == 'npz':
        names = [file.name for file in readers.episode_files(path)]
    else:
        names = _shard_names(path, join)
    return Source(path, layout, names, join)


def episode_names(source: Source) -> list[str] | None:
    """Names that files of the set can have; None if new ones are needed.

    Names are kept where they are those of `.npz` files, one of each, and sort
    in the order of the episodes.
    """
    good = all(re.fullmatch(r'[^/\\\0.][^/\\\0]*\.npz', name)
               for name in source.names)
    if good and all(left < right for left, right in zip(
            source.names, source.names[1:], strict=False)):
        return source.names
    return None


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Frames uint8 [L, H, W, 3] as [L, size, size, 3]."""
    if image.shape[1:3] == (size, size):
        return image
    larger = size >= max(image.shape[1:3])
    way = cv2.INTER_CUBIC if larger else cv2.INTER_AREA
    return np.stack([cv2.resize(frame, (size, size), interpolation=way)
                     for frame in image])


def _shard_names(path: Path, join: bool) -> list[str]:
    shards = [hdf5.inspect(file) for file in hdf5.shard_files(path)]
    cuts = [cut for shard in shards for cut in shard.cuts]
    if cuts and not join:
        raise UserError(f'{path}: expected files cut between episodes, found '
                        f'that {cuts[0]}; give --join-shards to put the '
                        'pieces together')
    return hdf5.episode_names(shards, join)


def _stream(source: Source, names: list[str] | None, size: int | None,
            ) -> Iterator[tuple[str, Arrays]]:
    """(name, arrays), checked and resized. New names are '' for now."""
    from tqdm import tqdm
    given = names or [''] * len(source.names)
    for number, arrays in enumerate(tqdm(
            source.episodes(), total=len(given), desc='converting',
            unit='episode', leave=False, disable=not sys.stderr.isatty())):
        _check(f'{source.path}: {source.names[number] or number}', arrays)
        if size is not None:
            arrays = {**arrays, 'image': resize(arrays['image'], size)}
        yield given[number] or _new_name(number, arrays), arrays


def _check(where: str, arrays: Arrays) -> None:
    """Raise UserError for what some layout could not hold."""
    missing = {'image', 'action', 'reward'} - set(arrays)
    if missing or not is_image(arrays['image']):
        raise UserError(f'{where}: expected image (uint8 [L, H, W, 3]), action'
                        f' and reward, found {_shapes(arrays)}; see run.py '
                        'data validate')
    rows = len(arrays['reward'])
    for key, value in arrays.items():
        if (value.dtype.kind not in 'biuf' or not value.ndim
                or len(value) != rows or '/' in key):
            raise UserError(
                f'{where}: {key}: expected numbers with {rows} rows, found '
                f'{value.dtype} {list(value.shape)}; see run.py data validate')


def _shapes(arrays: Arrays) -> str:
    return ', '.join(f'{key} {value.dtype}{list(value.shape)}'
                     for key, value in sorted(arrays.items()))


def _new_name(number: int, arrays: Arrays) -> str:
    """As `write_episode` names its files: time, content, rows − 1."""
    moment = datetime(2000, 1, 1) + timedelta(seconds=number)
    return (f'{moment:%Y%m%dT%H%M%S}-{readers.digest(arrays)[:32]}-'
            f'{len(arrays["reward"]) - 1}.npz')


def _write(layout: str, work: Path, target: Path, shards: int, count: int,
           stream: Iterator[tuple[str, Arrays]]) -> int:
    if layout in ('minari', 'hdf5'):
        stream = _while_space(work, stream)
    if layout == 'minari':
        return minari_files.write(work, _identity(target.name), stream)
    if layout == 'mapped':
        return mapped_sets.write(work, stream)
    if layout == 'hdf5':
        parts = [len(part) for part in np.array_split(range(count), shards)]
        hdf5.write_shards([work / _shard_name(number, shards)
                           for number in range(shards)], parts, stream)
        return count
    for name, arrays in stream:
        write_episode(work, arrays, 0, 'episode').rename(work / name)
    return count


def _while_space(work: Path, stream: Iterator[tuple[str, Arrays]],
                 ) -> Iterator[tuple[str, Arrays]]:
    """The same episodes, while there is space for the next one.

    HDF5 cannot close a file on a full disk, and ends the process (SIGSEGV).
    """
    for name, arrays in stream:
        size = sum(value.nbytes for value in arrays.values())
        expect_space(work.parent, size + UNWRITTEN, 'the next episode',
                     'free some or give a TARGET on another disk')
        yield name, arrays


def _identity(name: str) -> str:
    """A folder's name as Minari wants it: letters, digits, `_`, version."""
    found = re.search(r'-v\d+\Z', name)
    stem, version = (name[:found.start()], found[0]) if found else (
        name, '-v0')
    return (re.sub(r'[^\w-]+', '_', stem).strip('_-')
            or 'episodes') + version


@contextlib.contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside the target, of this process alone.

    What a killed conversion left in it is removed.
    """
    work = target.with_name(f'.{target.name}.partial')
    work.mkdir(parents=True, exist_ok=True)
    lock = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in work.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield work
        shutil.rmtree(work, ignore_errors=True)  # already gone when renamed
    except BlockingIOError:
        raise UserError(f'{target}: expected nobody else to write there, '
                        'found another conversion at work; wait for it'
                        ) from None
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _shard_name(number: int, shards: int) -> str:
    return ('episodes.hdf5' if shards == 1
            else f'episodes_{number + 1}_of_{shards}.hdf5')


def _expect_free(target: Path) -> None:
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f'{target}: expected nothing there or an empty folder,'
                        ' found files; give another TARGET')
