"""The sweep: nothing done twice, nothing lost, wherever it runs."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dreamerv2_base.config import parse_flags
from dreamerv2_base.errors import UserError
from dreamerv2_base.logger import read_rows
from semopo_tf import settings
from semopo_tf.experiments import listing, live, runner, sweep
from semopo_tf.experiments.grid import Cell
from semopo_tf.experiments.results import ResultStore
from tests.helpers import ROOT

WORK = runner.Runner((sys.executable, '-m', 'tests.fake_run'))
TIMES = {'hours', 'updates_per_second', 'finished', 'logdir', 'quantities'}


class Silent(live.Lines):
    def __init__(self):
        self.seen = []

    def event(self, kind, job, text):
        self.seen.append((kind, job.cell.name, text))


def make_jobs(out, systems=('SeMOPO', 'BC'), seeds=(0, 1), **changes):
    return [runner.Job(Cell(system, 'walker_walk_random', seed, 'demo'),
                       Path('data'), out, **changes)
            for seed in seeds for system in systems]


def run(jobs, store, slots=2, retries=1, pool=None):
    watcher = Silent()
    sweep.adopt(jobs, store)
    failed = sweep.Sweep(jobs, store, pool or sweep.LocalPool(slots, WORK),
                         watcher, retries).run()
    return failed, watcher.seen


def starts(job):
    return len((job.logdir / 'starts').read_text().splitlines())


def numbers(store):
    """Rows without times and places, in the order of their ids."""
    return sorted(tuple((key, str(value)) for key, value
                         in dataclasses.asdict(row).items()
                         if key not in TIMES) for row in store.rows())


def test_a_row_says_what_the_run_recorded(tmp_path):
    job = dataclasses.replace(
        make_jobs(tmp_path, ['SeMOPO'], [3])[0], cell=Cell(
            'SeMOPO', 'walker_walk_random', 3, 'demo', ('', 'colour')))
    store = ResultStore(tmp_path)
    assert run([job], store) == ({}, [
        ('done', 'walker_walk_random/semopo/seed3', 'mean return 30.5')])
    plain, colour = store.rows()
    assert plain.run == 'demo/walker_walk_random/semopo/seed3'
    assert plain.returns == [30.0, 31.0]  # the final episodes alone
    assert plain.lengths == [101, 101]
    assert plain.presets == ['released', 'demo', 'reproduce_demo']
    assert (plain.task, plain.level) == ('walker_walk', 'random')
    assert (plain.commit, plain.dirty) == ('c0ffee', False)
    spent = read_rows(job.spent)
    assert [one['command'] for one in spent] == [
        'train', 'measure', 'evaluate']
    # The fake's updates say that they took longer than all of it did.
    assert colour.hours == pytest.approx((3 * 2.0 + sum(
        one['seconds'] for one in spent[1:])) / 3600)
    assert 0 < plain.hours < colour.hours
    assert plain.updates_per_second == pytest.approx(0.5)
    assert plain.checkpoint_step == 3
    assert Path(plain.quantities).exists()
    assert colour.run == f'{plain.run}@colour'
    assert colour.returns == [1.0, 2.0]
    assert colour.config_hash == plain.config_hash


def test_what_has_a_row_is_not_run_again(tmp_path):
    store, jobs = ResultStore(tmp_path), make_jobs(tmp_path)
    run(jobs[:2], store)
    first = store.rows()
    run(jobs, store)
    assert store.rows()[:2] == first
    assert [starts(job) for job in jobs] == [1, 1, 1, 1]
    assert len(store.attempts()) == 4


def test_a_return_that_is_not_finite_makes_no_row(tmp_path):
    """It would rank above every score."""
    job, = make_jobs(tmp_path, ('BC',), (0,))
    with pytest.raises(runner.Failed, match='found 1 of 3 that are not'):
        runner.make_row(job, '', [
            {'return': 1.0}, {'return': 'nan'}, {'return': 2.0}], '')


def test_a_failure_stops_nothing_else(tmp_path):
    store, jobs = ResultStore(tmp_path), make_jobs(tmp_path)
    for number, code in ((0, 2), (2, 1)):
        jobs[number].logdir.mkdir(parents=True)
        (jobs[number].logdir / 'fail').write_text(str(code))
    failed, seen = run(jobs, store)
    # Exit code 2 is an error of the user's; 1 may pass: tried again.
    assert list(failed) == [jobs[0].cell.name]
    assert 'error: told to fail' in failed[jobs[0].cell.name]
    assert [kind for kind, _, _ in seen].count('again') == 1
    assert store.finished() == {job.cell.run() for job in jobs[1:]}
    outcomes = {(a.run, a.outcome) for a in store.attempts()}
    assert (jobs[0].cell.run(), 'failed') in outcomes
    assert (jobs[2].cell.run(), 'failed') in outcomes
    failed, _ = run(jobs, store)  # the same command mends it
    assert not failed
    assert len(store.rows()) == 4


def test_a_colour_evaluation_added_later_trains_nothing(tmp_path):
    store, (job,) = ResultStore(tmp_path), make_jobs(tmp_path, ['BC'], [0])
    run([job], store)
    both = dataclasses.replace(job, cell=dataclasses.replace(
        job.cell, variants=('', 'colour')))
    run([both], store)
    assert starts(job) == 1
    assert [row.variant for row in store.rows()] == ['', 'colour']
    # Table 2: the same policy before videos in colour.
    flags = json.loads((job.logdir / 'evaluated.json').read_text())
    config = settings.presets().defaults.update(parse_flags(flags))
    changed = settings.presets().defaults.difference(config)
    assert changed == {'background_grayscale': (True, False)}


def test_rows_of_a_dead_sweep_are_kept(tmp_path):
    store, (job,) = ResultStore(tmp_path), make_jobs(tmp_path, ['BC'], [0])
    WORK.run(job)  # a worker that ended after its sweep had died
    assert not store.rows()
    run([job], store)
    assert starts(job) == 1
    assert len(store.rows()) == 1
    assert store.attempts() == []


def test_stop_lets_runs_save_and_go_on(tmp_path):
    store, jobs = ResultStore(tmp_path), make_jobs(tmp_path, ['BC'])
    for job in jobs:
        job.logdir.mkdir(parents=True)
        (job.logdir / 'slow').touch()
    asking = threading.Timer(
        2.0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    asking.start()
    with pytest.raises(sweep.Interrupted):
        run(jobs, store, slots=1)
    assert not store.rows()
    assert not store.attempts()  # stopping is no failure
    assert not (jobs[1].logdir / 'starts').exists()
    for job in jobs:
        (job.logdir / 'slow').unlink()
    with sweep.alone(tmp_path):  # the next sweep clears the way
        run(jobs, store)
    assert len(store.rows()) == 2
    assert len(read_rows(jobs[0].logdir / 'timings.jsonl')) == 3


def test_a_stop_while_a_run_is_recorded_ends_the_sweep(tmp_path, monkeypatch):
    store, jobs = ResultStore(tmp_path), make_jobs(tmp_path, ['BC'])
    append = ResultStore.append

    def append_and_stop(self, row):
        if not self.rows():  # asked twice, a sweep does not wait
            os.kill(os.getpid(), signal.SIGTERM)
        return append(self, row)

    monkeypatch.setattr(ResultStore, 'append', append_and_stop)
    for job in jobs[1:]:
        job.logdir.mkdir(parents=True)
        (job.logdir / 'slow').touch()
    with pytest.raises(sweep.Interrupted):
        run(jobs, store, slots=1)
    assert len(store.rows()) == len(store.attempts()) == 1


def test_rows_imported_meanwhile_with_other_returns_are_said(tmp_path, capsys):
    store, (job,) = ResultStore(tmp_path), make_jobs(tmp_path, ['BC'], [0])
    row, = WORK.run(job).rows
    left = runner.row_file(job.logdir, '')
    text = left.read_text()
    left.unlink()
    other = dataclasses.replace(row, returns=[77.0, 78.0])
    monkey = Runs(job, row, lambda: store.append(other))
    failed, _ = run([job], store, pool=monkey, retries=1)
    assert 'the store has other returns of this run' in failed[job.cell.name]
    assert [one.outcome for one in store.attempts()] == ['failed']
    assert store.rows()[0].returns == [77.0, 78.0]
    left.write_text(text)
    sweep.adopt([job], store)
    assert 'warning: demo/' in capsys.readouterr().err


class Runs:
    """A pool whose one job ends after something else has happened."""

    def __init__(self, job, row, before):
        self.ended = [(job, runner.Outcome((row,)))]
        self.before = before

    def submit(self, job):
        self.before()

    def wait(self, seconds):
        return self.ended

    def close(self):
        pass


def test_hours_of_a_training_that_outlived_its_sweep(tmp_path):
    job, = make_jobs(tmp_path, ['BC'], [0])
    WORK.run(job)
    updates = 3 * 2.0  # three rows of tests/fake_run.py
    known = [row for row in read_rows(job.spent) if row['command'] != 'train']
    job.spent.write_text(''.join(json.dumps(row) + '\n' for row in known))
    row = runner.make_row(job, '', [{'return': 1.0, 'length': 2}], '')
    assert row.hours * 3600 >= updates


def test_a_living_child_of_a_dead_worker_is_waited_for(tmp_path):
    store, (job,) = ResultStore(tmp_path), make_jobs(tmp_path, ['BC'], [0])
    job.logdir.mkdir(parents=True)
    (job.logdir / 'slow').touch()
    with subprocess.Popen([*WORK.command, 'train', *job.train_flags()],
                          cwd=ROOT):
        while not (job.logdir / 'starts').exists():
            time.sleep(0.05)
        threading.Timer(0.5, (job.logdir / 'slow').unlink).start()
        assert run([job], store)[0] == {}
    assert len(store.rows()) == 1
    # The second start found everything done: three updates in all.
    assert len(read_rows(job.logdir / 'timings.jsonl')) == 3


def test_the_command_of_a_killed_worker_is_not_repeated(tmp_path):
    store, (job,) = ResultStore(tmp_path), make_jobs(tmp_path, ['BC'], [0])
    job.logdir.mkdir(parents=True)
    (job.logdir / 'slow').touch()
    worker = multiprocessing.get_context('spawn').Process(
        target=WORK.run, args=(job,))
    worker.start()
    while not (job.logdir / 'timings.jsonl').exists():
        time.sleep(0.05)
    worker.kill()
    worker.join()
    threading.Timer(1.0, (job.logdir / 'slow').unlink).start()
    assert run([job], store)[0] == {}
    assert starts(job) == 1
    assert len(store.rows()) == 1


def test_one_sweep_at_a_time(tmp_path):
    with sweep.alone(tmp_path), pytest.raises(
            UserError, match='another --out'), sweep.alone(tmp_path):
        pass


def test_results_command(tmp_path, capsys):
    store = ResultStore(tmp_path)
    run(make_jobs(tmp_path), store)
    from tests.test_experiments_grid import parse_command
    assert listing.show_results(*parse_command(
        'results', str(tmp_path), '--system', 'BC', '--seed', '1')) == 0
    printed = capsys.readouterr().out
    header, line = printed.splitlines()
    assert header.split('\t')[:4] == ['run', 'system', 'episodes', 'return']
    assert line.split('\t')[:5] == [
        'demo/walker_walk_random/bc/seed1', 'BC', '2', '10.5', '0.5']
    target = tmp_path / 'all.csv'
    listing.show_results(*parse_command(
        'results', str(tmp_path), '--csv', str(target)))
    assert len(target.read_text().splitlines()) == 5


def test_rows_are_printed_in_the_same_order_whatever_ended_first(
        tmp_path, capsys):
    store = ResultStore(tmp_path)
    jobs = make_jobs(tmp_path)
    run(jobs[::-1], store)
    from tests.test_experiments_grid import parse_command
    listing.show_results(*parse_command('results', str(tmp_path)))
    first = capsys.readouterr().out.splitlines()[1:]
    assert [line.split('\t')[0] for line in first] == [
        f'demo/walker_walk_random/{name}/seed{seed}'
        for name in ('bc', 'semopo') for seed in range(2)]


def test_attempts_are_not_written_to_a_csv(tmp_path):
    from tests.test_experiments_grid import parse_command
    with pytest.raises(UserError, match='found --attempts and --csv'):
        listing.show_results(*parse_command(
            'results', str(tmp_path), '--attempts', '--csv', 'all.csv'))
