"""The store of results: only added to, safe with several writers."""

from __future__ import annotations

import csv
import dataclasses
import json
import multiprocessing
import sqlite3

import pytest

import run
from dreamerv2_base.errors import UserError
from semopo_tf.experiments import compare, listing
from semopo_tf.experiments.results import (
    NAMES,
    Attempt,
    ResultStore,
    Row,
    read_csv,
)

A, B = (f'demo/walker_walk_random/semopo/seed{n}' for n in (0, 1))


def make_row(run=A, **changes):
    values = {'system': 'SeMOPO', 'presets': ['released', 'demo'],
              'set': 'walker_walk_random', 'task': 'walker_walk',
              'level': 'random', 'seed': 0, 'scale': 'demo', 'dirty': False,
              'versions': {'python': '3.11'}, 'returns': [1.5, 2.25],
              'lengths': [101, 101], 'hours': 0.25, **changes}
    return Row(run, **values)


def write_many(path, writer, count):
    store = ResultStore(path)
    for i in range(count):
        store.append(make_row(f'run{writer}/{i}', seed=i))
        store.append(make_row('everyone', seed=writer))


def test_row_comes_back_as_it_was(tmp_path):
    store, row = ResultStore(tmp_path), make_row()
    assert store.append(row)
    assert store.rows() == [row]
    assert ResultStore(tmp_path / 'results.sqlite').rows() == [row]


def test_a_run_has_one_row(tmp_path):
    store = ResultStore(tmp_path)
    assert store.append(make_row())
    assert not store.append(make_row(seed=7))
    assert [row.seed for row in store.rows()] == [0]
    assert store.finished() == {make_row().run}


def test_rows_are_in_the_order_they_came(tmp_path):
    store = ResultStore(tmp_path)
    for name in 'bca':
        store.append(make_row(name))
    assert [row.run for row in store.rows()] == ['b', 'c', 'a']


@pytest.mark.parametrize('table', ['results', 'attempts'])
@pytest.mark.parametrize('change', ['DELETE FROM {}', 'UPDATE {} SET run=1'])
def test_database_refuses_changes(tmp_path, table, change):
    store = ResultStore(tmp_path)
    store.append(make_row())
    store.record(Attempt('a', 'now', 1.0, 'done'))
    with sqlite3.connect(store.path) as database, pytest.raises(
            sqlite3.IntegrityError, match='only added'):
        database.execute(change.format(table))
    assert len(store.rows()) == 1


