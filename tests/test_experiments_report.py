"""The report says what it shows, what it leaves out, and why."""

from __future__ import annotations

import pytest

from semopo_tf.experiments import (
    commands,
    grid,
    metrics,
    paper_numbers,
    tables,
)
from semopo_tf.experiments.evidence import Evidence
from semopo_tf.experiments.results import ResultStore, read_csv
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
