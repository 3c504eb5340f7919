"""V-D4RL's hdf5 files: episodes end to end, images channels first.

Baselines 9.5: `observation` uint8 [N, 3, H, W], `action` [N, A],
`reward`, `discount` and `step_type` [N] (0 first, 1 mid, 2 last). A set may
be split into several files, shards. What these keys cannot say about an
episode of ours lies beside them under its own name, so nothing is lost.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from datasets.registry import ROWS
from dreamerv2_base.errors import UserError
from dreamerv2_base.files import whole

Arrays = dict[str, np.ndarray]

SUFFIXES = ('.hdf5', '.h5')
KEYS = ('observation', 'action', 'reward', 'discount', 'step_type')
FIRST, MID, LAST = 0, 1, 2
BLOCK = 16  # rows that are compressed together


@dataclass(frozen=True)
class Shard:
    """One file and where its episodes begin.

    `cuts` says, in words, where an episode is cut by the file's border.
    """

    path: Path
    rows: int
    spans: list[tuple[int, int]]
    names: list[str]
    keys: list[str]  # of the episodes; empty in files of others
    extra: list[str]  # data sets beside KEYS
    cuts: list[str] = field(default_factory=list)
    head: bool = False  # starts in the middle of an episode
    tail: bool = False  # ends in the middle of one


def shard_files(path: Path) -> list[Path]:
    """The hdf5 files of a folder in the order of their numbers, or a file."""
    if path.is_file():
        return [path]
    files = [file for file in path.iterdir()
             if file.suffix in SUFFIXES and not file.name.startswith('.')]
    return sorted(files, key=lambda file: [
        int(part) if part.isdigit() else part
        for part in re.split(r'(\d+)', file.name)])


def inspect(path: Path) -> Shard:
    """Where the episodes of a file lie.

    They begin where step_type is 0; files without it are cut every 501 rows.
    Raises UserError for unreadable files, missing keys and unequal lengths.
    """
    with _open(path) as file:
        names = [key for key in file if isinstance(file[key], h5py.Dataset)]
        missing = {'observation', 'action', 'reward'} - set(names)
        rows = len(file['reward']) if 'reward' in names else 0
        lengths = {key: len(file[key]) if file[key].shape else 0
                   for key in names}
        if missing or set(lengths.values()) != {rows} or not rows:
            raise UserError(
                f'{path}: expected {", ".join(KEYS)} of equal length, found '
                f'{lengths}; give a file of V-D4RL\'s layout, complete')
        steps = (np.asarray(file['step_type'][:]) if 'step_type' in names
                 else _regular(rows))
        given, keys = read_words(file)
    starts = np.flatnonzero(steps == FIRST).tolist()
    edges = sorted({0, *starts, rows})
    spans = list(itertools.pairwise(edges))
    # Our own files are cut between episodes; an episode of one row, which
    # has no last one, looks as if it were not.
    named = len(given) == len(spans)
    head = steps[0] != FIRST and not named
    tail = steps[-1] != LAST and not named
    cuts = [*([f'{path.name} begins inside an episode'] if head else []),
            *([f'{path.name} ends inside an episode'] if tail else [])]
    return Shard(
        path, rows, spans,
        given if named else [
            f'{path.name}#{number}' for number in range(len(spans))],
        keys, sorted(set(names) - set(KEYS)),
        cuts, bool(head), bool(tail))


def episodes(shards: Sequence[Shard], join: bool = False,
             ) -> Iterator[tuple[str, Arrays]]:
    """(name, arrays as stored in `.npz`) of all shards, one at a time.

    Args:
      join: put an episode that a border cuts together again. Otherwise the
        pieces come as they are.
    """
    held: list[Arrays] = []
    held_name = ''
    for shard in shards:
        if held and not shard.head:
            yield held_name, decode(_joined(held), shard.keys)
            held = []
        with _open(shard.path) as file:
            last = len(shard.spans) - 1
            for number, (begin, end) in enumerate(shard.spans):
                piece = {key: file[key][begin:end] for key in (
                    *(key for key in KEYS if key in file), *shard.extra)}
                name = held_name if held else shard.names[number]
                held.append(piece)
                held_name = name
                if join and number == last and shard.tail:
                    break  # its rest is in the next file
                yield name, decode(_joined(held), shard.keys)
                held = []
    if held:
        yield held_name, decode(_joined(held), shards[-1].keys)


def episode_names(shards: Sequence[Shard], join: bool = False) -> list[str]:
    """Names of what `episodes` gives."""
    names: list[str] = []
    held = False
    for shard in shards:
        names += shard.names[int(held and shard.head):]
        held = join and shard.tail
    return names


def decode(stored: Arrays, keys: Sequence[str] = ()) -> Arrays:
    """The keys of an `.npz` episode from those of the file, [L, ...].

    `keys` limits them to those that the episode had; files of others give
    image, action, reward, discount and the three flags, is_terminal all
    False as V-D4RL's converter has it.
    """
    observation = stored['observation']
    axes = ((0, 2, 3, 1) if observation.ndim == 4
            and observation.shape[1] == 3 else range(observation.ndim))
    rows = len(stored['reward'])
    steps = stored.get('step_type', _regular(rows))
    found = {
        'image': np.ascontiguousarray(observation.transpose(*axes)),
        'action': stored['action'], 'reward': stored['reward'],
        'is_first': steps == FIRST, 'is_last': steps == LAST,
        'is_terminal': np.zeros(rows, bool)}
    if 'discount' in stored:
        found['discount'] = stored['discount']
    found.update({key: value for key, value in stored.items()
                  if key not in KEYS})
    return {key: found[key] for key in keys} if keys else found


def encode(episode: Arrays, where: str) -> Arrays:
    """The file's arrays of an episode; `decode` gives it back exactly.

    Raises UserError for keys that mean something else in the file.
    """
    clash = {'observation', 'step_type'} & set(episode)
    if clash:
        raise UserError(
            f'{where}: expected no key of the name {clash.pop()} (it has its '
            'own meaning in hdf5 files), found one; rename it')
    rows = len(episode['reward'])
    steps = np.full(rows, MID, np.uint8)
    steps[-1:] = LAST
    steps[:1] = FIRST
    terminal = np.asarray(episode.get('is_terminal', np.zeros(rows)))
    stored: Arrays = {
        'observation': episode['image'].transpose(0, 3, 1, 2),
        'action': episode['action'], 'reward': episode['reward'],
        'discount': episode.get(
            'discount', 1 - terminal.astype(np.float32)),
        'step_type': steps}
    # Under their own names: alike in all episodes, whatever they hold.
    stored.update({key: value for key, value in episode.items()
                   if key not in ('image', *KEYS)})
    return stored


def write_shards(paths: Sequence[Path], counts: Sequence[int],
                 source: Iterator[tuple[str, Arrays]]) -> None:
    """Write `counts[i]` episodes of the source to `paths[i]`, gzip inside.

    Files are cut between episodes only. Every file appears complete or not at
    all. Raises UserError for episodes of different keys or shapes.
    """
    for path, count in zip(paths, counts, strict=True):
        with whole(path) as partial, h5py.File(partial, 'w') as file:
            writer = _Writer(file, path)
            for _ in range(count):
                writer.add(*next(source))
            writer.finish()


def write_words(file: h5py.File, names: Sequence[str],
                keys: Sequence[str]) -> None:
    """Note names and keys of the episodes as attributes, JSON each.

    One text: lists of thousands are too large for an attribute.
    """
    file.attrs['episode_names'] = json.dumps(list(names))
    file.attrs['episode_keys'] = json.dumps(list(keys))


def read_words(file: h5py.File) -> tuple[list[str], list[str]]:
    """What `write_words` noted; empty lists in files of others."""
    found = [file.attrs.get(name, '[]')
             for name in ('episode_names', 'episode_keys')]
    try:
        names, keys = (list(map(str, json.loads(text))) for text in found)
    except (TypeError, ValueError):
        return [], []  # another program's attributes of that name
    return names, keys


class _Writer:
    """Appends episodes to the data sets of a file."""

    def __init__(self, file: h5py.File, path: Path):
        self._file, self._path, self._rows = file, path, 0
        self._names: list[str] = []
        self._keys: list[str] = []

    def add(self, name: str, episode: Arrays) -> None:
        """Add an episode."""
        stored = encode(episode, name)
        if not self._rows:
            self._keys = sorted(episode)
            for key, value in stored.items():
                self._file.create_dataset(
                    key, (0, *value.shape[1:]), value.dtype,
                    maxshape=(None, *value.shape[1:]),
                    chunks=(BLOCK, *value.shape[1:]), compression='gzip')
        self._check(name, stored, episode)
        rows = len(episode['reward'])
        for key, value in stored.items():
            data = self._file[key]
            data.resize(self._rows + rows, axis=0)
            data[self._rows:] = value
        self._rows += rows
        self._names.append(name)

    def finish(self) -> None:
        """Note which episodes these are."""
        write_words(self._file, self._names, self._keys)

    def _check(self, name: str, stored: Arrays, episode: Arrays) -> None:
        shapes = {key: (value.dtype, value.shape[1:])
                  for key, value in stored.items()}
        expected = {key: (data.dtype, data.shape[1:])
                    for key, data in self._file.items()}
        if shapes != expected or sorted(episode) != self._keys:
            raise UserError(
                f'{name}: expected the keys and shapes of {self._path.name}\'s '
                f'first episode, {_brief(expected)}, found {_brief(shapes)}; '
                'convert sets of one kind each')


def _brief(shapes: dict[str, tuple[Any, tuple[int, ...]]]) -> str:
    return ', '.join(f'{key} {dtype}{list(shape)}'
                     for key, (dtype, shape) in sorted(shapes.items()))


def _regular(rows: int) -> np.ndarray:
    """step_type of episodes of 501 rows each, the last maybe shorter."""
    steps = np.full(rows, MID, np.uint8)
    steps[ROWS - 1::ROWS] = LAST
    steps[::ROWS] = FIRST
    return steps


def _joined(pieces: Sequence[Arrays]) -> Arrays:
    if len(pieces) == 1:
        return pieces[0]
    return {key: np.concatenate([piece[key] for piece in pieces])
            for key in pieces[0]}


@contextlib.contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, 'r') as file:
            yield file
    except OSError as error:
        raise UserError(
            f'{path}: expected an hdf5 file, found one that cannot be read '
            f'({" ".join(str(error).split())}); replace it') from None
