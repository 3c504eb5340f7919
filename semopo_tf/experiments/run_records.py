"""What the folders of runs say beside their numbers: settings, warnings.

For notes of a report. A run whose folder is not here has nothing to say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from ruamel.yaml import YAML

from dreamerv2_base.errors import UserError
from dreamerv2_base.logger import read_record
from semopo_tf import settings
from semopo_tf.experiments.results import Attempt, Row
from semopo_tf.run_folder import FREE_KEYS

DRAWN = 'drawn (procedural)'
UNKNOWN = 'not known, no run folder here'

# In these two runs of one system on one set may differ.
_OWN = FREE_KEYS | {'seed', 'offline_dir'}


def run_id(row: Row) -> str:
    """The run that a row is of; its variants share it."""
    return row.run.partition('@')[0]


def once(rows: Iterable[Row]) -> list[Row]:
    """A row of each run: variants are the same training."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(run_id(row), row)
    return list(found.values())


def hours(rows: Iterable[Row]) -> float:
    """Hours of all runs. A row's are of its run up to that row, so the
    largest of its variants has those of the others."""
    found: dict[str, float] = {}
    for row in rows:
        found[run_id(row)] = max(row.hours, found.get(run_id(row), 0.0))
    return sum(found.values())


def failures(attempts: Iterable[Attempt]) -> dict[str, str]:
    """Of each run that has failed since it last went well: 'failed 2 times,
    last: …'. `attempts`: in order."""
    found: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        if attempt.outcome == 'done':
            found.pop(attempt.run, None)
        else:
            found.setdefault(attempt.run, []).append(attempt)
    return {run: f'failed {len(some)} time{"s" if len(some) > 1 else ""}, '
            f'last: {some[-1].message or some[-1].outcome}'
            for run, some in found.items()}


# How runs of one system on one set differ.


def differences(rows: Sequence[Row]) -> list[str]:
    """In what runs differ that should only differ in their seeds.

    Presets, commit, data, and the configuration where it is here: a
    `config_hash` has the seed in it. ['commit (93fb0a3e, f739936e)']
    """
    found = []
    for name, values in (
            ('presets', [' '.join(row.presets) for row in rows]),
            ('commit', [commit(row) for row in rows]),
            ('data', [row.data_digest[:8] for row in rows])):
        several = list(dict.fromkeys(values))
        if len(several) > 1:
            found.append(f'{name} ({", ".join(several)})')
    return found + _configurations(rows)


def commit(row: Row) -> str:
    """`93fb0a3e`, `93fb0a3e with changes`, `outside git`."""
    return (row.commit[:8] if row.commit else 'outside git') + (
        ' with changes' if row.dirty else '')


def _configurations(rows: Sequence[Row]) -> list[str]:
    texts = {kept: path for path in map(_config, rows)
             if path and (kept := _kept(path))}
    keys: dict[str, None] = {}
    for one, other in pairwise(texts.values()):
        try:  # keys that are newer than a run have their defaults
            changed = settings.saved(one).difference(settings.saved(other))
        except UserError:  # keys that are no more
            return ['configuration']
        keys.update(dict.fromkeys(sorted(set(changed) - _OWN)))
    return [f'configuration ({", ".join(keys)})'] if keys else []


def _config(row: Row) -> Path | None:
    path = Path(row.logdir) / 'config.yaml'
    return path if row.logdir and path.exists() else None


# A key of a config.yaml and its value. To read a whole one takes a tenth of a
# second, and there are hundreds of runs.
_BLOCK = re.compile(r'^(\w+):.*\n(?:[ -].*\n)*', re.M)


def _kept(path: Path) -> str:
    """The text of a config.yaml without what may differ between seeds."""
    return _BLOCK.sub(lambda match: '' if match[1] in _OWN else match[0],
                      path.read_text())


# What is behind the robot, and what runs warned of.


def background(row: Row) -> str:
    """What is behind the robot where a run is evaluated."""
    path = _config(row)
    if path is None:
        return UNKNOWN
    text = ''.join(match[0] for match in _BLOCK.finditer(path.read_text())
                   if match[1] in ('task', 'video_dir'))
    found = YAML(typ='safe', pure=True).load(text) or {}
    kind = str(found.get('video_dir', 'none'))
    if kind == 'none' or not str(found.get('task')).startswith('dmcdrv_'):
        return 'plain'
    return DRAWN if kind == 'procedural' else f'folder {kind}'


def drawn_note(rows: Sequence[Row]) -> list[str]:
    """A note where runs were evaluated before drawn backgrounds."""
    found = Counter(map(background, once(rows)))
    known = found.total() - found[UNKNOWN]
    beside = f' ({found[UNKNOWN]} more: {UNKNOWN})' * bool(found[UNKNOWN])
    return [f'{found[DRAWN]} of {known} runs{beside} were evaluated before '
            "drawn backgrounds, not the paper's driving videos: their returns "
            "cannot be compared with the paper's."] if found[DRAWN] else []


def warnings(row: Row) -> list[str]:
    """What a run warned of when it began, and the episodes it left out."""
    notes, data = (read_record(path) if row.logdir and path.exists() else {}
                   for path in (Path(row.logdir) / 'warnings.json',
                                Path(row.logdir) / 'data.json'))
    skipped = data.get('skipped')
    return [*map(str, notes)] + (
        [f'{len(skipped)} broken episode files were left out, first '
         f'{skipped[0][0]}'] if skipped else [])
