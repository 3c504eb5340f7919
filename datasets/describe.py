"""What a set looks like: `run.py data describe`, one HTML page of its own.

Returns, frames, actions and their entropy (baselines 10.6).
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from datasets import entropy, readers
from datasets.facts import is_image
from datasets.table3 import Statistics
from datasets.validate import Report, render
from dreamerv2_base.errors import UserError
from dreamerv2_base.files import whole

EDGE = 0.99  # actions beyond count as at their limit
SHEET_ROWS, SHEET_COLUMNS = 7, 10
ZOOM = 2  # of the contact sheet, so that pixels can be seen

STYLE = '''
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem;
  margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2rem; font-size: 1.2rem; }
pre { white-space: pre-wrap; padding: .8rem; border: 1px solid #8886; }
table { border-collapse: collapse; }
td, th { padding: .15rem .9rem .15rem 0; text-align: right; }
img { max-width: 100%; background: white; }
.sheet { image-rendering: pixelated; } .plots { display: flex;
  flex-wrap: wrap; gap: 1rem; } p { max-width: 46rem; }
'''


@dataclass(frozen=True)
class Actions:
    """Statistics of the actions of a set.

    Attributes, per dimension [A]: `mean`, `std`, `low`, `high` (extremes) and
    `limit`, the share beyond ±0.99; `shares`: of the 50 bins on [-1, 1],
    [A, 50]. In nats, as in `datasets.entropy`: `histogram_entropy` and
    `gaussian_entropy`, -inf where the actions fill fewer dimensions.
    """

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray
    limit: np.ndarray
    shares: np.ndarray
    histogram_entropy: float
    gaussian_entropy: float


def action_statistics(actions: np.ndarray) -> Actions:
    """Statistics of actions [n, A], n > 0, without those of reset rows."""
    actions = np.asarray(actions, np.float64)
    return Actions(
        actions.mean(0), actions.std(0), actions.min(0), actions.max(0),
        (np.abs(actions) > EDGE).mean(0), entropy.histogram_shares(actions),
        entropy.histogram_entropy(actions),
        entropy.gaussian_entropy(actions))


def describe(report: Report, path: Path) -> Path:
    """Write the page of a validated set to `path`.

    Raises UserError for a set without readable episodes.
    """
    actions, sheet, taken = _read(report)
    found = action_statistics(actions)
    body = [
        f'<h1>{html.escape(_title(report))}</h1>',
        '<h2>Is it the set?</h2>', f'<pre>{html.escape(render(report))}</pre>',
        '<h2>Returns</h2><div class="plots">',
        _svg(_returns_figure(report), 'returns'),
        _svg(_order_figure(report), 'returns in the order of names'), '</div>',
        '<h2>Frames</h2>',
        '<p>A row is an episode, from the lowest return to the highest '
        f'({html.escape(", ".join(taken))}); its columns are evenly spread '
        'over time.</p>', sheet,
        '<h2>Actions</h2>', _entropy_text(found, len(actions)),
        _action_table(found), _svg(_action_figure(found), 'actions')]
    page = ('<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            f'<title>{html.escape(_title(report))}</title>'
            f'<style>{STYLE}</style></head><body>{"".join(body)}</body>'
            '</html>')
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        partial.write_text(page, 'utf-8')
    return path


def contact_sheet(images: Sequence[np.ndarray]) -> np.ndarray:
    """One row per episode, uint8 [rows·(H+2), columns·(W+2), 3].

    images: uint8 [L, H, W, 3] each, of one size.
    """
    rows = []
    for image in images:
        places = np.linspace(0, len(image) - 1, SHEET_COLUMNS).astype(int)
        frames = np.pad(image[places], ((0, 0), (1, 1), (1, 1), (0, 0)),
                        constant_values=255)
        rows.append(np.concatenate(list(frames), axis=1))
    return np.concatenate(rows)


def _read(report: Report) -> tuple[np.ndarray, str, list[str]]:
    """Actions [n, A], the contact sheet, and the returns of its rows."""
    chosen = _chosen(report)
    actions, images = [], {}
    for file in readers.episode_files(report.path):
        try:
            for name, arrays in readers.read_file(file):
                action = arrays.get('action')
                if action is not None and action.ndim == 2 and (
                        np.isfinite(action).all()):
                    # Row 0 holds no action but the zeros of the reset.
                    actions.append(action[1:].astype(np.float32))
                if name in chosen and is_image(arrays.get('image')):
                    images[name] = arrays['image']
        except UserError:
            continue  # named among the findings, which the page shows
    sizes = {image.shape[1:] for image in images.values()}
    widths = {action.shape[1] for action in actions}
    if len(widths) != 1 or not sum(map(len, actions)):
        raise UserError(f'{report.path}: expected episodes with actions of '
                        f'one size, found {sorted(widths) or "none"}; see '
                        'run.py data validate')
    order = [name for name in chosen if name in images]
    sheet = (_png(contact_sheet([images[name] for name in order]))
             if len(sizes) == 1 else '<p>frames of several sizes or none</p>')
    return (np.concatenate(actions), sheet,
            [f'{chosen[name]:.1f}' for name in order])


def _chosen(report: Report) -> dict[str, float]:
    """Names and returns of episodes evenly spread over the returns."""
    episodes = sorted((one for one in report.episodes if 'return' in one
                       and 'look' in one), key=lambda one: one['return'])
    if not episodes:
        return {}
    places = np.unique(np.linspace(
        0, len(episodes) - 1, SHEET_ROWS).astype(int))
    return {episodes[place]['name']: episodes[place]['return']
            for place in places}


def _title(report: Report) -> str:
    return report.named.name if report.named else report.path.name


def _returns_figure(report: Report) -> Figure:
    figure = Figure((5.7, 3.2), layout='constrained')
    axes = figure.add_subplot()
    values = report.returns
    if len(values):
        axes.hist(values, bins=min(40, max(5, len(values) // 5)), alpha=.7)
    theirs = report.named.statistics if report.named else Statistics()
    for name, value in theirs.known().items():
        if name == 'std':  # a width, no place on this axis
            continue
        axes.axvline(value, color='tab:red', lw=1, ls='--')
        axes.text(value, .98, f' {name}', rotation=90, fontsize=7,
                  va='top', transform=axes.get_xaxis_transform())
    axes.set_xlabel('return of an episode' + (
        ' (dashed: known of Table 3)' if theirs.known() else ''))
    axes.set_ylabel('episodes')
    return figure


def _order_figure(report: Report) -> Figure:
    figure = Figure((5.7, 3.2), layout='constrained')
    axes = figure.add_subplot()
    axes.plot(report.returns, '.', ms=4)
    axes.set_xlabel('episode, in the order of names (of time)')
    axes.set_ylabel('return')
    return figure


def _action_figure(found: Actions) -> Figure:
    count = len(found.shares)
    columns = min(6, count)
    lines = -(-count // columns)
    figure = Figure((2 * columns, 1.5 * lines + .4), layout='constrained')
    edges = np.linspace(-1, 1, entropy.BINS + 1)
    for number, shares in enumerate(found.shares):
        axes = figure.add_subplot(lines, columns, number + 1)
        axes.stairs(shares, edges, fill=True, alpha=.7)
        axes.set_title(f'dimension {number}', fontsize=8)
        axes.tick_params(labelsize=6)
    return figure


def _entropy_text(found: Actions, count: int) -> str:
    gaussian = (f'{found.gaussian_entropy:.3f}'
                if np.isfinite(found.gaussian_entropy) else '−∞')
    return (
        f'<p>{count:,} actions (those of reset rows left out). Entropy: '
        f'<b>{found.histogram_entropy:.3f}</b> nats, the sum over dimensions '
        f'of a histogram of {entropy.BINS} bins on [−1, 1] (at most '
        f'{len(found.shares) * np.log(entropy.BINS):.2f}); '
        f'<b>{gaussian}</b> nats, that of a Gaussian of their covariance.</p>'
    )


def _action_table(found: Actions) -> str:
    head = ''.join(f'<th>{name}</th>' for name in (
        'dimension', 'mean', 'std', 'least', 'most', 'at ±1'))
    rows = ''.join(
        f'<tr><td>{number}</td>' + ''.join(
            f'<td>{getattr(found, name)[number]:.3f}</td>'
            for name in ('mean', 'std', 'low', 'high'))
        + f'<td>{100 * found.limit[number]:.1f} %</td></tr>'
        for number in range(len(found.mean)))
    return f'<table><tr>{head}</tr>{rows}</table>'


def _svg(figure: Figure, text: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='svg')
    code = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{text}" src="data:image/svg+xml;base64,{code}">'


def _png(image: np.ndarray) -> str:
    import cv2
    height, width = image.shape[:2]
    done, data = cv2.imencode('.png', image[..., ::-1])
    assert done, 'a PNG can hold any uint8 image'
    code = base64.b64encode(data.tobytes()).decode()
    return (f'<img class="sheet" alt="frames" width="{width * ZOOM}" '
            f'height="{height * ZOOM}" style="height:auto" '
            f'src="data:image/png;base64,{code}">')
