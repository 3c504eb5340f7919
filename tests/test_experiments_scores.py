"""Figures 4 and 10: what is drawn of few seeds, and what is said of it."""

from __future__ import annotations

import json

import pytest
from matplotlib.axes import Axes

from semopo_tf.experiments import (
    figure_style,
    figures_scores,
    grid,
    metrics,
    paper_numbers,
)
from semopo_tf.experiments.evidence import Evidence
from semopo_tf.experiments.results import Row

SETS = ('walker_walk_random', 'pendulum_swingup_random')
RETURNS = {'SeMOPO': 300.0, 'Se+RS': 200.0}
MAKERS = {'figure4': figures_scores.figure4,
          'figure10': figures_scores.figure10}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(metrics, 'RESAMPLES', 20)


def drawn(folder, item, seeds, episodes=2, sets=SETS[:1]):
    """A figure of rows of some seeds on some sets, the data known."""
    rows, cells = [], []
    for name in sets:
        task, level = name.rsplit('_', 1)
        (folder / name).mkdir(exist_ok=True)
        (folder / name / 'data.json').write_text(
            json.dumps({'returns': [0.0, 50.0]}))
        for system, base in RETURNS.items():
            for seed in range(seeds):
                cells.append(grid.Cell(system, name, seed, 'demo', ('',),
                                       (item,)))
                rows.append(Row(
                    run=cells[-1].run(), system=system, presets=[], set=name,
                    task=task, level=level, seed=seed, scale='demo',
                    dirty=False, logdir=str(folder / name),
                    returns=[base + 10 * seed + n for n in range(episodes)]))
    with figure_style.style():
        return MAKERS[item](Evidence(rows, [item], cells),
                            paper_numbers.load())


def intervals(axes: Axes) -> int:
    """How many intervals or bands a panel has."""
    return len(axes.collections) + sum(
        line.get_linewidth() == 4 for line in axes.lines)


@pytest.mark.parametrize('item', MAKERS)
def test_one_run_has_no_interval(item, tmp_path):
    drawing = drawn(tmp_path, item, seeds=1)
    left, right = drawing.figure.axes
    assert (intervals(left) > 0, intervals(right)) == (True, 0)
    assert 'Every seed a run, one run: no interval.' in drawing.notes
    assert not any('final episode a run, one' in note
                   for note in drawing.notes)
    drawing = drawn(tmp_path, item, seeds=1, episodes=1)
    assert [intervals(axes) for axes in drawing.figure.axes] == [0, 0]
    assert ('Every final episode a run, one run: no interval.'
            in drawing.notes)


@pytest.mark.parametrize('item', MAKERS)
@pytest.mark.parametrize('seeds', [2, 4])
def test_an_interval_of_few_seeds_is_said_to_be_too_narrow(
        item, seeds, tmp_path):
    drawing = drawn(tmp_path, item, seeds)
    assert intervals(drawing.figure.axes[1]) > 0
    said = [note for note in drawing.notes if 'narrower than' in note]
    assert [note.split(' is ')[0] for note in said] == [
        'Every seed a run: an interval of 2 seeds on 1 set'] * (seeds == 2)


def test_the_profile_says_what_returns_are_normalised_with(tmp_path):
    own = drawn(tmp_path, 'figure10', 4, sets=SETS[1:]).notes
    both = drawn(tmp_path, 'figure10', 4, sets=SETS).notes
    low, high = metrics.RANGES['walker_walk']
    said = 'τ is normalised as in Table 1, by S_min to S_max: '
    pendulum = 'pendulum_swingup: 0.0 to 50.0, of the data used.'
    walker = f'walker_walk: {low:.1f} to {high:.1f}, published'
    assert said + pendulum in own
    assert sum(note.startswith(said) and walker in note and pendulum in note
               for note in both) == 1
    assert [any('Sources of these ranges differ' in note for note in notes)
            for notes in (own, both)] == [False, True]


def test_ties_are_said_to_count_one_half(tmp_path):
    assert 'ties count one half' in drawn(tmp_path, 'figure4', 4).notes[0]
