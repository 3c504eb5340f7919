"""Tables 1-5: our numbers beside the paper's.

Every number is computed from result rows (Table 3: from the runs' data), each
cell names the runs it rests on, and a run that is missing is said to be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from datasets import table3
from datasets.registry import SETS
from semopo_tf.experiments import grid, metrics, scales
from semopo_tf.experiments.evidence import UNLIKE, Evidence
from semopo_tf.experiments.paper_numbers import (
    NOTES,
    UNKNOWN,
    Number,
    PaperNumbers,
)
from semopo_tf.experiments.table_formats import (
    NONE,
    Block,
    Table,
    Value,
    fixed,
    signed,
)

STD = {False: 'population (divided by the number of seeds)',
       True: 'sample (divided by the number of seeds − 1)'}


VIDEOS = ('table1', 'table2', 'table5')  # behind the robot, in the paper
FEW = ('Of fewer than 4 runs an interval holds the true value less often '
       'than 95 %: of 2 on one set it is their range, which does so about '
       'half the time.')
RAW = 'raw'  # behind a return that could not be normalised


@dataclass(frozen=True)
class Style:
    """How numbers are made and shown.

    Attributes:
      published: also show Table 1 as the paper computed it (10.1).
      sample: divide squared deviations by seeds − 1, not seeds.
    """

    published: bool = False
    sample: bool = False


@dataclass(frozen=True)
class Entry:
    """What a system got on a set, beside what the paper says.

    `ours` and `style` (Table 1 as the paper computed it) are UNKNOWN without
    rows; `raw` is the summary behind them. `remarks`: letters of NOTES.
    `mixed`: the runs are not alike (`Evidence.mixed`). `compared` is what the
    paper's number is taken from: in its unit, whatever `ours` is in.
    """

    ours: Number = UNKNOWN
    style: Number = UNKNOWN
    raw: metrics.Summary | None = None
    runs: tuple[str, ...] = ()
    missing: str = ''
    printed: Number = UNKNOWN
    corrected: Number = UNKNOWN
    remarks: tuple[str, ...] = field(default=())
    mixed: bool = False
    compared: Number = UNKNOWN


def make(name: str, evidence: Evidence, paper: PaperNumbers,
         style: Style = Style()) -> Table:
    """A table by its name, 'table1' … 'table5'."""
    return MAKERS[name](evidence, paper, style)


# One function per table.


def table1(evidence: Evidence, paper: PaperNumbers, style: Style) -> Table:
    """Normalised returns (10.1)."""
    entries = {key: _normalised(evidence, paper, style, *key)
               for key in _keys('table1', evidence)}
    ranges = {name: evidence.range(evidence.task(name))
              for name in evidence.sets('table1')}
    together, left = _aggregates(evidence)
    blocks = [_paper_layout('Ours, normalised', 'table1', evidence, entries,
                            2, ranges),
              _against_paper(evidence, entries, 2, True, style.published),
              together, _constants(evidence)]
    letters = sorted({mark for entry in entries.values()
                      for mark in entry.remarks}
                     | ({'a', 'b'} if style.published else set()))
    notes = [f'({letter}) {NOTES[letter]}' for letter in letters]
    if style.published:
        notes.append('Published style: S_min = 10.3 for Car Racing and the '
                     "standard deviations' map of notes (a) and (b), with the "
                     'published S_min and S_max throughout.')
    notes.append('Corrected: by the right formula from Table 5 where that is '
                 "known here; else the printed mean with Car Racing's S_min "
                 'put right. The difference is ours − corrected.')
    if any(span and span.source != 'published'
           for span in ranges.values()):
        notes.append('Where the range is that of the data, the difference is '
                     'that of our returns normalised with the published '
                     'range; – where there is none.')
    if any(entry.raw and not entry.ours for entry in entries.values()):
        notes.append(f'{RAW}: returns as they are, where no range is known. '
                     '--data FOLDER with the sets that runs were trained on '
                     'has one.')
    notes += left
    return _table('table1', blocks, evidence, style, notes, paper)


def table2(evidence: Evidence, paper: PaperNumbers, style: Style) -> Table:
    """Raw returns behind grayscale and colour videos."""
    entries = {key: _raw('table2', evidence, paper, style, *key)
               for key in _keys('table2', evidence)}
    blocks = [_paper_layout('Ours, raw returns', 'table2', evidence, entries,
                            1),
              _against_paper(evidence, entries, 1), _change(evidence, style)]
    return _table('table2', blocks, evidence, style, [], paper)


def table3_of(evidence: Evidence, paper: PaperNumbers, style: Style) -> Table:
    """Returns of the episodes that runs were trained on."""
    header = ('set', '', 'episodes', 'mean', 'std', 'min', '25 %', 'median',
              '75 %', 'max')
    lines: list[tuple[Value, ...]] = []
    for name in evidence.sets('table3'):
        lines += _data_lines(evidence, name)
    notes = ['Standard deviations over episodes are population; quartiles '
             'are interpolated linearly.',
             'Of the paper’s numbers those are shown that this project knows '
             '(datasets/table3.py).']
    if any(name not in evidence.data for name in evidence.sets('table3')):
        notes.append('missing: neither a run folder nor --data has the '
                     'returns of the set; run.py data list --data FOLDER says '
                     'what is there.')
    if evidence.unread:
        notes.append('Returns of these sets are read by run.py data validate '
                     f'{" ".join(map(str, evidence.unread))}')
    block = Block('Returns of the data', header, tuple(lines), texts=2)
    return _table('table3', [block], evidence, None, notes, None)


def table4(evidence: Evidence, paper: PaperNumbers, style: Style) -> Table:
    """Raw returns on V-D4RL."""
    return _raw_table('table4', evidence, paper, style)


def table5(evidence: Evidence, paper: PaperNumbers, style: Style) -> Table:
    """Raw returns on LQV-D4RL."""
    return _raw_table('table5', evidence, paper, style)


MAKERS: dict[str, Callable[[Evidence, PaperNumbers, Style], Table]] = {
    'table1': table1, 'table2': table2, 'table3': table3_of,
    'table4': table4, 'table5': table5}


# Entries.

CellKey = tuple[str, str, str]  # set, system, variant


def _keys(table: str, evidence: Evidence) -> list[CellKey]:
    return [(name, system, variant) for name in evidence.sets(table)
            for variant in grid.ITEMS[table].variants
            for system in evidence.systems(table)]


def _raw(table: str, evidence: Evidence, paper: PaperNumbers, style: Style,
         name: str, system: str, variant: str) -> Entry:
    rows = evidence.runs(system, name, variant)
    missing = evidence.missing_text(table, system, name, variant)
    printed = paper.cell(table, name, system, variant)
    if not rows:
        return Entry(missing=missing or 'not asked for', printed=printed,
                     corrected=printed)
    raw = metrics.summarise([row.returns for row in rows], style.sample)
    ours = Number(raw.mean, raw.std)
    return Entry(ours, UNKNOWN, raw, tuple(row.run for row in rows), missing,
                 printed, printed, mixed=bool(evidence.mixed(system, name)),
                 compared=ours)


def _normalised(evidence: Evidence, paper: PaperNumbers, style: Style,
                name: str, system: str, variant: str) -> Entry:
    entry = _raw('table1', evidence, paper, style, name, system, variant)
    task = evidence.task(name)
    published = UNKNOWN
    if entry.raw is not None and task is not None:
        published = Number(*metrics.published_style(
            task, _in_the_paper(system), entry.raw.mean, entry.raw.std)
            or (None, None))
    theirs = metrics.published_range(task) if task else None
    return replace(entry, style=published,
                   ours=_scaled(entry.raw, evidence.range(task)),
                   compared=_scaled(entry.raw, theirs),
                   corrected=paper.corrected_table1(name, system),
                   remarks=tuple(paper.remarks(name, system)))


def _in_the_paper(system: str) -> str:
    """The paper's name of a system, labelled or in other settings."""
    return grid.base(system).removesuffix(' (paper)')


