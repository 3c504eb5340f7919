"""`run.py bench`: the fast formulation beside the plain one, in one run.

Both compute the same numbers (tests/test_plain.py, tests/test_embeddings.py);
here only time and memory are compared. Measurements alternate, so that what
else the machine does falls on both.
"""

from __future__ import annotations

import functools
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dreamerv2_base.config import Config
from dreamerv2_base.episodes import write_episode
from dreamerv2_base.errors import UserError
from dreamerv2_base.files import expect_writable, write_json
from dreamerv2_base.noise import CounterDraws
from dreamerv2_base.replay import ChunkSampler, PlainGenerator, Prefetcher
from dreamerv2_base.store import open_store
from dreamerv2_base.tf import CountedGraph, prepare_devices, tensors, tf
from semopo_tf import flops, settings
from semopo_tf.agent import PenalizedAgent
from semopo_tf.doctor import fake_batch
from semopo_tf.embeddings import EmbeddedSource

ACTIONS = 6
RATIOS = ('first_update', 'model_update', 'policy_update', 'data',
          'evaluation')


@dataclass
class Options:
    """What to measure: sizes, batch, how often, which parts."""

    preset: str = 'released'
    batch: int = 4
    length: int = 50
    repeats: int = 5
    precision: str = '32'
    eval_steps: int = 60
    parts: tuple[str, ...] = (*RATIOS, 'checkpoint')


@dataclass
class Pair:
    """Seconds (or seconds per unit) of both formulations."""

    plain: list[float] = field(default_factory=list)
    fast: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """How many times faster the fast one is, medians."""
        return float(np.median(self.plain) / np.median(self.fast))


def run(options: Options, path: Path | None = None) -> dict[str, Any]:
    """All measurements; see `report` for what they are called, and `path`."""
    if options.repeats < 1 or options.batch < 1:
        raise UserError('bench: expected at least one repeat and row, found '
                        f'{options.repeats} and {options.batch}')
    if path is not None:
        expect_writable(path)
    devices = prepare_devices()
    found: dict[str, Pair] = {}
    agents = {kind: _agent(options, kind) for kind in ('plain', 'fast')}
    data = fake_batch(np.random.default_rng(0), options.batch,
                      options.length, 64, ACTIONS)
    if {'first_update', 'model_update'} & set(options.parts):
        found.update(_model_updates(options, agents, data))
    if 'policy_update' in options.parts:
        found['policy_update'] = _policy_updates(options, agents, data)
    if 'data' in options.parts:
        found.update(_data(options))
    if 'evaluation' in options.parts:
        found['evaluation'] = _evaluation(options, agents['fast'])
    saving = (_checkpoint(agents['fast'])
              if 'checkpoint' in options.parts else None)
    return _results(
        options, found, saving, agents['fast'].config, devices)


def _config(options: Options, kind: str):
    names = [options.preset] + (['plain'] if kind == 'plain' else [])
    config, _ = settings.resolve([
        '--configs', *names, '--precision', options.precision])
    return config


def _agent(options: Options, kind: str) -> PenalizedAgent:
    return PenalizedAgent(_config(options, kind), (64, 64, 3), ACTIONS)


def _timed(agent: PenalizedAgent, name: str) -> Callable:
    update = agent.model_train if name == 'model' else agent.agent_train
    graph = CountedGraph(
        lambda data, step: update(data, CounterDraws(0, name, step))[1],
        'none')

    def call(data, step: int) -> float:
        started = time.perf_counter()
        for value in graph(data, step).values():
            float(value)
        return time.perf_counter() - started
    return call


# The parts.


def _model_updates(options, agents, data) -> dict[str, Pair]:
    first, later = Pair(), Pair()
    batch = tensors(data)
    calls = {kind: _timed(agents[kind], 'model') for kind in agents}
    for kind, call in calls.items():
        getattr(first, kind).append(call(batch, 0))
        call(batch, 1)
    for step in range(options.repeats):
        for kind, call in calls.items():
            getattr(later, kind).append(call(batch, step + 2))
    return {'first_update': first, 'model_update': later}


