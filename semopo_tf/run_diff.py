"""`run.py diff --against RUN_A RUN_B`: where two runs first part."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dreamerv2_base.logger import read_record, read_rows
from semopo_tf import commands


def compare(left: Path, right: Path) -> list[str]:
    """Lines that say what differs: configuration, data, metrics, returns.

    An empty list means that the records are equal. Raises UserError for a
    folder without a run.
    """
    a, b = commands.run_config(left), commands.run_config(right)
    lines = [f'config: {key}: {x!r} against {y!r}'
             for key, (x, y) in a.difference(b).items() if key != 'logdir']
    lines += _data(left, right)
    lines += _first('metrics', read_rows(left / 'metrics.jsonl'),
                    read_rows(right / 'metrics.jsonl'))
    lines += _first('returns', read_rows(left / 'episodes.jsonl'),
                    read_rows(right / 'episodes.jsonl'))
    return lines


def _data(left: Path, right: Path) -> list[str]:
    digests = []
    for folder in (left, right):
        path = folder / 'data.json'
        found = read_record(path) if path.exists() else {}
        digests.append(found.get('digest'))
    if digests[0] == digests[1]:
        return []
    return [f'data: {digests[0]} against {digests[1]}']


def _first(name: str, left: list[dict], right: list[dict]) -> list[str]:
    """The first row that differs, with its largest relative difference."""
    for number, (a, b) in enumerate(zip(left, right, strict=False)):
        if a == b:
            continue
        keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
        gaps = {key: _gap(a.get(key), b.get(key)) for key in keys}
        worst = max(gaps, key=lambda key: gaps[key])
        where = {key: a.get(key) for key in ('phase', 'step', 'episode')
                 if key in a}
        return [f'{name}: first difference in row {number} {where}: '
                f'{len(keys)} values, largest {worst}: {a.get(worst)} against '
                f'{b.get(worst)} (relative {gaps[worst]:.2e})']
    if len(left) != len(right):
        return [f'{name}: equal for {min(len(left), len(right))} rows, then '
                f'{len(left)} rows against {len(right)}']
    return []


def _gap(a: Any, b: Any) -> float:
    try:
        x, y = float(a), float(b)
    except (TypeError, ValueError):
        return math.inf
    scale = max(abs(x), abs(y), 1e-12)
    return abs(x - y) / scale
