"""Episodes on disk: reading and writing `.npz` files. Spec section 1.

Two layouts exist (baselines 9.4): DreamerV2's with is_first,
is_last and is_terminal, and the older one of Dreamer and TIA with `discount`
alone and, at half precision, float16 rewards. Both are read; the first is
written. Nothing is ever unpickled.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from dreamerv2_base.errors import UserError
from dreamerv2_base.files import whole

Episode = dict[str, np.ndarray]

# One unit in the last place above 1 at half precision, which older files use.
ACTION_TOLERANCE = 1e-3
KEYS = ('image', 'action', 'reward', 'is_first', 'is_last', 'is_terminal')


def read_episode(path: Path, extra_keys: Sequence[str] = (),
                 ignored: set[str] | None = None) -> Episode:
    """Read and check one episode.

    Args:
      path: an `.npz` file. Numbers of any precision become float32.
      extra_keys: further keys of numbers to read (proprioception), [L, ...].
      ignored: gets the names of the keys that were not read. Keys with the
        prefix `log_` are never inputs and not among them.

    Returns the keys of the episode format (`docs/design.md`), `discount` where
    the file has it, and `extra_keys`. Flags that the file lacks are derived:
    is_first and is_last from the position, is_terminal from discount = 0.

    Raises UserError naming the file, the key, what was expected and what was
    found. Actions may exceed [-1, 1] by ACTION_TOLERANCE.
    """
    path = Path(path)
    arrays = _load(path)
    for key in ('image', 'action', 'reward', *extra_keys):
        _expect(path, key, key in arrays, 'in the file', 'missing')
    episode = {
        'image': _image(path, arrays['image']),
        'action': _numbers(path, 'action', arrays['action'], 2),
        'reward': _numbers(path, 'reward', arrays['reward'], 1)}
    length = len(episode['reward'])
    _expect(path, 'reward', length > 0, 'at least 1 row', '0 rows')
    if 'discount' in arrays:
        episode['discount'] = _numbers(
            path, 'discount', arrays['discount'], 1)
    for key in extra_keys:
        episode[key] = _numbers(path, key, arrays[key])
    episode.update(_flags(path, arrays, length))
    if ignored is not None:
        ignored.update(set(arrays) - set(episode))
    for key, value in episode.items():
        _expect(path, key, len(value) == length, f'{length} rows',
                f'{len(value)} rows')
    largest = float(np.abs(episode['action']).max(initial=0.0))
    _expect(path, 'action', largest <= 1 + ACTION_TOLERANCE,
            'values in [-1, 1]', f'{largest:g}')
    # A second first row means two episodes in one file, and chunks across
    # their border.
    first = np.flatnonzero(episode['is_first']).tolist()
    _expect(path, 'is_first', first == [0], 'True in row 0 alone',
            f'rows {first[:3]}')
    return episode


def write_episode(folder: Path, episode: Mapping[str, np.ndarray],
                  index: int, identity: str) -> Path:
    """Write an episode as `{timestamp}-{identity}-{rows − 1}.npz`.

    `index` orders the episodes of a folder: later ones sort later by name.
    The bytes depend on the content alone, and a crash leaves no half file.
    """
    moment = datetime(2000, 1, 1) + timedelta(seconds=int(index))
    length = len(episode['reward'])
    name = f'{moment:%Y%m%dT%H%M%S}-{identity}-{length - 1}.npz'
    path = Path(folder) / name
    with (whole(path) as partial,
          zipfile.ZipFile(partial, 'w', zipfile.ZIP_DEFLATED) as archive):
        for key in sorted(episode):
            buffer = io.BytesIO()
            np.lib.format.write_array(
                buffer, np.asarray(episode[key]), allow_pickle=False)
            # A fixed date: the same episode gives the same bytes.
            entry = zipfile.ZipInfo(f'{key}.npy', (2000, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, buffer.getvalue())
    return path


def _load(path: Path) -> Episode:
    try:
        # Opened here: NumPy leaves a file that it cannot read open.
        with path.open('rb') as stream:
            if not zipfile.is_zipfile(stream):
                raise ValueError('no zip archive, or a truncated one')
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                return {key: file[key] for key in file.files
                        if not key.startswith('log_')}
    except FileNotFoundError:
        raise UserError(f'{path}: expected an episode, found no file; put it '
                        'back, or leave it out with --skip_broken True'
                        ) from None
    except (ValueError, OSError, EOFError, KeyError, RuntimeError,
            zipfile.BadZipFile, zlib.error) as error:
        # RuntimeError: damaged headers that announce encryption or an
        # unknown compression (NotImplementedError).
        raise UserError(
            f'{path}: expected an episode (.npz), found a broken file '
            f'({error}); replace it, or leave it out with --skip_broken True'
        ) from None


def _image(path: Path, image: np.ndarray) -> np.ndarray:
    good = (image.dtype == np.uint8 and image.ndim == 4
            and image.shape[-1] == 3)
    _expect(path, 'image', good, 'uint8 [L, height, width, 3]',
            f'{image.dtype} {list(image.shape)}')
    return image


def _numbers(path: Path, key: str, value: np.ndarray,
             rank: int | None = None) -> np.ndarray:
    axes = value.ndim >= 1 if rank is None else value.ndim == rank
    _expect(path, key, value.dtype.kind in 'fiu' and axes,
            f'numbers with {rank or "1 or more"} axes',
            f'{value.dtype} {list(value.shape)}')
    value = value.astype(np.float32)
    bad = np.unique(np.nonzero(~np.isfinite(value))[0])
    _expect(path, key, not len(bad), 'finite numbers',
            f'NaN or infinity in row {bad[0] if len(bad) else ""}')
    return value


def _flags(path: Path, arrays: Episode, length: int) -> Episode:
    first = np.zeros(length, bool)
    first[:1] = True
    last = np.zeros(length, bool)
    last[-1:] = True
    terminal = np.zeros(length, bool)
    if 'discount' in arrays:
        terminal = np.asarray(arrays['discount']) == 0
    derived = {'is_first': first, 'is_last': last, 'is_terminal': terminal}
    flags = {}
    for key, value in derived.items():
        value = arrays.get(key, value)
        _expect(path, key, value.ndim == 1 and value.dtype.kind in 'bui',
                'booleans with 1 axis', f'{value.dtype} {list(value.shape)}')
        flags[key] = value.astype(bool)
    return flags


def _expect(path: Path, key: str, good: bool, expected: str,
            found: str) -> None:
    if not good:
        raise UserError(
            f'{path}: {key}: expected {expected}, found {found}; mend the '
            'file, or leave it out with --skip_broken True')
