"""`run.py results OUT --against FILE`: runs beside those of someone else.

A table is made again when its means are, within what runs of one system differ
by. Equal seeds need not give equal runs: that takes the same kind of
processor and as many threads (docs/results/mini.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from semopo_tf.experiments.results import Row

LEVEL = 0.05  # below this probability two means are called apart
COLUMNS = ('scale', 'set', 'system', 'ours', 'theirs', 'difference',
           'equal runs', 'other', 'p', 'verdict')


@dataclass(frozen=True)
class Pair:
    """A cell of a table, here and there.

    Attributes:
      scale, set, system: as in rows; `system` with its variant, if it has one.
      ours, theirs: mean return of each run.
      equal: how many runs have the same returns, episode by episode, as the
        run of the same name there.
      other: of 'configuration' and 'data', what is not the same here and
        there; of runs that do not say, nothing.
      p: probability of a difference of means as large, if runs of both sides
        are draws of one system (Student's t, pooled variance); None where
        there are too few runs to say.
    """

    scale: str
    set: str
    system: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    equal: int
    other: tuple[str, ...]
    p: float | None

    @property
    def verdict(self) -> str:
        """equal, alike, apart, too few runs, only here or only there."""
        if not self.theirs:
            return 'only here'
        if not self.ours:
            return 'only there'
        if self.equal == len(self.ours) == len(self.theirs):
            return 'equal'
        if self.p is None:
            return 'too few runs'
        return 'apart' if self.p < LEVEL else 'alike'

    def fields(self) -> tuple[str, ...]:
        """What COLUMNS say."""
        difference = (f'{np.mean(self.ours) - np.mean(self.theirs):+.1f}'
                      if self.ours and self.theirs else '–')
        return (self.scale, self.set, self.system, _mean(self.ours),
                _mean(self.theirs), difference,
                f'{self.equal} of {len(self.ours)}',
                ', '.join(self.other) or '–',
                '–' if self.p is None else f'{self.p:.2f}', self.verdict)


def compare(ours: Sequence[Row], theirs: Sequence[Row]) -> list[Pair]:
    """Every cell (scale, set, system, variant) of either side, in order."""
    cells = sorted({_cell(row) for row in (*ours, *theirs)})
    return [_pair(cell, [row for row in ours if _cell(row) == cell],
                  [row for row in theirs if _cell(row) == cell])
            for cell in cells]


def _cell(row: Row) -> tuple[str, ...]:
    return row.scale, row.set, row.system, row.variant


def _pair(cell: tuple[str, ...], ours: Sequence[Row], theirs: Sequence[Row],
          ) -> Pair:
    matched = _matched(ours, theirs)
    mine, other = (tuple(float(np.mean(row.returns)) for row in rows)
                   for rows in (ours, theirs))
    scale, name, system, variant = cell
    return Pair(scale, name,
                f'{system} ({variant})' if variant else system,
                mine, other,
                sum(here.returns == there.returns for here, there in matched),
                _other(matched), _probability(mine, other))


def _matched(ours: Sequence[Row], theirs: Sequence[Row],
             ) -> list[tuple[Row, Row]]:
    """Runs of one name, here and there: one seed on one set."""
    there = {row.run: row for row in theirs}
    return [(row, there[row.run]) for row in ours if row.run in there]


def _other(matched: Sequence[tuple[Row, Row]]) -> tuple[str, ...]:
    """What runs of one name were not given alike."""
    return tuple(word for word, field in (
        ('configuration', 'config_hash'), ('data', 'data_digest'))
        if any(len({getattr(row, field) for row in pair} - {''}) > 1
               for pair in matched))


def _probability(ours: Sequence[float], theirs: Sequence[float],
                 ) -> float | None:
    if not ours or not theirs or len(ours) + len(theirs) < 3:
        return None
    # Neither side may vary: two equal runs, say.
    if len({*ours}) == len({*theirs}) == 1:
        return None
    return float(stats.ttest_ind(ours, theirs).pvalue)


def _mean(means: Sequence[float]) -> str:
    """Mean over runs ± their sample deviation, and how many."""
    if not means:
        return '–'
    spread = f' ± {np.std(means, ddof=1):.1f}' if len(means) > 1 else ''
    return f'{np.mean(means):.1f}{spread} ({len(means)})'
