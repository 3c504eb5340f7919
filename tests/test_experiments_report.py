"""The report says what it shows, what it leaves out, and why."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from semopo_tf import settings
from semopo_tf.experiments import (
    commands,
    figures,
    figures_learning,
    figures_masks,
    grid,
    metrics,
    page,
    paper_numbers,
    run_records,
    tables,
    tables_extra,
)
from semopo_tf.experiments.evidence import Evidence
from semopo_tf.experiments.results import Attempt, ResultStore, read_csv
from tests.helpers import ROOT
from tests.test_experiments_grid import parse_command
from tests.test_experiments_tables import grid_of, make_row

MINI = ROOT / 'docs' / 'results' / 'mini'
WALKER = 'walker_walk_random'
CHEETAH = 'cheetah_run_random'


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(metrics, 'RESAMPLES', 20)


def cells(systems, sets, seeds=2, item='table1', variants=('',)):
    return [grid.Cell(system, name, seed, 'paper', variants, (item,))
            for seed in range(seeds) for name in sets for system in systems]


def made(item, rows, wanted=None, **words):
    """A table of rows; by default nothing else was wanted."""
    if wanted is None:
        wanted = [grid.Cell(row.system, row.set, row.seed, 'paper',
                            (row.variant,), (item,)) for row in rows]
    return tables.make(item, Evidence(rows, [item], wanted, **words),
                       paper_numbers.load())


def layout(table):
    """The first block as {set: {system: text}}."""
    block = table.blocks[0]
    return {line[0].text: {head: value.text for head, value in zip(
        block.header[1:], line[1:], strict=True)} for line in block.lines}


def report_of(tmp_path, *arguments, rows=MINI / 'rows_rung2_2500.csv'):
    """`reproduce --only-report` over imported rows; its folder."""
    store = ResultStore(tmp_path)
    store.import_rows([(rows, read_csv(rows))])
    options, rest = parse_command(
        'reproduce', '--scale', 'mini', '--table', '1', '--only-report',
        '--out', str(tmp_path), '--data', str(tmp_path / 'none'), *arguments)
    assert commands.reproduce(options, rest) == 0
    return tmp_path / 'report'


# What is shown, and what nobody asked for.


def test_a_report_alone_has_every_row_that_is_there(tmp_path, capsys):
    folder = report_of(tmp_path)
    text = (folder / 'table1.md').read_text()
    assert '| walker_walk_random | SeMOPO | 0.29 ± 0.01' in text
    assert '| walker_walk_medium_replay | Offline DV2 | 0.15 ± 0.11' in text
    assert 'Not shown' not in text
    assert 'note' not in capsys.readouterr().err
    # The rows of this file, of cartpole and both sets of walker_walk.
    there = len(read_csv(MINI / 'rows_rung2_2500.csv'))
    assert f'{there} of 30 wanted<' in (folder / 'index.html').read_text()


def test_rows_that_were_not_asked_for_are_counted(tmp_path, capsys):
    folder = report_of(tmp_path, '--sets', WALKER)
    others = sum(row.set != WALKER
                 for row in read_csv(MINI / 'rows_rung2_2500.csv'))
    words = (f'Not shown, as nobody asked for them: {others} rows, '
             f'walker_walk_medium_replay ({others}).')
    assert words in capsys.readouterr().err
    page_text = (folder / 'index.html').read_text()
    assert f'<div class="warning"><p>{words}' in page_text
    assert f'10 of 10 wanted, {others} others<' in page_text
    assert f'* {words}' in (folder / 'table1.md').read_text()


def test_seeds_that_were_not_asked_for_are_in_no_number():
    rows = [make_row(WALKER, 'BC', seed, [value, value])
            for seed, value in enumerate((10.0, 20.0, 900.0))]
    for item, mean in (('table5', '15.0 ± 5.0'), ('table1', '0.02 ± 0.01')):
        table = made(item, rows, cells(['BC'], [WALKER], item=item))
        line = grid_of(table.blocks[1])[WALKER, 'BC']
        assert (line['ours'], line['n']) == (mean, '2×2')
        assert any('1 row, walker_walk_random (1)' in note
                   for note in table.notes)
    colour = [make_row(WALKER, 'SeMOPO', seed, [1.0], 'colour')
              for seed in range(2)]
    found = Evidence(colour, ['table2', 'table1'], cells(
        ['SeMOPO'], [WALKER], 1, 'table2', ('', 'colour')))
    assert [row.seed for row in found.runs('SeMOPO', WALKER, 'colour')] == [0]
    assert '1 row,' in found.unasked('table2')
    assert found.unasked('table1') == ''  # which has no colour


def test_seeds_hold_for_labelled_systems_and_what_they_vary(tmp_path):
    store = ResultStore(tmp_path)
    for system in ('SeMOPO', 'SeMOPO [mine]'):
        for seed in range(2):
            store.append(make_row(WALKER, system, seed, [1.0]))
    for flags, seeds in (((), {0, 1, 2, 3}), (('--seeds', '1'), {0})):
        options, rest = parse_command('reproduce', '--table', '1', '--sets',
                                      WALKER, *flags)
        found = commands._with_variants(
            commands._request(options, rest), store)
        assert {cell.seed for cell in found} == seeds
        assert 'SeMOPO [mine]' in {cell.system for cell in found}


def test_a_label_is_wanted_where_it_has_rows_alone():
    rows = [make_row(WALKER, 'SeMOPO [mine]', 0, [1.0])]
    found = Evidence(rows, ['table1'])
    assert [(cell.set, cell.seed) for cell in found.wanted
            if cell.system == 'SeMOPO [mine]'] == [(WALKER, 0)]


# Runs that are not alike.


def test_differing_runs_of_a_cell_are_marked_and_named():
    rows = [make_row(WALKER, 'BC', 0, [1.0], commit='a' * 40),
            make_row(WALKER, 'BC', 1, [1.0], commit='a' * 40, dirty=True,
                     presets=['bc'], data_digest='e' * 64),
            make_row(CHEETAH, 'BC', 0, [1.0]),
            make_row(CHEETAH, 'BC', 1, [1.0])]
    table = made('table5', rows)
    assert layout(table)[WALKER]['BC'] == '1.0 ± 0.0 †'
    assert layout(table)[CHEETAH]['BC'] == '1.0 ± 0.0'
    assert [note for note in table.notes if note.startswith('†')] == [
        '† BC on walker_walk_random: its runs differ in presets (, bc), '
        'commit (aaaaaaaa, aaaaaaaa with changes), data (, eeeeeeee).']


def test_a_figure_says_it_too(tmp_path):
    rows = [make_row(WALKER, 'SeMOPO', seed, [1.0], commit=letter * 40)
            for seed, letter in enumerate('ab')]
    drawn = figures.make('figure6', Evidence(rows, ['figure6'], cells(
        ['SeMOPO'], [WALKER], 2, 'figure6')), paper_numbers.load(), tmp_path)
    assert drawn.notes[-1] == (
        '† SeMOPO on walker_walk_random: its runs differ in commit '
        '(aaaaaaaa, bbbbbbbb).')


def test_methods_on_different_data_are_named():
    rows = [make_row(WALKER, system, 0, [1.0], data_digest=letter * 64)
            for system, letter in (('SeMOPO', 'a'), ('BC', 'b'))]
    for item in ('table5', 'table3'):
        notes = made(item, rows).notes
        assert ('Methods on walker_walk_random were trained on several '
                'versions of the data: SeMOPO aaaaaaaa; BC bbbbbbbb.'
                ) in notes


def save_config(folder, *flags):
    folder.mkdir(parents=True)
    config, _ = settings.resolve(list(flags))
    config.save(folder / 'config.yaml')
    return str(folder)


def test_configurations_are_compared_apart_from_the_seed(tmp_path):
    folders = [save_config(tmp_path / str(seed), '--seed', str(seed),
                           '--logdir', str(tmp_path / str(seed)), *flags)
               for seed, flags in enumerate(((), (), ('--offline_lmbd', '3'),
                                             ()))]
    old = tmp_path / '3' / 'config.yaml'  # before there was such a key
    text = old.read_text()
    assert 'shadows: true\n' in text
    old.write_text(text.replace('shadows: true\n', ''))
    rows = [make_row(WALKER, 'BC', seed, [1.0], logdir=folder)
            for seed, folder in enumerate(folders)]
    assert run_records.differences(rows[:2]) == []
    assert run_records.differences([rows[0], rows[3]]) == []
    assert run_records.differences(rows) == ['configuration (offline_lmbd)']
    old.write_text('no_more: 1\n')
    assert run_records.differences([rows[0], rows[3]]) == ['configuration']


def test_hours_of_a_run_are_counted_once():
    path = MINI / 'rows.csv'
    rows = [row for row in read_csv(path) if row.system == 'SeMOPO']
    assert [row.variant for row in rows] == ['', '', 'colour', 'colour']
    assert run_records.hours(rows) == pytest.approx(
        rows[2].hours + rows[3].hours)
    text = page._summary(Evidence(rows, ['table2']), {})
    assert '<td>1.3 in all<' in text


# Runs that failed.


def test_failed_runs_are_told_from_those_not_run(tmp_path):
    wanted = cells(['BC'], [WALKER], 3, 'table2', ('', 'colour'))
    failed, again, other = (cell.run() for cell in wanted)
    attempts = [Attempt(failed, '', 1.0, 'failed', 'train: exit code 1'),
                Attempt(failed, '', 1.0, 'lost', 'worker <1> vanished'),
                Attempt(again, '', 1.0, 'failed', 'train: exit code 1'),
                Attempt(again, '', 1.0, 'done')]
    row = make_row(WALKER, 'BC', 1, [1.0])
    found = Evidence([row], ['table2'], wanted, attempts=attempts)
    assert found.missing_runs() == {
        failed: 'failed 2 times, last: worker <1> vanished',
        f'{failed}@colour': 'failed 2 times, last: worker <1> vanished',
        f'{again}@colour': 'not run', other: 'not run',
        f'{other}@colour': 'not run'}
    table = tables.make('table2', found, paper_numbers.load())
    lines = [line[1].text for line in table.blocks[0].lines]
    assert lines == ['1.0 ± – (missing: 2 of 3 runs, 1 failed)',
                     'missing: 3 runs, 1 failed']
    written = page.write([row], ['table2'], tmp_path, wanted=wanted,
                         attempts=attempts)
    assert f'{failed}: failed 2 times, last: worker &lt;1&gt; vanished' in (
        written[-1].read_text())


def test_a_report_alone_knows_what_failed(tmp_path):
    run = 'mini/cartpole_swingup_mixed/bc/seed0'
    ResultStore(tmp_path).record(Attempt(run, '', 1.0, 'failed', 'no disk'))
    text = (report_of(tmp_path) / 'index.html').read_text()
    assert f'{run}: failed 1 time, last: no disk' in text


# All sets together.


def together(table):
    block = next(block for block in table.blocks if 'together' in
                 block.caption)
    return grid_of(block)


def test_methods_are_compared_over_the_sets_that_all_have():
    rows = [make_row(name, system, seed, [100.0 + seed])
            for system in ('SeMOPO', 'BC') for seed in range(2)
            for name in (WALKER, CHEETAH) if (system, name) != ('BC', CHEETAH)]
    table = made('table1', rows, cells(['SeMOPO', 'BC'], [WALKER, CHEETAH]))
    assert {line['n'] for line in together(table).values()} == {'2×1'}
    assert ('All sets together: left out are cheetah_run_random (missing: 2 '
            'runs).') in table.notes
    # The same where nobody asked for them.
    table = made('table1', rows)
    assert {line['n'] for line in together(table).values()} == {'2×1'}
    assert ('All sets together: left out are cheetah_run_random (not asked '
            'for).') in table.notes


def test_methods_may_have_other_numbers_of_seeds():
    rows = [make_row(WALKER, system, seed, [100.0 + seed])
            for system, seeds in (('SeMOPO', 3), ('BC', 2))
            for seed in range(seeds)]
    found = together(made('table1', rows))
    assert [found[system, 'seeds']['n'] for system in ('SeMOPO', 'BC')] == [
        '3×1', '2×1']


def test_seeds_may_have_other_numbers_of_episodes():
    rows = [make_row(WALKER, 'BC', seed, [64.3] * episodes)
            for seed, episodes in enumerate((3, 2))]
    table = made('table1', rows)
    found = together(table)
    assert found['BC', 'seeds']['IQM'] == '0.10 [0.10, 0.10]'
    assert found['BC', 'episodes']['IQM'] == 'no set can be compared'
    assert any('its runs differ in their number of episodes' in note
               for note in table.notes)


def test_few_runs_are_said_to_be_few():
    for count, said in ((1, False), (2, True), (4, False)):
        rows = [make_row(WALKER, 'BC', seed, [64.3]) for seed in range(count)]
        notes = made('table1', rows).notes
        assert any('Of fewer than 4 runs' in note for note in notes) == said


def test_no_difference_is_taken_from_another_size():
    name = 'hopper_hop_random'
    for scale, shown in (('paper', True), ('mini', False)):
        row = dataclasses.replace(make_row(name, 'BC', 0, [3.7]), scale=scale)
        table = made('table5', [row], [
            grid.Cell('BC', name, 0, scale, items=('table5',))])
        line = grid_of(table.blocks[1])[name, 'BC']
        assert line['paper'].startswith('5.0')
        assert line['difference'] == ('−1.3' if shown else '–')
        assert any('no difference is taken' in note
                   for note in table.notes) != shown


def test_a_single_run_has_no_interval():
    found = together(made('table1', [make_row(WALKER, 'BC', 0, [64.3, 64.3])]))
    assert found['BC', 'seeds']['IQM'] == '0.10'
    assert found['BC', 'episodes']['IQM'] == '0.10 [0.10, 0.10]'


# What returns are normalised with.


def test_without_a_range_there_are_raw_returns():
    rows = [row for row in read_csv(MINI / 'rows.csv') if not row.variant]
    table = made('table1', [dataclasses.replace(row, scale='paper')
                            for row in rows])
    cell = layout(table)['cartpole_swingup_mixed']
    assert (cell['range'], cell['SeMOPO']) == ('none known',
                                               '712.8 ± 30.0 raw')
    assert 'raw: returns as they are' in ' '.join(table.notes)
    assert grid_of(table.blocks[1])[
        'cartpole_swingup_mixed', 'SeMOPO']['difference'] == '–'
    assert together(table)['SeMOPO', 'seeds']['IQM'] == (
        'nothing is known to normalise its returns with')


def put_data(folder, levels=grid.LEVELS):
    """Walker's sets with returns from 0 to 200, as `data validate` left."""
    for level in levels:
        path = folder / 'lqv_d4rl' / 'walker_walk' / level
        path.mkdir(parents=True)
        (path / 'a.npz').touch()
        (path / 'manifest.json').write_text(json.dumps({
            'format': 1, 'files': [{'episodes': [
                {'return': 0.0}, {'return': 200.0}]}]}))