def _scaled(raw: metrics.Summary | None, span: metrics.Range | None,
            ) -> Number:
    if raw is None or span is None:
        return UNKNOWN
    return Number(span.mean(raw.mean),
                  None if raw.std is None else span.std(raw.std))


# Blocks.


def _raw_table(name: str, evidence: Evidence, paper: PaperNumbers,
               style: Style) -> Table:
    entries = {key: _raw(name, evidence, paper, style, *key)
               for key in _keys(name, evidence)}
    return _table(name, [
        _paper_layout('Ours, raw returns', name, evidence, entries, 1),
        _against_paper(evidence, entries, 1)], evidence, style, [], paper)


def _paper_layout(caption: str, table: str, evidence: Evidence,
                  entries: dict[CellKey, Entry], digits: int,
                  ranges: Mapping[str, metrics.Range | None] | None = None,
                  ) -> Block:
    """A line per set (and variant), a column per system.

    `ranges`: what each set is normalised with, said beside it.
    """
    systems = evidence.systems(table)
    variants = grid.ITEMS[table].variants
    lines = []
    for name in evidence.sets(table):
        for variant in variants:
            cells = [entries[name, system, variant] for system in systems]
            first = [Value(_label(name, variant, len(variants) > 1))]
            if ranges is not None:
                span = ranges[name]
                first.append(Value(span.source if span else 'none known'))
            lines.append((*first, *(_ours(entry, digits) for entry in cells)))
    words = ('set',) if ranges is None else ('set', 'range')
    return Block(caption, (*words, *systems), tuple(lines), len(words))


