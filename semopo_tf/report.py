"""`report.html` of a run: one file, no network, made from its records.

What is missing in the run folder is said to be missing, never made up.
"""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

import numpy as np

from dreamerv2_base.files import whole
from dreamerv2_base.logger import read_record, read_rows
from semopo_tf import report_plots, settings
from semopo_tf.experiments import paper_numbers

VIDEO_BUDGET = 12 * 2 ** 20  # bytes of films that a page may hold

CAPTIONS = {
    'policy': 'the policy in its environment',
    'openl_joint': 'both streams through the mask: truth, model, error',
    'openl_main': 'endogenous stream alone: truth, model, error',
    'openl_disen': 'exogenous stream alone: truth, model, error',
    'openl_mask': 'mask: white is endogenous',
    'openl_image': 'model: truth, model, error',
    'gating': 'newest frame, its mask (white passes), the gated frame',
}

STYLE = '''
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem;
  margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.5rem; font-size: 1.2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0;
  text-align: left; vertical-align: top; overflow-wrap: anywhere; }
.plots, .videos { display: flex; flex-wrap: wrap; gap: 1rem; }
.plots img { background: white; max-width: 100%; }
figure { margin: 0; max-width: 100%; } figcaption { font-size: .9rem; }
video { max-width: 100%; max-height: 26rem; image-rendering: pixelated;
  display: block; }
.note { border-left: 4px solid #c80; padding-left: .8rem; }
.muted { opacity: .7; } input { font: inherit; padding: .2rem; width: 20rem; }
'''

FILTER = '''
const box = document.getElementById('filter');
box.addEventListener('input', () => {
  for (const row of document.querySelectorAll('#config tr'))
    row.hidden = !row.textContent.includes(box.value);
});
'''


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder and return its path."""
    run = _Run(Path(folder))
    body = '\n'.join(part for part in (
        _title(run), _warnings(run), _summary(run), _returns(run),
        _curves(run), _videos(run), _timings(run), _settings(run),
        _versions(run)) if part)
    page = ('<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            f'<title>{run.name}</title><style>{STYLE}</style></head><body>'
            f'{body}<script>{FILTER}</script></body></html>')
    path = run.folder / 'report.html'
    with whole(path) as partial:
        partial.write_text(page, 'utf-8')
    return path


class _Run:
    """The records of a run folder, empty where they are missing."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.name = html.escape(folder.name)
        self.config = settings.saved(folder / 'config.yaml')
        self.metrics = read_rows(folder / 'metrics.jsonl')
        self.episodes = read_rows(folder / 'episodes.jsonl')
        self.timings = read_rows(folder / 'timings.jsonl')
        self.videos = sorted((folder / 'videos').glob('*.mp4'))

    def read(self, name: str, default: Any) -> Any:
        path = self.folder / name
        return read_record(path) if path.exists() else default

    @property
    def final(self) -> list[float]:
        return [row['return'] for row in self.episodes if row['final']]


def _title(run: _Run) -> str:
    config = run.config
    start = run.read('start.json', {})
    presets = ', '.join(start.get('presets', [])) or 'defaults'
    last = run.metrics[-1] if run.metrics else None
    state = ('finished' if run.final else
             f'at update {last["step"]} of phase {last["phase"]}' if last
             else 'nothing trained yet')
    return (f'<h1>{html.escape(config.task)} · {html.escape(presets)} · seed '
            f'{config.seed}</h1><p>{run.name}: {state}</p>')


def _warnings(run: _Run) -> str:
    notes = list(run.read('warnings.json', []))
    data = run.read('data.json', {})
    if data.get('skipped'):
        notes.append(f'{len(data["skipped"])} broken episode files were left '
                     f'out, first: {data["skipped"][0]}')
    return ''.join(f'<p class="note">{html.escape(note)}</p>'
                   for note in notes)


def _summary(run: _Run) -> str:
    rows = []
    if run.final:
        rows.append(('final return', f'{np.mean(run.final):.1f} ± '
                     f'{np.std(run.final):.1f} (population std of '
                     f'{len(run.final)} episodes)'))
    else:
        rows.append(('final return', 'not evaluated yet'))
    data = run.read('data.json', {})
    if data.get('returns'):  # a run that collects its own starts with none
        returns = np.array(data['returns'])
        rows.append(('returns in the data', f'mean {returns.mean():.1f}, min '
                     f'{returns.min():.1f}, max {returns.max():.1f} '
                     f'({len(returns)} episodes)'))
    for path in sorted(run.folder.glob('sampling_*.json')):
        counts = read_record(path)
        rows.append((f'data of phase {path.stem[9:]}', ', '.join(
            f'{key.replace("_", " ")} {value}'
            for key, value in counts.items())))
    paper = paper_numbers.of_run(
        [Path(folder) for folder in run.config.offline_dir],
        run.read('start.json', {}).get('presets', []))
    if paper.mean is not None:
        spread = '' if paper.std is None else f' ± {paper.std:g}'
        rows.append(('the paper, at its size (Table 5)',
                     f'{paper.mean:g}{spread}'))
    return '<h2>Result</h2>' + _table(rows)


