"""What a table is made of, and how it is written: Markdown, LaTeX, HTML.

Cells are texts with Unicode signs (−, ±, ×, –); each format writes them its
own way.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

NONE = '–'


@dataclass(frozen=True)
class Value:
    """The text of a cell and the ids of the runs that it rests on."""

    text: str
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """A caption, column heads and lines of values.

    `texts`: how many columns at the left are words, not numbers.
    """

    caption: str
    header: tuple[str, ...]
    lines: tuple[tuple[Value, ...], ...]
    texts: int = 1


@dataclass(frozen=True)
class Table:
    """A table of the paper, or one of our own: blocks, then notes.

    `scale`: of the runs behind it.
    """

    name: str
    title: str
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()
    scale: str = 'paper'

    @property
    def heading(self) -> str:
        """`Table 1. Normalised returns … (scale mini)`"""
        number = self.name.removeprefix('table')
        first = f'Table {number}. ' if number != self.name else ''
        return f'{first}{self.title} (scale {self.scale})'


# Numbers.


def fixed(value: float, digits: int) -> str:
    """A number with so many digits; never −0."""
    text = f'{value:.{digits}f}'
    if float(text) == 0:
        text = text.removeprefix('-')
    return text.replace('-', '−')


def signed(value: float, digits: int) -> str:
    """As `fixed`, with + above zero."""
    text = fixed(value, digits)
    return text if text.startswith('−') or float(text) == 0 else f'+{text}'


# Formats.


def markdown(table: Table) -> str:
    """GitHub's Markdown."""
    parts = [f'# {table.heading}\n']
    for block in table.blocks:
        lines = [_bars(block.header),
                 _bars(['---'] * block.texts + ['---:'] * (
                     len(block.header) - block.texts))]
        lines += [_bars([value.text for value in line])
                  for line in block.lines]
        parts.append(f'**{block.caption}**\n\n' + '\n'.join(lines) + '\n')
    parts += [f'* {note}' for note in table.notes]
    return '\n'.join(parts) + '\n'


def latex(table: Table) -> str:
    r"""Tabulars for \input; the preamble needs booktabs alone.

    Captions and notes are comments, but for notes on what cells show († and
    the like).
    """
    parts = [f'% {_tex(table.heading)}; needs \\usepackage{{booktabs}}']
    for block in table.blocks:
        columns = 'l' * block.texts + 'r' * (
            len(block.header) - block.texts)
        lines = [_ampersands(block.header)]
        lines += [_ampersands([value.text for value in line])
                  for line in block.lines]
        lines.insert(1, '\\midrule')
        parts += [f'% {_tex(block.caption)}',
                  f'\\begin{{tabular}}{{{columns}}}', '\\toprule', *lines,
                  '\\bottomrule', '\\end{tabular}', '']
    said = _signs(table)
    for note in table.notes:
        shown = note.split()[0].strip(':,.').lower() in said
        parts.append(f'{"" if shown else "% "}{_tex(note)}'
                     + '\\par' * shown)
    return '\n'.join(parts) + '\n'


def html_fragment(table: Table) -> str:
    """A section for a page; a cell's title names the runs behind it.

    All blocks but the first can be folded away.
    """
    parts = [f'<section id="{html.escape(table.name)}">'
             f'<h2>{html.escape(table.heading)}</h2>']
    for number, block in enumerate(table.blocks):
        body = _html_block(block)
        caption = html.escape(block.caption)
        parts.append(
            f'<p>{caption}</p>{body}' if number == 0 else
            f'<details open><summary>{caption}</summary>{body}</details>')
    if table.notes:
        parts.append('<ul class="notes">' + ''.join(
            f'<li>{html.escape(note)}</li>' for note in table.notes)
            + '</ul>')
    return ''.join(parts) + '</section>'


# Pieces.


def _signs(table: Table) -> set[str]:
    """The words of heads and cells, in small letters."""
    return {word.lower() for block in table.blocks
            for text in (*block.header, *(
                value.text for line in block.lines for value in line))
            for word in text.split()}


def _html_block(block: Block) -> str:
    def cell(tag: str, number: int, text: str, title: str = '') -> str:
        kinds = ['number'] * (number >= block.texts)
        kinds += ['missing'] * text.startswith('missing')
        kinds += ['part'] * ('(missing' in text)
        kind = f' class="{" ".join(kinds)}"' if kinds else ''
        title = f' title="{html.escape(title)}"' if title else ''
        return f'<{tag}{kind}{title}>{html.escape(text)}</{tag}>'

    head = ''.join(cell('th', number, text)
                   for number, text in enumerate(block.header))
    lines = ''.join('<tr>' + ''.join(
        cell('td', number, value.text, ', '.join(value.runs))
        for number, value in enumerate(line)) + '</tr>'
        for line in block.lines)
    return ('<div class="wide"><table><thead><tr>' + head
            + f'</tr></thead><tbody>{lines}</tbody></table></div>')


def _bars(cells: Sequence[str]) -> str:
    return '| ' + ' | '.join(
        cell.replace('|', '\\|') for cell in cells) + ' |'


_TEX = {'\\': r'\textbackslash{}', '_': r'\_', '%': r'\%', '&': r'\&',
        '#': r'\#', '$': r'\$', '{': r'\{', '}': r'\}', '~': r'\~{}',
        '^': r'\^{}', '−': '$-$', '±': r'$\pm$', '×': r'$\times$',
        '–': '--', '>': '$>$', '<': '$<$', '|': '$|$', '’': "'",
        '…': '...', '†': r'\dag{}'}


def _tex(text: str) -> str:
    return ''.join(_TEX.get(letter, letter) for letter in text)


def _ampersands(cells: Sequence[str]) -> str:
    return ' & '.join(_tex(cell) for cell in cells) + ' \\\\'
