"""The report says what it shows, what it leaves out, and why."""

from __future__ import annotations

import pytest

from semopo_tf import settings
from semopo_tf.experiments import (
    commands,
    grid,
    metrics,
    page,
    paper_numbers,
    run_records,
    tables,
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


def report_of(tmp_path, *arguments, rows=MINI / 'rows_rung2.csv'):
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
    # Ten runs of cartpole and six of medium_replay are not there.
    assert '14 of 30 wanted<' in (folder / 'index.html').read_text()


def test_rows_that_were_not_asked_for_are_counted(tmp_path, capsys):
    folder = report_of(tmp_path, '--sets', WALKER)
    words = ('Not shown, as nobody asked for them: 4 rows, '
             'walker_walk_medium_replay (4).')
    assert words in capsys.readouterr().err
    page_text = (folder / 'index.html').read_text()
    assert f'<div class="warning"><p>{words}' in page_text
    assert '10 of 10 wanted, 4 others<' in page_text
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
    assert '<td>2.6 in all<' in text


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
