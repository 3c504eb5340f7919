"""The sweep on Ray: same rows, whatever dies on the way."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from dreamerv2_base.errors import UserError
from semopo_tf.experiments import commands, ray_driver, ray_sweep, runner
from semopo_tf.experiments.ray_sweep import RayPool
from semopo_tf.experiments.results import ResultStore
from tests.test_experiments_grid import parse
from tests.test_experiments_sweep import (
    WORK,
    make_jobs,
    numbers,
    run,
    starts,
)

PORT = 6391  # below those that Ray gives to workers


@pytest.fixture(scope='module')
def ray_home(tmp_path_factory):
    """A token for clusters, in a home of its own.

    Ray leaves one at home when it starts a local cluster, and lets clusters
    ask for it from then on.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('HOME', str(tmp_path_factory.mktemp('home')))
        patch.setenv('RAY_AUTH_MODE', 'token')
        subprocess.run(
            [sys.executable, '-m', 'ray.scripts.scripts', 'get-auth-token',
             '--generate'], check=True, capture_output=True)
        patch.setenv('RAY_DISABLE_IMPORT_WARNING', '1')
        yield


class Node:
    """A machine of a cluster, as `ray start --block` makes it."""

    def __init__(self, log, *flags):
        self._log, self._flags = log.open('a'), flags
        self.start()

    def start(self):
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'ray.scripts.scripts', 'start',
             *self._flags, '--num-cpus=1', '--block',
             '--disable-usage-stats', '--object-store-memory=100000000'],
            stdout=self._log, stderr=subprocess.STDOUT,
            start_new_session=True)

    def kill(self):
        """The machine is switched off; the commands of runs live on."""
        daemons = [one for one in family(self._process.pid)
                   if 'tests.fake_run' not in words_of(one)]
        for one in daemons:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        self._process.wait()


def processes():
    """{id: id of its parent}"""
    found = {}
    for entry in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            text = (entry / 'stat').read_text()
            found[int(entry.name)] = int(text.rsplit(')')[-1].split()[1])
    return found


def family(process):
    """A process and all below it."""
    parents, found = processes(), [process]
    for one in found:
        found += [child for child, parent in parents.items()
                  if parent == one]
    return found


def words_of(process):
    with contextlib.suppress(OSError):
        return Path(f'/proc/{process}/cmdline').read_text().split('\0')
    return []


def worker_of(logdir):
    """The process that runs the command of a run, None if there is none."""
    for process, parent in processes().items():
        words = words_of(process)
        if 'train' in words and str(logdir) in words:
            return parent
    return None


def listening():
    with socket.socket() as probe:
        return probe.connect_ex(('127.0.0.1', PORT)) == 0


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return found


