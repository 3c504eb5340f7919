"""Figures 2, 7 and 8: bars of the ensemble's uncertainty (10.5).

Mean ± standard deviation over all measured states of all seeds, population.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from semopo_tf.experiments.evidence import Evidence, missing_text
from semopo_tf.experiments.figure_style import (
    COLOURS,
    GRAY,
    STREAM_COLOURS,
    STREAM_NAMES,
    Drawing,
    by_task,
    empty,
    key,
    level_label,
    task_label,
    title,
)
from semopo_tf.experiments.paper_numbers import PaperNumbers

QUANTITIES = {'md': 'mean disagreement\n(md)',
              'vlp': 'spread of log p\nover heads (vlp)'}
WIDTH = 0.8  # of all bars of a set


@dataclass(frozen=True)
class Group:
    """Bars of one colour: a stream of a system."""

    label: str
    system: str
    stream: str
    colour: str


ENDOGENOUS = Group(STREAM_NAMES['endogenous'], 'SeMOPO', 'endogenous',
                   STREAM_COLOURS['endogenous'])
EXOGENOUS = Group(STREAM_NAMES['exogenous'], 'SeMOPO', 'exogenous',
                  STREAM_COLOURS['exogenous'])
JOINT = Group(STREAM_NAMES['joint'], 'Offline DV2', 'joint',
              STREAM_COLOURS['joint'])
LOMPO = Group('LOMPO', 'LOMPO', 'joint', COLOURS['LOMPO'])


def figure2(evidence: Evidence, paper: PaperNumbers) -> Drawing:
    """Uncertainty of SeMOPO's endogenous states and Offline DV2's."""
    drawing = _bars(evidence, 'figure2', _alike(evidence))
    drawing.notes += _compared(evidence, 'figure2', (ENDOGENOUS, JOINT))
    return drawing


def figure7(evidence: Evidence, paper: PaperNumbers) -> Drawing:
    """The same with LOMPO, whose Gaussian states have other units."""
    drawing = _bars(evidence, 'figure7', [*_alike(evidence), [LOMPO]])
    drawing.notes += _compared(
        evidence, 'figure7', (ENDOGENOUS, JOINT, LOMPO))
    return drawing


def figure8(evidence: Evidence, paper: PaperNumbers) -> Drawing:
    """SeMOPO's endogenous and exogenous states."""
    drawing = _bars(evidence, 'figure8', [[ENDOGENOUS, EXOGENOUS]])
    drawing.notes += [_claim(evidence, 'figure8', ENDOGENOUS, EXOGENOUS,
                             quantity) for quantity in QUANTITIES]
    return drawing


# Pieces.


def _alike(evidence: Evidence) -> list[list[Group]]:
    """The two systems on the same axes, if their units are the same."""
    if evidence.latents('SeMOPO') == evidence.latents('Offline DV2'):
        return [[ENDOGENOUS, JOINT]]
    return [[ENDOGENOUS], [JOINT]]


def _compared(evidence: Evidence, item: str, groups: Sequence[Group],
              ) -> list[str]:
    """Whether the paper's claim holds, where units allow to ask."""
    notes = []
    latents = {group.system: evidence.latents(group.system)
               for group in groups}
    if len(_alike(evidence)) > 1 or LOMPO in groups:
        notes.append(
            'Units are those of the latents ('
            + ', '.join(f'{system}: {kind}'
                        for system, kind in latents.items())
            + '): panels have their own axes, and heights are not compared '
            'across them.')
    if len(_alike(evidence)) == 1:
        notes += [_claim(evidence, item, ENDOGENOUS, JOINT, quantity)
                  for quantity in QUANTITIES]
    return notes


def values(evidence: Evidence, group: Group, name: str, quantity: str,
           ) -> tuple[np.ndarray, int]:
    """Measured values of a set, all seeds pooled, and how many runs."""
    key = f'uncertainty/{group.stream}/{quantity}'
    found = [array for row in evidence.runs(group.system, name)
             if (array := evidence.quantity(row, key)) is not None]
    return (np.concatenate(found) if found else np.zeros(0)), len(found)


