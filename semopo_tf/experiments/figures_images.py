"""Figures 3 and 5: frames with their uncertainty, reconstructions.

Shown are those of the first seed that every method of a set has measured on
the same frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from semopo_tf.experiments import units
from semopo_tf.experiments.evidence import Evidence
from semopo_tf.experiments.figure_style import (
    NOT_MEASURED,
    STREAM_COLOURS,
    STREAM_NAMES,
    Drawing,
    empty,
    key,
    lacking,
    say_missing,
    set_label,
    system_name,
)
from semopo_tf.experiments.paper_numbers import PaperNumbers
from semopo_tf.experiments.results import Row

STREAMS = (('SeMOPO', 'endogenous'), ('SeMOPO', 'exogenous'),
           ('Offline DV2', 'joint'))
SHOWN = 8  # frames of an episode in figure 5
COLUMNS = 3  # of sets in figure 5
# Inches of figure 5: a strip of frames, and what is around it.
STRIP, ROW, GAP, HEAD, LABELS = 3.4, 0.41, 0.06, 0.25, 1.1


# Figure 3.


def figure3(evidence: Evidence, paper: PaperNumbers) -> Drawing:
    """Frames of cheetah, and U of each model's transition into them."""
    sets, asked = evidence.sets('figure3'), evidence.systems('figure3')
    streams = [pair for pair in STREAMS if pair[0] in asked]
    notes = ['Bars: uncertainty u of the transition into the frame above. '
             'Frames are chosen by the seed alone.',
             *evidence.absent('figure3')]
    if not sets or not streams:
        return Drawing(empty('missing: no run was asked for'), notes)
    figure = Figure((7.2, 1.9 * len(sets) + 0.4), layout='constrained')
    parts = figure.subfigures(len(sets), 1, squeeze=False)
    for part, name in zip(parts.ravel(), sets, strict=True):
        part.suptitle(set_label(name, evidence.task(name)), fontsize=8)
        notes += _frames(part, evidence, name, streams)
    key(figure, {STREAM_NAMES[stream]: STREAM_COLOURS[stream]
                 for _, stream in streams})
    return Drawing(figure, list(dict.fromkeys(notes)))


def _frames(part: SubFigure, evidence: Evidence, name: str,
            streams: Sequence[tuple[str, str]]) -> list[str]:
    """Frames of a set above their bars; notes."""
    systems = list(dict.fromkeys(system for system, _ in streams))
    rows, shown, text = same_frames(
        evidence, 'figure3', systems, name, 'frames/index', 'frames/image')
    if not shown:
        say_missing(part.subplots(), text)
        return _hint(text)
    images = evidence.measured(rows[shown[0]], 'frames/image')
    found = {stream: u for system, stream in streams if system in shown
             and (u := evidence.quantity(
                 rows[system], f'frames/{stream}/u')) is not None}
    top = max((float(u.max()) for u in found.values()), default=1.0)
    alike, notes = _units(evidence, [rows[system] for system in shown])
    if not alike:
        found, top = _shares(found, streams), 1.0
    panels = part.subplots(2, len(images), squeeze=False,
                           height_ratios=(1, 0.7))
    for number, image in enumerate(images):
        _picture(panels[0, number], image)
        axes = panels[1, number]
        for place, (system, stream) in enumerate(streams):
            if stream in found:
                axes.bar(place, found[stream][number], 0.8, lw=0,
                         color=STREAM_COLOURS[stream])
            else:
                word = ('missing' if f'{system} is missing' in text
                        else 'not measured')
                axes.text(place, 0, f' {word}', rotation=90, fontsize=6,
                          ha='center', va='bottom')
        axes.set_ylim(0, 1.05 * top)
        axes.set_xticks([])
        axes.set_xlim(-0.7, len(streams) - 0.3)
        if number:
            axes.set_yticks([])
        else:
            axes.set_ylabel('U' if alike else 'share of the\nlargest U')
    seed = rows[shown[0]].seed
    bars = 'bars of one scale' if alike else 'bars are shares'
    return [*notes, *_hint(text), f'{name}: seed {seed}, {bars}'
            + (f'; {text}' if text else '') + '.']


def _units(evidence: Evidence, rows: Sequence[Row]) -> tuple[bool, list[str]]:
    """Whether u of some runs are of the same units; notes on what they are.
    """
    own = {row.system: units.penalty(evidence, row, 'frames') for row in rows}
    notes = [
        f'{system}: u is the penalty of its runs, {units.spelled([name])}.'
        if name else f'{system}: u is mean disagreement (md), whichever the '
        'penalty, as run.py measure stored it before.'
        for system, name in own.items()]
    alike = 1 == len({(own[row.system] or units.OLD,
                       units.latents(evidence, row.system, row.set))
                      for row in rows})
    if not alike:
        notes.append(
            'The latents or the penalties differ in kind, and so in units: '
            "bars are shares of the largest of each system's, and heights "
            'are not compared across systems.')
    return alike, notes