def connected(address, log, seconds=60):
    """A pool on a cluster that has just been started: its port is open
    before it answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            return RayPool(address, 2, log, work=WORK)
        except UserError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def demo_jobs(out):
    """The demo grid, without its data."""
    request = commands._request(*parse(
        '--all', '--scale', 'demo', '--out', str(out)))
    return [runner.Job(cell, out / 'data', out) for cell in request.cells]


def slow_down(job):
    job.logdir.mkdir(parents=True)
    (job.logdir / 'slow').touch()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_and_a_restarted_head(tmp_path, ray_home, capsys):
    address = f'127.0.0.1:{PORT}'
    head_flags = ('--head', f'--port={PORT}', '--include-dashboard=false')
    out = tmp_path / 'ray'
    store, jobs = ResultStore(out), demo_jobs(out)
    victim, witness = jobs[0], jobs[4]
    slow_down(victim)
    slow_down(witness)
    head = Node(tmp_path / 'head.log', *head_flags)
    wait_until(listening)
    other = Node(tmp_path / 'other.log', f'--address={address}')
    nodes, log = [head, other], []

    def say(text):
        log.append(f'{time.strftime("%H:%M:%S")} {text}')

    def harm():
        # A worker dies in the middle of a run, whose command lives on.
        wait_until((victim.logdir / 'timings.jsonl').exists)
        os.kill(worker_of(victim.logdir), signal.SIGKILL)
        say(f'killed the worker of {victim.cell.name}')
        time.sleep(3)
        (victim.logdir / 'slow').unlink()
        # The head dies in the middle of another one, and comes back. Ray
        # starts no head beside a node of the old one on the same machine.
        wait_until((witness.logdir / 'timings.jsonl').exists)
        head.kill()
        other.kill()
        say(f'killed both machines while {witness.cell.name} trained')
        time.sleep(5)
        head.start()
        wait_until(listening)
        say('started the head again')
        (witness.logdir / 'slow').unlink()
        other.start()

    thread = threading.Thread(target=harm, daemon=True)
    try:
        pool = connected(address, tmp_path / 'ray.log')
        thread.start()
        failed, seen = run(jobs, store, pool=pool)
        say(f'the sweep ended, {len(store.rows())} rows')
        thread.join()
    finally:
        for node in nodes:
            node.kill()
    with capsys.disabled():
        print('', *log, *(f'{kind} {name}: {text}' for kind, name, text
                          in seen), capsys.readouterr().err, sep='\n')
    assert not failed
    assert any(kind == 'again' and 'lost' in text for kind, _, text in seen)
    # Nothing lost, nothing done twice.
    assert store.finished() == {name for job in jobs
                                for name in job.cell.runs}
    assert {starts(job) for job in jobs} == {1}
    done = Counter(attempt.run for attempt in store.attempts()
                   if attempt.outcome == 'done')
    assert set(done.values()) == {1}
    serial = ResultStore(tmp_path / 'serial')
    run(demo_jobs(tmp_path / 'serial'), serial)
    assert numbers(serial) == numbers(store)


@pytest.mark.slow
def test_ray_gives_the_rows_of_a_serial_sweep(tmp_path, ray_home):
    jobs = {name: make_jobs(tmp_path / name) for name in ('ray', 'serial')}
    stores = {name: ResultStore(tmp_path / name) for name in jobs}
    run(jobs['serial'], stores['serial'], slots=1)
    run(jobs['ray'], stores['ray'], pool=RayPool(
        'local', 2, tmp_path / 'ray.log', work=WORK))
    assert numbers(stores['ray']) == numbers(stores['serial'])


@pytest.mark.parametrize(('there', 'gpus', 'cpus', 'threads'), [
    ({}, None, 1.0, 1), ({}, None, 3.0, 3), ({'GPU': 1}, 0, 0.4, 1),
    ({'GPU': 1}, None, 3.0, 0), ({}, 0.5, 3.0, 0)])
def test_a_run_without_a_gpu_has_the_cores_that_it_is_given(
        tmp_path, monkeypatch, there, gpus, cpus, threads):
    """0: TensorFlow decides; with a GPU it hardly uses them."""
    started = []

    def remote(**wanted):
        return lambda task: SimpleNamespace(
            remote=lambda work, job: started.append(job))
    monkeypatch.setitem(sys.modules, 'ray', SimpleNamespace(
        init=lambda **_: None, cluster_resources=lambda: there, remote=remote,
        get_runtime_context=lambda: SimpleNamespace(
            get_node_id=lambda: 'node')))
    tasks = ray_driver.Tasks(ray_driver.Cluster(
        'auto', 1, gpus, cpus, WORK, tmp_path / 'log'))
    tasks.start(0, make_jobs(tmp_path)[0])
    assert [job.threads for job in started] == [threads]


def test_no_cluster_is_one_line(tmp_path, monkeypatch, ray_home):
    monkeypatch.setattr(ray_sweep, 'CONNECT', 4.0)
    with pytest.raises(UserError, match='ray start --head') as error:
        RayPool('127.0.0.1:1', 1, tmp_path / 'ray.log', work=WORK)
    assert '\n' not in str(error.value)
