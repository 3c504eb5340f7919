"""Folders of episodes as contiguous memory-mapped arrays.

On first use a folder is converted once, episode by episode, into one array
per key beside it (`FOLDER/.mapped`), or below a cache folder when it cannot
be written. Later uses map the arrays; no folder is ever held in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from dreamerv2_base.episodes import Episode
from dreamerv2_base.errors import UserError
from dreamerv2_base.mapped import MappedFolder, map_folder


class EpisodeStore:
    """Episodes of one or several folders, in folder and name order.

    Attributes:
      names: file names [E]; rows: int64 [E]; returns: float64 [E].
      offsets: int64 [E + 1], running sums of rows; the last is all rows.
      skipped: (file, reason) of broken files that were left out.
      keys: of the arrays; ignored: of the files, but not among the arrays.
    """

    def __init__(self, folders: Sequence[MappedFolder]):
        self._folders = list(folders)
        entries = [(part, entry) for part in self._folders
                   for entry in part.index['episodes']]
        self._where = [(part.arrays, entry['offset'])
                       for part, entry in entries]
        self.names = [entry['name'] for _, entry in entries]
        self.rows = np.array([entry['rows'] for _, entry in entries], int)
        self.offsets = np.concatenate([[0], np.cumsum(self.rows)])
        self.returns = np.array([entry['return'] for _, entry in entries])
        self.skipped = [tuple(pair) for part in self._folders
                        for pair in part.index['skipped']]
        keys = [set(part.arrays) for part in self._folders]
        self.keys = sorted(set.intersection(*keys))
        # `discount` of some folders alone is left out, and said so.
        self.ignored = sorted(set.union(*keys, *(
            part.index['ignored'] for part in self._folders))
            - set(self.keys))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def action_size(self) -> int:
        return self._folders[0].arrays['action'].shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        return self._folders[0].image_size

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
               length: int, keys: Sequence[str] | None = None) -> Episode:
        """Chunks [B, length, ...] of the given episodes [B] and starts [B].

        `keys` limits what is read (all by default).
        """
        chunks: Episode = {}
        sample = self._folders[0].arrays
        for key in self.keys if keys is None else keys:
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
               min_length: int = 2,
               extra_keys: Sequence[str] = ()) -> EpisodeStore:
    """Open folders of episodes, converting those not yet converted.

    Args:
      folders: with `.npz` files each.
      cache: where to put the arrays of folders that cannot be written.
      skip_broken: leave out unreadable and too short files, and those unlike
        the others or of another image size, counted.
      image_size: required (height, width).
      min_length: rows an episode must have.
      extra_keys: further keys of numbers to keep (proprioception).

    Raises UserError for missing or empty folders, broken files, images of
    another size, actions of different sizes and a full disk.
    """
    parts = [map_folder(Path(folder).expanduser(), cache, skip_broken,
                        image_size, tuple(extra_keys)) for folder in folders]
    _check_same(parts)
    return EpisodeStore([
        part.without(_short(part, min_length, skip_broken))
        for part in parts])


def _short(part: MappedFolder, min_length: int,
           skip_broken: bool) -> dict[str, str]:
    """The too short episodes of a folder, with the reason."""
    short = dict(_reasons(part, min_length))
    if short and not skip_broken:
        raise UserError(next(iter(short.values())))
    if len(short) == len(part.index['episodes']):
        raise UserError(
            f'{part.source}: expected episodes of at least {min_length} '
            f'rows, found {len(short)} shorter ones alone; give shorter '
            'chunks: --offline_model_dataset.length, '
            '--offline_train_dataset.length')
    return short


def _reasons(part: MappedFolder,
             min_length: int) -> Iterator[tuple[str, str]]:
    for entry in part.index['episodes']:
        if entry['rows'] < min_length:
            yield entry['name'], (
                f'{part.source / entry["name"]}: expected at least '
                f'{min_length} rows, found {entry["rows"]}; give shorter '
                'chunks (--offline_model_dataset.length, '
                '--offline_train_dataset.length), or leave it out with '
                '--skip_broken True')


def _check_same(parts: list[MappedFolder]) -> None:
    for key, what in (('action', 'action sizes'), ('image', 'image sizes')):
        for part in parts[1:]:
            mine = part.arrays[key].shape[1:]
            theirs = parts[0].arrays[key].shape[1:]
            if mine != theirs:
                raise UserError(
                    f'offline_dir: expected equal {what}, found '
                    f'{list(theirs)} in {parts[0].first} and {list(mine)} '
                    f'in {part.first}; give folders of one task')
