"""One battery for every method of the registry, in tiny sizes.

Each is trained by the loop of `run.py train` with real environments, stopped
and resumed, saved, loaded and asked to act; a new row of the registry needs a
row in SMALL, and nothing else here.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamerv2_base.checkpoint import Checkpoints
from dreamerv2_base.config import Config, load_config
from dreamerv2_base.episodes import write_episode
from dreamerv2_base.errors import UserError
from dreamerv2_base.logger import Progress, read_rows
from semopo_tf import (
    commands,
    export,
    inert,
    registry,
    report_plots,
    run_folder,
    settings,
    training,
)
from semopo_tf.evaluation import Evaluator
from tests.helpers import make_episode

ACTIONS, STATES = 6, 24  # of walker_walk

# Presets and changes of each method, beside those of COMMON.
ONE_STREAM = {'separate_wm': False, 'disen_action_type': 'main',
              'grad_heads': ['decoder', 'reward']}
MODEL = {'offline_model_train_steps': 2, 'imag_horizon': 2}
SMALL: dict[str, tuple[list[str], dict[str, Any]]] = {
    'semopo': (['debug'], MODEL | {
        'model_starts': 2, 'model_start_updates': 1}),
    'offline_dv2': (['debug'], MODEL | ONE_STREAM),
    'lompo': (['lompo_debug'], MODEL | {'lompo.start_training': 20}),
    'mopo': (['mopo_debug'], {'mopo.max_epochs': 2}),
    'drq_bc': (['drq_bc', 'drq_debug'], {}),
    'drq_cql': (['drq_cql', 'drq_debug'], {}),
    'bc': (['bc', 'drq_debug'], {}),
    'infogating': (['infogating', 'drq_debug'], {}),
}
COMMON = {'jit': 'eager', 'steps': 4, 'agent_train_steps': 2,
          'save_updates': 2, 'log_updates': 1, 'offline_video_every': 0,
          'time_limit': 12, 'eval_eps': 1, 'final_eval_eps': 2}
# Keys that no run here asks for and no warning names. Those of commands, of
# environments, which all methods share here, and what is read as config[key];
# then what another setting of its own switches off.
UNASKED = {
    'all': ('deterministic', 'require_gpu', 'offline_split_val',
            'collect_episodes', 'collect_policy', 'scene', 'shadows',
            'dmc_camera', 'render_size', 'time_limit', 'action_repeat',
            'eval_envs', 'eval_workers', 'reward_head', 'discount_head'),
    'lompo': ('rssm', 'actor', 'critic', 'lompo.cql_samples'),
}
# Methods that learn from a folder of data. Those that collect their own
# (registry.ONLINE) have the same checks in tests/test_online.py.
METHODS = [name for name in registry.METHODS if name not in registry.ONLINE]
each_method = pytest.mark.parametrize('name', METHODS)


class Stopped(Exception):
    """What ends a run in the middle of the policy phase."""


class Watched(Config):
    """A configuration that knows which of its keys were asked for."""

    def __init__(self, tree, read: set[str], prefix: str = ''):
        super().__init__({})
        self._read, self._prefix = read, prefix
        self._tree = {
            key: Watched(value, read, f'{prefix}{key}.')
            if isinstance(value, Config) else value
            for key, value in tree.items()}

    def __getattr__(self, key: str) -> Any:
        # Not __getitem__: TensorFlow looks at all that a module holds.
        value = super().__getattr__(key)
        self._read.add(self._prefix + key)
        return value

    @property
    def read(self) -> set[str]:
        return self._read


@dataclasses.dataclass
class Run:
    """A finished run and what it leaves behind."""

    config: Any
    method: Any
    start: dict[str, np.ndarray]
    folder: Path

    def rows(self, name: str) -> list[dict[str, Any]]:
        return read_rows(self.folder / f'{name}.jsonl')

    def results(self) -> tuple[dict[str, np.ndarray], bytes, bytes]:
        arrays, _ = Checkpoints(self.folder / 'ckpt').load()
        return (arrays, *((self.folder / f'{name}.jsonl').read_bytes()
                          for name in ('metrics', 'episodes')))


def configured(name: str, data: Path, folder: Path, **changes: Any):
    presets, own = SMALL[name]
    found = settings.presets()
    task = f'{"state" if name == "mopo" else "dmc"}_walker_walk'
    return settings.check(
        found.apply(found.defaults, presets).update(COMMON | own | {
            'method': name, 'task': task, 'offline_dir': [str(data)],
            'logdir': str(folder)} | changes))


def write_data(folder: Path, edit=lambda episode: episode) -> Path:
    """Three episodes with images and states; `edit` changes the second."""
    folder.mkdir()
    for i in range(3):
        episode = make_episode(i, 12, ACTIONS)
        rng = np.random.default_rng(i)
        episode['state'] = rng.standard_normal((12, STATES), np.float32)
        write_episode(
            folder, edit(episode) if i == 1 else episode, i, f'{i:032x}')
    return folder


def begun(config) -> tuple[Any, Any]:
    """A method at its start, and its data."""
    store = commands.open_data(config)
    return registry.method_class(config)(config, store), store


def train(config, evaluator) -> Run:
    method, store = begun(config)
    start = {key: np.array(value) for key, value in method.state().items()}
    with run_folder.RunFolder(config) as run:
        training.Loop(config, method, store, run, evaluator).train()
    return Run(config, method, start, Path(config.logdir))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp('data') / 'episodes')


@pytest.fixture(scope='module')
def evaluators(data, tmp_path_factory):
    """Two, whose processes all methods share: pixels and states."""
    with Evaluator(configured('bc', data, Path())) as pixels:
        with Evaluator(configured('mopo', data, Path())) as states:
            yield lambda name: states if name == 'mopo' else pixels


@pytest.fixture(scope='module')
def runs(data, evaluators, tmp_path_factory):
    """name -> its run, trained when first asked for."""
    found: dict[str, Run] = {}

    def run(name: str) -> Run:
        if name not in found:
            folder = tmp_path_factory.mktemp('runs') / name
            config = Watched(configured(name, data, folder), set())
            found[name] = train(config, evaluators(name))
        return found[name]
    return run


def observations(name: str, first: bool, seed: int = 0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (3, 64, 64, 3), np.uint8)
    states = rng.standard_normal((3, STATES)).astype(np.float32)
    seen = {'state': states} if name == 'mopo' else {'image': images}
    return {**seen, 'reward': np.zeros(3, np.float32),
            'is_first': np.full(3, first), 'is_last': np.zeros(3, bool),
            'is_terminal': np.zeros(3, bool)}


def act(name: str, method, key: int = 5) -> list[np.ndarray]:
    """Actions of three environments at two steps."""
    first, state = method.policy(observations(name, True), None, key)
    second, _ = method.policy(observations(name, False, 1), state, key)
    return [first, second]


def test_every_method_is_here():
    assert set(SMALL) | set(registry.ONLINE) == set(registry.METHODS)


@each_method
def test_it_trains(name, runs):
    run = runs(name)
    phases = run.method.phases()
    rows = run.rows('metrics')
    losses = {key: value for row in rows for key, value in row.items()
              if key.endswith('loss')}
    assert losses
    assert all(np.isfinite(value) for value in losses.values())
    assert {row['phase'] for row in rows} == {phase.name for phase in phases}
    assert rows[-1]['step'] == phases[-1].updates == 4
    changed = [key for key, value in run.method.state().items()
               if key not in run.start
               or not np.array_equal(value, run.start[key])]
    assert len(changed) > 5


@each_method
def test_the_progress_bar_shows_a_loss(name, runs):
    rows = [row for row in runs(name).rows('metrics')
            if not any('eval_return' in key for key in row)]
    assert rows
    for row in rows:
        assert any(key.endswith('_loss')
                   for key in set(row) & set(Progress.SHOWN)), row


@each_method
def test_policy_shapes(name, runs):
    method = runs(name).method
    for action, again in zip(act(name, method), act(name, method),
                             strict=True):
        assert action.shape == (3, ACTIONS)
        assert action.dtype == np.float32
        assert np.abs(action).max() <= 1
        np.testing.assert_array_equal(action, again)
    assert np.ptp(action, 0).max() > 0  # it looks at what it is given


@pytest.mark.parametrize('name', ['semopo', 'offline_dv2', 'lompo'])
def test_no_two_steps_of_an_episode_share_their_draws(name, runs):
    """The key counts up: the second step's draws are those of the next key,
    and not those of the first."""
    policy, seen = runs(name).method.policy, observations(name, True)
    first, state = policy(seen, None, 5)
    second, _ = policy(seen, state, 5)
    np.testing.assert_array_equal(second, policy(seen, None, 6)[0])
    assert not np.array_equal(first, second)


@each_method
def test_it_is_evaluated(name, runs):
    run = runs(name)
    rows = [(row['step'], row['final']) for row in run.rows('episodes')]
    assert rows == [(0, False), (2, False), (4, True), (4, True)]
    for row in run.rows('episodes'):
        assert 0 <= row['return'] <= row['length'] == 7  # 12 steps, repeated
    finals = [row['final_eval_return'] for row in run.rows('metrics')
              if 'final_eval_return' in row]
    returns = [row['return'] for row in run.rows('episodes') if row['final']]
    assert finals == [pytest.approx(np.mean(returns))]


@each_method
def test_saved_and_loaded_it_acts_the_same_without_data(name, runs):
    run = runs(name)
    arrays, _ = Checkpoints(run.folder / 'ckpt').load()
    actor = registry.method_class(run.config)(
        run.config, None, action_size=ACTIONS)
    actor.load(arrays)
    for ours, theirs in zip(act(name, actor), act(name, run.method),
                            strict=True):
        np.testing.assert_array_equal(ours, theirs)
    counts = run.method.parameters()
    assert all(count > 0 for count in counts.values())
    assert sum(counts.values()) <= sum(v.size for v in arrays.values())


@each_method
def test_exported_it_acts_the_same_and_no_more(name, runs, tmp_path):
    run, out = runs(name), tmp_path / 'policy'
    (run.folder / 'data.json').write_text(json.dumps(  # as `train_run` does
        {'action_size': ACTIONS, 'folders': [str(Path.cwd() / 'data/a')]}))
    if name == 'mopo':
        with pytest.raises(UserError, match=r'acting\(\).* found mopo'):
            export.export(run.folder, out)
        return
    assert export.export(run.folder, out) == out
    arrays, state = Checkpoints(out / 'ckpt').load()
    actor = registry.method_class(run.config)(
        run.config, None, action_size=ACTIONS)
    export.load(actor, arrays, state)
    for ours, theirs in zip(act(name, actor), act(name, run.method),
                            strict=True):
        np.testing.assert_array_equal(ours, theirs)
    whole = Checkpoints(run.folder / 'ckpt').load()[0]
    assert sum(v.nbytes for v in arrays.values()) < 0.5 * sum(
        v.nbytes for v in whole.values())
    for record in ('config.yaml', 'metrics.jsonl', 'episodes.jsonl'):
        assert (out / record).read_bytes() == (
            run.folder / record).read_bytes()
    assert json.loads((out / 'data.json').read_text())['folders'] == ['data/a']
    told = (out / 'README.txt').read_text()
    assert f'A policy of {name} on dmc_walker_walk' in told
    assert f'[n, {ACTIONS}] in [-1, 1]' in told
    with pytest.raises(UserError, match='it can only act'):
        export.expect_whole(out, state)
    with pytest.raises(UserError, match='expected a new folder'):
        export.export(run.folder, out)
    with pytest.raises(UserError, match='found an exported one'):
        export.export(out, tmp_path / 'again')


@pytest.mark.parametrize('name', ['drq_bc', 'drq_cql'])
def test_the_report_shows_q(name, runs):
    picture = report_plots.curves(runs(name).rows('metrics'))
    for metric in ('critic_q1', 'critic_q2', 'critic_target_q'):
        assert f'>{metric}<'.encode() in picture


class Stopping:
    """An evaluator that fails the second time."""

    def __init__(self, evaluator):
        self._evaluator, self._calls = evaluator, 0

    def run(self, *arguments):
        self._calls += 1
        if self._calls == 2:
            raise Stopped
        return self._evaluator.run(*arguments)


@each_method
def test_stopped_and_resumed_it_repeats_the_run_of_its_seed(
        name, runs, evaluators, data, tmp_path):
    whole = runs(name)
    config = configured(name, data, tmp_path / 'run')
    with pytest.raises(Stopped):
        train(config, Stopping(evaluators(name)))
    half = Checkpoints(tmp_path / 'run' / 'ckpt').load()[1]['at']
    assert half['step'] == 2
    assert not half['finished']
    again = train(config, evaluators(name))
    (left, *records), (right, *others) = whole.results(), again.results()
    assert records == others
    assert left.keys() == right.keys()
    for key, value in left.items():
        np.testing.assert_array_equal(value, right[key], key)


@each_method
def test_another_seed_starts_elsewhere(name, runs, data, tmp_path):
    first = runs(name).start
    other, _ = begun(configured(name, data, tmp_path / 'run', seed=1))
    found = other.state()
    assert any(not np.array_equal(first[key], found[key])
               for key in first if key in found)


@each_method
def test_no_key_that_is_said_to_be_unread_is_read(name, runs):
    config = runs(name).config
    unread = inert.unread(config)
    assert {'seed', 'steps'} <= config.read
    assert 'behaviour.max_rounds' in unread
    for key in config.read:
        leaves = [leaf for leaf in config.flat() if inert.below(leaf, [key])]
        assert not set(leaves) <= set(unread), key


@each_method
def test_every_key_is_read_or_said_to_have_no_effect(name, runs):
    config = runs(name).config
    given = dict.fromkeys(config.flat())
    named = {note.split()[0] for note in inert.warnings(config, given)}
    # A group that is unpacked is read whole; another by its keys.
    by_key = {key.rpartition('.')[0] for key in config.read} - {''}
    read = config.read - by_key
    known = {*read, *named, *UNASKED['all'], *UNASKED.get(name, ())}
    assert [key for key in given if not inert.below(key, known)] == []


@each_method
def test_its_configuration_is_written_and_read(name, runs):
    run = runs(name)
    found = settings.check(load_config(run.folder / 'config.yaml'))
    assert found.flat() == run.config.flat()
    assert registry.method_class(found) is type(run.method)


def spoiled(episode, key: str):
    episode = dict(episode)
    if key == 'length':
        return {k: v[:1] for k, v in episode.items()}
    if key == 'missing':
        del episode['action']
    else:
        episode['reward'] = np.where(
            np.arange(12) == 7, np.nan, episode['reward'])
    return episode


@pytest.mark.parametrize(('kind', 'word'), [
    ('truncated', 'broken'), ('missing', 'action'), ('nan', 'reward'),
    ('length', 'rows')])
@each_method
def test_bad_data_are_one_line(name, kind, word, tmp_path):
    folder = write_data(
        tmp_path / 'episodes', lambda episode: spoiled(episode, kind)
        if kind != 'truncated' else episode)
    bad = sorted(folder.glob('*.npz'))[1]
    if kind == 'truncated':
        bad.write_bytes(bad.read_bytes()[:999])
    config = configured(name, folder, tmp_path / 'run')
    with pytest.raises(UserError) as error:
        begun(config)
    message = str(error.value)
    assert '\n' not in message
    assert bad.name in message
    assert word in message
    assert 'expected' in message
    json.dumps(message)  # plain text