def _shares(found: Mapping[str, np.ndarray],
            streams: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
    """Values as shares of the largest of their system."""
    largest: dict[str, float] = {}
    for system, stream in streams:
        if stream in found:
            largest[system] = max(largest.get(system, 0.0),
                                  float(found[stream].max()))
    return {stream: found[stream] / (largest[system] or 1.0)
            for system, stream in streams if stream in found}


# Figure 5.


def figure5(evidence: Evidence, paper: PaperNumbers) -> Drawing:
    """What each method's (endogenous) stream makes of an episode."""
    sets, systems = evidence.sets('figure5'), evidence.systems('figure5')
    notes = ['First line: frames of the data. Two-stream methods: the '
             'unmasked mean of the endogenous decoder from posterior states, '
             'not mask × mean; Offline DV2: its only decoder. Everything that '
             'moves with the background and is not the robot should be gone.',
             *evidence.absent('figure5')]
    if not sets or not systems:
        return Drawing(empty('missing: no run was asked for'), notes)
    columns = min(COLUMNS, len(sets))
    lines = math.ceil(len(sets) / columns)
    width = LABELS + columns * (STRIP + GAP)
    height = lines * ((len(systems) + 1) * (ROW + GAP) + HEAD)
    figure = Figure((width, height))  # laid out by hand: frames touch
    for number, name in enumerate(sets):
        left = LABELS + number % columns * (STRIP + GAP)
        top = height - number // columns * height / lines
        figure.text((left + STRIP / 2) / width, (top - HEAD / 2) / height,
                    set_label(name, evidence.task(name)), ha='center',
                    va='center')
        panels = [figure.add_axes((
            left / width, (top - HEAD - (line + 1) * (ROW + GAP)) / height,
            STRIP / width, ROW / height))
            for line in range(len(systems) + 1)]
        notes += _reconstructions(panels, evidence, name, systems,
                                  labels=number % columns == 0)
    return Drawing(figure, list(dict.fromkeys(notes)))


def _reconstructions(panels: Sequence[Axes], evidence: Evidence, name: str,
                     systems: Sequence[str], labels: bool) -> list[str]:
    """Strips of a set, the data's first; notes."""
    if labels:
        for axes, label in zip(panels, ('data', *(
                system_name(system, True) for system in systems)),
                strict=True):
            axes.set_ylabel(label, rotation=0, ha='right', va='center')
    rows, shown, text = same_frames(
        evidence, 'figure5', systems, name, 'reconstruction/image',
        'reconstruction/image')
    if not shown:
        for axes, system in zip(panels, (systems[0], *systems), strict=True):
            say_missing(axes, _why(evidence, system, name)
                        if axes is not panels[0] else 'missing')
        return _hint(text)
    truth = evidence.measured(rows[shown[0]], 'reconstruction/image')[0]
    times = np.linspace(0, len(truth) - 1, min(SHOWN, len(truth)))
    times = times.round().astype(int)
    _strip(panels[0], truth[times])
    for axes, system in zip(panels[1:], systems, strict=True):
        if system in shown:
            _strip(axes, _endogenous(evidence, rows[system])[0][times])
        else:
            say_missing(axes, _why(evidence, system, name))
    seed = rows[shown[0]].seed
    return [*_hint(text),
            f'{name}: seed {seed}' + (f'; {text}' if text else '') + '.']


def _why(evidence: Evidence, system: str, name: str) -> str:
    """Why a system has no line."""
    measured = [row for row in evidence.runs(system, name) if
                evidence.quantity(row, 'reconstruction/image') is not None]
    if measured:
        return 'missing: not measured on these frames'
    return lacking(evidence, 'figure5', [system], [name], 0)


def _endogenous(evidence: Evidence, row: Row) -> np.ndarray:
    found = evidence.quantity(row, 'reconstruction/endogenous')
    return (evidence.measured(row, 'reconstruction/model') if found is None
            else found)


# Both.


def same_frames(evidence: Evidence, item: str, systems: Sequence[str],
                name: str, compared: str, needed: str,
                ) -> tuple[dict[str, Row], list[str], str]:
    """Runs of one seed that were measured on the same frames.

    The seed with the most systems, the first of those. Returns its rows by
    system, the systems to show, and a text on those that are missing. A
    system measured on other frames than the first one is not shown.
    """
    by_seed: dict[int, dict[str, Row]] = {}
    for system in systems:
        for row in evidence.runs(system, name):
            if evidence.quantity(row, needed) is not None:
                by_seed.setdefault(row.seed, {})[system] = row
    if not by_seed:
        return {}, [], lacking(evidence, item, systems, [name], 0)
    seed = min(by_seed, key=lambda seed: (-len(by_seed[seed]), seed))
    rows = by_seed[seed]
    first = next(system for system in systems if system in rows)
    reference = evidence.quantity(rows[first], compared)
    shown = [system for system in systems if system in rows
             and _equal(evidence.quantity(rows[system], compared), reference)]
    texts = [f'{system} was measured on other frames' if system in rows
             else f'{system} is not measured' if any(
                 row.seed == seed for row in evidence.runs(system, name))
             else f'{system} is missing'
             for system in systems if system not in shown]
    return rows, shown, ', '.join(texts)


def _hint(text: str) -> list[str]:
    """What to do about runs that were not measured, if a text names any."""
    return [NOT_MEASURED] if 'not measured' in text else []


def _equal(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Whether both are the same, or both were not measured."""
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _picture(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, interpolation='none')
    axes.set_axis_off()


def _strip(axes: Axes, images: np.ndarray) -> None:
    """Frames [T, h, w, 3] side by side, a white line between them."""
    gap = np.full((*images.shape[1:2], 2, 3), 255, np.uint8)
    pieces = [piece for image in images for piece in (image, gap)][:-1]
    axes.imshow(np.concatenate(pieces, 1), interpolation='none')
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
