"""What was measured beyond the paper: the learned mask on fresh frames, above
the simulator's own segmentation. A figure for the page, where any run has it.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from semopo_tf.experiments.evidence import Evidence
from semopo_tf.experiments.figure_style import Drawing, set_label
from semopo_tf.experiments.grid import SYSTEMS
from semopo_tf.experiments.results import Row

NAME = 'masks'
TITLE = 'Learned masks (not in the paper)'


def masks(evidence: Evidence) -> Drawing | None:
    """Three lines of frames for every run; None if no run has a mask."""
    strips = [(row, strip) for name in dict.fromkeys(
        row.set for row in evidence.rows) for system in SYSTEMS
        for row in evidence.runs(system, name)
        if (strip := _strip(evidence, row)) is not None]
    if not strips:
        return None
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
        'it.'])


def _strip(evidence: Evidence, row: Row) -> np.ndarray | None:
    """Frames, masks and truths of a run beside and above each other:
    [3 H, n W, 3], values in 0 … 1."""
    image, mask, truth = (evidence.quantity(row, f'separation/{key}')
                          for key in ('image', 'mask', 'truth'))
    if image is None or mask is None or truth is None:
        return None
    lines = (image / 255, *(np.repeat(array[..., None].astype(float), 3, -1)
                            for array in (mask, truth)))
    return np.concatenate([np.concatenate(list(line), 1) for line in lines])
