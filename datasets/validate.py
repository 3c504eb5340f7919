"""Is this the set that it is said to be? `run.py data validate`.

Reads every episode once, checks it (`checks`), compares the returns with
Table 3 and writes a manifest with which later runs are cheap.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datasets import archives, checks, facts, manifest, readers, registry
from datasets import scene as scenes
from datasets.checks import Finding
from datasets.facts import Entry
from datasets.registry import DataSet
from datasets.table3 import Statistics, statistics
from dreamerv2_base.errors import UserError

FINE, DIFFERENT = 0, 1  # exit codes
CLOSE = 0.1  # how far a rebuilt set's statistics may lie off (6.6)
SHOWN = 12  # findings of one check that are printed


@dataclass
class Report:
    """What was found about one set.

    Attributes:
      path: a folder or file; named: the set that it was compared with.
      entries: facts of its files; findings: of all checks.
      scene: background and floor, in words.
      manifest: where it was written, None if it was not.
      reused: files whose facts came from an earlier manifest.
    """

    path: Path
    named: DataSet | None
    entries: list[Entry]
    findings: list[Finding]
    scene: dict[str, str] = field(default_factory=dict)
    manifest: Path | None = None
    reused: int = 0

    @property
    def episodes(self) -> list[facts.Facts]:
        """Facts of the episodes, in order."""
        return [one for entry in self.entries for one in entry['episodes']]

    @property
    def returns(self) -> np.ndarray:
        """Finite returns of the episodes [n]."""
        return checks.returns(self.episodes)

    @property
    def verdict(self) -> str:
        """'named', 'equivalent' (its returns alone differ, by at most 10 %
        of what is known), 'differs', or 'sound' (without a name to compare
        with, and nothing wrong)."""
        serious = {one.check for one in self.findings if one.serious}
        if self.named is None:
            return 'differs' if serious else 'sound'
        if not serious:
            return 'named'
        if serious == {'statistics'} and self._close():
            return 'equivalent'
        return 'differs'

    @property
    def exit_code(self) -> int:
        return FINE if self.verdict in ('named', 'sound') else DIFFERENT

    def _close(self) -> bool:
        assert self.named is not None
        mine = statistics(self.returns).known()
        known = self.named.statistics.known()
        spread = max(map(abs, known.values()))
        return all(abs(mine[name] - value) <= CLOSE * max(abs(value),
                                                          0.1 * spread)
                   for name, value in known.items())


def prepare(path: Path, target: Path | None) -> list[Path]:
    """The sets at a path, archives unpacked to `target` if it is given.

    Raises UserError when there are none, when archives are all that is there
    and no `target` is given, and for archives that lack a part.
    """
    if not path.exists():
        raise UserError(f'{path}: expected a set or a folder of sets, found '
                        'nothing; see run.py data list')
    packed = archives.find(path)
    sets = readers.find_sets(path)
    if packed and target is not None:
        archives.unpack(packed, target)
        sets += [one for one in readers.find_sets(target) if one not in sets]
    elif packed:
        names = ', '.join(one.name for one in packed[:3])
        if not sets:
            raise UserError(
                f'{path}: expected episodes, found {len(packed)} archives '
                f'({names}); give --unpack FOLDER to unpack them there')
        print(f'note: {len(packed)} archives are not looked into ({names}); '
              'give --unpack FOLDER')
    if not sets:
        raise UserError(f'{path}: expected .npz or .hdf5 episodes or archives '
                        'of them, found none; see run.py data list')
    return sets


def validate(path: Path, name: str | None = None, full: bool = False,
             renew: bool = False) -> Report:
    """Check one set.

    Args:
      path: a folder of `.npz` or hdf5 files, or one hdf5 file.
      name: of the registry; guessed from the path by default.
      full: read all files, even those that look unchanged.
      renew: write the manifest although files are not those of the old one.

    Raises UserError for an unknown name and a path without episodes.
    """
    if (found := readers.layout(path)) in ('mapped', 'minari'):
        raise UserError(f'{path}: expected .npz or .hdf5 episodes, found them '
                        f'{found}; make some: run.py data convert '
                        f'{shlex.quote(str(path))} '
                        'FOLDER --to npz')
    if found not in ('npz', 'hdf5'):
        raise UserError(f'{path}: expected .npz or .hdf5 episodes, found none '
                        'directly there; give the folder of one set')
    named = registry.find(name) if name else registry.guess(path)
    files = readers.episode_files(path)
    known = manifest.load(path)
    old = (manifest.compare(path, files, known, full)
           if known and known.get('files') else manifest.Comparison())
    fresh = iter(facts.scan(
        [file for file in files if file.name not in old.reused]))
    entries = [old.reused.get(file.name) or next(fresh) for file in files]
    findings = [] if renew else list(old.findings)
    findings += checks.check(entries, named)
    report = Report(path, named, entries, findings, reused=len(old.reused))
    seen = checks.looks(report.episodes)
    if seen:
        report.scene = scenes.judge(seen, named.task if named else '')
    if renew or not old.findings:
        report.manifest = _write(report)
    return report


def _write(report: Report) -> Path | None:
    words: dict[str, Any] = {
        'set': report.named.name if report.named else None,
        'verdict': report.verdict, 'scene': report.scene,
        'statistics': statistics(report.returns).known()
        if len(report.returns) else {},
        'findings': [vars(one) for one in report.findings]}
    try:
        return manifest.write(report.path, report.entries, **words)
    except PermissionError:
        return None
    except OSError as error:
        if error.errno == 30:  # a read-only file system
            return None
        raise


# Printing.


def render(report: Report) -> str:
    """A report as text."""
    name = report.named.name if report.named else 'a set without a name'
    rows = sum(entry['rows'] for entry in report.entries)
    size = sum(entry['bytes'] for entry in report.entries)
    lines = [
        f'{report.path}: {name}',
        f'  {len(report.entries)} files, {len(report.episodes)} episodes, '
        f'{rows:,} rows, {size:,} bytes; {_kinds(report)}']
    if report.scene:
        lines.append(f'  background: {report.scene["background"]}; floor: '
                     f'{report.scene["floor"]}')
    lines += ['', *_table(report), '', *_findings(report.findings)]
    lines.append(f'  {_verdict(report)}')
    if report.manifest:
        lines.append(f'  manifest: {report.manifest}' + (
            f' ({report.reused} files unchanged since the last one)'
            if report.reused else ''))
    elif any(one.check in ('missing_file', 'changed_file', 'extra_file')
             for one in report.findings):
        lines.append('  the manifest was left as it is; give --renew to '
                     'write it for the files that are here')
    else:
        lines.append('  no manifest: the folder cannot be written')
    return '\n'.join(lines)


def _kinds(report: Report) -> str:
    shapes = {tuple(one['keys']['image'][1][1:3]) for one in report.episodes
              if 'look' in one}
    means = [one['colour_mean'] for one in report.episodes if 'look' in one]
    spreads = [one['colour_std'] for one in report.episodes if 'look' in one]
    sizes = ', '.join(f'{h}x{w}' for h, w in sorted(shapes)) or 'no'
    if not means:
        return f'{sizes} frames'
    colour = '/'.join(f'{value:.0f}' for value in np.mean(means, 0))
    spread = '/'.join(f'{value:.0f}' for value in np.mean(spreads, 0))
    return f'{sizes} frames, mean R/G/B {colour}, std {spread}'


def _table(report: Report) -> list[str]:
    """Returns, of a named set beside Table 3 with the difference of each."""
    mine = (statistics(report.returns) if len(report.returns)
            else Statistics())
    if report.named is None:
        return [f'  {"returns":<10}{"here":>10}'] + [
            f'  {name:<10}{_number(here):>10}'
            for name, here in vars(mine).items()]
    theirs, counts = report.named.statistics, report.named.episodes
    expected = ' or '.join(map(str, counts)) or 'not known here'
    difference = (f'{len(report.episodes) - counts[0]:+d}'
                  if len(counts) == 1 else '')
    lines = [f'  {"returns":<10}{"here":>10}{"Table 3":>17}{"difference":>13}',
             f'  {"episodes":<10}{len(report.episodes):>10}{expected:>17}'
             f'{difference:>13}']
    for name in vars(mine):
        here, there = getattr(mine, name), getattr(theirs, name)
        lines.append(
            f'  {name:<10}{_number(here):>10}'
            f'{_number(there, "not known here"):>17}'
            + (f'{here - there:>+13.2f}' if None not in (here, there)
               else ''))
    return [line.rstrip() for line in lines]


def _number(value: float | None, missing: str = '-') -> str:
    return missing if value is None else f'{value:.2f}'


def _findings(findings: Sequence[Finding]) -> list[str]:
    lines = []
    for name in dict.fromkeys(one.check for one in findings):
        mine = [one for one in findings if one.check == name]
        lines += [f'  {"DIFFERS" if one.serious else "note   "} '
                  f'{one.check}: {one.text}' for one in mine[:SHOWN]]
        if len(mine) > SHOWN:
            lines.append(f'          {name}: {len(mine) - SHOWN} more')
    return lines


def _verdict(report: Report) -> str:
    if report.named is None:
        compared = ('its path speaks of no set that is known; to compare it '
                    'with one give --set NAME (run.py data list)')
        return (f'not sound: see DIFFERS above; {compared}'
                if report.exit_code else
                f'sound: nothing wrong was found; {compared}')
    name = report.named.name
    if report.verdict == 'named':
        known = len(report.named.statistics.known())
        return (f'this is {name}, as far as it is known here ({known} of 7 '
                'numbers of Table 3, and its structure)')
    if report.verdict == 'equivalent':
        return (f'this is not {name} itself; it has its structure, and '
                'returns within 10 % of what is known of Table 3')
    return f'this is not {name} as it is known here'