def _against_paper(evidence: Evidence, entries: dict[CellKey, Entry],
                   digits: int, corrected: bool = False,
                   published: bool = False,
                   ) -> Block:
    """A line per cell: ours, n, the paper's, corrected, the difference."""
    several = len({variant for _, _, variant in entries}) > 1
    sized = evidence.scale in scales.FULL_SIZE
    header = ['set', 'method', 'ours', 'n', 'paper']
    header += ['corrected'] if corrected else []
    header += ['difference']
    header += ['published style', 'style − paper'] if published else []
    lines = []
    for (name, system, variant), entry in entries.items():
        marks = ''.join(f' ({mark})' for mark in entry.remarks)
        right = entry.corrected if corrected else entry.printed
        line = [Value(_label(name, variant, several)), Value(system),
                _ours(entry, digits),
                Value(entry.raw.count if entry.raw else NONE, entry.runs),
                Value(show(entry.printed, digits) + marks)]
        line += [Value(show(right, digits))] if corrected else []
        change = _difference(entry.compared, right, digits)
        line += [Value(change if sized else NONE, entry.runs)]
        if published:
            change = _difference(entry.style, entry.printed, digits)
            line += [Value(show(entry.style, digits), entry.runs),
                     Value(change if sized else NONE, entry.runs)]
        lines.append(tuple(line))
    return Block('Beside the paper', tuple(header), tuple(lines), texts=2)


def _aggregates(evidence: Evidence) -> tuple[Block, list[str]]:
    """Interquartile mean with its interval (10.3) over the sets that all
    systems have, but for those that have none; and what is left out."""
    asked = evidence.systems('table1')
    shown = [name for name in asked
             if evidence.scores('table1', [name], False)[1]]
    notes: dict[str, None] = {}
    found: dict[tuple[str, bool], list[Value]] = {}
    for episodes in (False, True):
        scores, joined, left = evidence.scores(
            'table1', shown, episodes) if shown else ({}, [], [])
        if left:
            notes[f'All sets together: left out are {", ".join(left)}.'] = None
        if any(len(one) in (2, 3) for one in scores.values()):
            notes[FEW] = None
        for system in shown:
            used = tuple(row.run for name in joined
                         for row in evidence.runs(system, name))
            found[system, episodes] = (
                _estimate(scores[system], used) if joined
                else [Value('no set can be compared')])
    lines = []
    for system in asked:
        for episodes in (False, True):
            cells = found.get((system, episodes)) or [
                Value(evidence.why_none('table1', system))]
            lines.append((
                Value(system), Value('episodes' if episodes else 'seeds'),
                *cells, *[Value(NONE)] * (3 - len(cells))))
    return Block('All sets together: interquartile mean and 95 % interval '
                 'of a stratified bootstrap; a single run has none', (
                     'method', 'runs are', 'IQM', 'mean', 'n'),
                 tuple(lines), texts=2), list(notes)


def _estimate(scores: np.ndarray, used: tuple[str, ...]) -> list[Value]:
    """IQM with its interval, mean, and shape of scores [runs, sets]."""
    found = metrics.iqm(scores, resamples=metrics.RESAMPLES)
    interval = (f' [{fixed(found.low, 2)}, {fixed(found.high, 2)}]'
                if found.runs > 1 else '')
    return [Value(f'{fixed(found.value, 2)}{interval}', used),
            Value(fixed(scores.mean(), 2), used),
            Value(f'{found.runs}×{found.sets}', used)]


def _constants(evidence: Evidence) -> Block:
    """S_min and S_max that normalise, and the published ones."""
    lines = []
    for task in dict.fromkeys(
            evidence.task(name) for name in evidence.sets('table1')):
        used = evidence.range(task)
        theirs = metrics.published_range(task) if task else None
        lines.append((Value(task or NONE), *(
            Value(NONE if span is None else
                  f'{fixed(span.low, 1)} to {fixed(span.high, 1)}')
            for span in (used, theirs)), Value(used.source if used else
                                                NONE)))
    return Block('S_min to S_max', ('task', 'used', 'published', 'source'),
                 tuple(lines))


