"""Figures 2, 7 and 8: bars of the ensemble's uncertainty (10.5).

Figure 2 shows u, the run's own penalty (10.4); figures 7 and 8 md and vlp.
Mean ± standard deviation over all measured states of all seeds, population.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from semopo_tf.experiments import units
from semopo_tf.experiments.evidence import Evidence
from semopo_tf.experiments.figure_style import (
    COLOURS,
    GRAY,
    NOT_MEASURED,
    STREAM_COLOURS,
    STREAM_NAMES,
    Drawing,
    by_task,
    empty,
    key,
    lacking,
    level_label,
    task_label,
    title,
)
from semopo_tf.experiments.paper_numbers import PaperNumbers

QUANTITIES = {'u': 'uncertainty u',
              'md': 'mean disagreement\n(md)',
              'vlp': 'spread of log p\nover heads (vlp)'}
WIDTH = 0.8  # of all bars of a set


@dataclass(frozen=True)
class Group:
    """Bars of one colour: a stream of a system.

    `u`: the penalty that the runs stored as u; None: md stands for it.
    """

    label: str
    system: str
    stream: str
    colour: str
    u: str | None = None


ENDOGENOUS = Group(STREAM_NAMES['endogenous'], 'SeMOPO', 'endogenous',
                   STREAM_COLOURS['endogenous'])
EXOGENOUS = Group(STREAM_NAMES['exogenous'], 'SeMOPO', 'exogenous',
                  STREAM_COLOURS['exogenous'])
JOINT = Group(STREAM_NAMES['joint'], 'Offline DV2', 'joint',
              STREAM_COLOURS['joint'])
LOMPO = Group('LOMPO', 'LOMPO', 'joint', COLOURS['LOMPO'])


def figure2(evidence: Evidence, paper: PaperNumbers) -> Drawing:
    """u of SeMOPO's endogenous states and of Offline DV2's."""
    return _drawing(evidence, 'figure2', (ENDOGENOUS, JOINT), ('u',))


def figure7(evidence: Evidence, paper: PaperNumbers) -> Drawing:
    """md and vlp, with LOMPO, whose Gaussian states have other units."""
    return _drawing(evidence, 'figure7', (ENDOGENOUS, JOINT, LOMPO),
                    ('md', 'vlp'))


def figure8(evidence: Evidence, paper: PaperNumbers) -> Drawing:
    """md and vlp of SeMOPO's endogenous and exogenous states."""
    return _drawing(evidence, 'figure8', (ENDOGENOUS, EXOGENOUS),
                    ('md', 'vlp'))


# Pieces.


def _drawing(evidence: Evidence, item: str, groups: Sequence[Group],
             quantities: Sequence[str]) -> Drawing:
    """Bars of the groups that were asked for, and notes on them."""
    asked = evidence.systems(item)
    groups = [group for group in groups if group.system in asked]
    sets = evidence.sets(item)
    notes = ['Mean ± standard deviation (population) over the measured '
             'states of all seeds.', *evidence.absent(item)]
    if not groups or not sets:
        return Drawing(empty('missing: no run was asked for'), notes)
    if 'u' in quantities:
        groups = [replace(group, u=_own_penalty(evidence, group, sets))
                  for group in groups]
        notes += _u_notes(groups)
    panels = _panels(evidence, groups, sets)
    figure = _bars(evidence, item, panels, quantities)
    if len(panels) > 1:
        notes.append(_units_note(evidence, groups, sets))
    notes += [_claim(evidence, item, panel[0], other, quantity)
              for panel in panels for other in panel[1:]
              for quantity in quantities]
    if any('not measured' in text.get_text() for axes in figure.axes
           for text in axes.texts):
        notes.append(NOT_MEASURED)
    return Drawing(figure, notes)


