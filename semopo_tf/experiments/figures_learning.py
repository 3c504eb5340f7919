"""What was measured beyond the paper: how returns grow while a policy learns,
and what it is told meanwhile. A figure for the page, where any run has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from semopo_tf.experiments.evidence import Curve, Evidence
from semopo_tf.experiments.figure_style import (
    GRAY,
    Drawing,
    colour,
    key,
    set_label,
    title,
)
from semopo_tf.experiments.figures_curves import band, mean_curve, thinned
from semopo_tf.experiments.results import Row

NAME = 'learning'
TITLE = 'Learning curves (not in the paper)'
PHASES = ('agent', 'train')  # in which policies learn; a method has one
Runs = dict[str, list[tuple[Row, Curve]]]  # by system


def learning(evidence: Evidence) -> Drawing | None:
    """Two panels a set; None if no run was evaluated while it learned.

    Left: evaluated returns against updates of the policy, the final
    evaluation last, and the mean of the data. Right: what imagined steps
    earn, R − λu, and λu.
    """
    sets = [(name, runs) for name in dict.fromkeys(
        row.set for row in evidence.rows)
        if (runs := _evaluated(evidence, name))]
    if not sets:
        return None
    notes: list[str] = []
    figure = Figure((6.6, 1.9 * len(sets) + 0.5), layout='constrained')
    for number, (name, runs) in enumerate(sets):
        label = set_label(name, evidence.task(name))
        left, right = (figure.add_subplot(len(sets), 2, 2 * number + side)
                       for side in (1, 2))
        title(left, label)
        title(right, f'{label}: imagined')
        notes += [f'{label}, {system}: {said}.' for system, some in
                  runs.items() if (said := thinned([c for _, c in some]))]
        _returns(left, evidence, name, runs)
        _rewards(right, evidence, runs)
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(5))
            if number == len(sets) - 1:
                axes.set_xlabel('policy updates')
    used = [name for name in evidence.every_system()
            if any(name in runs for _, runs in sets)]
    key(figure, {name: colour(name) for name in used})
    return Drawing(figure, [
        'Line and band: mean ± standard deviation (population) over seeds, of '
        'each seed\'s mean return. Dashed, left: mean return of the data. '
        'Right: what the policy learns from, the reward less the penalty, '
        'and, dashed, that penalty, λu.', *notes])


def evaluated(evidence: Evidence, row: Row) -> Curve | None:
    """Mean returns of a run's evaluations, the final one last."""
    curves = [curve for phase in PHASES
              for metric in ('eval_return', 'final_eval_return')
              if (curve := evidence.curve(row, phase, metric)) is not None]
    if not curves:
        return None
    return Curve(*(np.concatenate([getattr(curve, part) for curve in curves])
                   for part in ('steps', 'values')))


def _evaluated(evidence: Evidence, name: str) -> Runs:
    found = {system: [(row, curve) for row in evidence.runs(system, name)
                      if row.logdir and (
                          curve := evaluated(evidence, row)) is not None]
             for system in evidence.every_system()}
    return {system: runs for system, runs in found.items() if runs}


def _returns(axes: Axes, evidence: Evidence, name: str, runs: Runs) -> None:
    for system, some in runs.items():
        _draw(axes, [curve for _, curve in some], system)
    if name in evidence.data:
        axes.axhline(evidence.data[name].mean(), color=GRAY, ls='--', lw=0.8)
    axes.set_ylabel('return')
    _from_zero(axes)


def _rewards(axes: Axes, evidence: Evidence, runs: Runs) -> None:
    for system, some in runs.items():
        for name, style in (('reward_mean', '-'), ('penalty_mean', '--')):
            _draw(axes, [evidence.curve(row, 'agent', name) for row, _ in some],
                  system, style)
    axes.set_ylabel('a step')
    _from_zero(axes)


def _from_zero(axes: Axes) -> None:
    """Start an axis at 0; where something lies below, mark 0 by a thin line.

    R − λu often is below 0, and so are returns of Car Racing.
    """
    if axes.dataLim.y0 < 0:
        axes.axhline(0, color=GRAY, lw=0.5, zorder=0)
    else:
        axes.set_ylim(bottom=0)


def _draw(axes: Axes, curves: Sequence[Curve | None], system: str,
          style: str = '-') -> None:
    there = [curve for curve in curves if curve is not None
             and len(curve.steps)]
    if there:
        band(axes, *mean_curve(there), colour(system), style)