@pytest.mark.parametrize('levels', [('random',), grid.LEVELS])
def test_a_number_does_not_hang_on_the_sets_asked_for(levels, tmp_path):
    put_data(tmp_path / 'none')
    sets = [f'walker_walk_{level}' for level in levels]
    folder = report_of(tmp_path, '--sets', *sets)
    text = (folder / 'table1.md').read_text()
    assert '| walker_walk_random | of the data used | 0.88 ± ' in text
    assert '| walker_walk | 0.0 to 200.0 | 5.0 to 598.0 |' in text


def test_a_difference_is_one_of_numbers_by_the_same_range(tmp_path):
    put_data(tmp_path)
    rows = [make_row(WALKER, 'BC', 0, [120.0]),
            make_row('cartpole_swingup_mixed', 'BC', 0, [120.0])]
    paper = tmp_path / 'paper.json'
    paper.write_text(json.dumps({'label': 'made up', 'table5': {
        WALKER: {'BC': {'mean': 179.3}}}}))
    data = {f'walker_walk_{level}': tmp_path / 'lqv_d4rl/walker_walk' / level
            for level in grid.LEVELS}
    table = tables.make('table1', Evidence(
        rows, ['table1'], cells(['BC'], [WALKER], 1), data),
        paper_numbers.load(paper))
    line = grid_of(table.blocks[1])[WALKER, 'BC']
    assert (line['ours'], line['corrected'], line['difference']) == (
        '0.60 ± –', '0.29 ± –', '−0.10')
    assert 'normalised with the published range' in ' '.join(table.notes)


