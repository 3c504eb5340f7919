"""All tables and figures as files, and one page that holds them.

`index.html` needs nothing else: no network, no other file. What is missing
is said to be missing.
"""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dreamerv2_base.files import whole
from semopo_tf.experiments import (
    figures,
    figures_learning,
    grid,
    paper_numbers,
    run_records,
    table_formats,
    tables,
    tables_extra,
)
from semopo_tf.experiments.evidence import Evidence, plural
from semopo_tf.experiments.grid import Cell
from semopo_tf.experiments.paper_numbers import PaperNumbers
from semopo_tf.experiments.results import Attempt, Row

Sections = dict[str, tuple[str, str]]  # heading and HTML, by anchor

TABLE_KINDS = ('md', 'tex', 'html')

# Figures of frames: PNG keeps their pixels at a fraction of SVG's size.
RASTER = ('figure3', 'figure5', 'masks')

STYLE = '''
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem;
  margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { margin-top: 3rem; font-size: 1.2rem; }
nav a { margin-right: .9rem; white-space: nowrap; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
td, th { padding: .15rem .7rem .15rem 0; text-align: left;
  vertical-align: top; white-space: nowrap; }
thead th { border-bottom: 1px solid #8888; }
td.number, th.number { text-align: right; }
td.missing, td.part { color: #a50; white-space: normal; }
td.part { min-width: 6rem; }
@media (prefers-color-scheme: dark) {
  td.missing, td.part { color: #fa5; } }
figure { margin: 1rem 0; }
figure img { background: white; width: 100%; padding: .5rem;
  box-sizing: border-box; }
summary { margin-top: 1rem; cursor: pointer; }
.notes, .muted { font-size: .85rem; opacity: .8; }
.warning { border-left: 4px solid #c80; padding-left: .8rem; }
'''


def write(rows: Sequence[Row], items: Sequence[str], out_dir: Path,
          published_style: bool = False, *,
          wanted: Sequence[Cell] | None = None,
          data: Mapping[str, Path] | None = None,
          paper: PaperNumbers | None = None, sample: bool = False,
          labels: Mapping[str, Sequence[str]] | None = None,
          attempts: Sequence[Attempt] = (),
          offered: Sequence[str] | None = None,
          ) -> list[Path]:
    """Write the files of all items and `index.html`; returns their paths.

    Files of items that an earlier report had and this one has not are removed.

    Args:
      rows: of one scale, each run once.
      items: names of grid.ITEMS.
      published_style: Table 1 also as the paper computed it (10.1).
      wanted: runs that were asked for; what has no row among them is shown
        as missing. By default those of the rows' scale.
      data: folders of sets by name: ranges of returns, and Table 3, of sets
        without a run.
      paper: the paper's numbers; by default those known here.
      sample: sample instead of population standard deviations over seeds.
      labels: the keys that each label of a system stands for.
      attempts: starts of runs, in order: which failed, and how.
      offered: the sets of Table 3; by default all that are known.

    Raises UserError for rows that do not go together and unreadable files.
    """
    out_dir = Path(out_dir)
    found = Evidence(rows, items, wanted, data, attempts, offered)
    paper = paper or paper_numbers.load()
    style = tables.Style(published_style, sample)
    written: list[Path] = []
    sections: Sections = {}
    for name in items:
        if name.startswith('table'):
            table = tables.make(name, found, paper, style)
            paths = write_table(table, out_dir)
            sections[name] = table.heading, _linked(
                table_formats.html_fragment(table), paths)
        else:
            made = figures.make(name, found, paper, out_dir)
            paths = [made.png, made.svg]
            sections[name] = made.heading, _figure(made)
        written += paths
    for made in figures.make_others(found, out_dir):
        sections[made.name] = made.heading, _figure(made)
        written += [made.png, made.svg]
    extra = tables_extra.separation(found)
    if extra is not None:
        paths = write_table(extra, out_dir)
        sections[extra.name] = extra.title, _linked(
            table_formats.html_fragment(extra), paths)
        written += paths
    page = out_dir / 'index.html'
    _write(page, _page(found, sections, labels or {}))
    for path in set(_known(out_dir)) - set(written):
        path.unlink(missing_ok=True)  # of an earlier report
    return [*written, page]


def _known(out_dir: Path) -> list[Path]:
    """Every file that a report may have beside its page."""
    names = [*grid.ITEMS, *(name for name, _, _ in figures.OTHERS),
             tables_extra.NAME]
    return [out_dir / f'{name}.{kind}' for name in names
            for kind in (*TABLE_KINDS, 'png', 'svg')]


def write_table(table: table_formats.Table, out_dir: Path) -> list[Path]:
    """Write a table as .md, .tex and .html; returns the paths."""
    texts = (
        table_formats.markdown(table), table_formats.latex(table),
        _document(table.heading, table_formats.html_fragment(table)))
    paths = [out_dir / f'{table.name}.{kind}' for kind in TABLE_KINDS]
    for path, text in zip(paths, texts, strict=True):
        _write(path, text)
    return paths


# Pieces of the page.


def _page(found: Evidence, sections: Sections,
          labels: Mapping[str, Sequence[str]]) -> str:
    title = f'SeMOPO: the paper reproduced, scale {found.scale}'
    links = ' '.join(
        f'<a href="#{anchor}">{html.escape(heading.split(".")[0])}</a>'
        for anchor, (heading, _) in sections.items())
    return _document(title, f'<h1>{html.escape(title)}</h1>'
                     f'<nav>{links}</nav>{_summary(found, labels)}'
                     + ''.join(text for _, text in sections.values())
                     + _runs(found))


