"""What all figures share: colours, names, panels that say what is missing."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.typing import RcKeyType

from dreamerv2_base.files import whole
from semopo_tf.experiments.evidence import Evidence, missing_text
from semopo_tf.experiments.grid import LEVELS

# One colour per system in every figure; they differ for the colour-blind, too
# (Okabe and Ito's palette, darkened where they need an eleventh).
COLOURS = {
    'SeMOPO': '#0072B2', 'Offline DV2': '#D55E00', 'LOMPO': '#009E73',
    'Se+RS': '#56B4E9', 'Se+RS+DRP': '#CC79A7', 'SeMOPO (paper)': '#004166',
    'BC': '#E69F00', 'DrQ+BC': '#8A6BBE', 'DrQ+CQL': '#777777',
    'InfoGating': '#A08800'}
STREAM_COLOURS = {'endogenous': COLOURS['SeMOPO'], 'exogenous': '#E69F00',
                  'joint': COLOURS['Offline DV2']}
STREAM_NAMES = {'endogenous': 'SeMOPO endogenous s⁺',
                'exogenous': 'SeMOPO exogenous s⁻',
                'joint': 'Offline DV2 z'}
# Names that figures 4, 5 and 10 give to runs of Table 1.
ABLATION_NAMES = {'SeMOPO': 'Se+CS', 'Offline DV2': 'Offline DV2+RS'}
GRAY = '#666666'
NOT_MEASURED = ('Not measured: runs that have a row, but not the numbers that '
                'this figure shows; copy runs/ from where they ran, or run.py '
                'measure.')
NO_RECORDS = ('Without records: runs that have a row, but no such metric in a '
              'metrics.jsonl; copy runs/ from where they ran.')
# Of labelled systems beside their colours; short lines of any have 'o'.
MARKERS = 'sD^v<>*XPdph8'
MARGIN = 0.2  # inches beside the names above the panels

_RC: dict[RcKeyType, Any] = {
    'font.size': 8, 'axes.titlesize': 8, 'axes.labelsize': 8,
    'xtick.labelsize': 7, 'ytick.labelsize': 7, 'legend.fontsize': 8,
    'axes.spines.top': False, 'axes.spines.right': False,
    'axes.linewidth': 0.6, 'xtick.major.width': 0.6,
    'ytick.major.width': 0.6, 'svg.hashsalt': 'semopo', 'figure.dpi': 100}


@dataclass
class Drawing:
    """A figure and what must be said beside it."""

    figure: Figure
    notes: list[str] = field(default_factory=list)


@contextmanager
def style() -> Iterator[None]:
    """Settings for drawing and saving; afterwards as they were."""
    with matplotlib.rc_context(_RC):
        yield


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write PNG and SVG, whole or not at all; the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, words in (('png', {'dpi': 200, 'metadata': {'Software': None}}),
                        ('svg', {'metadata': {'Date': None}})):
        path = folder / f'{name}.{kind}'
        with whole(path) as partial:
            figure.savefig(partial, format=kind, **words)
        written.append(path)
    return written


def colour(system: str) -> str:
    """A system's colour. A labelled one has one of its own, by its name, the
    same in every report; as it may by chance be like another one, `markers`
    tells them apart."""
    if system in COLOURS:
        return COLOURS[system]
    hue, value = divmod(zlib.crc32(system.encode()), 2 ** 16)
    return to_hex(colorsys.hsv_to_rgb(  # dark enough for text
        hue / 2 ** 16, 0.8, 0.45 + 0.35 * value / 2 ** 16))


def markers(systems: Sequence[str]) -> dict[str, str]:
    """Markers of the labelled ones of all systems that a figure shows."""
    labelled = [name for name in systems if name not in COLOURS]
    return {name: MARKERS[number % len(MARKERS)]
            for number, name in enumerate(labelled)}


def system_name(system: str, ablation: bool = False) -> str:
    """A system as a figure calls it."""
    return ABLATION_NAMES.get(system, system) if ablation else system


def task_label(task: str) -> str:
    """`walker walk`."""
    return task.replace('_', ' ')


def level_label(name: str, task: str) -> str:
    """The level of a set, or all of a name that has none."""
    level = name.removeprefix('vd4rl_').removesuffix('_64px').removeprefix(
        f'{task}_')
    return level.replace('_', ' ')


def set_label(name: str, task: str | None) -> str:
    """`walker walk, medium replay`; V-D4RL's say so."""
    task = task or name
    level = level_label(name, task)
    text = task_label(task) + (f', {level}' if level != task_label(task)
                               else '')
    return f'V-D4RL {text}' if name.startswith('vd4rl_') else text


