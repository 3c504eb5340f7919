"""Figures 2-10 and the learning curves, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from semopo_tf.experiments import figures_learning, grid
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
    return Made(name, grid.ITEMS[name].title, png, svg, tuple(drawing.notes))


def make_learning(evidence: Evidence, folder: Path) -> Made | None:
    """Draw the learning curves into a folder; None where no run has any."""
    with style():
        drawing = figures_learning.learning(evidence)
        if drawing is None:
            return None
        png, svg = save(drawing.figure, folder, figures_learning.NAME)
    return Made(figures_learning.NAME, figures_learning.TITLE, png, svg,
                tuple(drawing.notes))