def test_several_writers_lose_nothing(tmp_path):
    context = multiprocessing.get_context('spawn')
    workers = [context.Process(target=write_many, args=(tmp_path, w, 20))
               for w in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rows = ResultStore(tmp_path).rows()
    assert {row.run for row in rows} == {'everyone', *(
        f'run{w}/{i}' for w in range(3) for i in range(20))}
    assert len(rows) == 61


def test_filters(tmp_path):
    store = ResultStore(tmp_path)
    for seed in range(3):
        for system in ('SeMOPO', 'BC'):
            store.append(make_row(f'{system}{seed}', seed=seed,
                                  system=system))
    assert [row.run for row in store.rows(seed=[0, 2], system='BC')] == [
        'BC0', 'BC2']
    with pytest.raises(UserError, match='sead'):
        store.rows(sead=1)


def test_paths_move_with_the_store(tmp_path):
    old = tmp_path / 'old'
    store = ResultStore(old)
    store.append(make_row('inside', logdir=str(old / 'runs/a')))
    store.append(make_row('outside', logdir=str(tmp_path / 'b')))
    store.export_csv(tmp_path / 'rows.csv')
    old.rename(tmp_path / 'new')
    inside, outside = ResultStore(tmp_path / 'new').rows()
    assert inside.logdir == str(tmp_path / 'new/runs/a')
    assert outside.logdir == str(tmp_path / 'b')
    assert inside.quantities == ''
    assert str(old) not in (tmp_path / 'rows.csv').read_text()


def test_csv_has_every_field(tmp_path):
    store = ResultStore(tmp_path)
    store.append(make_row())
    assert store.export_csv(tmp_path / 'rows.csv') == 1
    with (tmp_path / 'rows.csv').open() as file:
        found, = csv.DictReader(file)
    assert json.loads(found['returns']) == [1.5, 2.25]
    assert json.loads(found['presets']) == ['released', 'demo']
    assert found['system'] == 'SeMOPO'


def export(folder, *rows):
    store = ResultStore(folder)
    for row in rows:
        store.append(row)
    store.export_csv(folder / 'rows.csv')
    return folder / 'rows.csv'


def import_csv(store, path):
    return store.import_rows([(path, read_csv(path))])[path]


def test_rows_of_two_machines_make_one_store(tmp_path):
    rows = [make_row(A, seed=0, commit='c', quantities='runs/a/q.npz',
                     logdir='runs/a'),
            make_row(f'{B}@colour', seed=1, dirty=None, variant='colour')]
    first = export(tmp_path / 'first', rows[0])
    both = export(tmp_path / 'second', *rows)
    store = ResultStore(tmp_path / 'third')
    assert import_csv(store, first) == 1
    assert import_csv(store, both) == 1
    assert import_csv(store, both) == 0
    store.export_csv(tmp_path / 'rows.csv')
    assert (tmp_path / 'rows.csv').read_text() == both.read_text()
    assert store.rows()[0].logdir == str(tmp_path / 'third/runs/a')


def test_a_run_of_other_returns_is_refused_and_nothing_added(tmp_path):
    source = export(tmp_path / 'there', make_row(B, seed=1), make_row(A))
    store = ResultStore(tmp_path / 'here')
    store.append(make_row(A, returns=[1.5, 2.0]))
    with pytest.raises(UserError, match=r'1.50, 2.00, .* found 1.50, 2.25'):
        import_csv(store, source)
    assert store.finished() == {A}


@pytest.mark.parametrize(('old', 'new', 'message'), [
    ('run,system', 'run,systm', 'columns'),
    ('"[1.5, 2.25]"', '"[1.5, 2.25"', 'line 2'),
    ('"[1.5, 2.25]"', '3', 'line 2'), ('"[1.5, 2.25]"', '[]', 'line 2'),
    ('False', 'maybe', 'line 2'),
    (',0.25,', ',soon,', 'line 2'),
    ('demo/walker_walk_random/semopo/seed0', '', 'line 2'),
    ('walker_walk_random,walker_walk', 'walker_walk', 'columns'),
])
def test_a_damaged_csv_is_named(tmp_path, old, new, message):
    source = export(tmp_path / 'there', make_row())
    text = source.read_text()
    assert old in text
    source.write_text(text.replace(old, new))
    store = ResultStore(tmp_path / 'here')
    with pytest.raises(UserError, match=f'{source}.*{message}.*--csv'):
        import_csv(store, source)
    assert not store.rows()


@pytest.mark.parametrize('change', [
    {'updates_per_second': float('nan')}, {'presets': 5}, {'presets': [1]},
    {'versions': []}, {'lengths': 'abc'}, {'lengths': [101]},
    {'seed': 2 ** 70}, {'run': 'demo/walker_walk_random/semopo/seed1'},
    {'run': 'demo/cheetah_run_random/semopo/seed0'}])
def test_what_no_run_writes_is_not_imported(tmp_path, change):
    store = ResultStore(tmp_path / 'one')
    row = dataclasses.replace(make_row(), **change)
    with (tmp_path / 'rows.csv').open('w', newline='') as file:
        csv.writer(file).writerows([NAMES, [
            json.dumps(value) if isinstance(value, list | dict) else value
            for value in dataclasses.asdict(row).values()]])
    with pytest.raises(UserError, match=r'rows\.csv, line 2: expected a row'):
        import_csv(store, tmp_path / 'rows.csv')
    assert not store.rows()


def test_of_several_files_all_are_added_or_none(tmp_path):
    one = export(tmp_path / 'one', make_row())
    two = export(tmp_path / 'two', make_row(returns=[9.0, 9.5]))
    store = ResultStore(tmp_path / 'here')
    with pytest.raises(UserError, match='expected the returns'):
        store.import_rows([(path, read_csv(path)) for path in (one, two)])
    assert not store.rows()


def test_a_csv_that_a_spreadsheet_saved(tmp_path):
    source = export(tmp_path / 'there', make_row())
    source.write_text(source.read_text(), encoding='utf-8-sig')
    assert import_csv(ResultStore(tmp_path / 'here'), source) == 1


def test_a_missing_csv_is_named(tmp_path):
    with pytest.raises(UserError, match=r'nothing.csv.*No such file'):
        import_csv(ResultStore(tmp_path), tmp_path / 'nothing.csv')


@pytest.mark.parametrize('content', [b'', b'no database' * 100])
def test_a_damaged_store_is_one_line(tmp_path, content):
    path = tmp_path / 'results.sqlite'
    path.write_bytes(content)
    store = ResultStore(tmp_path, create=False)
    for read in (store.rows, store.finished, store.attempts):
        with pytest.raises(UserError, match=r'results\.sqlite: expected'):
            read()
    assert path.read_bytes() == content


def test_a_store_without_rows_says_so(tmp_path):
    ResultStore(tmp_path)
    options, rest = run.parser().parse_known_args(
        ['results', str(tmp_path), '--system', 'SeMOPO'])
    with pytest.raises(UserError, match=r'found none yet; .* --attempts'):
        listing.show_results(options, rest)


def test_missing_store_is_named(tmp_path):
    with pytest.raises(UserError, match='reproduce'):
        ResultStore(tmp_path / 'nothing', create=False)
    assert not (tmp_path / 'nothing').exists()


@pytest.mark.parametrize(('ours', 'theirs', 'verdict', 'p'), [
    ([[1.0, 3.0], [4.0, 4.0]], [[1.0, 3.0], [4.0, 4.0]], 'equal', 1.0),
    # t = 1 / √(0.5 · (1/2 + 1/2)) = √2 with 2 degrees of freedom, of which
    # p = 1 − t / √(2 + t²).
    ([[2.0], [3.0]], [[1.0], [2.0]], 'alike', 1 - 2 ** .5 / 2),
    ([[11.0], [12.0]], [[1.0], [2.0]], 'apart', 1 - (200 / 202) ** .5),
    ([[1.0], [1.0]], [[2.0], [2.0]], 'too few runs', None),
    ([[1.0]], [[2.0]], 'too few runs', None),
    ([[1.0]], [], 'only here', None), ([], [[2.0]], 'only there', None)])
def test_runs_beside_those_of_another_machine(ours, theirs, verdict, p):
    [pair] = compare.compare(*(
        [make_row(f'run{seed}', seed=seed, returns=returns)
         for seed, returns in enumerate(side)] for side in (ours, theirs)))
    assert pair.verdict == verdict
    assert pair.p == (None if p is None else pytest.approx(p, abs=1e-9))


@pytest.mark.parametrize(('ours', 'theirs', 'other'), [
    (('a', 'd'), ('a', 'd'), ()), (('a', 'd'), ('b', 'd'), ('configuration',)),
    (('a', 'd'), ('a', 'e'), ('data',)),
    (('a', 'd'), ('b', 'e'), ('configuration', 'data')),
    (('', 'd'), ('b', ''), ())])
def test_what_else_two_machines_did_otherwise(ours, theirs, other):
    # Seed 1 is on one side alone: it has nothing to be compared with.
    [pair] = compare.compare(
        [make_row('run0', config_hash=ours[0], data_digest=ours[1]),
         make_row('run1', seed=1, config_hash='x', data_digest='y')],
        [make_row('run0', config_hash=theirs[0], data_digest=theirs[1])])
    assert pair.other == other
    assert pair.fields()[compare.COLUMNS.index('other')] == (
        ', '.join(other) or '–')


def test_results_against_a_file(tmp_path, capsys):
    file = tmp_path / 'theirs.csv'
    ResultStore(tmp_path / 'there').append(make_row(A))
    ResultStore(tmp_path / 'there').append(make_row(
        A + '@colour', variant='colour'))
    bc = B.replace('semopo', 'bc')
    ResultStore(tmp_path / 'there').append(make_row(bc, system='BC', seed=1))
    ResultStore(tmp_path / 'there').export_csv(file)
    store = ResultStore(tmp_path)
    store.append(make_row(A))
    words = ['results', str(tmp_path), '--against', str(file)]

    def told(*more):
        options, rest = run.parser().parse_known_args([*words, *more])
        code = listing.show_results(options, rest)
        return code, [(line.split('\t')[2], line.split('\t')[-1])
                      for line in capsys.readouterr().out.splitlines()[1:]]

    assert told() == (0, [
        ('BC', 'only there'), ('SeMOPO', 'equal'),
        ('SeMOPO (colour)', 'only there')])
    assert told('--system', 'SeMOPO', '--variant', '') == (
        0, [('SeMOPO', 'equal')])
    for seed in (1, 2):
        name = f'{A[:-1]}{seed}'
        store.append(make_row(name, seed=seed, returns=[1.9, 1.8 + seed]))
        ResultStore(tmp_path / 'there').append(
            make_row(name, seed=seed, returns=[99.0, 99.5 + seed]))
    ResultStore(tmp_path / 'there').export_csv(file)
    assert told('--system', 'SeMOPO', '--seed', '1', '2') == (
        1, [('SeMOPO', 'apart')])
    with pytest.raises(UserError, match='--csv and --against'):
        told('--csv', str(tmp_path / 'x.csv'))