def _own_penalty(evidence: Evidence, group: Group, sets: Sequence[str],
                 ) -> str | None:
    """The penalty that all measured runs of a group stored as u, if one."""
    measured = [row for name in sets
                for row in evidence.runs(group.system, name)
                if evidence.quantity(row, f'uncertainty/{group.stream}/md')
                is not None]
    found = {units.penalty(evidence, row, 'uncertainty') for row in measured}
    return found.pop() if len(found) == 1 else None


def _u_notes(groups: Sequence[Group]) -> list[str]:
    """What u is, by system."""
    return [
        f'{group.system}: u is the penalty of its runs, '
        f'{units.spelled([group.u])}.' if group.u else
        f'{group.system}: shown is mean disagreement (md), whichever the '
        'penalty: not all of its runs stored u of one penalty (run.py measure '
        'does now).' for group in groups]


def _unit(evidence: Evidence, group: Group, sets: Sequence[str],
          ) -> tuple[str, ...]:
    """What a group's numbers are counted in, set by set."""
    return (group.u or units.OLD, *(
        units.latents(evidence, group.system, name) for name in sets))


def _panels(evidence: Evidence, groups: Sequence[Group],
            sets: Sequence[str]) -> list[list[Group]]:
    """Groups of the same units, which share axes."""
    found: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        found.setdefault(_unit(evidence, group, sets), []).append(group)
    return list(found.values())


def _units_note(evidence: Evidence, groups: Sequence[Group],
                sets: Sequence[str]) -> str:
    said = {group.system: ' or '.join(dict.fromkeys(
        units.latents(evidence, group.system, name) for name in sets))
        for group in groups}
    penalties = {units.spelled([group.u or units.OLD]) for group in groups}
    return ('Units are those of the latents ('
            + ', '.join(f'{system}: {kind}' for system, kind in said.items())
            + ')' + (' and of the penalty' if len(penalties) > 1 else '')
            + ': panels have their own axes, and heights are not compared '
            'across them.')


def values(evidence: Evidence, group: Group, name: str, quantity: str,
           ) -> tuple[np.ndarray, int]:
    """Measured values of a set, all seeds pooled, and how many runs."""
    if quantity == 'u' and not group.u:
        quantity = 'md'
    key = f'uncertainty/{group.stream}/{quantity}'
    found = [array for row in evidence.runs(group.system, name)
             if (array := evidence.quantity(row, key)) is not None]
    return (np.concatenate(found) if found else np.zeros(0)), len(found)


def _bars(evidence: Evidence, item: str, panels: Sequence[Sequence[Group]],
          quantities: Sequence[str]) -> Figure:
    """Rows: quantities × panels; columns: tasks."""
    sets = evidence.sets(item)
    columns = by_task(sets, {name: evidence.task(name) for name in sets})
    rows = [(quantity, groups) for quantity in quantities
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
                    evidence, item, every, names, quantities[0])))
            if column == 0:
                own = (f'{groups[0].system}\n' if len(groups) == 1
                       and len(panels) > 1 else '')
                axes.set_ylabel(own + _name(groups[0], quantity))
    key(figure, {group.label: group.colour
                 for groups in panels for group in groups})
    return figure


def _name(group: Group, quantity: str) -> str:
    """A quantity on an axis; u with the penalty that it is."""
    text = QUANTITIES[quantity]
    if quantity == 'u':
        text += f'\n({units.spelled([group.u or units.OLD])})'
    return text


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
                axes.text(x, 0.03, lacking(
                    evidence, item, [group.system], [name], 0)
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
             names: Sequence[str], quantity: str) -> list[str]:
    """Systems of which some runs were measured and some were not."""
    texts = []
    for system in dict.fromkeys(group.system for group in groups):
        group = next(group for group in groups if group.system == system)
        counts = {name: values(evidence, group, name, quantity)[1]
                  for name in names}
        drawn = [name for name, count in counts.items() if count]
        # The other sets say so in their place.
        text = lacking(evidence, item, [system], drawn, sum(counts.values()))
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