# What runs say beside their numbers.


def test_backgrounds_and_warnings_of_runs_are_in_the_report(tmp_path):
    rows = []
    for seed, flags in enumerate((
            ('--video_dir', 'procedural'), ('--video_dir', '/my videos/a'),
            ('--task', 'dmc_walker_walk'), ('--video_dir', 'none'))):
        folder = tmp_path / str(seed)
        save_config(folder, *flags)
        (folder / 'warnings.json').write_text(json.dumps(
            ['a <note>', f'of {seed}']))
        (folder / 'data.json').write_text(json.dumps({'skipped': [
            ['x.npz', 'broken']] if seed else []}))
        rows += [make_row(WALKER, 'BC', seed, [1.0], variant,
                          logdir=str(folder)) for variant in ('', 'colour')]
    rows.append(make_row(CHEETAH, 'BC', 0, [1.0]))  # of another machine
    text = page.write(rows, ['table2'], tmp_path / 'out')[-1].read_text()
    assert ('drawn (procedural) (1), folder /my videos/a (1), plain (2), not '
            'known, no run folder here (1)<') in text
    assert 'a &lt;note&gt; (4 runs)' in text
    assert 'of 3 (1 run)' in text
    assert ('1 broken episode files were left out, first x.npz (3 runs)'
            ) in text
    notes = [('table1', 1), ('table5', 1), ('table2', 1), ('table4', 0)]
    for item, count in notes:
        found = [note for note in made(item, rows[::2]).notes
                 if "cannot be compared with the paper's" in note]
        assert len(found) == count
        words = '1 of 4 runs (1 more: not known, no run folder here) were'
        assert all(note.startswith(words) for note in found)