def by_task(sets: Sequence[str], tasks: Mapping[str, str | None],
            ) -> dict[str, list[str]]:
    """Sets grouped by task, both in their order."""
    found: dict[str, list[str]] = {}
    order = {level: number for number, level in enumerate(LEVELS)}
    for name in sets:
        prefix = 'V-D4RL ' if name.startswith('vd4rl_') else ''
        found.setdefault(prefix + task_label(tasks[name] or name),
                         []).append(name)
    for names in found.values():
        names.sort(key=lambda name: next(
            (order[level] for level in sorted(LEVELS, key=len, reverse=True)
             if name.removesuffix('_64px').endswith(level)), len(order)))
    return found


def lacking(evidence: Evidence, item: str, systems: Sequence[str],
            names: Sequence[str], there: int, word: str = 'not measured',
            ) -> str:
    """Which wanted runs of some systems are not drawn, and why; or nothing.

    `there`: how many runs on the sets `names` have what is drawn. Those that
    have a row and not that are "not measured", not missing.
    """
    cells = [(system, name) for system in systems for name in names]
    wanted = sum(evidence.count(item, *cell) for cell in cells)
    missing = sum(evidence.missing(item, *cell) for cell in cells)
    texts = [missing_text(missing, wanted)] if missing else []
    rest = wanted - missing - there
    if rest > 0:
        of = '' if rest == wanted else f'of {wanted} '
        texts.append(f'{rest} {of}{"run" if wanted == 1 else "runs"} {word}')
    return ',\n'.join(texts)  # panels are narrow


def say_missing(axes: Axes, text: str) -> None:
    """Make a panel of nothing but the word of what is missing."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color('#cccccc')
    axes.text(0.5, 0.5, text, ha='center', va='center',
              transform=axes.transAxes, color=GRAY, fontsize=7)


def title(axes: Axes, text: str, partial: str = '') -> None:
    """A panel's title, and below it which part of its runs is missing."""
    lines = partial.count('\n') + 1 if partial else 0
    axes.set_title(text, pad=4 + 7.5 * lines)
    if partial:
        axes.annotate(partial, (0.5, 1), (0, 3), xycoords='axes fraction',
                      textcoords='offset points', ha='center', va='bottom',
                      fontsize=6, color=GRAY)


def key(figure: Figure, entries: Mapping[str, str],
        marked: Mapping[str, str] = MappingProxyType({})) -> None:
    """Names in their colours above the panels: {name: colour}.

    `marked`: markers of those that have one. A figure of few panels grows as
    wide as they need.
    """
    handles = [Line2D([], [], color=colour, marker=marked.get(name), ms=5,
                      lw=1.2 if name in marked else 4)
               for name, colour in entries.items()]
    legend = figure.legend(
        handles, list(entries), loc='outside upper center', frameon=False,
        ncol=min(len(entries), 4), handlelength=0.8, columnspacing=1.5)
    for text, colour in zip(legend.get_texts(), entries.values(),
                            strict=True):
        text.set_color(colour)
    width, height = figure.get_size_inches()
    needed = legend.get_window_extent().width / figure.dpi + MARGIN
    figure.set_size_inches(max(width, needed), height)


def empty(text: str, width: float = 5, height: float = 1.5) -> Figure:
    """A figure of which everything is missing."""
    figure = Figure((width, height), layout='constrained')
    say_missing(figure.add_subplot(), text)
    return figure
