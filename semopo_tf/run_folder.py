"""A run's folder: its configuration, records, lock and checkpoints."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from dreamerv2_base.checkpoint import Checkpoints
from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.files import write_json
from dreamerv2_base.logger import Logger
from semopo_tf import settings

# Keys that may change between the parts of a run: no number depends on them.
# (Nor on where the data lie; that they are the same is seen by their digest.)
FREE_KEYS = frozenset({
    'logdir', 'tensorboard', 'eval_workers', 'keep_checkpoints',
    'save_updates', 'cache_dir', 'require_gpu'})

PACKAGES = ('tensorflow', 'tensorflow-probability', 'numpy', 'dm-control',
            'mujoco', 'gym', 'imageio', 'ruamel.yaml')


class RunFolder:
    """Opens (and locks) a run folder for training.

    Raises UserError when another process holds it, or when it belongs to a
    run with another configuration.
    """

    def __init__(self, config: Config):
        self.path = Path(config.logdir).expanduser()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / 'lock').open('w')
        except OSError as error:
            raise UserError(
                f'logdir: expected a folder that can be written, found '
                f'{self.path} ({error.strerror}); give --logdir FOLDER'
            ) from None
        self._acquire()
        self._check_config(config)
        self.checkpoints = Checkpoints(
            self.path / 'ckpt', config.keep_checkpoints)
        self.logger = Logger(self.path, config.tensorboard)

    def write(self, name: str, content: Any) -> None:
        """Write a JSON record, whole or not at all."""
        write_json(self.path / name, content)

    def close(self) -> None:
        self.logger.close()
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _acquire(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f'{self.path}: expected no other process in this run folder, '
                'found one training; wait for it or give another --logdir'
            ) from None

    def _check_config(self, config: Config) -> None:
        path = self.path / 'config.yaml'
        if path.exists():
            changed = {key: pair for key, pair in
                       settings.saved(path).difference(config).items()
                       if key not in FREE_KEYS | {'offline_dir'}}
            if changed:
                shown = ', '.join(f'{key} {old!r} -> {new!r}' for
                                  key, (old, new) in list(changed.items())[:5])
                raise UserError(
                    f'{self.path}: expected the configuration of the run in '
                    f'this folder, found {len(changed)} changed: {shown}; '
                    'give the old values or another --logdir')
        config.save(path)


def versions(devices: list[str]) -> dict[str, Any]:
    """Versions, machine and commit, for the records."""
    found: dict[str, Any] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    found['python'] = platform.python_version()
    found['devices'] = devices or ['CPU']
    found['cores'], found['threads'] = os.cpu_count(), threads()
    found['commit'], found['dirty'] = commit()
    return found


def threads() -> int:
    """Threads that an operation is computed with: the order of its sums, and
    so the last bits of a run on a CPU, depends on it."""
    given = os.environ.get('TF_NUM_INTRAOP_THREADS', '')
    return int(given) if given.isdigit() and int(given) else len(
        os.sched_getaffinity(0))


def commit() -> tuple[str | None, bool | None]:
    """Commit of the checkout and whether it has changes; None outside git."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ['git', '-C', str(root), *arguments], capture_output=True,
                text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    head = git('rev-parse', 'HEAD')
    status = git('status', '--porcelain')
    return head, None if status is None else bool(status)