# Labelled systems, beyond the paper's tables.


def test_labelled_systems_are_in_what_the_paper_has_not(tmp_path):
    rows = []
    for system in ('SeMOPO [mine]', 'SeMOPO', 'SeMOPO [b]'):
        folder = tmp_path / system
        folder.mkdir()
        np.savez(folder / 'q.npz', **{
            'separation/iou': np.ones(2), 'separation/ranking': np.ones(2),
            **{f'separation/{key}': np.ones((2, 8, 8)) for key in (
                'mask', 'truth')},
            'separation/image': np.ones((2, 8, 8, 3))})
        (folder / 'metrics.jsonl').write_text(json.dumps(
            {'phase': 'agent', 'step': 1, 'eval_return': 1.0}) + '\n')
        rows.append(make_row(WALKER, system, 0, [1.0], logdir=str(folder),
                             quantities=str(folder / 'q.npz')))
    found = Evidence(rows, ['table1'])
    order = ['SeMOPO', 'SeMOPO [b]', 'SeMOPO [mine]']
    table = tables_extra.separation(found)
    assert [line[1].text for line in table.blocks[0].lines] == order
    drawn = figures_masks.masks(found).figure
    assert [axes.get_title().split(': ')[1] for axes in drawn.axes] == [
        f'{system}, seed 0' for system in order]
    drawing = figures_learning.learning(found)
    legend, = drawing.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == order
    assert len({text.get_color() for text in legend.get_texts()}) == 3
    assert {line.get_color() for line in drawing.figure.axes[0].lines} == {
        text.get_color() for text in legend.get_texts()}


