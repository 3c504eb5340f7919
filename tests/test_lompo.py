"""LOMPO: golden number G7, its traps, traces of the published code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import variables_by_name
from dreamerv2_base.noise import CounterDraws
from dreamerv2_base.store import open_store
from dreamerv2_base.tf import tf
from semopo_tf import commands, parity_lompo, settings
from semopo_tf.baselines.lompo import LOMPO
from semopo_tf.baselines.lompo_buffers import SequenceSampler
from semopo_tf.baselines.lompo_model import SharedNoise, penalty_of
from semopo_tf.parity import TOLERANCES, Trace
from tests.helpers import make_folder

DATA = Path(__file__).parent / 'parity' / 'data'
TRACES = ('lompo', 'lompo_max_var', 'lompo_mean')


def configured(*names, **changes):
    presets = settings.presets()
    config = presets.apply(presets.defaults, names or ['lompo_debug'])
    return settings.check(config.update(changes))


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'episodes'
    return open_store([make_folder(folder, 3, rows=12, actions=2)])


@pytest.fixture(scope='module')
def small(store):
    """A method whose rings are filled."""
    method = LOMPO(configured(), store)
    method.fill()
    return method


# Golden numbers and traces.


@pytest.mark.parametrize(('name', 'spread', 'value'), [
    ('log_prob', 'std', 29.174295), ('log_prob', 'variance', 851.139),
    ('max_var', 'std', 1.664893), ('mean', 'std', 1.329903)])
def test_g7_penalties(S, name, spread, value):
    config = configured(**{'lompo.penalty_type': name,
                           'lompo.penalty_spread': spread})
    stats = {'mean': tf.constant(S((3, 1, 4), .6, .2)),
             'std': tf.constant(.1 + np.abs(S((3, 1, 4), .9, .5)))}
    found = penalty_of(config.lompo)(stats, tf.constant(S((1, 4), 1.7, .1)))
    np.testing.assert_allclose(found, [value], rtol=2e-6)


def test_unknown_penalties_are_user_errors():
    with pytest.raises(UserError, match=r'lompo\.penalty_spread: expected'):
        penalty_of(configured(**{'lompo.penalty_spread': 'iqr'}).lompo)


@pytest.mark.parametrize(('changes', 'group'), [
    ({'lompo.penalty_spread': 'variance'}, 'targets'),
    ({'offline_lmbd': 4.9}, 'targets'),
    ({'lompo.tau': 0.01}, 'weights'),
    ({'loss_scales.kl': 0.99}, 'gradients')])
def test_a_difference_is_noticed(changes, group):
    report = parity_lompo.replay(
        Trace(DATA / 'lompo.npz'), {**changes, 'jit': 'eager'})
    assert report.worst(group)[0] > TOLERANCES[group]
    assert not report.agrees


def test_a_trace_of_something_else_is_a_user_error(tmp_path):
    path = tmp_path / 'x.npz'
    np.savez(path, case='{"penalty_type": "mean", "A": 3}')
    with pytest.raises(UserError, match='case: expected LOMPO'):
        parity_lompo.replay(Trace(path), {})


def test_the_preset_has_the_published_numbers():
    config = configured('lompo')
    assert (config.rssm.ensemble, config.rssm.stoch, config.rssm.deter,
            config.rssm.hidden) == (7, 64, 256, 256)
    assert (config.encoder.act, config.rssm.act) == ('relu', 'elu')
    layers = [config[k].layers for k in ('reward_head', 'actor', 'critic')]
    assert layers == [2, 4, 3]
    assert (config.offline_model_train_steps, config.steps) == (
        25000, 150000)
    rates = [config[f'{k}_opt'].lr for k in ('model', 'actor', 'critic')]
    assert rates == [6e-4, 3e-4, 3e-4]
    chosen = config.lompo
    assert (chosen.penalty_type, chosen.penalty_spread, chosen.alpha) == (
        'log_prob', 'std', 0.0)
    assert chosen.shared_noise
    assert chosen.random_targets
    assert chosen.drop_last_start
    assert chosen.start_training == 50000


# Traps of section 12.


def test_trap_5_adam_has_keras_epsilon():
    # Where it is added: test_optimizer.py.
    config = configured('lompo')
    assert [config[name].eps for name in (
        'model_opt', 'actor_opt', 'critic_opt')] == [1e-7] * 3


def test_trap_11_the_actor_is_deterministic(small):
    feat = tf.random.stateless_normal(
        (5, small.model.rssm.feat_size), [0, 1])
    left, right = small.agent.actor(feat), small.agent.actor(feat)
    np.testing.assert_array_equal(left, right)
    assert np.abs(left).max() < 1


def test_trap_11_half_real_half_latent(small, store):
    class Spying(LOMPO):
        def _agent_update(self, rows, draws):
            seen.update(rows)
            return super()._agent_update(rows, draws)

    seen = {}
    method = Spying(configured(jit='eager', **{
        'lompo.agent_batch_size': 256}), store)
    method.load(small.state())
    source = method.phases()[1].source(store)
    method.update_agent(source.batch(0), 0)
    assert configured('lompo').lompo.agent_batch_size == 256
    assert seen['rewards'].shape == (512,)
    # Real rewards are the data's, without penalty.
    data = np.concatenate([store.episode(i)['reward'][1:] for i in range(3)])
    assert np.isin(seen['rewards'][:256], data).all()
    assert not np.isin(seen['rewards'][256:], data).any()


@pytest.mark.parametrize('random', [True, False])
def test_trap_11_targets_start_random_as_released(random):
    method = LOMPO(configured(**{'lompo.random_targets': random}), None, 2)
    agent = method.agent
    for critic, target in zip(agent.critics, agent.targets, strict=True):
        same = [np.array_equal(a, b) for (name, a), b in zip(
            variables_by_name(critic).items(),
            variables_by_name(target).values(), strict=True)
            if name.endswith('kernel')]
        assert same == [not random] * len(same)


def test_trap_12_a_toy_episode_as_stored(tmp_path):
    toy = open_store([make_folder(tmp_path / 'toy', 1, rows=3, actions=2)])
    method = LOMPO(configured(jit='eager'), toy)
    found, episode = method.encode(0, 0), toy.episode(0)
    np.testing.assert_array_equal(found['actions'], episode['action'][1:])
    np.testing.assert_array_equal(found['rewards'], episode['reward'][1:])
    np.testing.assert_array_equal(found['terminals'], [0, 0])
    np.testing.assert_array_equal(found['obs'][1], found['next_obs'][0])
    # The features are sampled posteriors: the draws decide part of them.
    size = method.model.rssm.stoch
    other = method.encode(0, 1)
    assert (other['obs'][:, :size] != found['obs'][:, :size]).all()


def test_trap_12_imagined_rewards_are_of_the_next_feature(store):
    method = LOMPO(configured(offline_lmbd=0.0, jit='eager'), store)
    batch = SequenceSampler(store, method.config, 'x').batch(0)
    rows, _ = method.imagine(batch, 0)
    head = method.model.heads['reward']
    np.testing.assert_allclose(
        rows['rewards'], head(rows['next_obs']).mode(), atol=1e-6)
    assert np.abs(rows['rewards'] - head(rows['obs']).mode()).max() > 1e-3
    assert rows['obs'].shape[0] == 2 * 5 * 5  # B, T and five steps
    assert np.abs(rows['actions']).max() <= 1
    # A transition begins where the one before it ended.
    np.testing.assert_array_equal(rows['obs'][10:], rows['next_obs'][:-10])


def test_the_penalty_is_subtracted_with_its_weight(store):
    free = LOMPO(configured(offline_lmbd=0.0, jit='eager'), store)
    priced = LOMPO(configured(offline_lmbd=2.0, jit='eager'), store)
    batch = SequenceSampler(store, free.config, 'x').batch(0)
    plain, _ = free.imagine(batch, 0)
    lowered, metrics = priced.imagine(batch, 0)
    cost = plain['rewards'] - lowered['rewards']
    assert cost.min() > 0
    np.testing.assert_allclose(cost.mean(), metrics['penalty_mean'], rtol=1e-4)
    np.testing.assert_allclose(
        plain['rewards'].mean(), metrics['latent_reward'], rtol=1e-4)


def test_trap_26_start_up_ends_on_a_small_set(tmp_path, capsys):
    # 60 episodes, far fewer transitions than the 50,000 asked for.
    few = open_store([make_folder(tmp_path / 'few', 60, rows=4, actions=2)])
    config = configured(**{'lompo.start_training': 50000})
    method = LOMPO(config, few)
    method.fill()
    assert len(method.rings['real']) == len(method.rings['latent']) == 180
    assert 'starts when the buffer is full' in capsys.readouterr().err
    notes = method.phases()[1].source(few).describe()
    assert notes['start_up_ends_with_a_full_buffer']
    # 4-row episodes are shorter than a sequence: their padding starts none.
    assert method.rings['latent'].written % 4 == 0
    assert method.rings['latent'].written < 180 + 2 * 5 * 5


def test_nothing_is_worth_anything_behind_an_end(small):
    """Where all rows are terminal, targets are their rewards."""
    size, agent = small.model.rssm.feat_size, small.agent
    rows = {'obs': tf.random.stateless_normal((4, size), (1, 0)),
            'next_obs': tf.random.stateless_normal((4, size), (2, 0)),
            'actions': tf.zeros((4, 2)), 'terminals': tf.ones(4),
            'rewards': tf.constant([1.0, -2.0, 3.0, 0.5])}
    loss, metrics = agent.critic_loss(rows, None)
    inputs = tf.concat([rows['obs'], rows['actions']], -1)
    expected = sum(np.mean((critic(inputs) - rows['rewards']) ** 2)
                   for critic in agent.critics)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics['target_mean'], 0.625, rtol=1e-6)


# Quirks and contracts.


def test_episodes_shorter_than_a_sequence_are_read(tmp_path):
    """They are padded (baselines 2.3); other methods need whole chunks."""
    folder = make_folder(tmp_path / 'short', 2, rows=3, actions=2)
    config = configured(offline_dir=[str(folder)])
    assert config.offline_model_dataset.length > 3
    store = commands.open_data(config)
    batch = SequenceSampler(store, config, 'x').batch(0)
    assert batch['mask'].sum(1).tolist() == [3, 3]
    with pytest.raises(UserError, match='at least 5 rows'):
        commands.open_data(configured('debug', offline_dir=[str(folder)]))


@pytest.mark.parametrize('shared', [True, False])
def test_shared_noise(shared):
    draws = CounterDraws(0, 'x', tf.constant(0))
    draws = (SharedNoise(draws) if shared else draws).scope('endo')
    found = draws.normal('posterior', (4, 3, 2)).numpy()
    assert found.shape == (4, 3, 2)
    assert (found == found[:, :1]).all() == shared
    assert len(np.unique(found[:, 0])) == 8
    expl = draws.normal('action', (4, 3, 2)).numpy()
    assert len(np.unique(expl)) == 24


def test_shared_noise_is_a_setting(store):
    alike = {key: np.repeat(value[:1], 2, 0) for key, value in SequenceSampler(
        store, configured(), 'x').batch(0).items()}
    for shared in (True, False):
        # Noise on actions, which is each row's own, would tell rows apart.
        model = LOMPO(configured(**{
            'lompo.shared_noise': shared, 'lompo.expl_amount': 0.0}),
            store).model
        batch = {k: tf.constant(v) for k, v in alike.items()}
        draws = CounterDraws(0, 'x', tf.constant(0))
        post = model.states(batch, draws.scope('states'))
        start = {k: tf.repeat(v[:1, 0], 2, 0) for k, v in post.items()}
        rows = model.rollout(
            lambda feat: feat[:, :2], start, draws.scope('rollout'))
        outputs, _ = model.train(batch, draws.scope('train'))
        for first, second in (post['stoch'], outputs['post']['stoch'],
                              tf.unstack(rows['next_obs'], axis=1)):
            assert np.array_equal(first, second) == shared


def test_masked_rows_change_nothing(store):
    model = LOMPO(configured(), store).model
    batch = SequenceSampler(store, model.config, 'x').batch(0)
    batch['mask'][1, 3:] = False
    other = {key: value.copy() for key, value in batch.items()}
    other['image'][1, 3:] = 7
    other['reward'][1, 3:] = 9.0
    losses = [model.loss(model.preprocess(
        {k: tf.constant(v) for k, v in one.items()}), CounterDraws(
            0, 'x', tf.constant(0)))[0].numpy() for one in (batch, other)]
    assert losses[0] == losses[1]
    batch['mask'][1, 3:] = True
    whole = model.loss(model.preprocess(
        {k: tf.constant(v) for k, v in batch.items()}),
        CounterDraws(0, 'x', tf.constant(0)))[0].numpy()
    assert whole != losses[0]


def observation(count, first=True):
    image = np.random.default_rng(0).integers(
        0, 256, (1, 64, 64, 3), np.uint8)
    return {'image': np.repeat(image, count, 0),
            'is_first': np.full(count, first)}


def test_acting(small):
    one, state = small.policy(observation(2), None, 5)
    again, _ = small.policy(observation(2), None, 5)
    np.testing.assert_array_equal(one, again)
    # Draws are independent between environments, and follow the key.
    assert (one[0] != one[1]).any()
    assert (one != small.policy(observation(2), None, 6)[0]).any()
    going_on, _ = small.policy(observation(2, False), state, 5)
    reset, _ = small.policy(observation(2), state, 5)
    fresh, _ = small.policy(observation(2), None, 6)  # key 5, one step later
    np.testing.assert_array_equal(reset, fresh)
    assert (going_on != reset).any()


def test_acting_is_the_actor_on_the_filtered_frames():
    """Baselines 2.6: the actor without noise; the actions feed back."""
    method = LOMPO(configured(jit='eager', eval_state_mean=True), None, 2)
    image = np.random.default_rng(0).integers(
        0, 256, (1, 4, 64, 64, 3), np.uint8)
    first, state, actions = np.arange(4)[None] == 0, None, []
    for t in range(4):
        action, state = method.policy(
            {'image': image[:, t], 'is_first': first[:, t]}, state, 3)
        actions.append(action)
    actions = np.stack(actions, 1)

    def by_hand(before):
        data = {'image': tf.constant(image / 255 - 0.5, tf.float32),
                'action': tf.constant(before), 'is_first': first}
        _, post, _ = method.model.filter(
            data, CounterDraws(0, 'x', tf.constant(0)), None, False)
        return method.agent.actor(method.model.rssm.get_feat(post)).numpy()

    before = np.pad(actions[:, :-1], ((0, 0), (1, 0), (0, 0)))
    np.testing.assert_allclose(actions, by_hand(before), atol=1e-6)
    # What was done counts, by more than the rounding above.
    assert np.abs(actions - by_hand(0 * before)).max() > 1e-3


class Counting(LOMPO):
    """Counts how often each graph is traced."""

    def __init__(self, *arguments):
        self.traced = {'encode': 0, 'generate': 0, 'agent': 0, 'model': 0}
        super().__init__(*arguments)

    def _encode(self, batch, draws):
        self.traced['encode'] += 1
        return super()._encode(batch, draws)

    def _generate(self, batch, draws):
        self.traced['generate'] += 1
        return super()._generate(batch, draws)

    def _agent_update(self, rows, draws):
        self.traced['agent'] += 1
        return super()._agent_update(rows, draws)

    def _model_update(self, batch, draws):
        self.traced['model'] += 1
        return super()._model_update(batch, draws)


def train(method, store, steps):
    """Carry out the steps; after which policy updates was a refresh?"""
    refreshed = []
    model, agent = method.phases()
    for phase, name in ((model, 'model'), (agent, 'agent')):
        source = phase.source(store)
        for kind, step in steps:
            if kind == name:
                metrics = phase.train(source.batch(step), step)
                if 'penalty_mean' in metrics:
                    refreshed.append(step)
            elif kind == f'{name}_start':
                phase.start()
    return refreshed


def test_refreshed_buffers_are_not_traced_again(tmp_path):
    folder = make_folder(tmp_path / 'uneven', 2, rows=12, actions=2)
    make_folder(folder / 'more', 1, rows=9, actions=2)
    mixed = open_store([folder, folder / 'more'])
    config = configured()
    method = Counting(config, mixed)
    # Agent updates 0 … 6, a refresh after 2 and after 5.
    assert train(method, mixed, [
        ('model', 0), ('model', 1), ('agent_start', 0),
        *(('agent', i) for i in range(4))]) == [2]
    middle = method.state()
    assert train(method, mixed, [('agent', i) for i in range(4, 7)]) == [5]
    assert set(method.traced.values()) == {1}
    after = method.state()
    changed = [key for key in after if 'buffer' in key
               and not np.array_equal(after[key], middle[key])]
    assert 'buffer/latent/obs' in changed
    assert 'buffer/real/obs' in changed


def test_every_filling_and_refresh_has_batches_and_draws_of_its_own(store):
    episodes, encoded, imagined = [], [], []

    class Spying(LOMPO):
        def encode(self, number, counter):
            episodes.append(number)
            encoded.append(counter)
            return super().encode(number, counter)

        def imagine(self, batch, counter):
            imagined.append((counter, batch['action'].tobytes()))
            return super().imagine(batch, counter)

    method = Spying(configured(jit='eager'), store)
    method.fill()
    for number in range(5):
        method.refresh(number)
    counters, batches = zip(*imagined, strict=True)
    assert len(set(encoded)) == len(encoded) == 8  # 3 episodes, 5 refreshes
    # A refresh takes one at random; five come to all three.
    assert episodes[:3] == [0, 1, 2]
    assert set(episodes[3:]) == {0, 1, 2}
    assert len(set(counters)) == len(counters)
    assert len(set(batches)) == len(batches)


def test_a_finished_run_acts_without_data(small):
    actor = LOMPO(small.config, None, action_size=2)
    actor.load(small.state())
    np.testing.assert_array_equal(
        actor.policy(observation(1), None, 3)[0],
        small.policy(observation(1), None, 3)[0])


def test_videos_and_parameters(small, store):
    batch = small.phases()[0].source(store).batch(0)
    video = small.videos(batch, 0)['openl_image']
    assert video.shape == (5, 192, 128, 3)
    counts = small.parameters()
    assert counts['critics'] == counts['targets'] > 0
    state = small.state()
    weights = sum(value.size for key, value in state.items()
                  if 'buffer' not in key and 'optimizer' not in key)
    assert sum(counts.values()) == weights


@pytest.mark.parametrize('changes', [
    {'precision': '16'}, {'grad_heads': ['none']}, {'rssm.discrete': 4},
    {'pred_discount': True}, {'lompo.agent_iters_per_step': 0}])
def test_settings_that_cannot_work(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        LOMPO(configured(**changes), None, 2)
