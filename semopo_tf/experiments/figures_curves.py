"""Figures 6 and 9: action entropy of both samplings, gradient norms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from semopo_tf.experiments.evidence import Curve, Evidence, plural
from semopo_tf.experiments.figure_style import (
    COLOURS,
    NO_RECORDS,
    NOT_MEASURED,
    Drawing,
    by_task,
    empty,
    key,
    lacking,
    say_missing,
    set_label,
    title,
)
from semopo_tf.experiments.paper_numbers import PaperNumbers

SAMPLINGS = {'random': '#777777', 'conservative': COLOURS['SeMOPO']}
ESTIMATORS = {'histogram': 'histogram of 50 bins',
              'gaussian': 'Gaussian', 'nearest': 'nearest neighbours'}
SYSTEM = 'SeMOPO'  # of figure 6


# Figure 6.


def figure6(evidence: Evidence, paper: PaperNumbers) -> Drawing:
    """Entropy of the actions in training batches, per epoch (10.6)."""
    sets = (evidence.sets('figure6')
            if SYSTEM in evidence.systems('figure6') else [])
    notes = ['Sum over action dimensions of the entropy of a histogram of 50 '
             'bins on [−1, 1], nats. Line and band: mean ± standard deviation '
             '(population) over seeds. Compared are the epochs before the '
             'conservative window holds all that it ever will.',
             *evidence.absent('figure6')]
    if not sets:
        return Drawing(empty('missing: no run was asked for'), notes)
    notes += _epoch_notes(evidence, sets)
    texts = []
    columns = min(3, len(sets))
    lines = math.ceil(len(sets) / columns)
    figure = Figure((2.35 * columns + 0.4, 1.6 * lines + 0.5),
                    layout='constrained')
    for number, name in enumerate(sets):
        axes = figure.add_subplot(lines, columns, number + 1)
        texts.append(_entropy_panel(axes, evidence, name))
        if axes.lines:
            title(axes, set_label(name, evidence.task(name)), texts[-1])
        else:
            say_missing(axes, texts[-1])
            title(axes, set_label(name, evidence.task(name)))
        if number % columns == 0:
            axes.set_ylabel('entropy (nats)')
        if number >= len(sets) - columns:
            axes.set_xlabel('epoch')
    key(figure, {f'{name} sampling': colour
                 for name, colour in SAMPLINGS.items()})
    notes += [entropy_claim(evidence, sets, estimator)
              for estimator in ESTIMATORS]
    if any('not measured' in text for text in texts):
        notes.append(NOT_MEASURED)
    return Drawing(figure, notes)


def _epoch_notes(evidence: Evidence, sets: Sequence[str]) -> list[str]:
    """How many updates an epoch of each measured run has."""
    found: dict[str, list[str]] = {}
    for name in sets:
        for row in evidence.runs(SYSTEM, name):
            ends = evidence.quantity(row, 'entropy/updates')
            if ends is not None:
                found.setdefault(plural(int(ends[0]), 'update'), []).append(
                    f'{name} seed {row.seed}')
    if len(found) == 1:
        return [f'An epoch of every run is {next(iter(found))}.']
    return [f'An epoch is {length}: {", ".join(runs)}.'
            for length, runs in found.items()]


def entropies(evidence: Evidence, name: str, estimator: str,
              narrow: bool = False) -> dict[str, list[np.ndarray]]:
    """Curves [epochs] of both samplings, one per run that has both.

    `narrow`: only epochs in which the samplings differ in what they may draw,
    where a run says which those are.
    """
    found: dict[str, list[np.ndarray]] = {key: [] for key in SAMPLINGS}
    for row in evidence.runs(SYSTEM, name):
        there = {key: array for key in SAMPLINGS
                 if (array := evidence.quantity(
                     row, f'entropy/{key}/{estimator}')) is not None}
        if len(there) == len(SAMPLINGS):
            wide = evidence.quantity(row, 'entropy/open')
            kept = ~wide if narrow and wide is not None else slice(None)
            for key, array in there.items():
                found[key].append(array[kept])
    return found


def entropy_claim(evidence: Evidence, sets: Sequence[str], estimator: str,
                  ) -> str:
    """Whether conservative entropy is below random, set by set.

    Compared are means over epochs and seeds. Stated whichever way it falls.
    """
    below, against, unknown = [], [], 0
    for name in sets:
        curves = entropies(evidence, name, estimator, narrow=True)
        if not any(map(len, curves['random'])):
            unknown += 1
            continue
        means = {key: float(np.mean(np.concatenate(some)))
                 for key, some in curves.items()}
        if not all(math.isfinite(mean) for mean in means.values()):
            unknown += 1
        elif means['conservative'] < means['random']:
            below.append(name)
        else:
            against.append(name)
    compared = len(below) + len(against)
    label = ESTIMATORS[estimator]
    left = (f' {plural(unknown, "set")} {"has" if unknown == 1 else "have"} '
            'no such number.') if unknown else ''
    if not compared:
        return f'Conservative below random, {label}: nothing to compare.{left}'
    other = f'; not on {", ".join(against)}' if against else ''
    return (f'Conservative below random, {label}: on {len(below)} of '
            f'{compared} sets{other}.{left}')


def _entropy_panel(axes: Axes, evidence: Evidence, name: str) -> str:
    """Draw a set; what is missing of it."""
    curves = entropies(evidence, name, 'histogram')
    runs = len(curves['random'])
    text = lacking(evidence, 'figure6', [SYSTEM], [name], runs)
    if not runs:
        return text
    for sampling, colour in SAMPLINGS.items():
        length = min(len(curve) for curve in curves[sampling])
        table = np.stack([curve[:length] for curve in curves[sampling]])
        band(axes, np.arange(1, length + 1), table.mean(0), table.std(0),
             colour)
    if len({len(curve) for curve in curves['random']}) > 1:
        text = f'{text} (epochs of the shortest run)'.strip()
    return text


# Figure 9.


def figure9(evidence: Evidence, paper: PaperNumbers) -> Drawing:
    """The model's gradient norm before clipping, over updates (10.7)."""
    sets, systems = evidence.sets('figure9'), evidence.systems('figure9')
    notes = ['Global norm of the optimizer "model" before clipping, as logged '
             '(means over blocks of updates); mean ± standard deviation '
             '(population) over the sets and seeds of a task. The exogenous '
             "stream's optimizer is not in it.", *evidence.absent('figure9')]
    if not sets or not systems:
        return Drawing(empty('missing: no run was asked for'), notes)
    tasks = by_task(sets, {name: evidence.task(name) for name in sets})
    columns = min(3, len(tasks))
    lines = math.ceil(len(tasks) / columns)
    figure = Figure((2.35 * columns + 0.4, 1.8 * lines + 0.5),
                    layout='constrained')
    for number, (task, names) in enumerate(tasks.items()):
        axes = figure.add_subplot(lines, columns, number + 1)
        missing, said = _norm_panel(axes, evidence, systems, task, names)
        title(axes, task, missing)
        notes += said
        if number % columns == 0:
            axes.set_ylabel('gradient norm')
        if number >= len(tasks) - columns:
            axes.set_xlabel('model updates')
    key(figure, {name: COLOURS[name] for name in systems})
    if any('without records' in text.get_text() for axes in figure.axes
           for text in axes.texts):
        notes.append(NO_RECORDS)
    return Drawing(figure, notes)