def _returns(run: _Run) -> str:
    data = run.read('data.json', {})
    if not data and not run.episodes:
        return ''
    pictures = [report_plots.returns(data.get('returns', []), run.final),
                report_plots.evaluations(run.episodes)]
    return '<h2>Returns</h2>' + _plots(pictures)


def _curves(run: _Run) -> str:
    if not run.metrics:
        return '<h2>Learning curves</h2><p>No updates yet.</p>'
    phases = list(dict.fromkeys(row['phase'] for row in run.metrics))
    parts = ['<h2>Learning curves</h2>']
    for phase in phases:
        rows = [row for row in run.metrics if row['phase'] == phase]
        parts.append(f'<h3>Phase {html.escape(phase)}</h3>')
        parts.append(_plots([report_plots.curves(rows)]))
    return ''.join(parts)


def _videos(run: _Run) -> str:
    if not run.videos:
        return '<h2>Videos</h2><p>None recorded.</p>'
    newest: dict[tuple[str, str], Path] = {}
    for path in run.videos:  # sorted by step within a phase
        phase, _, name = path.stem.split('_', 2)
        newest[(phase, name)] = path
    parts, size, left_out = [], 0, 0
    for (phase, name), path in newest.items():
        more = path.stat().st_size
        if size + more > VIDEO_BUDGET:  # a smaller one may still fit
            left_out += 1
            continue
        size += more
        step = int(path.stem.split('_', 2)[1])
        text = CAPTIONS.get(name, name)
        parts.append(
            '<figure><video controls loop muted playsinline src="data:video/'
            f'mp4;base64,{_base64(path)}"></video><figcaption>{text}'
            f'<br><span class="muted">phase {phase}, update {step}</span>'
            '</figcaption></figure>')
    note = f'<p>{left_out} more in videos/.</p>' if left_out else ''
    predicted = any(name.startswith('openl_') for _, name in newest)
    how = ('<p>Of the model\'s films five frames are filtered, the rest is '
           'predicted from the actions alone; chunks side by side.</p>'
           if predicted else '')
    return (f'<h2>Videos</h2>{how}'
            f'<div class="videos">{"".join(parts)}</div>{note}')


def _timings(run: _Run) -> str:
    rows = []
    for phase in dict.fromkeys(row['phase'] for row in run.timings):
        mine = [row for row in run.timings if row['phase'] == phase]
        seconds = sum(row['seconds'] for row in mine)
        rate = np.median([row['updates_per_second'] for row in mine])
        wait = np.median([row['data_wait'] for row in mine])
        rows.append((f'phase {phase}', f'{rate:.2f} updates/s (median), '
                     f'{100 * wait:.1f} % of the time waiting for data, '
                     f'{seconds / 3600:.2f} h in all'))
    return '<h2>Time</h2>' + (_table(rows) if rows else '<p>None.</p>')


def _settings(run: _Run) -> str:
    changed = set(run.read('start.json', {}).get('changed', []))
    flat = run.config.flat()
    ordered = [k for k in flat if k in changed] + [
        k for k in flat if k not in changed]

    def name(key: str) -> str:
        text = html.escape(key)
        return f'<b>{text}</b>' if key in changed else text

    rows = ''.join(
        f'<tr><td>{name(k)}</td><td>{html.escape(str(flat[k]))}</td></tr>'
        for k in ordered)
    return ('<h2>Configuration</h2><p>Bold: other than the defaults. '
            '<input id="filter" placeholder="filter" aria-label="filter">'
            f'</p><table id="config">{rows}</table>')


def _versions(run: _Run) -> str:
    versions = run.read('versions.json', {})
    return '<h2>Versions</h2>' + _table(
        [(key, str(value)) for key, value in versions.items()])


def _table(rows: list[tuple[str, str]]) -> str:
    return '<table>' + ''.join(
        f'<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>'
        for a, b in rows) + '</table>'


def _plots(pictures: list[bytes]) -> str:
    return '<div class="plots">' + ''.join(
        '<img alt="plot" src="data:image/svg+xml;base64,'
        f'{base64.b64encode(picture).decode()}">' for picture in pictures
    ) + '</div>'


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
