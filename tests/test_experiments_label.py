"""A variant of one's own beside the system as it is (`reproduce --label`)."""

from __future__ import annotations

import dataclasses

import pytest

from dreamerv2_base.errors import UserError
from semopo_tf.experiments import commands, grid, page, plan, scales
from semopo_tf.experiments.evidence import Evidence
from semopo_tf.experiments.results import ResultStore, Row
from tests.test_experiments_grid import parse_command

MINE = ('--table', '1', '--scale', 'demo', '--systems', 'SeMOPO', '--seeds',
        '2', '--sets', 'walker_walk_random')
LABEL = ('--offline_lmbd', '5', '--label', 'lambda_5')


def request(*arguments):
    options, rest = parse_command('reproduce', *arguments)
    return options, commands._request(options, rest)


def row_of(cell, value):
    return Row(cell.run(), system=cell.system, presets=[], set=cell.set,
               task='walker_walk', level='random', seed=cell.seed,
               scale='demo', dirty=False, returns=[value])


def test_a_labelled_system_is_its_own_run_of_the_same_method():
    name = 'SeMOPO (paper) [mine]'
    assert grid.base(name) == 'SeMOPO (paper)'
    assert grid.base('SeMOPO (paper)') == 'SeMOPO (paper)'
    assert grid.system(name) == dataclasses.replace(
        grid.SYSTEMS['SeMOPO (paper)'], name=name, slug='semopo_paper-mine')
    _, found = request(*MINE, *LABEL)
    assert [cell.run() for cell in found.cells] == [
        f'demo/walker_walk_random/semopo-lambda_5/seed{n}' for n in (0, 1)]
    cell = found.cells[0]
    _, plain = request(*MINE)
    assert scales.presets_of_cell(cell) == scales.presets_of_cell(
        plain.cells[0])
    assert plan.configs(found.cells, {'offline_lmbd': ['5']})[
        cell.name].offline_lmbd == 5


def test_both_stand_in_the_table_whichever_is_asked_for(tmp_path):
    out = ('--out', str(tmp_path))
    options, mine = request(*MINE, *LABEL, *out)
    _, plain = request(*MINE, *out)
    store = ResultStore(tmp_path)
    commands._keep_label(options, mine)
    for value, cells in ((100.0, plain.cells), (200.0, mine.cells)):
        for cell in cells:
            store.append(row_of(cell, value))
    for asked in (plain, mine):
        wanted = commands._with_variants(asked, store)
        assert {cell.run() for cell in wanted} == {
            cell.run() for cell in (*plain.cells, *mine.cells)}
        found = Evidence(store.rows(), ['table1'], wanted)
        assert found.systems('table1') == ['SeMOPO', 'SeMOPO [lambda_5]']
    page.write(store.rows(), ['table1'], tmp_path / 'report', wanted=wanted,
               labels=commands._labels(tmp_path))
    text = (tmp_path / 'report' / 'index.html').read_text()
    assert 'SeMOPO [lambda_5]' in text
    assert '--offline_lmbd 5' in text
    # Rows alone, as of another machine, know it too.
    assert 'SeMOPO [lambda_5]' in Evidence(
        store.rows(), ['table1']).systems('table1')


def test_a_label_stands_for_the_same_keys_for_ever(tmp_path, capsys):
    out = ('--out', str(tmp_path))
    commands._keep_label(*request(*MINE, *LABEL, *out))
    commands._keep_label(*request(*MINE, *LABEL, *out))
    with pytest.raises(UserError, match='found --offline_lmbd 2; give anoth'):
        commands._keep_label(*request(
            *MINE, '--offline_lmbd', '2', '--label', 'lambda_5', *out))
    assert capsys.readouterr().err == ''
    commands._keep_label(*request(*MINE, '--offline_lmbd', '2', *out))
    assert '--label NAME keeps both apart' in capsys.readouterr().err


@pytest.mark.parametrize(('arguments', 'message'), [
    ((*MINE, '--label', 'x'), 'found no keys'),
    (('--table', '1', '--offline_lmbd', '5', '--label', 'x'),
     'found no --systems'),
    ((*MINE, '--offline_lmbd', '5', '--label', 'My Own'), 'small letters')])
def test_labels_of_nothing_are_user_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        request(*arguments)