def _bars(evidence: Evidence, item: str, panels: Sequence[Sequence[Group]],
          ) -> Drawing:
    """Rows: quantities × panels; columns: tasks."""
    asked = evidence.systems(item)
    panels = [[group for group in groups if group.system in asked]
              for groups in panels]
    panels = [groups for groups in panels if groups]
    sets = evidence.sets(item)
    notes = ['Mean ± standard deviation (population) over the measured '
             'states of all seeds.', *evidence.absent(item)]
    if not panels or not sets:
        return Drawing(empty('missing: no run was asked for'), notes)
    columns = by_task(sets, {name: evidence.task(name) for name in sets})
    rows = [(quantity, groups) for quantity in QUANTITIES
            for groups in panels]
    widths = [len(names) for names in columns.values()]
    figure = Figure((1.2 + 0.9 * sum(widths) + 0.5 * len(widths),
                     0.5 + 1.7 * len(rows)), layout='constrained')
    grid = figure.subplots(len(rows), len(columns), squeeze=False,
                           width_ratios=widths)
    for line, (quantity, groups) in enumerate(rows):
        for column, (task, names) in enumerate(columns.items()):
            axes = grid[line, column]
            _panel(axes, evidence, item, groups, names, quantity)
            if line == 0:
                every = [group for groups in panels for group in groups]
                title(axes, task, '\n'.join(_partial(
                    evidence, item, every, names)))
            if column == 0:
                own = (f'{groups[0].system}, ' if len(groups) == 1
                       and len(panels) > 1 else '')
                axes.set_ylabel(own + QUANTITIES[quantity])
    key(figure, {group.label: group.colour
                 for groups in panels for group in groups})
    return Drawing(figure, notes)


def _panel(axes: Axes, evidence: Evidence, item: str,
           groups: Sequence[Group], names: Sequence[str], quantity: str,
           ) -> None:
    """Bars of a task. One with some of its runs missing is hatched."""
    width = WIDTH / len(groups)
    for place, name in enumerate(names):
        for number, group in enumerate(groups):
            x = place + (number - (len(groups) - 1) / 2) * width
            found, runs = values(evidence, group, name, quantity)
            wanted = evidence.count(item, group.system, name)
            if not len(found):
                axes.text(x, 0.03, missing_text(wanted, wanted)
                          or 'missing: not asked for', rotation=90,
                          transform=axes.get_xaxis_transform(), ha='center',
                          va='bottom', fontsize=6, color=GRAY)
                continue
            mean, std = float(found.mean()), float(found.std())
            axes.bar(x, mean, width * 0.9, color=group.colour, lw=0,
                     hatch='///' if runs < wanted else '', ec='white')
            axes.errorbar(x, mean, std, color='black', lw=0.8, capsize=2,
                          capthick=0.8)
    tasks = [evidence.task(name) or name for name in names]
    axes.set_xticks(range(len(names)), [
        level_label(name, task).replace(' ', '\n')
        if level_label(name, task) != task_label(task) else ''
        for name, task in zip(names, tasks, strict=True)])
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.tick_params(axis='x', length=0)
    axes.set_ylim(bottom=0)
    if not axes.containers:
        axes.set_yticks([])


def _partial(evidence: Evidence, item: str, groups: Sequence[Group],
             names: Sequence[str]) -> list[str]:
    """Systems of which some runs were measured and some were not."""
    texts = []
    for system in dict.fromkeys(group.system for group in groups):
        group = next(group for group in groups if group.system == system)
        runs = wanted = 0
        for name in names:
            count = values(evidence, group, name, 'md')[1]
            if count:  # the others say so in their place
                runs += count
                wanted += evidence.count(item, system, name)
        text = missing_text(max(wanted - runs, 0), wanted)
        texts += [f'{system}, {text} (hatched)'] if text else []
    return texts


def _claim(evidence: Evidence, item: str, low: Group, high: Group,
           quantity: str) -> str:
    """On how many sets one is below the other, whichever way it falls."""
    below, compared, against = 0, 0, []
    for name in evidence.sets(item):
        first, _ = values(evidence, low, name, quantity)
        second, _ = values(evidence, high, name, quantity)
        if len(first) and len(second):
            compared += 1
            below += first.mean() < second.mean()
            if not first.mean() < second.mean():
                against.append(name)
    if not compared:
        return f'{quantity}: nothing to compare.'
    other = f' (not on {", ".join(against)})' if against else ''
    return (f'{quantity}: {low.label} has the smaller mean than {high.label} '
            f'on {below} of {compared} sets{other}.')
