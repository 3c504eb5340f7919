"""Online training: turns, episodes under way, the buffer, TIA's parts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dreamerv2_base.checkpoint import Checkpoints
from dreamerv2_base.envs.live import LiveRollout
from dreamerv2_base.errors import UserError
from dreamerv2_base.online import Collector, EpisodeBuffer, Plan
from dreamerv2_base.replay import ChunkSampler
from semopo_tf import doctor, inert, registry, settings
from tests.helpers import ROOT
from tests.test_rollout import Toy


def config_of(*names, **changes):
    config, _ = settings.resolve(['--configs', *names])
    return config.update(changes)


# Turns.


def test_plan_of_tia_is_that_of_the_specification():
    """6.4: prefill 5000 control steps, 100 pretrain updates, then 100 after
    every 1000 control steps; 1,000,000 in all, snapshots every 20,000."""
    from semopo_tf.online import plan_of
    config = config_of('tia')
    plan = plan_of(config)
    assert config.action_repeat == 2
    assert [2 * plan.decisions(u) for u in (0, 99, 100, 199, 200)] == [
        5000, 5000, 6000, 6000, 7000]
    assert plan.updates == 100 + 995 * 100
    assert 2 * plan.decisions(plan.updates - 1) == 1_000_000
    found = {u: plan.passes(u, config.snapshot_every) for u in range(3700)}
    assert {u: 2 * d for u, d in found.items() if d} == {
        1599: 20_000, 3599: 40_000}
    assert plan.within(config.eval_every) == 500  # 5,000 control steps
    assert (config.dataset.batch, config.dataset.length) == (50, 50)
    assert (config.expl_noise, config.num_reward_opt_iters) == (0.3, 20)


@pytest.mark.parametrize(('name', 'adversarial', 'alone'), [
    ('tia', 20000, 1.5), ('tia_cheetah_run', 20000, 1.5),
    ('tia_hopper_hop', 30000, 2.0)])
def test_weights_of_tia(name, adversarial, alone):
    config = config_of(name)
    assert config.disen_scales.reward == adversarial
    # The separated model applies it twice.
    assert config.disen_scales.disen_only ** 2 == pytest.approx(alone, 1e-6)
    assert config.task == f'dmcdrv_{name[4:] or "walker_walk"}'


def test_plan_of_dreamerv2_and_what_doctor_makes_of_one():
    from semopo_tf.online import plan_of
    plan = plan_of(config_of('dreamerv2'))
    assert [plan.decisions(u) for u in (0, 99, 100, 101)] == [
        1000, 1000, 1005, 1010]
    assert plan.within(1e4) == 2000
    config = doctor.with_updates(config_of('tia'))
    assert (config.steps, config.offline_train_dataset.batch) == (99600, 50)


@pytest.mark.parametrize('wrong', [
    {'prefill': 0}, {'train_every': 0}, {'train_steps': 0}, {'steps': 9},
    {'pretrain': -1}])
def test_plans_that_are_none(wrong):
    good = {'steps': 100, 'prefill': 10, 'pretrain': 0, 'train_every': 5,
            'train_steps': 1}
    with pytest.raises(UserError, match=next(iter(wrong))):
        Plan(**{**good, **wrong})


# Environments and buffer.


def seed_of(number):
    return 10 + number


def moves(decision, count=2):
    """Actions [N, 2] that depend on the decision."""
    return np.full((count, 2), np.sin(decision), np.float32)


def explore(observation, memory, decision):
    """Depends on what is seen and on what is remembered."""
    memory = {'sum': np.float32(0)} if memory is None else memory
    shade = observation['image'].astype(np.float32).mean((1, 2, 3)) / 255
    total = np.float32(memory['sum'] + shade.sum())
    action = np.stack([shade, np.full_like(shade, np.sin(total))], 1)
    return action, {'sum': total}


def collector_in(folder, envs=2):
    buffer = EpisodeBuffer(folder, 'toy', 2)
    rollout = LiveRollout(Toy, envs, 1, seed_of)
    return Collector(rollout, buffer, explore, prefill=9, seed=3), buffer


def test_episodes_are_those_of_the_environment():
    with LiveRollout(Toy, 2, 1, seed_of) as rollout:
        ended, count = [], 0
        while len(ended) < 4:
            ended += rollout.step(moves(count))
            count += 1
    assert sorted(seed for seed, _ in ended) != [10, 10, 10, 10]
    for seed, episode in ended:
        env = Toy()
        row, rows = env.reset(seed), 0
        assert np.array_equal(episode.arrays['image'][0], row['image'])
        assert not episode.arrays['action'][0].any()
        while not row['is_last']:
            rows += 1
            row = env.step(episode.arrays['action'][rows])
            assert np.array_equal(episode.arrays['image'][rows], row['image'])
            assert episode.arrays['reward'][rows] == np.float32(row['reward'])
        assert episode.length == rows + 1 == len(episode.arrays['is_last'])


def test_resumed_and_killed_collection_equals_undisturbed(tmp_path):
    collector, buffer = collector_in(tmp_path / 'a')
    collector.start()
    collector.reach(60)
    undisturbed = {path.name: path.read_bytes()
                   for path in (tmp_path / 'a').glob('*.npz')}
    end = collector.state()
    collector.close()
    assert len(undisturbed) == len(buffer) > 8

    collector, _ = collector_in(tmp_path / 'b')
    collector.start()
    collector.reach(23)
    state = {k: np.array(v) for k, v in collector.state().items()}
    collector.reach(37)  # what follows the checkpoint is lost
    collector.close()
    collector, _ = collector_in(tmp_path / 'b')
    collector.load(state)
    collector.reach(31)
    os.kill(collector._rollout.pids[0], signal.SIGKILL)
    collector.reach(60)
    assert {path.name: path.read_bytes() for path
            in (tmp_path / 'b').glob('*.npz')} == undisturbed
    again = collector.state()
    collector.close()
    assert again.keys() == end.keys()
    assert all(np.array_equal(again[key], end[key]) for key in end)


def test_prefill_is_uniform_and_the_policy_follows(tmp_path):
    collector, buffer = collector_in(tmp_path, envs=1)
    collector.start()
    seen = []
    collector._explore = lambda *given: seen.append(given[2]) or explore(
        *given)
    collector.reach(20)
    collector.close()
    # (The one that leads to a reset is asked for, too.)
    assert sorted(set(seen)) == list(range(9, 20))
    actions = np.concatenate([small['action'][1:]
                              for small in buffer._small])[:9]
    assert (actions < 0).any()
    assert (actions > 0).any()
    assert len(np.unique(actions)) == 18


def finished(rows, seed=0):
    from dreamerv2_base.envs.rollout import Finished
    from tests.helpers import make_episode
    arrays = make_episode(seed, rows, actions=2, size=4)
    return Finished({**arrays, 'state': np.zeros(rows)}, 1.0, rows, None, 1)


def test_buffer_gives_the_chunks_of_its_episodes(tmp_path):
    buffer = EpisodeBuffer(tmp_path, 'x', 2)
    buffer.open(0)
    episodes = [finished(rows, seed) for seed, rows in enumerate((7, 5, 9))]
    for seed, episode in enumerate(episodes):
        buffer.add(episode, seed)
    chunk = buffer.gather(np.array([2, 0]), np.array([4, 1]), 5)
    for key, value in chunk.items():
        assert np.array_equal(value[0], episodes[2].arrays[key][4:9])
        assert np.array_equal(value[1], episodes[0].arrays[key][1:6])
    assert buffer.rows.tolist() == [7, 5, 9]
    again = EpisodeBuffer(tmp_path, 'x', 2)
    again.open(2)
    assert len(list(tmp_path.glob('*.npz'))) == 2
    assert again.names == buffer.names[:2]
    assert again.returns == buffer.returns[:2]
    assert np.array_equal(
        again.gather(np.array([1]), np.array([0]), 5)['image'][0],
        episodes[1].arrays['image'])
    with pytest.raises(UserError, match='expected episode 2'):
        again.open(3)
    with pytest.raises(UserError, match='expected episode 0'):
        EpisodeBuffer(tmp_path, 'y', 2).open(1)


def test_files_are_episodes_of_the_format(tmp_path):
    from dreamerv2_base.store import open_store
    from semopo_tf.online import collected
    buffer = EpisodeBuffer(tmp_path / 'episodes', 'x', 2)
    buffer.open(0)
    buffer.add(finished(7), 123)
    with np.load(next((tmp_path / 'episodes').glob('*.npz'))) as file:
        assert {file[key].dtype.name for key in ('action', 'reward')} == {
            'float32'}
    store = open_store([tmp_path / 'episodes'])
    assert (len(store), store.ignored) == (1, [])
    entry, = collected(tmp_path)
    assert (entry.seed, entry.rows) == (123, 7)
    assert entry.total == pytest.approx(store.returns[0])


def test_chunks_depend_on_seed_update_and_buffer_alone(tmp_path):
    buffer = EpisodeBuffer(tmp_path, 'x', 2)
    buffer.open(0)
    buffer.add(finished(30), 0)
    first = ChunkSampler(buffer, 4, 5, 0, 'online').batch(17)
    buffer.add(finished(30, 1), 1)
    second = ChunkSampler(buffer, 4, 5, 0, 'online').batch(17)
    assert not np.array_equal(first['image'], second['image'])
    again = EpisodeBuffer(tmp_path, 'x', 2)
    again.open(1)
    third = ChunkSampler(again, 4, 5, 0, 'online').batch(17)
    assert all(np.array_equal(first[key], third[key]) for key in first)


# The methods.


def test_tia_says_what_makes_it_tia():
    from semopo_tf.baselines.tia import TIA
    for key, value in (
            ('separate_wm', False), ('disen_action_type', 'none'),
            ('disen_scales.reward', 0.0), ('grad_heads', ['decoder']),
            ('exo_only_decoder', False)):
        config = config_of('tia', 'online_debug', **{key: value})
        with pytest.raises(UserError, match=f'expected {key}'):
            TIA(config, None, 6)


def test_other_exploration_is_refused():
    from semopo_tf.online import plan_of
    with pytest.raises(UserError, match='expl_behavior'):
        plan_of(config_of('dreamerv2', expl_behavior='Plan2Explore'))


@pytest.fixture(scope='module')
def tia(tmp_path_factory):
    """A method with a buffer of three episodes, one too short."""
    folder = tmp_path_factory.mktemp('tia')
    config = config_of('tia', 'online_debug', logdir=str(folder),
                       expl_until=1000)
    buffer = EpisodeBuffer(folder / 'episodes', 'x', 6)
    method = registry.method_class(config)(config, buffer)
    return method, buffer


def test_short_and_old_episodes_are_not_drawn(tia):
    method, buffer = tia
    buffer.open(0)
    for rows in (9, 4, 8, 5):
        buffer.add(finished(rows), 0)
    assert method._drawn(5).tolist() == [0, 2, 3]
    assert method._drawn(4).tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match='prefill'):
        method._drawn(10)
    kept = method.config
    method.config = kept.update({'replay.capacity': 14})
    assert method._drawn(5).tolist() == [2, 3]
    method.config = kept


def test_exploration_is_noise_on_sampled_actions(tia):
    method, _ = tia
    rng = np.random.default_rng(0)
    seen = {'image': rng.integers(0, 256, (200, 64, 64, 3), np.uint8),
            'is_first': np.ones(200, bool)}
    late, _ = method.explore(seen, None, 1000)  # expl_until is over
    action, state = method.explore(seen, None, 999)
    assert np.array_equal(action, method.explore(seen, None, 999)[0])
    assert not np.array_equal(action, method.explore(seen, None, 998)[0])
    assert np.array_equal(state['action'].numpy(), action)
    free = np.abs(action) < 1
    assert (~free).mean() > 0.05
    assert np.abs(action).max() == 1
    noise = (action - late)[free & (np.abs(late) < 0.1)]
    assert np.std(noise) == pytest.approx(0.3, abs=0.05)
    # Memory read from a checkpoint gives the same as memory kept.
    seen['is_first'][:] = False
    kept = method.explore(seen, state, 5)[0]
    saved = {key: np.asarray(value) for key, value in state.items()}
    assert np.array_equal(kept, method.explore(seen, saved, 5)[0])
    assert not np.array_equal(kept, method.explore(seen, None, 5)[0])


class Ended:
    """A collector whose decisions are made."""

    decisions = 70

    def reach(self, decisions, on_step=None):
        return []

    def state(self):
        return {'decisions': np.array(70)}


def test_updates_change_every_part_and_snapshots_stay(tia):
    from semopo_tf.online import snapshots
    method, buffer = tia
    buffer.open(0)
    from dreamerv2_base.envs.rollout import Finished
    from tests.helpers import make_episode
    for seed in range(2):
        buffer.add(Finished(make_episode(seed, 8), 0.0, 8, None, 1), seed)
    method._collector = Ended()
    before = method.state()
    phase, = method.phases()
    assert (phase.updates, phase.prefetch) == (12, False)
    for step in range(4):
        metrics = phase.train(None, step)
    assert np.isfinite(float(metrics['model_loss']))
    assert np.isfinite(float(metrics['disen/disen_reward_loss']))
    after = method.state()
    for part in ('encoder', 'rssm', 'heads/reward', 'exo_encoder', 'exo_rssm',
                 'exo_heads/reward', 'endo_decoder', 'exo_decoder', 'mask',
                 'exo_only_decoder'):
        names = [name for name in before if name.startswith(
            f'world_model/{part}/')]
        assert names, part
        assert any(not np.array_equal(before[name], after[name])
                   for name in names), part
    for part in ('actor', 'critic'):
        assert any(not np.array_equal(before[name], after[name])
                   for name in before if name.startswith(f'behavior/{part}/'))
    # 40 decisions have been made when update 3 is done.
    assert snapshots(method._folder) == [40]
    kept, facts = Checkpoints(method._folder / 'snapshots').load(40)
    assert (facts['update'], facts['pinned']) == (4, True)
    assert all(np.array_equal(kept[name], after[name]) for name in kept)
    assert set(after) - set(kept) == {'collect/decisions'}


def test_flags_of_the_other_kind_of_training_are_named():
    given = {'prefill': ['5'], 'agent_train_steps': ['5']}
    for name, named in (('tia', 'agent_train_steps has no effect online'),
                        ('semopo', 'prefill has no effect offline')):
        preset = 'released' if name == 'semopo' else name
        notes = inert.warnings(config_of(preset), given)
        assert [note for note in notes if 'effect o' in note] == [named]


@pytest.mark.slow
def test_run_killed_and_resumed_equals_undisturbed(tmp_path):
    """SIGKILL while collecting, updating or saving; TIA with everything."""
    from tests.test_resume import finish, kill, results, same, wait_for

    def start(folder):
        return subprocess.Popen(
            [sys.executable, str(ROOT / 'run.py'), 'train', '--configs',
             'tia', 'online_debug', '--video_dir', 'procedural',
             '--offline_video_every', '0', '--jit', 'eager', '--logdir',
             str(folder)], cwd=ROOT, start_new_session=True, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def files(folder):
        return {path.name: path.read_bytes() for path in sorted(
            (folder / 'episodes').glob('*.npz'))}

    finish(start(tmp_path / 'a'))
    folder, seen = tmp_path / 'b', []
    for count in (1, 2, 3):  # episodes there at the time of the kill
        process = start(folder)
        assert wait_for(lambda count=count: len(list(
            folder.glob('episodes/*.npz'))) >= count and len(list(
                folder.glob('ckpt/0*'))) >= 1, process)
        time.sleep(0.2 * count)
        kill(process)
        seen.append(Checkpoints(folder / 'ckpt').positions()[-1])
    assert len(set(seen)) > 1
    finish(start(folder))
    assert same(results(tmp_path / 'a'), results(folder))
    assert len(files(folder)) == 4
    assert files(folder) == files(tmp_path / 'a')
    snapshots = [{path.parent.name: path.read_bytes() for path in sorted(
        one.glob('snapshots/*/arrays.npz'))} for one in (tmp_path / 'a',
                                                         folder)]
    assert sorted(snapshots[0]) == ['000000040', '000000080']
    assert snapshots[0] == snapshots[1]
