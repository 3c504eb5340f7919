"""Files that are there whole or not at all, however a process ends."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreamerv2_base.errors import UserError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write in place of `path`, which it becomes at the end.

    It lies beside `path`, hidden, as `.NAME.partial`: an ending of its own,
    because patterns such as `*.npz` find hidden files, too, and a killed
    process leaves it behind (the next writer removes it). So tell encoders
    the format. After an error it is gone, and `path` what it was. After a
    power cut, too: the content is on the disk before the name is.
    """
    partial = path.with_name(f'.{path.name}.partial')
    partial.unlink(missing_ok=True)
    try:
        yield partial
        _to_disk(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Nobody else makes data in this folder meanwhile; it is waited for."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / '.lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f'waiting for another process that makes data in {folder}',
                  file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def expect_writable(path: Path) -> None:
    """Raises UserError where no file can be made at `path`: before what is
    to be written there is computed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f'{path}: expected a place that can be written, found '
                        f'{error.strerror}; give another') from None


def expect_space(folder: Path, needed: int, what: str, mend: str) -> None:
    """Raises UserError where a folder's disk has fewer bytes free than
    `what` needs; `mend` says what to do then."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f'{folder}: expected {needed:,} free bytes for {what},'
                        f' found {free:,}; {mend}')


def write_json(path: Path, content: Any) -> None:
    """Write a JSON record, whole or not at all.

    Raises TypeError for what JSON does not hold.
    """
    with whole(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + '\n')


def _to_disk(path: Path) -> None:
    with path.open('rb+') as file:
        os.fsync(file.fileno())