def norms(evidence: Evidence, system: str, names: Sequence[str],
          metric: str = 'model_grad_norm') -> list[Curve]:
    """Curves of all runs of a system on some sets."""
    found = [evidence.curve(row, 'model', metric)
             for name in names for row in evidence.runs(system, name)]
    return [curve for curve in found if curve is not None]


def mean_curve(curves: Sequence[Curve],
               ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, mean and population std over the runs that have each step."""
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    table = np.full((len(curves), len(steps)), np.nan)
    for line, curve in zip(table, curves, strict=True):
        line[np.searchsorted(steps, curve.steps)] = curve.values
    return steps, np.nanmean(table, 0), np.nanstd(table, 0)


def thinned(curves: Sequence[Curve]) -> str:
    """Where a mean curve is not that of all its runs, in words; or nothing.
    """
    steps, counts = np.unique(np.concatenate(
        [np.unique(curve.steps) for curve in curves]), return_counts=True)
    few = counts < len(curves)
    if not few.any():
        return ''
    first = int(few.argmax())
    share = f'{counts[few].min()} of {plural(len(curves), "run")}'
    if few[first:].all():
        return f'from step {steps[first]:.0f} on the mean is of {share}'
    return (f'at {few.sum()} of {plural(len(steps), "step")} the mean is not '
            f'of all runs, at the least of {share}')


def _norm_panel(axes: Axes, evidence: Evidence, systems: Sequence[str],
                task: str, names: Sequence[str]) -> tuple[str, list[str]]:
    """Draw a task; what is missing in part, and notes."""
    notes, texts = [], []
    for system in systems:
        curves = norms(evidence, system, names)
        text = lacking(evidence, 'figure9', [system], names, len(curves),
                       'without records')
        texts += [f'{system}, {text}'] if text else []
        skipped = sum(curve.values.sum() for curve in norms(
            evidence, system, names, 'model_grad_norm_left_out'))
        if skipped:
            notes.append(f'{task}, {system}: {skipped:.0f} updates had no '
                         'finite norm and are not in their means.')
        left_out = sum(curve.left_out for curve in curves)
        if left_out:
            notes.append(f'{task}, {system}: {left_out} logged norms were '
                         'not finite and are left out.')
        curves = [curve for curve in curves if len(curve.steps)]
        if curves:
            band(axes, *mean_curve(curves), COLOURS[system])
            notes += [f'{task}, {system}: {said}.'
                      for said in [thinned(curves)] if said]
        other = [curve for curve in norms(
            evidence, system, names, 'disen_grad_norm') if len(curve.steps)]
        if other:
            mean = np.mean(np.concatenate([c.values for c in other]))
            notes.append(f"{task}, {system}: the exogenous optimizer's norm "
                         f'has mean {mean:.4g}.')
    if not axes.lines:
        say_missing(axes, '\n'.join(texts) or 'missing: no norm was logged')
        return '', notes
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    return '\n'.join(texts), notes


def band(axes: Axes, x: np.ndarray, mean: np.ndarray, std: np.ndarray,
         colour: str, style: str = '-', marker: str | None = None) -> None:
    """A line [n] with a band of one deviation around it.

    `marker`: at some ten of its points.
    """
    marker = marker or ('o' if len(x) < 3 else None)
    axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.2,
                      lw=0)
    axes.plot(x, mean, style, color=colour, lw=1.2, marker=marker, ms=3,
              markevery=max(1, len(x) // 10))
