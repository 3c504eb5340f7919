"""The figure of learning curves: what is drawn is what runs recorded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from dreamerv2_base.logger import read_rows
from semopo_tf.experiments import evidence as evidence_module
from semopo_tf.experiments import (
    figure_style,
    figures,
    figures_curves,
    figures_learning,
    figures_masks,
    page,
)
from semopo_tf.experiments.evidence import Curve, Evidence
from semopo_tf.experiments.results import Row

RECORDS = [
    {'phase': 'agent', 'step': 0, 'eval_return': 10.0},
    {'phase': 'agent', 'step': 100, 'reward_mean': 2.0, 'penalty_mean': 0.5,
     'lambda': 3.0},  # the logged penalty has it already
    {'phase': 'agent', 'step': 500, 'eval_return': 20.0},
    {'phase': 'agent', 'step': 1000, 'final_eval_return': 40.0}]


def row_of(folder, system, seed, records):
    logdir = folder / f'{system}{seed}'
    logdir.mkdir(parents=True)
    (logdir / 'metrics.jsonl').write_text(
        ''.join(json.dumps(record) + '\n' for record in records))
    (logdir / 'data.json').write_text(json.dumps({'returns': [4.0, 8.0]}))
    return Row(run=f'{system}{seed}', system=system, presets=[],
               set='walker_walk_random', task='walker_walk', level='random',
               seed=seed, scale='demo', commit='c0ffee', dirty=False,
               returns=[1.0], logdir=str(logdir))


def drawn(axes):
    return [(line.get_linestyle(), *(np.asarray(x, float).tolist()
                                     for x in line.get_data()))
            for line in axes.lines]


def test_returns_with_the_final_one_last_and_the_mean_of_the_data(tmp_path):
    other = [{**one, 'eval_return': 30.0} if 'eval_return' in one else one
             for one in RECORDS]
    evidence = Evidence([row_of(tmp_path, 'SeMOPO', 0, RECORDS),
                         row_of(tmp_path, 'SeMOPO', 1, other)], ['table1'])
    left, right = figures_learning.learning(evidence).figure.axes
    assert drawn(left) == [('-', [0.0, 500.0, 1000.0], [20.0, 25.0, 40.0]),
                           ('--', [0.0, 1.0], [6.0, 6.0])]
    assert drawn(right) == [('-', [100.0], [2.0]), ('--', [100.0], [0.5])]


def test_what_is_below_zero_is_not_cut_off(tmp_path):
    low = [{**one, 'reward_mean': -3.0} if 'reward_mean' in one else one
           for one in RECORDS]
    low[0] = {**low[0], 'eval_return': -82.0}
    for name, records, below in (('a', RECORDS, False), ('b', low, True)):
        evidence = Evidence([row_of(tmp_path / name, 'SeMOPO', 0, records)],
                            ['table1'])
        axes = figures_learning.learning(evidence).figure.axes
        assert [one.get_ylim()[0] < least if below
                else one.get_ylim()[0] == 0
                for one, least in zip(axes, (-82, -3), strict=True)
                ] == [True, True]
        assert [('-', [0.0, 1.0], [0.0, 0.0]) in drawn(one)
                for one in axes] == [below, below]
        assert all(one.get_ylim()[1] > 0 for one in axes)


def test_a_record_is_read_once_for_all_of_its_metrics(tmp_path, monkeypatch):
    row, read = row_of(tmp_path, 'SeMOPO', 0, RECORDS), []

    def counted(path):
        read.append(path)
        return read_rows(path)
    monkeypatch.setattr(evidence_module, 'read_rows', counted)
    evidence = Evidence([row], ['table1'])
    for name, values in (('reward_mean', [2.0]), ('penalty_mean', [0.5])):
        assert evidence.curve(row, 'agent', name).values.tolist() == values
    assert len(read) == 1
    with (Path(row.logdir) / 'metrics.jsonl').open('a') as file:
        file.write(json.dumps({'phase': 'agent', 'step': 1100,
                               'reward_mean': 9.0}) + '\n')
    assert evidence.curve(
        row, 'agent', 'reward_mean').values.tolist() == [2.0, 9.0]


def test_a_run_that_ends_before_the_others_is_said(tmp_path):
    evidence = Evidence([row_of(tmp_path, 'SeMOPO', 0, RECORDS),
                         row_of(tmp_path, 'SeMOPO', 1, RECORDS[:3])],
                        ['table1'])
    assert figures_learning.learning(evidence).notes[1:] == [
        'walker walk, random, SeMOPO: from step 1000 on the mean is of 1 of 2 '
        'runs.']


def test_the_band_of_a_mean_curve_is_the_population_deviation():
    curves = [Curve(np.array([0.0, 10.0]), np.array([1.0, 5.0])),
              Curve(np.array([0.0]), np.array([3.0]))]
    found = figures_curves.mean_curve(curves)
    # Of 1 and 3, then of 5 alone.
    np.testing.assert_allclose(found, [[0, 10], [2, 5], [1, 0]])


def test_runs_without_records_are_counted(tmp_path):
    rows = [row_of(tmp_path, 'SeMOPO', seed, records)
            for seed, records in enumerate((RECORDS, []))]
    rows += [row_of(tmp_path, 'BC', 0, []),
             dataclasses.replace(row_of(tmp_path, 'LOMPO', 0, []), logdir='',
                                 set='walker_walk_medium', level='medium')]
    drawing = figures_learning.learning(Evidence(rows, ['table1']))
    assert drawing.notes[1:] == [
        'walker walk, random, SeMOPO: there are records of 1 of 2 runs.',
        'walker walk, random, BC: there are records of 0 of 1 run.',
        'walker walk, medium, LOMPO: there are records of 0 of 1 run.',
        figure_style.NO_RECORDS]


def test_imagined_curves_say_what_is_not_in_them(tmp_path):
    rows = [row_of(tmp_path, 'SeMOPO', seed, records) for seed, records in
            enumerate((RECORDS, [RECORDS[0], RECORDS[2], {
                **RECORDS[3], 'final_eval_return': 'nan'}]))]
    drawing = figures_learning.learning(Evidence(rows, ['table1']))
    assert drawing.notes[1:] == [
        'walker walk, random, SeMOPO: left out, as not finite: 1 logged '
        'value.',
        'walker walk, random, SeMOPO: from step 1000 on the mean is of 1 of 2 '
        'runs.',
        'walker walk, random, SeMOPO, imagined: there are records of 1 of '
        '2 runs.']


def test_a_method_without_imagination_has_returns_alone(tmp_path):
    evidence = Evidence([row_of(tmp_path, 'BC', 0, [
        {'phase': 'train', 'step': 0, 'eval_return': 1.0},
        {'phase': 'train', 'step': 9, 'final_eval_return': 2.0}])],
        ['table1'])
    left, right = figures_learning.learning(evidence).figure.axes
    assert drawn(left)[0] == ('-', [0.0, 9.0], [1.0, 2.0])
    assert not drawn(right)


def test_labelled_systems_differ_in_more_than_their_colour(tmp_path):
    names = ('SeMOPO', 'SeMOPO [a]', 'SeMOPO [b]')
    evidence = Evidence([row_of(tmp_path, name, 0, RECORDS)
                         for name in names], ['table1'])
    figure = figures_learning.learning(evidence).figure
    plain, first, second = (line.get_marker()
                            for line in figure.axes[0].lines[:3])
    assert plain == 'None'
    assert len({plain, first, second, 'o'}) == 4
    handles = figure.legends[0].legend_handles
    assert [one.get_marker() for one in handles] == ['None', first, second]
    assert [one.get_color() for one in handles] == [
        figure_style.colour(name) for name in names]
    imagined = [line.get_marker() for line in figure.axes[1].lines]
    assert imagined[2:] == [first, first, second, second]


@pytest.mark.parametrize('records', [RECORDS, []])
def test_the_page_has_them_where_there_are_any(records, tmp_path):
    evidence = [row_of(tmp_path, 'SeMOPO', 0, records)]
    written = page.write(evidence, ['table1'], tmp_path / 'out')
    text = written[-1].read_text()
    there = bool(records)
    assert (figures_learning.TITLE in text) == there
    assert ('href="#learning">' in text) == there
    assert (tmp_path / 'out' / 'learning.svg').exists() == there
    made = figures.make_others(Evidence(evidence, ['table1']), tmp_path)
    assert [one.name for one in made] == ['learning'] * there


def test_masks_are_those_that_were_measured(tmp_path):
    row = row_of(tmp_path, 'SeMOPO', 0, [])
    image = np.full((2, 4, 4, 3), 51, np.uint8)
    mask = np.full((2, 4, 4), 0.25, np.float32)
    truth = np.zeros((2, 4, 4), bool)
    truth[1] = True
    row = dataclasses.replace(row, quantities=str(tmp_path / 'q.npz'))
    np.savez(row.quantities, **{
        'separation/image': image, 'separation/mask': mask,
        'separation/truth': truth})
    drawing = figures_masks.masks(Evidence([row], ['table1']))
    assert not any('not shown' in note for note in drawing.notes)
    axes, = drawing.figure.axes
    shown = axes.images[0].get_array()
    assert shown.shape == (12, 8, 3)
    np.testing.assert_allclose(shown[:4], 0.2)
    np.testing.assert_allclose(shown[4:8], 0.25)
    np.testing.assert_array_equal(shown[8:, :4], 0)
    np.testing.assert_array_equal(shown[8:, 4:], 1)
    assert axes.get_title() == 'walker walk, random: SeMOPO, seed 0'


def test_a_mask_without_its_frames_is_a_users_error(tmp_path):
    row = dataclasses.replace(row_of(tmp_path, 'SeMOPO', 0, []),
                              quantities=str(tmp_path / 'q.npz'))
    np.savez(row.quantities, **{'separation/mask': np.zeros((2, 4, 4))})
    with pytest.raises(UserError, match='separation/image'):
        figures_masks.masks(Evidence([row], ['table1']))


def test_more_masks_than_a_picture_holds_are_counted(tmp_path):
    first = row_of(tmp_path, 'SeMOPO', 0, [])
    np.savez(tmp_path / 'q.npz', **{
        'separation/image': np.zeros((2, 4, 4, 3), np.uint8),
        'separation/mask': np.zeros((2, 4, 4), np.float32),
        'separation/truth': np.zeros((2, 4, 4), bool)})
    rows = [dataclasses.replace(first, seed=seed, run=str(seed),
                                quantities=str(tmp_path / 'q.npz'))
            for seed in range(figures_masks.MOST + 3)]
    drawing = figures_masks.masks(Evidence(rows, ['table1']))
    titles = [axes.get_title() for axes in drawing.figure.axes]
    assert [title[-len(str(seed)):] for seed, title in enumerate(titles)] == [
        str(seed) for seed in range(figures_masks.MOST)]
    assert drawing.notes[-1].startswith('3 more runs')
