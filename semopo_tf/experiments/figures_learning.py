"""What was measured beyond the paper: how returns grow while a policy learns,
and what it is told meanwhile. A figure for the page, where any run has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from semopo_tf.experiments.evidence import Curve, Evidence, plural
from semopo_tf.experiments.figure_style import (
    GRAY,
    NO_RECORDS,
    Drawing,
    colour,
    key,
    markers,
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
    every = {name: _evaluated(evidence, name) for name in dict.fromkeys(
        row.set for row in evidence.rows)}
    sets = [(name, runs) for name, runs in every.items() if runs]
    if not sets:
        return None
    notes = [note for name, runs in every.items()
             for note in _without_records(evidence, name, runs)]
    if notes:
        notes.append(NO_RECORDS)
    used = [name for name in evidence.every_system()
            if any(name in runs for _, runs in sets)]
    marked = markers(used)
    figure = Figure((6.6, 1.9 * len(sets) + 0.5), layout='constrained')
    for number, (name, runs) in enumerate(sets):
        label = set_label(name, evidence.task(name))
        left, right = (figure.add_subplot(len(sets), 2, 2 * number + side)
                       for side in (1, 2))
        title(left, label)
        title(right, f'{label}: imagined')
        notes += _returns(left, evidence, name, runs, marked)
        notes += _rewards(right, evidence, runs, label, marked)
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(5))
            if number == len(sets) - 1:
                axes.set_xlabel('policy updates')
    key(figure, {name: colour(name) for name in used}, marked)
    return Drawing(figure, [
        'Line and band: mean ± standard deviation (population) over seeds, of '
        'each seed\'s mean return. Dashed, left: mean return of the data. '
        'Right: what the policy learns from, the reward less the penalty, '
        'and, dashed, that penalty, λu.', *dict.fromkeys(notes)])


def evaluated(evidence: Evidence, row: Row) -> Curve | None:
    """Mean returns of a run's evaluations, the final one last."""
    curves = [curve for phase in PHASES
              for metric in ('eval_return', 'final_eval_return')
              if (curve := evidence.curve(row, phase, metric)) is not None]
    if not curves:
        return None
    return Curve(np.concatenate([curve.steps for curve in curves]),
                 np.concatenate([curve.values for curve in curves]),
                 sum(curve.left_out for curve in curves))


def _evaluated(evidence: Evidence, name: str) -> Runs:
    found = {system: [(row, curve) for row in evidence.runs(system, name)
                      if row.logdir and (
                          curve := evaluated(evidence, row)) is not None]
             for system in evidence.every_system()}
    return {system: runs for system, runs in found.items() if runs}


def _without_records(evidence: Evidence, name: str, runs: Runs) -> list[str]:
    """Notes on systems of a set of which not all runs can be drawn."""
    label = set_label(name, evidence.task(name))
    counts = {system: (len(runs.get(system, ())),
                       len(evidence.runs(system, name)))
              for system in evidence.every_system()}
    return [f'{label}, {system}: {_share(found, rows)}.'
            for system, (found, rows) in counts.items() if found < rows]


def _share(found: int, rows: int) -> str:
    """`there are records of 1 of 2 runs`."""
    return f'there are records of {found} of {plural(rows, "run")}'


def _returns(axes: Axes, evidence: Evidence, name: str, runs: Runs,
             marked: Mapping[str, str]) -> list[str]:
    """Draw evaluated returns; notes."""
    label, notes = set_label(name, evidence.task(name)), []
    for system, some in runs.items():
        notes += _draw(axes, f'{label}, {system}',
                       [curve for _, curve in some], colour(system),
                       marker=marked.get(system))
    if name in evidence.data:
        axes.axhline(evidence.data[name].mean(), color=GRAY, ls='--', lw=0.8)
    axes.set_ylabel('return')
    _from_zero(axes)
    return notes


def _rewards(axes: Axes, evidence: Evidence, runs: Runs, label: str,
             marked: Mapping[str, str]) -> list[str]:
    """Draw what imagined steps earn; notes."""
    notes = []
    for system, some in runs.items():
        for name, style in (('reward_mean', '-'), ('penalty_mean', '--')):
            notes += _draw(
                axes, f'{label}, {system}, imagined',
                [evidence.curve(row, 'agent', name) for row, _ in some],
                colour(system), style, marked.get(system))
    axes.set_ylabel('a step')
    _from_zero(axes)
    return notes


def _from_zero(axes: Axes) -> None:
    """Start an axis at 0; where something lies below, mark 0 by a thin line.

    R − λu often is below 0, and so are returns of Car Racing.
    """
    if axes.dataLim.y0 < 0:
        axes.axhline(0, color=GRAY, lw=0.5, zorder=0)
    else:
        axes.set_ylim(bottom=0)


def _draw(axes: Axes, place: str, curves: Sequence[Curve | None],
          colour: str, style: str = '-', marker: str | None = None,
          ) -> list[str]:
    """Draw the mean of some curves; notes on what is not in it.

    Where no run has such a curve, as of a method that imagines nothing, that
    is no gap.
    """
    known = [curve for curve in curves if curve is not None]
    there = [curve for curve in known if len(curve.steps)]
    left_out = sum(curve.left_out for curve in known)
    said = []
    if 0 < len(known) < len(curves):
        said.append(_share(len(known), len(curves)))
    if left_out:
        said.append('left out, as not finite: '
                    f'{plural(left_out, "logged value")}')
    if there:
        band(axes, *mean_curve(there), colour, style, marker)
        said.append(thinned(there))
    return [f'{place}: {text}.' for text in said if text]