def _summary(found: Evidence, labels: Mapping[str, Sequence[str]]) -> str:
    """What there is, what is missing, of which code and machines."""
    wanted = sum(len(cell.variants) for cell in found.wanted)
    missing = found.missing_runs()
    rows = found.rows
    runs = run_records.once(rows)
    there = found.there()
    beside = len(rows) - there + len(found.others)
    facts = {
        'rows': f'{there} of {wanted} wanted'
                + (f', {beside} others' if beside else ''),
        'commits': _counted(map(run_records.commit, rows)),
        'backgrounds': _counted(map(run_records.background, runs)),
        'devices': ', '.join(sorted({row.device for row in rows})),
        'hours': f'{run_records.hours(rows):.1f} in all',
        'finished': (f'{min(row.finished for row in rows)} to '
                     f'{max(row.finished for row in rows)}') if rows else '',
        **{f'[{label}]': ' '.join(keys) for label, keys in labels.items()}}
    body = ''.join(f'<tr><th>{name}</th><td>{html.escape(text or "–")}</td>'
                   '</tr>' for name, text in facts.items())
    unasked = found.unasked(*(item.name for item in found.items))
    warning = _warning(html.escape(unasked)) if unasked else ''
    if missing:
        names = ''.join(f'<li>{html.escape(f"{name}: {why}")}</li>'
                        for name, why in missing.items())
        warning += _warning(
            f'missing: {plural(len(missing), "run")}',
            f'<details><summary>which</summary><ul>{names}</ul></details>')
    said = Counter(text for row in runs
                   for text in dict.fromkeys(run_records.warnings(row)))
    if said:
        lines = ''.join(f'<li>{html.escape(text)} ({plural(count, "run")})'
                        '</li>' for text, count in said.items())
        warning += _warning('Runs warned:', f'<ul>{lines}</ul>')
    return f'<table>{body}</table>{warning}'


def _counted(texts: Iterable[str]) -> str:
    """`one (3), other (1)`."""
    return ', '.join(f'{text} ({count})'
                     for text, count in Counter(texts).items())


def _warning(text: str, more: str = '') -> str:
    return f'<div class="warning"><p>{text}</p>{more}</div>'


def _runs(found: Evidence) -> str:
    """Every row, so that each number can be followed to its run."""
    head = ('run', 'n', 'mean', 'min', 'max', 'last five', 'best', 'updates',
            'hours', 'commit', 'config', 'data')
    lines = []
    for row in found.rows:
        returns = row.returns or [float('nan')]
        cells = (row.run, len(row.returns),
                 f'{sum(returns) / len(returns):.2f}', f'{min(returns):.2f}',
                 f'{max(returns):.2f}', *_while_learning(found, row),
                 row.checkpoint_step,
                 f'{row.hours:.2f}', (row.commit or '–')[:8],
                 row.config_hash[:8] or '–', row.data_digest[:8] or '–')
        lines.append('<tr>' + ''.join(
            f'<td{" class=number" if 0 < place < 9 else ""}>'
            f'{html.escape(str(cell))}</td>'
            for place, cell in enumerate(cells)) + '</tr>')
    heads = ''.join(f'<th{" class=number" if 0 < place < 9 else ""}>{name}'
                    '</th>' for place, name in enumerate(head))
    return ('<section id="rows"><h2>Result rows</h2><p>Raw returns of the '
            'final episodes. Last five, best: of the means of all evaluations '
            'of a run, the final one among them; tables show neither.</p>'
            '<details><summary>all '
            f'{len(lines)}</summary><div class="wide"><table><thead><tr>'
            f'{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
            '</div></details></section>')


def _while_learning(found: Evidence, row: Row) -> tuple[str, str]:
    """Mean of a run's last five evaluations, and its best one.

    The policies of one run differ; protocols of the field differ in which of
    them they report.
    """
    curve = (figures_learning.evaluated(found, row)
             if row.logdir and not row.variant else None)
    if curve is None or not len(curve.values):
        return '–', '–'
    return f'{curve.values[-5:].mean():.2f}', f'{curve.values.max():.2f}'


def _figure(made: figures.Made) -> str:
    path, kind = ((made.png, 'png') if made.name in RASTER
                  else (made.svg, 'svg+xml'))
    picture = base64.b64encode(path.read_bytes()).decode()
    notes = ''.join(f'<li>{html.escape(note)}</li>' for note in made.notes)
    return _linked(
        f'<section id="{made.name}"><h2>{html.escape(made.heading)}</h2>'
        f'<figure><img alt="{html.escape(made.heading)}" '
        f'src="data:image/{kind};base64,{picture}"></figure>'
        f'<ul class="notes">{notes}</ul></section>', [made.png, made.svg])


def _linked(section: str, paths: Sequence[Path]) -> str:
    links = ', '.join(f'<a href="{path.name}">{path.name}</a>'
                      for path in paths)
    return section.removesuffix('</section>') + (
        f'<p class="muted">Files: {links}</p></section>')


def _document(title: str, body: str) -> str:
    return ('<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            f'<title>{html.escape(title)}</title><style>{STYLE}</style>'
            f'</head><body>{body}</body></html>')


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        partial.write_text(text, 'utf-8')
