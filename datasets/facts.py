"""What is measured of every episode; what checks and reports rest on.

Facts are plain numbers and texts, kept in the set's manifest, so that a set
is read once.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from datasets import hdf5, readers, scene
from dreamerv2_base.errors import UserError

Arrays = dict[str, np.ndarray]
Facts = dict[str, Any]
Entry = dict[str, Any]

NEEDED = ('image', 'action', 'reward')
FLAGS = ('is_first', 'is_last', 'is_terminal')


def measure(name: str, arrays: Arrays) -> Facts:
    """Facts of an episode's arrays as they are stored.

    Facts that an array does not allow (it is missing, or of another kind) are
    left out; `keys` then says why.
    """
    facts: Facts = {
        'name': name, 'content': readers.digest(arrays),
        'keys': {key: [value.dtype.name, list(value.shape)]
                 for key, value in sorted(arrays.items())}}
    reward = arrays.get('reward')
    if reward is not None and reward.ndim == 1 and len(reward) and (
            reward.dtype.kind in 'fiu'):
        facts.update(_of_reward(reward.astype(np.float64)))
    action = arrays.get('action')
    if action is not None and action.ndim == 2 and len(action) and (
            action.dtype.kind in 'fiu'):
        facts.update(_of_action(action.astype(np.float64)))
    facts['not_finite'] = {
        key: int(np.argwhere(~np.isfinite(value))[0, 0])
        for key, value in arrays.items()
        if value.dtype.kind == 'f' and value.ndim
        and not np.isfinite(value).all()}
    facts['flags'] = {
        key: _places(arrays[key]) for key in FLAGS
        if key in arrays and arrays[key].ndim == 1}
    image = arrays.get('image')
    if is_image(image):
        facts.update(_of_image(image))
    return facts


def is_image(image: np.ndarray | None) -> TypeGuard[np.ndarray]:
    """Whether an array is frames uint8 [L > 0, H, W, 3]."""
    return (image is not None and image.dtype == np.uint8
            and image.ndim == 4 and image.shape[-1] == 3 and image.size > 0)


def scan(files: Sequence[Path], workers: int | None = None,
         ) -> Iterator[Entry]:
    """Entries of files, in their order, read by several threads.

    An entry has `name`, `bytes`, `mtime_ns`, `sha256`, `rows`, `episodes`
    (facts of each) and `problems` (what keeps the file from being read or
    says how it was cut wrongly).
    """
    from tqdm import tqdm
    count = workers or min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(count) as pool:
        yield from tqdm(pool.map(_entry, files), total=len(files),
                        desc='checking', unit='file', leave=False,
                        disable=not sys.stderr.isatty())


def stamp(file: Path) -> dict[str, int]:
    """Size and time of a file: equal ones stand for equal content.

    Of the link itself where it leads nowhere.
    """
    stat = file.stat() if file.exists() else file.lstat()
    return {'bytes': stat.st_size, 'mtime_ns': stat.st_mtime_ns}


def _entry(file: Path) -> Entry:
    episodes: list[Facts] = []
    problems: list[list[str]] = []
    try:
        if file.suffix in hdf5.SUFFIXES:
            shard = hdf5.inspect(file)
            problems += [['shard_cut', text] for text in shard.cuts]
            ends = [*([0] if shard.head else []),
                    *([len(shard.spans) - 1] if shard.tail else [])]
        else:
            ends = []
        for number, (name, arrays) in enumerate(readers.read_file(file)):
            episodes.append(measure(name, arrays))
            episodes[-1]['cut'] = number in ends
    except UserError as error:
        problems.append(['unreadable', str(error)])
    return {'name': file.name, **stamp(file),
            'sha256': readers.file_digest(file),
            'rows': sum(rows_of(facts) for facts in episodes),
            'episodes': episodes, 'problems': problems}


def rows_of(facts: Facts) -> int:
    """Rows of an episode: those of its rewards, or of any other key."""
    keys = facts['keys']
    _, shape = keys.get('reward') or next(iter(keys.values()), ('', [0]))
    return shape[0] if shape else 0


def _of_reward(reward: np.ndarray) -> Facts:
    if not np.isfinite(reward).all():
        return {}
    return {'return': float(reward.sum()),
            'reward': [float(reward.min()), float(reward.max())],
            'reward_ends': [float(reward[0]), float(reward[-1])]}


def _of_action(action: np.ndarray) -> Facts:
    if not np.isfinite(action).all():
        return {}
    size = np.abs(action).max(1, initial=0.0)
    return {'action': float(size.max()),
            'action_ends': [float(size[0]), float(size[-1])]}


def _of_image(image: np.ndarray) -> Facts:
    still = [bool(np.array_equal(left, right))
             for left, right in itertools.pairwise(image)]
    levels = np.arange(256)
    # Through histograms: the frames are never copied as floats.
    shares = [np.bincount(image[..., channel].ravel(), minlength=256)
              / (image.size / 3) for channel in range(3)]
    means = [float(share @ levels) for share in shares]
    spreads = [float(np.sqrt(share @ (levels - mean) ** 2))
               for share, mean in zip(shares, means, strict=True)]
    return {'colour_mean': [round(value, 3) for value in means],
            'colour_std': [round(value, 3) for value in spreads],
            'still': float(np.mean(still)) if still else 0.0,
            'look': scene.look(image).to_json()}


def _places(flags: np.ndarray) -> list[int]:
    """Rows in which a flag is set: the first three, negative = from behind.

    Enough to tell [0], [last] and anything else apart.
    """
    rows = np.flatnonzero(flags)[:3]
    return [int(row) if row < len(flags) - 1 or len(flags) == 1
            else -1 for row in rows]
