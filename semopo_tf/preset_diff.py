"""`run.py diff --presets A B`: every key that differs, with the reason."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreamerv2_base.config import read_yaml
from semopo_tf import settings

REASONS = Path(__file__).with_name('preset_reasons.yaml')

# The rows of the specification's section 11: shown for paper against
# released even where the values are equal.
SECTION_11 = (
    'offline_lmbd', 'model_opt.lr', 'actor_opt.lr', 'critic_opt.lr',
    'rssm.hidden', 'rssm.deter', 'rssm.stoch', 'rssm.discrete',
    'rssm.ensemble', 'encoder.cnn_depth', 'decoder.cnn_depth',
    'offline_penalty_type', 'exo_only_decoder', 'sampling', 'imag_horizon',
    'offline_model_dataset.batch', 'offline_model_dataset.length',
    'model_opt.clip', 'precision', 'offline_model_train_steps', 'steps')


@dataclass(frozen=True)
class Row:
    """One key: its value in both presets and why."""

    key: str
    left: Any
    right: Any
    reason: str


def rows(left: str, right: str) -> list[Row]:
    """Differing keys of two presets in the order of configs.yaml.

    For paper and released the equal rows of section 11 are included.
    Raises UserError for an unknown preset.
    """
    presets = settings.presets()
    a, b = (settings.check(presets.apply(presets.defaults, [name], '--presets'))
            for name in (left, right))
    reasons = read_yaml(REASONS)
    shown = set(a.difference(b))
    if {left, right} == {'paper', 'released'}:
        shown |= set(SECTION_11)
    return [Row(key, value, b[key], reasons.get(key, ''))
            for key, value in a.flat().items() if key in shown]


def render(left: str, right: str, form: str) -> str:
    """The rows as a Markdown table or as JSON."""
    found = rows(left, right)
    if form == 'json':
        return json.dumps([asdict(row) for row in found], indent=1,
                          ensure_ascii=False)
    lines = [f'| key | {left} | {right} | why (P: paper, R: released) |',
             '|---|---|---|---|']
    lines += [f'| `{row.key}` | {row.left} | {row.right} | {row.reason} |'
              for row in found]
    return '\n'.join(lines)


def show(left: str, right: str) -> None:
    """Print the rows as a table for a terminal."""
    from rich.console import Console
    from rich.table import Table
    table = Table(title=f'{left} against {right}')
    for name in ('key', left, right, 'why (P: paper, R: released)'):
        table.add_column(name, overflow='fold')
    for row in rows(left, right):
        same = row.left == row.right
        table.add_row(row.key, str(row.left), str(row.right), row.reason,
                      style='dim' if same else '')
    Console().print(table)
