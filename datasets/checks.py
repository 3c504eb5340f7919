"""Checks of a set, each with a name, on the facts of its episodes.

A serious finding means "not the named set, or not usable as it is"; a note is
something that a user of the set must know.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from datasets import scene
from datasets.facts import NEEDED, Entry, Facts, rows_of
from datasets.registry import DataSet
from datasets.table3 import statistics, tolerance
from dreamerv2_base.episodes import ACTION_TOLERANCE

REWARD_SLACK = 1e-3  # of sums of two rewards at half precision


@dataclass(frozen=True)
class Finding:
    """Something that a check found.

    Attributes: `check`, its name; `serious`; `text`, one line.
    """

    check: str
    serious: bool
    text: str


def check(entries: Sequence[Entry], named: DataSet | None) -> list[Finding]:
    """All findings on the files of a set, compared with the set of a name."""
    episodes = [facts for entry in entries for facts in entry['episodes']]
    found = _files(entries)
    for function in (_keys, _types, _precision, _lengths, _rows, _size,
                     _finite, _actions, _rewards, _first_row, _flags, _still,
                     _duplicates, _equal_returns, _names):
        found += function(episodes, named)
    if named is not None:
        for compare in (_count, _statistics, _order, _background):
            found += compare(episodes, named)
    return found


def returns(episodes: Sequence[Facts]) -> np.ndarray:
    """Finite returns [n] of the episodes that have one, float64."""
    values = np.array([facts['return'] for facts in episodes
                       if 'return' in facts], np.float64)
    return values[np.isfinite(values)]


def looks(episodes: Sequence[Facts]) -> list[scene.Look]:
    """Measures of the frames of the episodes that have frames."""
    return [scene.Look(**facts['look']) for facts in episodes
            if 'look' in facts]


# Of episodes.


def _each(episodes: Sequence[Facts], name: str, serious: bool,
          say: Callable[[Facts], str | None]) -> list[Finding]:
    """One finding for every different thing that `say` says."""
    said: dict[str, list[str]] = defaultdict(list)
    for facts in episodes:
        text = say(facts)
        if text:
            said[text].append(facts['name'])
    return [Finding(name, serious, f'{len(names)} of {len(episodes)} '
                    f'episodes: {text} (first {names[0]})')
            for text, names in said.items()]


def _files(entries: Sequence[Entry]) -> list[Finding]:
    return [Finding(name, True, text) for entry in entries
            for name, text in entry['problems']]


def _keys(episodes: Sequence[Facts], named: DataSet | None) -> list[Finding]:
    def say(facts: Facts) -> str | None:
        missing = [key for key in NEEDED if key not in facts['keys']]
        return f'without {", ".join(missing)}' if missing else None
    different = {tuple(facts['keys']) for facts in episodes}
    more = [Finding('keys', True, f'episodes with {len(different)} different '
                    'lists of keys')] if len(different) > 1 else []
    return _each(episodes, 'keys', True, say) + more


def _types(episodes: Sequence[Facts], named: DataSet | None) -> list[Finding]:
    rules = {'image': ('uint8', 4, 'uint8 [L, H, W, 3]'),
             'action': ('float', 2, 'numbers [L, A]'),
             'reward': ('float', 1, 'numbers [L]'),
             'is_first': ('bool', 1, 'booleans [L]'),
             'is_last': ('bool', 1, 'booleans [L]'),
             'is_terminal': ('bool', 1, 'booleans [L]')}

    def say(facts: Facts) -> str | None:
        for key, (kind, rank, expected) in rules.items():
            dtype, shape = facts['keys'].get(key, (kind, [0] * rank))
            good = dtype.startswith(kind) and len(shape) == rank
            if key == 'image' and good and key in facts['keys']:
                good = shape[-1] == 3
            if not good:
                return f'{key} is {dtype} {shape[1:]}, expected {expected}'
        return None
    sizes = Counter(tuple(facts['keys']['action'][1][1:])
                    for facts in episodes if 'action' in facts['keys'])
    more = [Finding('types', True, f'actions of several sizes: '
                    f'{sorted(sizes)}')] if len(sizes) > 1 else []
    return _each(episodes, 'types', True, say) + more


def _precision(episodes: Sequence[Facts],
               named: DataSet | None) -> list[Finding]:
    def say(facts: Facts) -> str | None:
        half = [key for key, (dtype, _) in facts['keys'].items()
                if dtype == 'float16']
        return (f'{", ".join(half)} at half precision (float16), as TIA '
                'stores them; returns are summed in float64') if half else None
    return _each(episodes, 'half_precision', False, say)


def _lengths(episodes: Sequence[Facts],
             named: DataSet | None) -> list[Finding]:
    def say(facts: Facts) -> str | None:
        lengths = {key: shape[0] if shape else None
                   for key, (_, shape) in facts['keys'].items()
                   if not key.startswith('log_')}
        return (f'keys of unequal length {lengths}'
                if len(set(lengths.values())) > 1 else None)
    return _each(episodes, 'lengths', True, say)


def _rows(episodes: Sequence[Facts], named: DataSet | None) -> list[Finding]:
    if named is None or named.rows is None:
        return []

    def say(facts: Facts) -> str | None:
        rows = rows_of(facts)
        return (f'{rows} rows, expected {named.rows}'
                if rows != named.rows and not facts.get('cut') else None)
    return _each(episodes, 'rows', True, say)


def _size(episodes: Sequence[Facts], named: DataSet | None) -> list[Finding]:
    sizes = Counter(tuple(facts['keys']['image'][1][1:3])
                    for facts in episodes if 'look' in facts)
    if named is None:
        return [Finding('image_size', True, f'frames of several sizes: '
                        f'{sorted(sizes)}')] if len(sizes) > 1 else []
    expected = (named.size, named.size)
    return [Finding('image_size', True, f'{count} of {len(episodes)} '
                    f'episodes: frames of {size[0]}x{size[1]} px, expected '
                    f'{named.size}x{named.size}')
            for size, count in sizes.items() if size != expected]


def _finite(episodes: Sequence[Facts],
            named: DataSet | None) -> list[Finding]:
    def say(facts: Facts) -> str | None:
        bad = facts['not_finite']
        return (f'NaN or infinity in {", ".join(sorted(bad))}'
                if bad else None)
    return _each(episodes, 'not_finite', True, say)


def _actions(episodes: Sequence[Facts],
             named: DataSet | None) -> list[Finding]:
    return _each(episodes, 'action_range', True, lambda facts: (
        'actions outside of [-1, 1]'
        if facts.get('action', 0.0) > 1 + ACTION_TOLERANCE else None))


def _rewards(episodes: Sequence[Facts],
             named: DataSet | None) -> list[Finding]:
    if named is None or named.rewards is None:
        return []
    low, high = named.rewards
    return _each(episodes, 'reward_range', True, lambda facts: (
        f'rewards outside of [{low:g}, {high:g}]'
        if 'reward' in facts and not (
            facts['reward'][0] >= low - REWARD_SLACK
            and facts['reward'][1] <= high + REWARD_SLACK)
        and not facts['not_finite'].get('reward') else None))


def _first_row(episodes: Sequence[Facts],
               named: DataSet | None) -> list[Finding]:
    """Row 0 is the reset: zero action, zero reward (baselines 0.1)."""
    def say(facts: Facts) -> str | None:
        action, reward = facts.get('action_ends'), facts.get('reward_ends')
        if facts.get('cut') or action is None or reward is None:
            return None
        if action[0] == 0 and reward[0] == 0:
            return None
        return ('row 0 has an action or a reward (rows must hold the action '
                'that led to their frame)')
    usual = [facts for facts in episodes if not _backwards(facts)]
    found = _each([f for f in episodes if _backwards(f)], 'time_reversed',
                  True, lambda facts: 'time runs backwards: the row of the '
                  'reset is the last')
    return found + _each(usual, 'first_row', True, say)


def _backwards(facts: Facts) -> bool:
    if facts['flags'].get('is_first') == [-1]:
        return True
    action, reward = facts.get('action_ends'), facts.get('reward_ends')
    if not action or not reward:
        return False
    return action[1] == 0 and reward[1] == 0 and action[0] != 0


def _flags(episodes: Sequence[Facts],
           named: DataSet | None) -> list[Finding]:
    def say(facts: Facts) -> str | None:
        flags = facts['flags']
        if facts.get('cut') or _backwards(facts):
            return None
        if flags.get('is_first', [0]) != [0]:
            return f'is_first in rows {flags["is_first"]}, expected row 0'
        if flags.get('is_last', [-1]) != [-1]:
            return f'is_last in rows {flags["is_last"]}, expected the last'
        car = named is None or named.task == 'car_racing'
        if flags.get('is_terminal') and not car:
            return 'is_terminal set, which control tasks never are'
        return None
    return _each(episodes, 'flags', True, say)


def _still(episodes: Sequence[Facts],
           named: DataSet | None) -> list[Finding]:
    return _each(episodes, 'still_frames', True, lambda facts: (
        'more than half of the frames equal the one before'
        if facts.get('still', 0.0) > 0.5 else None))


def _duplicates(episodes: Sequence[Facts],
                named: DataSet | None) -> list[Finding]:
    first: dict[str, str] = {}
    twice = []
    for facts in episodes:
        other = first.setdefault(facts['content'], facts['name'])
        if other != facts['name']:
            twice.append((facts['name'], other))
    return [Finding('duplicates', True, f'{len(twice)} of {len(episodes)} '
                    f'episodes are copies (first {twice[0][0]} of '
                    f'{twice[0][1]})')] if twice else []


def _equal_returns(episodes: Sequence[Facts],
                   named: DataSet | None) -> list[Finding]:
    # Compared as the released code sees them, in single precision.
    counts = Counter(returns(episodes).astype(np.float32).tolist())
    lost = sum(count - 1 for count in counts.values())
    if not lost:
        return []
    value, most = max(counts.items(), key=lambda item: item[1])
    return [Finding('equal_returns', False, f'{lost} episodes share their '
                    f'return with another ({most} have {value:g}): sorting '
                    'by return as the released code does drops them')]


NAME = re.compile(r'(\d{8}T\d{6})?.*-(\d+)\.npz')


def _names(episodes: Sequence[Facts],
           named: DataSet | None) -> list[Finding]:
    def say(facts: Facts) -> str | None:
        if not facts['name'].endswith('.npz'):
            return None
        match = NAME.fullmatch(facts['name'])
        rows = rows_of(facts)
        if match and int(match[2]) not in (rows, rows - 1):
            return 'the length in the name is neither rows nor rows − 1'
        return (None if match and match[1] else
                'name without a time: episodes are taken in order of names')
    return _each(episodes, 'names', False, say)


# Against the named set.


def _count(episodes: Sequence[Facts], named: DataSet) -> list[Finding]:
    if not named.episodes or len(episodes) in named.episodes:
        return []
    expected = ' or '.join(map(str, named.episodes))
    what = ('a file is missing' if len(episodes) == max(named.episodes) - 1
            else 'incomplete, or another set')
    return [Finding('episodes', True, f'{len(episodes)} episodes, expected '
                    f'{expected}: {what}')]


def _statistics(episodes: Sequence[Facts], named: DataSet) -> list[Finding]:
    values = returns(episodes)
    known = named.statistics.known()
    if not len(values) or not known:
        return []
    mine = statistics(values).known()
    off = [f'{name} {mine[name]:.1f} instead of {value:.1f}'
           for name, value in known.items()
           if abs(mine[name] - value) > tolerance(
               named.task, named.level, name, value)]
    return [Finding('statistics', True, 'returns are not those of Table 3: '
                    + ', '.join(off))] if off else []


def _order(episodes: Sequence[Facts], named: DataSet) -> list[Finding]:
    """Names sort by time, and a training buffer gets better with time."""
    values = returns(episodes)
    if len(values) < 10 or np.ptp(values) == 0:
        return []
    from scipy.stats import spearmanr
    rank = float(spearmanr(np.arange(len(values)), values).statistic)
    if abs(rank) > 0.999:
        return [Finding('sorted_by_return', False, 'names are in the order '
                        'of the returns, so not in that of collection')]
    if named.level == 'medium_replay' and rank < -0.3:
        return [Finding('order_reversed', True, 'returns fall from file to '
                        f'file (rank correlation {rank:.2f}), while a '
                        "training buffer's rise: the order of time is "
                        'reversed')]
    return []


def _background(episodes: Sequence[Facts], named: DataSet) -> list[Finding]:
    seen = looks(episodes)
    if not seen or named.task == 'car_racing':
        return []
    judged = scene.judge(seen, named.task)
    found = []
    if named.background == 'grayscale' and (
            judged['background'] != 'grayscale video'):
        kind = ('colour_background' if judged['background'] == 'colour video'
                else 'background')
        found.append(Finding(kind, True, 'expected grayscale videos behind '
                             f'the robot, found: {judged["background"]}'))
    if named.background == 'plain' and judged['background'] != 'plain':
        found.append(Finding('background', True, 'expected no video behind '
                             f'the robot, found: {judged["background"]}'))
    if judged['floor'] == 'grey floor':
        found.append(Finding(
            'grey_floor', False, 'the floor is grey and uncovered (scene of '
            'DBC and TIA): evaluate with --scene grey_floor, or train and '
            'test scenes differ'))
    return found