# Table 3, empty tables, old files.


def test_a_coarse_number_has_no_decimals(tmp_path):
    (tmp_path / 'manifest.json').write_text(json.dumps({
        'format': 1, 'files': [{'episodes': [
            {'return': 77.64}, {'return': 90.0}]}]}))
    found = Evidence([], ['table3'], [], {CHEETAH: tmp_path})
    table = tables.make('table3', found, paper_numbers.load())
    assert [[line[3].text, line[9].text] for line in table.blocks[0].lines
            ] == [['83.8', '90.0'], ['78', '198.2'], ['+6', '−108.2']]


def test_table_3_without_data_says_so(tmp_path):
    options, rest = parse_command(
        'reproduce', '--table', '3', '--out', str(tmp_path), '--data',
        str(tmp_path / 'none'))
    assert commands.reproduce(options, rest) == 0
    text = (tmp_path / 'report' / 'table3.md').read_text()
    assert text.count('| ours | missing | –') == 15
    assert '* missing: neither a run folder nor --data' in text
    put_data(tmp_path / 'none')
    options, rest = parse_command(
        'reproduce', '--table', '3', '--out', str(tmp_path), '--data',
        str(tmp_path / 'none'), '--sets', WALKER)
    assert commands.reproduce(options, rest) == 0
    text = (tmp_path / 'report' / 'table3.md').read_text()
    assert text.count('| ours |') == 1  # not the levels read for the range
    assert 'missing' not in text


def test_an_empty_table_says_why():
    table = made('table4', [], [])
    assert table.blocks == ()
    assert ('Empty, as nothing of it was asked for: Ours, raw returns; Beside '
            'the paper.') in table.notes


def test_files_of_earlier_reports_do_not_stay(tmp_path):
    row = make_row(WALKER, 'BC', 0, [1.0])
    old = [tmp_path / name for name in (
        'table3.md', 'table3.tex', 'table3.html', 'figure10.png',
        'learning.svg', 'masks.png', 'separation.tex')]
    mine = tmp_path / 'notes.md'
    for path in (*old, mine, tmp_path / 'table5.md'):
        path.write_text('old')
    written = page.write([row], ['table5'], tmp_path)
    assert set(tmp_path.iterdir()) == {*written, mine}
    assert (tmp_path / 'table5.md').read_text() != 'old'
