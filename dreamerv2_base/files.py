"""Files that are there whole or not at all, however a process ends."""

from __future__ import annotations

import json
import os
import shutil
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
    the format. After an error it is gone, and `path` what it was. Nothing is
    forced to the disk: after a power cut `path` may be empty.
    """
    partial = path.with_name(f'.{path.name}.partial')
    partial.unlink(missing_ok=True)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


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