def _change(evidence: Evidence, style: Style) -> Block:
    """What a colour video does to the same trained policies, mean ± standard
    deviation over those that have both."""
    lines = []
    for name in evidence.sets('table2'):
        for system in evidence.systems('table2'):
            gray = {row.seed: row for row in evidence.runs(system, name)}
            colour = {row.seed: row for row in evidence.runs(
                system, name, grid.COLOUR)}
            both = sorted(gray.keys() & colour.keys())
            rows = [some[seed] for seed in both for some in (gray, colour)]
            text = NONE
            if both:
                changes = [np.mean(colour[seed].returns)
                           - np.mean(gray[seed].returns) for seed in both]
                std = float(np.std(changes, ddof=int(style.sample)))
                text = f'{signed(float(np.mean(changes)), 1)} ± ' + (
                    fixed(std, 1) if len(both) > 1 else NONE)
                text += f' {UNLIKE}' if evidence.mixed(system, name) else ''
            lines.append((Value(name), Value(system), Value(
                text, tuple(row.run for row in rows)), Value(
                str(len(both)))))
    return Block('Colour − grayscale, same policies', (
        'set', 'method', 'change', 'seeds'), tuple(lines), texts=2)


def _data_lines(evidence: Evidence, name: str) -> list[tuple[Value, ...]]:
    """Ours, the paper's and the difference, for one set."""
    order = ('mean', 'std', 'minimum', 'quartile1', 'median', 'quartile3',
             'maximum')
    returns = evidence.data.get(name)
    runs = evidence.trained_on(name)
    mine = None if returns is None else table3.statistics(returns)
    first = [Value(name), Value('ours')]
    if returns is None:
        first += [Value('missing'), *[Value(NONE)] * len(order)]
    else:
        first += [Value(str(len(returns)), runs), *(
            Value(fixed(getattr(mine, key), 1), runs) for key in order)]
    entry = SETS.get(name)
    theirs = entry.statistics if entry else table3.Statistics()
    known = theirs.known()
    if not known:
        return [tuple(first)]
    # What is known to no decimal is neither shown nor compared to one.
    digits = {key: int(not entry or (
        entry.task, entry.level, key) not in table3.COARSE) for key in known}
    count = '/'.join(map(str, entry.episodes)) if entry else NONE
    second = [Value(''), Value('paper'), Value(count or NONE), *(
        Value(fixed(known[key], digits[key]) if key in known else NONE)
        for key in order)]
    if mine is None:
        return [tuple(first), tuple(second)]
    third = [Value(''), Value('difference'), Value(''), *(
        Value(signed(getattr(mine, key) - known[key], digits[key])
              if key in known else NONE, runs) for key in order)]
    return [tuple(first), tuple(second), tuple(third)]


def _table(name: str, blocks: Sequence[Block], evidence: Evidence,
           style: Style | None, notes: Sequence[str],
           paper: PaperNumbers | None) -> Table:
    """Put a table together with the notes that all of them need."""
    found = list(notes)
    empty = [block.caption for block in blocks if not block.lines]
    if empty:
        found.insert(0, f'Empty, as nothing of it was asked for: '
                     f'{"; ".join(empty)}.')
    if style is not None:
        found.insert(0, 'Mean ± standard deviation over seeds of the final '
                     f"policy's mean return; {STD[style.sample]}. n: seeds × "
                     'episodes.')
    if paper is not None and evidence.scale not in scales.FULL_SIZE:
        found.append(f'Runs of scale {evidence.scale} are not of the '
                     "paper's size: no difference is taken.")
    if paper is not None:
        found.append(f"The paper's numbers: {paper.label}. {NONE}: not known "
                     'or not there.')
    if name in VIDEOS:
        found += evidence.drawn(name)
    found += evidence.absent(name)
    found += evidence.notes(name)
    return Table(name, grid.ITEMS[name].title, tuple(
        block for block in blocks if block.lines), tuple(found),
        evidence.scale)


# Text.


def show(number: Number, digits: int) -> str:
    """`0.75 ± 0.03`, with – for what is not known."""
    if not number:
        return NONE
    return ' ± '.join(NONE if value is None else fixed(value, digits)
                      for value in (number.mean, number.std))


def _ours(entry: Entry, digits: int) -> Value:
    text = show(entry.ours, digits) if entry.ours else ''
    if not text and entry.raw:
        text = f'{show(Number(entry.raw.mean, entry.raw.std), 1)} {RAW}'
    text += f' {UNLIKE}' if text and entry.mixed else ''
    if entry.missing:
        text = f'{text} ({entry.missing})' if text else entry.missing
    return Value(text, entry.runs)


def _difference(ours: Number, theirs: Number, digits: int) -> str:
    if ours.mean is None or theirs.mean is None:
        return NONE
    return signed(ours.mean - theirs.mean, digits)


def _label(name: str, variant: str, several: bool) -> str:
    if not several:
        return name
    return f'{name}, {variant or "grayscale"}'
