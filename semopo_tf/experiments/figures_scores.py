"""Figures 4 and 10: probability of improvement, performance profiles (10.3).

Both twice: with every episode as a run, as the paper has it, and with the
mean of each seed as a run, which alone are independent.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from semopo_tf.experiments import metrics, scales
from semopo_tf.experiments.evidence import Evidence, plural
from semopo_tf.experiments.figure_style import (
    COLOURS,
    GRAY,
    Drawing,
    empty,
    key,
    say_missing,
    system_name,
    title,
)
from semopo_tf.experiments.paper_numbers import PaperNumbers
from semopo_tf.experiments.table_formats import fixed

# X > Y; which pairs the paper shows is read from its text (10.3).
PAIRS = (('SeMOPO', 'Se+RS'), ('SeMOPO', 'Se+RS+DRP'),
         ('SeMOPO', 'Offline DV2'), ('Se+RS', 'Se+RS+DRP'),
         ('Se+RS', 'Offline DV2'), ('Se+RS+DRP', 'Offline DV2'))
KINDS = {True: 'every final episode a run', False: 'every seed a run'}
THRESHOLDS = 201
EPISODES = ('Episodes of one seed are not independent runs: intervals of the '
            'left panel are too narrow to speak for the method.')
FEW = 4  # seeds, below which an interval says much less than it seems to
# Shares of 1500 normal samples of each shape.
COVERAGE = ('resamples hold nothing but those seeds, and of two seeds on one '
            'set the interval of their mean is their range. Simulated 95 % '
            'percentile intervals of an interquartile mean had the true one '
            'in them in 47 % of cases for 2 seeds on 1 set, 75 % for 2 on 3, '
            '81 % for 2 on 9, 87 % for 4 on 1, 90 % for 4 on 9.')


# Figure 4.


def figure4(evidence: Evidence, paper: PaperNumbers) -> Drawing:
    """P(X > Y) for pairs of ablations, with 95 % intervals."""
    asked = evidence.systems('figure4')
    pairs = [pair for pair in PAIRS if set(pair) <= set(asked)]
    notes = ['Mean over sets of the share of pairs of runs that X wins, of '
             'which ties count one half, with the 95 % percentile interval of '
             f'{metrics.RESAMPLES} stratified resamples (rliable). {EPISODES}',
             *evidence.absent('figure4')]
    if not pairs:
        return Drawing(empty('missing: no pair was asked for'), notes)
    figure = Figure((7, 0.9 + 0.35 * len(pairs)), layout='constrained')
    panels = figure.subplots(1, 2, sharey=True)
    for axes, episodes in zip(panels, KINDS, strict=True):
        _improvement(axes, evidence, paper, pairs, episodes, notes)
    panels[0].set_yticks(range(len(pairs)), [
        _pair(x, y) for x, y in pairs])
    panels[0].set_ylim(len(pairs) - 0.5, -0.5)
    return Drawing(figure, list(dict.fromkeys(notes)))


def _improvement(axes: Axes, evidence: Evidence, paper: PaperNumbers,
                 pairs: list[tuple[str, str]], episodes: bool,
                 notes: list[str]) -> None:
    sizes = set()
    for line, (x, y) in enumerate(pairs):
        scores, joined, left = evidence.scores('figure4', [x, y], episodes)
        if left:
            notes.append(f'{_pair(x, y)}: left out are {", ".join(left)}.')
        if episodes and evidence.scale in scales.FULL_SIZE:
            _papers(axes, paper, f'{x} > {y}', line)
        if not joined:
            axes.text(0.5, line, _all_missing(evidence, 'figure4', (x, y)),
                      ha='center', va='center', color=GRAY, fontsize=7,
                      bbox={'facecolor': 'white', 'lw': 0, 'pad': 1})
            continue
        found = metrics.probability_of_improvement(
            scores[x], scores[y], resamples=metrics.RESAMPLES)
        sizes.add((found.runs, found.sets))
        runs = min(len(scores[x]), len(scores[y]))
        if runs > 1:
            axes.plot([found.low, found.high], [line, line], lw=4, alpha=0.45,
                      color=COLOURS[x], solid_capstyle='butt', clip_on=False)
        notes += _interval_notes(runs, found.sets, episodes)
        axes.plot(found.value, line, '|', ms=8, mew=1.6, color=COLOURS[x],
                  clip_on=False)
        axes.text(found.value, line - 0.2, f'{found.value:.2f}',
                  ha='center', va='bottom', fontsize=6.5)
        if left:
            axes.text(0.01, line + 0.25, f'{found.sets} of '
                      f'{found.sets + len(left)} sets', fontsize=5.5,
                      color=GRAY, va='center')
    axes.axvline(0.5, color=GRAY, lw=0.6, ls=':', zorder=0)
    axes.set_xlim(0, 1)
    axes.set_xlabel('P(X > Y)')
    axes.set_title(KINDS[episodes] + (
        f' ({_span(runs for runs, _ in sizes)} × '
        f'{_span(sets for _, sets in sizes)})' if sizes else ''))
    axes.tick_params(axis='y', length=0)


def _interval_notes(runs: int, sets: int, episodes: bool) -> list[str]:
    """What an interval of few runs is worth."""
    if runs == 1:
        return [f'{KINDS[episodes].capitalize()}, one run: no interval.']
    if episodes or runs >= FEW:
        return []
    return [f'{KINDS[episodes].capitalize()}: an interval of {runs} seeds on '
            f'{plural(sets, "set")} is narrower than one of 95 % would be, as '
            f'{COVERAGE}']


def _pair(x: str, y: str) -> str:
    """A pair as the figure calls it, on its axis and in its notes."""
    return f'{system_name(x, True)} > {system_name(y, True)}'


def _span(counts: Iterable[int]) -> str:
    """`9`, or `4–7` where they differ."""
    found = sorted(set(counts))
    return '–'.join(map(str, dict.fromkeys((found[0], found[-1]))))


def _papers(axes: Axes, paper: PaperNumbers, pair: str, line: int) -> None:
    """What the paper says of a pair, in gray below it.

    Of every episode as a run, and of runs of the full size.
    """
    known = paper.pairs.get(pair, {})
    if 'about' in known:
        axes.plot(known['about'], line + 0.25, '|', color=GRAY, ms=5)
        axes.text(known['about'] + 0.02, line + 0.25, 'paper, about',
                  fontsize=5.5, color=GRAY, va='center')
    if 'low' in known:
        axes.annotate('', (1, line + 0.25), (known['low'], line + 0.25),
                      arrowprops={'arrowstyle': '|-|,widthB=0,widthA=0.15',
                                  'color': GRAY, 'lw': 0.7, 'shrinkA': 0,
                                  'shrinkB': 0})
        axes.text(known['low'] - 0.02, line + 0.25, 'paper, above',
                  fontsize=5.5, color=GRAY, va='center', ha='right')


# Figure 10.


def figure10(evidence: Evidence, paper: PaperNumbers) -> Drawing:
    """Share of normalised returns above a threshold, with 95 % bands."""
    asked = evidence.systems('figure10')
    notes = [f'Pointwise 95 % percentile bands of {metrics.RESAMPLES} '
             'stratified resamples (rliable). All curves are over the same '
             f'sets. {EPISODES}', *evidence.absent('figure10')]
    if not asked:
        return Drawing(empty('missing: no run was asked for'), notes)
    systems = [name for name in asked
               if evidence.scores('figure10', [name], False)[1]]
    for name in asked:
        if name not in systems:
            notes.append(f'{system_name(name, True)}: '
                         f'{_all_missing(evidence, "figure10", (name,))}.')
    used: list[str] = []  # sets
    figure = Figure((7, 2.8), layout='constrained')
    for axes, episodes in zip(figure.subplots(1, 2, sharey=True), KINDS,
                              strict=True):
        scores, joined, left = evidence.scores(
            'figure10', systems, episodes) if systems else ({}, [], [])
        if left:
            notes.append(f'Left out are {", ".join(left)}.')
        if not joined:
            say_missing(axes, _all_missing(evidence, 'figure10', asked))
            title(axes, KINDS[episodes])
            continue
        _profiles(axes, scores)
        used += joined
        for values in scores.values():
            notes += _interval_notes(len(values), len(joined), episodes)
        runs = _span(len(values) for values in scores.values())
        title(axes, f'{KINDS[episodes]} ({runs} × {len(joined)})',
              f'{len(joined)} of {len(joined) + len(left)} sets' if left
              else '')
    figure.axes[0].set_ylabel('share of runs above τ')
    entries = {system_name(name, True) + (
        '' if name in systems else ' (missing)'): COLOURS[name]
        for name in asked}
    key(figure, entries)
    notes += _range_notes(evidence, used)
    return Drawing(figure, list(dict.fromkeys(notes)))


def _range_notes(evidence: Evidence, sets: Iterable[str]) -> list[str]:
    """What τ of each task is normalised with, as Table 1 has it."""
    ranges = {task: scale for task in dict.fromkeys(map(evidence.task, sets))
              if (scale := evidence.range(task)) is not None}
    if not ranges:
        return []
    said = '; '.join(
        f'{task}: {fixed(scale.low, 1)} to {fixed(scale.high, 1)}, '
        f'{scale.source}' for task, scale in ranges.items())
    notes = [f'τ is normalised as in Table 1, by S_min to S_max: {said}.']
    if len({scale.source for scale in ranges.values()}) > 1:
        notes.append('Sources of these ranges differ: τ = 1 is the published '
                     'largest return in some tasks, and that of the data '
                     'used in the others.')
    return notes


def _profiles(axes: Axes, scores: dict[str, np.ndarray]) -> None:
    every = np.concatenate([values.ravel() for values in scores.values()])
    thresholds = np.linspace(min(0.0, every.min()), max(1.0, every.max()),
                             THRESHOLDS)
    for name, found in metrics.profiles(
            scores, thresholds, resamples=metrics.RESAMPLES).items():
        if len(scores[name]) > 1:  # a run alone has no band
            axes.fill_between(thresholds, found.low, found.high, lw=0,
                              color=COLOURS[name], alpha=0.2)
        axes.plot(thresholds, found.share, color=COLOURS[name], lw=1.4)
    axes.set_xlabel('normalised return τ')
    axes.set_ylim(0, 1.02)
    axes.set_xlim(thresholds[0], thresholds[-1])


def _all_missing(evidence: Evidence, item: str, systems) -> str:
    """Why nothing is shown: missing runs, or what keeps them out."""
    count = sum(evidence.missing(item, system, name) for system in systems
                for name in evidence.sets(item))
    if count:
        return f'missing: {plural(count, "run")}'
    return 'missing: no set can be compared'
