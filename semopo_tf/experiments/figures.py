"""Figures 2-10 and two that the paper has not, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from semopo_tf.experiments import figures_learning, figures_masks, grid
from semopo_tf.experiments.evidence import Evidence
from semopo_tf.experiments.figure_style import Drawing, save, style
from semopo_tf.experiments.figures_bars import figure2, figure7, figure8
from semopo_tf.experiments.figures_curves import figure6, figure9
from semopo_tf.experiments.figures_images import figure3, figure5
from semopo_tf.experiments.figures_scores import figure4, figure10
from semopo_tf.experiments.paper_numbers import PaperNumbers

MAKERS: dict[str, Callable[[Evidence, PaperNumbers], Drawing]] = {
    'figure2': figure2, 'figure3': figure3, 'figure4': figure4,
    'figure5': figure5, 'figure6': figure6, 'figure7': figure7,
    'figure8': figure8, 'figure9': figure9, 'figure10': figure10}

# Name, title and maker of figures that the paper has not.
OTHERS: tuple[tuple[str, str, Callable[[Evidence], Drawing | None]], ...] = (
    (figures_learning.NAME, figures_learning.TITLE,
     figures_learning.learning),
    (figures_masks.NAME, figures_masks.TITLE, figures_masks.masks))


@dataclass(frozen=True)
class Made:
    """A figure that was written."""

    name: str
    title: str
    png: Path
    svg: Path
    notes: tuple[str, ...]

    @property
    def heading(self) -> str:
        """`Figure 2. Uncertainty of …`; the title of what is not the paper's.
        """
        if self.name not in MAKERS:
            return self.title
        return f'Figure {self.name.removeprefix("figure")}. {self.title}'


def make(name: str, evidence: Evidence, paper: PaperNumbers, folder: Path,
         ) -> Made:
    """Draw a figure by its name, 'figure2' … 'figure10', into a folder."""
    with style():
        drawing = MAKERS[name](evidence, paper)
        png, svg = save(drawing.figure, folder, name)
    notes = (*drawing.notes, *evidence.notes(name))
    return Made(name, grid.ITEMS[name].title, png, svg, notes)


def make_others(evidence: Evidence, folder: Path) -> list[Made]:
    """Draw what is not in the paper and some run has, into a folder."""
    made = []
    for name, title, maker in OTHERS:
        with style():
            drawing = maker(evidence)
            if drawing is None:
                continue
            png, svg = save(drawing.figure, folder, name)
        made.append(Made(name, title, png, svg, tuple(drawing.notes)))
    return made