def _policy_updates(options, agents, data) -> Pair:
    """The fast one gets embeddings, as the policy phase gives it."""
    images = tensors(data)
    model = agents['fast'].world_model
    embedded = {key: value for key, value in images.items()
                if key != 'image'}
    embedded['embed'] = model.encoder(model.preprocess(images)['image'])
    batches = {'plain': images, 'fast': embedded}
    calls = {kind: _timed(agents[kind], 'policy') for kind in agents}
    pair = Pair()
    for kind, call in calls.items():
        call(batches[kind], 0)
        call(batches[kind], 1)
    for step in range(options.repeats):
        for kind, call in calls.items():
            getattr(pair, kind).append(call(batches[kind], step + 2))
    return pair


def _data(options: Options) -> dict[str, Pair]:
    """Seconds per batch, as tensors: gathered by index from mapped arrays,
    against a Python generator that concatenates chunks of episodes held in
    memory. `data_policy`: the policy phase, where the fast formulation
    gathers embeddings and the plain one the same frames again."""
    found = {'data': Pair(), 'data_policy': Pair()}
    with tempfile.TemporaryDirectory() as name:
        _write_episodes(Path(name), 20, 64)
        store = open_store([Path(name)])
        config = _config(options, 'fast')
        size = config.offline_model_dataset
        sampler = ChunkSampler(store, size.batch, size.length, 0, 'bench')
        embedded = EmbeddedSource(
            sampler, store, _as_embedding(config), Path(name) / 'cache',
            'bench', np.arange(len(store)))
        plain = iter(PlainGenerator(store, sampler, size.length).dataset(
            size.batch))
        for _ in range(options.repeats):
            seconds = _per_batch(lambda: next(plain))
            for key, source in (('data', sampler), ('data_policy', embedded)):
                found[key].plain.append(seconds)
                found[key].fast.append(_delivered(source))
    return found


def _per_batch(following: Callable[[], Any], batches: int = 20) -> float:
    """Seconds per call, after a few that fill buffers."""
    for _ in range(6):
        following()
    started = time.perf_counter()
    for _ in range(batches):
        following()
    return (time.perf_counter() - started) / batches


def _delivered(source: Any) -> float:
    """Seconds per batch of the loop's own way to tensors."""
    batches = Prefetcher(source, 0, 10 ** 6, prepare=tensors)
    try:
        return _per_batch(batches.next)
    finally:
        batches.close()


def _as_embedding(config: Config) -> Callable[[np.ndarray], np.ndarray]:
    """Some numbers of the shape of an encoder's, without its work."""
    width = 4 * 8 * config.encoder.cnn_depth
    return lambda frames: np.zeros((len(frames), width), np.float32)


