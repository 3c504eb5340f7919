"""What was measured beyond the paper: does the mask find the robot, and what
does each stream know? A table for the page, where any run has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from semopo_tf.experiments.evidence import Evidence
from semopo_tf.experiments.results import Row
from semopo_tf.experiments.table_formats import (
    NONE,
    Block,
    Table,
    Value,
    fixed,
)

NAME = 'separation'
MASK = {'iou': 'IoU', 'chance': 'IoU of a mask of everything',
        'ranking': 'ranking'}
PROBED = ('robot', 'background', 'pole')


def separation(evidence: Evidence) -> Table | None:
    """Mask and probe of every system and set; None if no run has any."""
    found = [(name, system, evidence.runs(system, name))
             for name in dict.fromkeys(row.set for row in evidence.rows)
             for system in evidence.every_system()]
    found = [(name, system, rows) for name, system, rows in found if rows]
    blocks = [block for block in (_mask(evidence, found),
                                  _probe(evidence, found)) if block]
    if not blocks:
        return None
    notes = (
        'Mean ± standard deviation (population) over seeds; a single seed has '
        'none.',
        'IoU: of the learned mask with the simulator\'s own segmentation of '
        'the robot, mean over fresh frames. Ranking: probability that a '
        'pixel of the robot has a larger mask value than another.',
        'Probe: R² of a ridge regression on held-out episodes; 1 is perfect, '
        '0 no better than the mean.')
    return Table(NAME, 'Separation of the streams (not in the paper)',
                 tuple(blocks), notes, evidence.scale)


Found = Sequence[tuple[str, str, list[Row]]]


def _mask(evidence: Evidence, found: Found) -> Block | None:
    lines = []
    for name, system, rows in found:
        used = [row for row in rows
                if evidence.quantity(row, 'separation/iou') is not None]
        if used:
            lines.append((Value(name), Value(system), *(
                _cell(evidence, used, f'separation/{key}') for key in MASK),
                Value(str(len(used)))))
    return Block('Learned mask against the simulator', (
        'set', 'method', *MASK.values(), 'seeds'),
        tuple(lines), texts=2) if lines else None


def _probe(evidence: Evidence, found: Found) -> Block | None:
    lines = []
    for name, system, rows in found:
        for stream in ('endogenous', 'exogenous', 'joint'):
            used = [row for row in rows if evidence.quantity(
                row, f'probe/{stream}/robot') is not None]
            if used:
                lines.append((
                    Value(name), Value(f'{system}, {stream}'), *(
                        _cell(evidence, used, f'probe/{stream}/{what}')
                        for what in PROBED), Value(str(len(used)))))
    return Block('R² of a linear probe of the features', (
        'set', 'method', *PROBED, 'seeds'),
        tuple(lines), texts=2) if lines else None


def _cell(evidence: Evidence, rows: Sequence[Row], key: str) -> Value:
    """Over seeds of each seed's mean; NaN (no robot in a frame) left out.

    `(2 of 4)` where not all of the runs have any.
    """
    means = {}
    for row in rows:
        array = evidence.quantity(row, key)
        if array is not None and not np.isnan(array).all():
            means[row.run] = float(np.nanmean(array))
    if not means:
        return Value(NONE)
    values = [*means.values()]
    std = fixed(float(np.std(values)), 2) if len(means) > 1 else NONE
    part = '' if len(means) == len(rows) else f' ({len(means)} of {len(rows)})'
    return Value(f'{fixed(float(np.mean(values)), 2)} ± {std}{part}',
                 tuple(means))
