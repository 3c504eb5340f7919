"""Checkpoints: a folder each, complete or absent.

A checkpoint is written to a temporary folder, flushed to disk, renamed, and
only then marked with an empty file `done`. A crash at any moment leaves the
previous one untouched. Arrays are stored by name without pickling.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreamerv2_base.errors import UserError

FORMAT = 1


class Live(Mapping[str, np.ndarray]):
    """The arrays of variables, each copied when it is asked for.

    So a checkpoint is written without a second copy of everything. Values
    change with the variables: `dict(live)` keeps them.
    """

    def __init__(self, variables: Mapping[str, Any]):
        self._variables = dict(variables)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._variables[name].numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)


def is_weight(name: str) -> bool:
    """Whether a variable of this full name is a network's, or a number kept
    beside one (λ, the reward's norm, a counter of updates): neither an
    optimizer's nor a loss scale's."""
    return not any(part == 'optimizer' or part.endswith('loss_scale')
                   for part in name.split('/'))


class Checkpoints:
    """The checkpoints of one run folder, `ckpt/<position>/`.

    Args:
      folder: where they lie.
      keep: how many of the newest stay, at least 1; pinned ones
        (`save(pin=True)`) always.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self._keep = Path(folder), keep

    def positions(self) -> list[int]:
        """Positions of complete checkpoints, ascending."""
        return sorted(int(path.parent.name)
                      for path in self.folder.glob('*/done')
                      if path.parent.name.isdigit())

    def save(self, position: int, arrays: Mapping[str, np.ndarray],
             state: Mapping[str, Any], pin: bool = False) -> Path:
        """Write a checkpoint and remove old ones.

        `position` grows with everything that is saved; `state` is anything
        JSON holds. Raises UserError when the disk is full (older checkpoints
        stay).
        """
        target = self.folder / f'{position:09d}'
        partial = self.folder / f'.partial-{position:09d}'
        if (target / 'done').exists():
            return target  # runs repeat exactly: it holds the same
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _expect_space(partial, arrays)
            _write_arrays(partial / 'arrays.npz', arrays)
            text = json.dumps({'format': FORMAT, 'pinned': pin, **state},
                              indent=1, sort_keys=True)
            _write_bytes(partial / 'state.json', text.encode())
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
            _write_bytes(target / 'done', b'')
            _sync_folder(self.folder)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            size = _size(arrays) / 2 ** 20
            raise UserError(
                f'{self.folder}: expected {size:.0f} MiB for a checkpoint, '
                'found the disk full; free space and give the same command '
                'again: it resumes from the last complete checkpoint'
            ) from None
        self._remove_old()
        return target

    def load(self, position: int | None = None,
             ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and state of a checkpoint, by default the newest.

        Raises UserError when there is none or it cannot be read.
        """
        found = self.positions()
        if not found or (position is not None and position not in found):
            raise UserError(
                f'{self.folder}: expected a complete checkpoint, found '
                f'{found or "none"}; train first: run.py train')
        position = found[-1] if position is None else position
        path = self.folder / f'{position:09d}'
        try:
            with np.load(path / 'arrays.npz', allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError, KeyError,
                zipfile.BadZipFile) as error:
            raise _damaged(path, error) from None
        state = _read_state(path)
        if state.get('format') != FORMAT:
            raise UserError(
                f'{path}: expected checkpoint format {FORMAT}, found '
                f'{state.get("format")}; use the version that wrote it')
        return arrays, state

    def _remove_old(self) -> None:
        free = []
        for position in self.positions():
            path = self.folder / f'{position:09d}'
            if not _read_state(path).get('pinned'):
                free.append(path)
        for path in free[:-self._keep]:
            (path / 'done').unlink()
            shutil.rmtree(path)
        for path in self.folder.iterdir():
            if path.name.isdigit() and not (path / 'done').exists():
                shutil.rmtree(path)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / 'state.json').read_text())
        if not isinstance(state, dict):
            raise ValueError(f'{type(state).__name__} in state.json')
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None
    return state


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f'{path}: expected a readable checkpoint, found {error}; '
                     f'delete this folder: rm -r {shlex.quote(str(path))}')


def restore(variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray],
            where: str) -> None:
    """Assign arrays to variables by name; both must match exactly.

    Raises UserError naming what is missing, left over or of another shape.
    """
    missing = sorted(set(variables) - set(arrays))
    extra = sorted(set(arrays) - set(variables))
    if missing or extra:
        raise UserError(
            f'{where}: expected {len(variables)} arrays, found {len(arrays)}; '
            f'missing {missing[:3]}, left over {extra[:3]}; the checkpoint '
            'belongs to another configuration')
    for name, variable in variables.items():
        if tuple(variable.shape) != arrays[name].shape:
            raise UserError(
                f'{where}: {name}: expected shape {tuple(variable.shape)}, '
                f'found {arrays[name].shape}; the checkpoint belongs to '
                'another configuration')
    for name, variable in variables.items():
        variable.assign(arrays[name])


def _expect_space(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    # Asked before writing: a zip file that breaks off leaves more to mend.
    needed = _size(arrays) + 2 ** 16
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, 'too little space')


def _size(arrays: Mapping[str, np.ndarray]) -> int:
    """Bytes of all; `arrays` may make each one anew."""
    return sum(arrays[name].nbytes for name in arrays)


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    # What numpy.savez writes; that one would hold all arrays at once.
    with path.open('wb') as file:
        with zipfile.ZipFile(file, 'w', allowZip64=True) as archive:
            for name in arrays:
                with archive.open(f'{name}.npy', 'w',
                                  force_zip64=True) as entry:
                    np.lib.format.write_array(
                        entry, np.asanyarray(arrays[name]),
                        allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open('wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