def _write_episodes(folder: Path, count: int, size: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        row = fake_batch(rng, 1, 501, size, ACTIONS)
        write_episode(folder, {k: v[0] for k, v in row.items()}, i,
                      f'{i:032x}')


def _evaluation(options: Options, agent: PenalizedAgent) -> Pair:
    """Seconds per environment step: ten in lockstep in child processes
    against one at a time in this process, both with a policy call a step."""
    from dreamerv2_base.envs.rollout import Rollout
    from semopo_tf.environments import env_spec_from, make_env
    limit = 2 * options.eval_steps
    spec = env_spec_from(agent.config.update({'time_limit': limit}))
    pair = Pair()

    def policy(observation, state):
        return agent.policy(observation, state, 0)

    env = make_env(spec)
    with Rollout(functools.partial(make_env, spec), 10,
                 os.cpu_count() or 1) as rollout:
        rollout.run(policy, 10, seed=0)
        _one_at_a_time(env, policy, 2)
        for _ in range(max(2, options.repeats // 2)):
            started = time.perf_counter()
            steps = _one_at_a_time(env, policy, options.eval_steps)
            pair.plain.append((time.perf_counter() - started) / steps)
            started = time.perf_counter()
            found = rollout.run(policy, 10, seed=0)
            steps = sum(episode.length - 1 for episode in found)
            pair.fast.append((time.perf_counter() - started) / steps)
    env.close()
    return pair


def _one_at_a_time(env, policy, steps: int) -> int:
    observation, state = env.reset(0), None
    for _ in range(steps):
        batch = {key: np.asarray(value)[None]
                 for key, value in observation.items()}
        action, state = policy(batch, state)
        observation = env.step(action[0])
    return steps


def _checkpoint(agent: PenalizedAgent) -> dict[str, float]:
    from dreamerv2_base.checkpoint import Checkpoints
    from dreamerv2_base.nets import values_by_name
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        arrays = values_by_name(agent)
        Checkpoints(Path(name)).save(1, arrays, {})
        seconds = time.perf_counter() - started
    size = sum(array.nbytes for array in arrays.values())
    return {'seconds': seconds, 'MiB': size / 2 ** 20}


# Results.


def _results(options, found, saving, config: Config,
             devices: list[str]) -> dict[str, Any]:
    from semopo_tf.run_folder import versions
    peak = matmul_peak()
    frames = options.batch * options.length
    work = {'model_update': flops.model_update, 'policy_update':
            flops.policy_update}
    counted = {kind: {name: count(config, frames, ACTIONS, kind == 'plain')
                      for name, count in work.items()}
               for kind in ('plain', 'fast')}
    results: dict[str, Any] = {
        'preset': options.preset,
        'batch': [options.batch, options.length],
        'precision': options.precision, 'repeats': options.repeats,
        'load_average': os.getloadavg()[0], 'versions': versions(devices),
        'peak_memory_MiB': resource.getrusage(
            resource.RUSAGE_SELF).ru_maxrss / 1024,
        'matmul_peak_GFLOPS': peak / 1e9,
        'GFLOP': {kind: {name: value / 1e9 for name, value in each.items()}
                  for kind, each in counted.items()},
        'checkpoint': saving,
        'seconds': {name: vars(pair) for name, pair in found.items()},
        'ratios': {name: pair.ratio for name, pair in found.items()}}
    results['share_of_peak'] = {
        name: counted['fast'][name] / np.median(found[name].fast) / peak
        for name in work if name in found}
    return results


def matmul_peak(size: int = 2048) -> float:
    """Floating-point operations per second of a large matrix product."""
    a = tf.random.stateless_normal((size, size), (0, 1))
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(a, a)))
    best = np.inf
    for _ in range(6):
        started = time.perf_counter()
        float(product())
        best = min(best, time.perf_counter() - started)
    return 2 * size ** 3 / best


def report(results: dict[str, Any], path: Path | None) -> None:
    """Print a table; write the results as JSON where a path is given."""
    from rich.console import Console
    from rich.table import Table
    batch, length = results['batch']
    table = Table(title=f'{results["preset"]} sizes, batch {batch}x{length}, '
                  f'precision {results["precision"]}: median seconds')
    for name in ('what', 'plain', 'fast', 'times faster'):
        table.add_column(name, justify='left' if name == 'what' else 'right')
    for name, pair in results['seconds'].items():
        table.add_row(name, f'{np.median(pair["plain"]):.4f}',
                      f'{np.median(pair["fast"]):.4f}',
                      f'{results["ratios"][name]:.2f}')
    console = Console()
    console.print(table)
    if results['checkpoint']:
        saved = results['checkpoint']
        console.print(f'checkpoint: {saved["MiB"]:.0f} MiB in '
                      f'{saved["seconds"]:.2f} s')
    console.print(
        f'peak memory of this process {results["peak_memory_MiB"]:.0f} MiB; '
        f'load average {results["load_average"]:.1f}; matrix product '
        f'{results["matmul_peak_GFLOPS"]:.0f} GFLOP/s')
    for name, share in results['share_of_peak'].items():
        counts = [results['GFLOP'][kind][name] for kind in ('plain', 'fast')]
        console.print(
            f'{name}: counted {counts[0]:.0f} GFLOP plain, {counts[1]:.0f} '
            f'fast ({counts[0] / counts[1]:.2f} times less); the fast one '
            f'reaches {100 * share:.0f} % of the peak')
    if path is not None:
        write_json(path, results)
