"""A set's manifest: which files it consists of, and what was measured.

`manifest.json` beside the episodes (`FILE.manifest.json` beside a single
hdf5 file). A later check reads only what the size, the time and then the
sha256 of a file say has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import facts as measured
from datasets.checks import Finding
from datasets.facts import Entry
from datasets.readers import file_digest
from dreamerv2_base.errors import UserError
from dreamerv2_base.files import whole

FORMAT = 1
# A builder's own words, kept when a manifest is written again.
KEPT = ('recipe',)


@dataclass
class Comparison:
    """A folder beside its manifest.

    Attributes:
      reused: entries of unchanged files, by name.
      findings: files that are missing, changed or not in the manifest.
    """

    reused: dict[str, Entry] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def path_of(data: Path) -> Path:
    """Where the manifest of a folder, or of a single file, lies."""
    return (data / 'manifest.json' if data.is_dir()
            else data.with_name(f'{data.name}.manifest.json'))


def load(data: Path) -> dict[str, Any] | None:
    """The manifest of a set, None without one.

    Raises UserError for a file that is no manifest of this format.
    """
    path = path_of(data)
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get('format') != FORMAT:
        raise UserError(f'{path}: expected a manifest of format {FORMAT}, '
                        'found something else; remove the file')
    return found


def compare(data: Path, files: Sequence[Path], known: Mapping[str, Any],
            full: bool) -> Comparison:
    """Which files of a set are those of its manifest.

    `full`: read every file again, whatever its size and time say.
    """
    result = Comparison()
    entries = {entry['name']: entry for entry in known.get('files', [])}
    for file in files:
        entry = entries.pop(file.name, None)
        if entry is None:
            result.findings.append(Finding(
                'extra_file', True, f'{file.name} is not in the manifest'))
            continue
        stamp = measured.stamp(file)
        if not full and all(entry[key] == stamp[key] for key in stamp):
            result.reused[file.name] = entry
        elif file_digest(file) == entry['sha256']:
            result.reused[file.name] = {**entry, **stamp}
        else:
            result.findings.append(Finding(
                'changed_file', True, f'{file.name} is not the file of the '
                'manifest (sha256)'))
    result.findings += [
        Finding('missing_file', True, f'{name} is in the manifest and not '
                'here') for name in entries]
    return result


def write(data: Path, entries: Sequence[Entry], **words: Any) -> Path:
    """Write a set's manifest; `words` are further keys of it.

    What a builder put into an earlier one (`recipe`) stays.
    """
    earlier = load(data) or {}
    kept = {key: earlier[key] for key in KEPT if key in earlier}
    episodes = sum(len(entry['episodes']) for entry in entries)
    found = {
        'format': FORMAT, **kept, **words,
        'totals': {'files': len(entries), 'episodes': episodes,
                   'rows': sum(entry['rows'] for entry in entries),
                   'bytes': sum(entry['bytes'] for entry in entries)},
        'digest': digest(entries), 'files': list(entries)}
    path = path_of(data)
    with whole(path) as partial:
        partial.write_text(
            json.dumps(found, indent=1, allow_nan=False) + '\n')
    return path


def digest(entries: Sequence[Entry]) -> str:
    """sha256 over the files' own: EpisodeStore.digest of a folder of npz."""
    return hashlib.sha256('\n'.join(
        entry['sha256'] for entry in entries).encode()).hexdigest()
