"""How the two phases draw, and how the policy acts."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from dreamerv2_base.noise import CounterDraws
from dreamerv2_base.optimizer import global_norm
from dreamerv2_base.store import open_store
from dreamerv2_base.tf import tf
from semopo_tf import settings
from semopo_tf.agent import PenalizedAgent
from semopo_tf.method import expect_frames
from semopo_tf.world_model_method import WorldModelMethod
from tests.helpers import make_folder

ACTIONS, COUNT, KEY = 3, 2, 7


def make(store=None, **changes):
    config, _ = settings.resolve(['--configs', 'debug', '--jit', 'eager'])
    return WorldModelMethod(
        config.update({'seed': 5, **changes}), store, ACTIONS)


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'episodes'
    return open_store([make_folder(folder, actions=ACTIONS)])


def draws_of(method, step):
    return CounterDraws(
        method.config.seed, 'act', tf.constant(KEY + step, tf.int64))


def observation(step):
    image = np.random.default_rng(step).integers(
        0, 256, (COUNT, 64, 64, 3), np.uint8)
    return {'image': image, 'is_first': np.full(COUNT, step == 0)}


def by_hand(method, step, latent, action):
    """One step with a state that is carried by hand."""
    seen = observation(step)
    return method.agent.act_step(
        tf.constant(seen['image']), tf.constant(seen['is_first']),
        {**latent, 'action': action}, draws_of(method, step))


def test_the_policy_takes_the_mode_and_carries_its_state():
    method = make()
    rssm, actor = method.agent.world_model.rssm, method.agent.behavior.actor
    latent, action = rssm.initial(COUNT), tf.zeros((COUNT, ACTIONS))
    state, features = None, []
    for step in range(3):
        found, state = method.policy(observation(step), state, KEY)
        action, latent = by_hand(method, step, latent, action)
        np.testing.assert_allclose(found, action, rtol=1e-5, atol=1e-6)
        for name, value in latent.items():
            np.testing.assert_allclose(
                state[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
        features.append(rssm.get_feat(latent))
        np.testing.assert_array_equal(action, actor(features[-1]).mode())
    # All three steps are told apart, by more than the rounding above.
    assert np.abs(features[1] - features[0]).max() > 0.01
    assert np.abs(features[2] - features[1]).max() > 0.01


def test_what_was_done_counts_within_an_episode_alone():
    method = make()
    rssm = method.agent.world_model.rssm
    latent = {name: tf.ones_like(value)
              for name, value in rssm.initial(COUNT).items()}
    acts = [sign * tf.ones((COUNT, ACTIONS)) for sign in (1, -1)]
    for step, counts in ((0, False), (1, True)):
        ends = [by_hand(method, step, latent, action)[1]['deter'].numpy()
                for action in acts]
        assert (np.abs(ends[0] - ends[1]).max() > 1e-3) == counts


@pytest.mark.parametrize('mean', [False, True])
def test_the_posterior_is_sampled_unless_told(mean):
    """Spec section 9."""
    method = make(eval_state_mean=mean)
    rssm = method.agent.world_model.rssm
    seen = observation(0)
    found = [method.policy(seen, None, key)[1] for key in range(8)]
    stoch = np.stack([state['stoch'].numpy() for state in found])
    modes = np.stack([rssm.get_dist(state).mode() for state in found])
    assert np.array_equal(stoch, modes) == mean
    assert (stoch == stoch[:1]).all() == mean


def test_exploring_samples_the_posterior_whatever_is_told():
    agent = make(eval_state_mean=True).agent
    state = agent.policy(observation(0), None, KEY, explore=True)[1]
    mode = agent.world_model.rssm.get_dist(state).mode()
    assert not np.array_equal(state['stoch'], mode)


def test_noise_in_evaluation_keeps_actions_within_their_bounds():
    plain, _ = make().policy(observation(0), None, KEY)
    method = make(eval_noise=2.0)
    noisy = np.stack([method.policy(observation(0), None, key)[0]
                      for key in range(4)])
    assert np.abs(noisy).max() == 1
    assert (np.abs(noisy) < 1).any()
    assert (noisy != plain).all()


def test_draws_are_of_the_phase_the_update_and_the_seed(monkeypatch):
    """What the phases give their updates, seen by updates that show it."""
    def update(agent, batch, draws):
        return {}, {'drawn': draws.uniform('x', ())}

    for name in ('model_train', 'agent_train'):
        monkeypatch.setattr(PenalizedAgent, name, update)

    def drawn(seed):
        return [float(phase.train({}, step)['drawn'])
                for phase in make(seed=seed).phases() for step in (0, 1)]

    found = drawn(5) + drawn(6)
    assert len(set(found)) == len(found) == 8
    assert drawn(5) == found[:4]


def test_each_phase_draws_batches_of_its_own_size(store):
    method = make(store, cache_embeddings=False,
                  offline_model_dataset={'batch': 2, 'length': 5},
                  offline_train_dataset={'batch': 3, 'length': 4})
    found = [phase.source(store).batch(0)['action'].shape
             for phase in method.phases()]
    assert found == [(2, 5, ACTIONS), (3, 4, ACTIONS)]


@pytest.mark.parametrize('joint', [True, False])
def test_the_joint_step_at_the_start_trains_everything(store, joint):
    """Spec section 9: the released code's, of both phases' networks."""
    method = make(store, initial_joint_step=joint, imag_horizon=2)
    before = {name: np.array(value)
              for name, value in method.state().items()}
    method.phases()[0].start()
    after = method.state()
    kernels = ['world_model/encoder/conv0/kernel',
               'world_model/exo_encoder/conv0/kernel',
               'behavior/actor/out/kernel', 'behavior/critic/out/kernel']
    assert [np.abs(after[name] - before[name]).max() > 1e-5
            for name in kernels] == [joint] * len(kernels)
    if not joint:
        assert all(np.array_equal(after[name], value)
                   for name, value in before.items())


def test_the_discount_that_is_not_predicted_is_that_of_the_settings():
    agent = make(discount=0.9).agent
    seq = agent.world_model.imagine(
        agent.behavior.actor, agent.world_model.rssm.initial(COUNT), 2,
        CounterDraws(0, 'test', tf.constant(0)))
    np.testing.assert_allclose(seq['discount'], [[0.9] * COUNT] * 3)
    np.testing.assert_allclose(
        seq['weight'], [[1] * COUNT, [0.9] * COUNT, [0.81] * COUNT])


def test_every_optimizer_has_its_own_settings():
    """Adam's first step is its rate; a gradient of ones is clipped."""
    groups = {'model_opt': {'lr': 1e-3, 'clip': 0.5, 'wd': 0.5},
              'actor_opt': {'lr': 2e-3, 'clip': 0.25, 'wd': 0.25},
              'critic_opt': {'lr': 4e-3, 'clip': 0.125, 'wd': 0.125}}
    agent = make(**{name: {**group, 'eps': 1e-9}
                    for name, group in groups.items()}).agent
    model, behavior = agent.world_model, agent.behavior
    for optimizer, name in (
            (model.optimizer, 'model_opt'), (model.exo_optimizer, 'model_opt'),
            (model.exo_head_optimizer, 'model_opt'),
            (behavior.actor_opt, 'actor_opt'),
            (behavior.critic_opt, 'critic_opt')):
        group = groups[name]
        variable = next(iter(optimizer.targets.values()))
        before = variable.numpy()
        _, clipped = optimizer.apply({
            key: tf.ones_like(x) for key, x in optimizer.targets.items()})
        np.testing.assert_allclose(
            global_norm(clipped), group['clip'], rtol=1e-4)
        np.testing.assert_allclose(
            variable, before * (1 - group['wd']) - group['lr'],
            rtol=1e-3, atol=1e-6, err_msg=optimizer.label)


@pytest.mark.parametrize(('image', 'found'), [
    (np.zeros((2, 64, 64, 3), np.float32), r'float32 \[2, 64, 64, 3\]'),
    (np.zeros((2, 84, 84, 3), np.uint8), r'uint8 \[2, 84, 84, 3\]'),
    (np.zeros((64, 64, 3), np.uint8), r'uint8 \[64, 64, 3\]')])
def test_frames_that_would_be_noise_are_refused(image, found):
    with pytest.raises(UserError, match=rf'\[n, 64, 64, 3\], found {found}'):
        expect_frames({'image': image}, 64)
    with pytest.raises(UserError, match='policy: expected image'):
        make().policy({'image': image, 'is_first': np.ones(2, bool)}, None, 1)
