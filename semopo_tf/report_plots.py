"""The plots of a run's report, as SVG bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Shown first, in this order; every other metric follows by name.
ORDER = ('model_loss', 'image_loss', 'model_kl', 'reward_loss', 'disen_loss',
         'disen/kl', 'actor_loss', 'critic_loss', 'critic_target_q',
         'critic_q1', 'critic_q2', 'actor_bc_loss', 'reward_mean',
         'penalty_mean', 'lambda', 'eval_return')


def curves(rows: Sequence[dict[str, Any]]) -> bytes:
    """Every metric of one phase over its updates, small multiples.

    Those of the final evaluation are one number each: `returns` shows them.
    """
    found = {name for row in rows for name in row
             if not name.startswith('final_')} - {'phase', 'step'}
    names = sorted(found, key=lambda n: (
        ORDER.index(n) if n in ORDER else len(ORDER), n))
    columns = min(4, max(1, len(names)))
    lines = max(1, math.ceil(len(names) / columns))
    width, height = 3.1 * columns, 2.0 * lines
    figure = Figure((width, height))
    # Margins in inches: to have them fitted takes longer than the drawing.
    figure.subplots_adjust(
        left=.55 / width, right=1 - .1 / width, bottom=.3 / height,
        top=1 - .25 / height, wspace=.6 / 2.5, hspace=.6 / 1.4)
    for number, name in enumerate(names):
        axes = figure.add_subplot(lines, columns, number + 1)
        points = [(row['step'], float(row[name])) for row in rows
                  if name in row]
        axes.plot(*zip(*points, strict=True), lw=1,
                  marker='.' if len(points) < 12 else None)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.yaxis.get_offset_text().set_fontsize(7)
        axes.grid(alpha=.3)
    return _svg(figure)


def returns(data: Sequence[float], final: Sequence[float]) -> bytes:
    """Returns in the data as a histogram, final episodes as dots."""
    figure, axes = _single()
    if len(data):
        axes.hist(data, bins=min(30, max(5, len(data) // 2)), alpha=.6,
                  label=f'data ({len(data)} episodes)')
    if len(final):
        level = axes.get_ylim()[1] * np.linspace(.3, .7, len(final))
        axes.plot(final, level, 'o', ms=5, color='tab:red', alpha=.7,
                  label=f'final policy ({len(final)} episodes)')
        axes.axvline(float(np.mean(final)), color='tab:red', lw=1)
    axes.set_xlabel('return of an episode')
    axes.set_ylabel('episodes')
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    return _svg(figure)


def evaluations(episodes: Sequence[dict[str, Any]]) -> bytes:
    """Returns of evaluation episodes over the updates of their phase."""
    figure, axes = _single()
    if episodes:
        steps = [row['step'] for row in episodes]
        axes.plot(steps, [row['return'] for row in episodes], '.', alpha=.5)
        means = {step: np.mean([row['return'] for row in episodes
                                if row['step'] == step])
                 for step in sorted(set(steps))}
        axes.plot(list(means), list(means.values()), '-', lw=1,
                  label='mean')
        axes.legend(fontsize=8)
    axes.set_xlabel('policy updates')
    axes.set_ylabel('return')
    axes.grid(alpha=.3)
    return _svg(figure)


def _single() -> tuple[Figure, Axes]:
    figure = Figure((5, 3))
    return figure, figure.add_axes((.13, .16, .83, .81))


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with rc_context({'svg.fonttype': 'none'}):  # text, not its outlines
        figure.savefig(buffer, format='svg', metadata={'Date': None})
    return buffer.getvalue()
