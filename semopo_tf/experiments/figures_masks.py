"""What was measured beyond the paper: the learned mask on fresh frames, above
the simulator's own segmentation. A figure for the page, where any run has it.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from semopo_tf.experiments.evidence import Evidence
from semopo_tf.experiments.figure_style import Drawing, set_label
from semopo_tf.experiments.results import Row

NAME = 'masks'
TITLE = 'Learned masks (not in the paper)'
MOST = 12  # runs in a picture: at full size there are hundreds


def masks(evidence: Evidence) -> Drawing | None:
    """Three lines of frames for every run; None if no run has a mask.

    Of more than `MOST` runs those of the lowest seeds, and how many are not
    shown is said.
    """
    rows = [row for name in dict.fromkeys(row.set for row in evidence.rows)
            for system in evidence.every_system()
            for row in evidence.runs(system, name)
            if evidence.quantity(row, 'separation/mask') is not None]
    if not rows:
        return None
    shown = sorted(rows, key=lambda row: row.seed)[:MOST]
    strips = [(row, _strip(evidence, row)) for row in rows if row in shown]
    figure = Figure((7.2, 2.7 * len(strips) + 0.1), layout='constrained')
    lines = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    for axes, (row, strip) in zip(lines, strips, strict=True):
        axes.imshow(strip, interpolation='nearest')
        axes.set_title(f'{set_label(row.set, evidence.task(row.set))}: '
                       f'{row.system}, seed {row.seed}')
        axes.axis('off')
    return Drawing(figure, [
        'Fresh frames, chosen by the seed alone; the learned mask (white: '
        'drawn by the endogenous stream); the robot as the simulator knows '
        'it.',
        *([f'{len(rows) - MOST} more runs were measured and are not shown.']
          if len(rows) > MOST else [])])


def _strip(evidence: Evidence, row: Row) -> np.ndarray:
    """Frames, masks and truths of a run beside and above each other:
    [3 H, n W, 3], values in 0 … 1."""
    image, mask, truth = (evidence.measured(row, f'separation/{key}')
                          for key in ('image', 'mask', 'truth'))
    lines = (image / 255, *(np.repeat(array[..., None].astype(float), 3, -1)
                            for array in (mask, truth)))
    return np.concatenate([np.concatenate(list(line), 1) for line in lines])
