"""Measured against the simulator: the learned mask and linear probes."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.state_episodes import StateTask
from dreamerv2_base.nets import Scope
from dreamerv2_base.noise import CounterDraws
from dreamerv2_base.tf import tf
from dreamerv2_base.world_model import WorldModel
from semopo_tf import settings
from semopo_tf.experiments import action_effects, probe, separation
from semopo_tf.experiments.fresh import FreshEpisode, collect_fresh

# The mask against the simulator's truth.


def test_intersection_over_union_of_hand_made_masks():
    truth = np.zeros((4, 2, 4), bool)
    truth[:3, 0, :2] = True            # 2 pixels; the last frame shows none
    mask = np.zeros((4, 2, 4), bool)
    mask[0, 0, :2] = True              # the same
    mask[1, 0, 1:4] = True             # 1 in common, 4 in all
    np.testing.assert_allclose(
        separation.intersection_over_union(mask, truth), [1, .25, 0, 1])


def fresh_of(length=14, episodes=4, background=True, seed=0):
    """Episodes whose robot is the left half of a frame of 4 by 4."""
    rng = np.random.default_rng(seed)
    robot = np.zeros((length, 4, 4), bool)
    robot[:, :, :2] = True
    scenes = rng.integers(0, 80, (3, 16, 16, 1))
    return [FreshEpisode(
        {'image': np.full((length, 4, 4, 3), number, np.uint8)}, robot,
        rng.standard_normal((length, 5)).astype(np.float32),
        np.tile([0, .8, 0, 0], (length, 1)).astype(np.float64),
        np.tensordot(rng.uniform(size=(length, 3)), scenes, 1).astype(np.uint8)
        if background else None) for number in range(episodes)]


def test_separation_at_a_threshold_of_one_half():
    fresh = fresh_of()
    index = separation.choose_rows([14] * 4, 100, 10, 0)
    assert len(index) == 16
    assert index[:, 1].min() == 10
    mask = np.full((16, 4, 4, 1), .2)
    mask[:, :, :2] = .5                # at least one half: claimed
    mask[0, :, :2] = .4                # below, though larger than the rest
    mask[1] = .9                       # everything
    found = separation.separation(fresh, index, mask)
    iou = found['separation/iou']
    assert iou.dtype == np.float32
    assert found['separation/threshold'] == .5
    np.testing.assert_allclose(iou[:3], [0, .5, 1])
    np.testing.assert_allclose(found['separation/chance'], .5)
    np.testing.assert_allclose(found['separation/swapped'][:3], [.5, 0, 0])
    np.testing.assert_allclose(found['separation/claimed'][:3], [0, 1, .5])
    np.testing.assert_allclose(found['separation/ranking'][:3], [1, .5, 1])
    assert found['separation/image'].shape == (8, 4, 4, 3)
    assert found['separation/image'][-1, 0, 0, 0] == index[-1, 0]


def test_rows_of_short_episodes_and_fewer_samples():
    index = separation.choose_rows([5, 30], 8, 10, 0)
    assert len(index) == 8
    assert (index[index[:, 0] == 0, 1] == 4).all()
    every = separation.choose_rows([5, 30], 99, 10, 0)
    assert every[0].tolist() == [0, 4]
    assert len(every) == 21


# Linear probes.


def linear(rng, episodes=4, rows=60, noise=0.0):
    feat = [rng.standard_normal((rows, 6)) * [1, 9, 1, 1, 1, 1]
            for _ in range(episodes)]
    weight = rng.standard_normal((6, 3)) * [1, 1, 100]
    target = [x @ weight + noise * 100 * rng.standard_normal((rows, 3))
              for x in feat]
    return feat, target


def test_probe_reads_linear_targets_and_no_others():
    rng = np.random.default_rng(0)
    feat, target = linear(rng)
    assert probe.linear_r2(feat, target, 3) > .999
    unrelated = [rng.standard_normal((60, 3)) for _ in feat]
    assert probe.linear_r2(feat, unrelated, 3) < .05
    still = [np.ones((60, 2)) for _ in feat]
    assert np.isnan(probe.linear_r2(feat, still, 3))
    # A constant entry beside others takes no part.
    both = [np.concatenate([a, b], 1)
            for a, b in zip(target, still, strict=True)]
    assert probe.linear_r2(feat, both, 3) == pytest.approx(
        probe.linear_r2(feat, target, 3))


def test_probe_is_judged_on_held_out_episodes():
    """A feature that tells episodes apart explains the fitted ones alone."""
    rng = np.random.default_rng(1)
    feat = [np.full((50, 1), float(i)) + .01 * rng.standard_normal((50, 1))
            for i in range(4)]
    target = [np.full((50, 1), v) + rng.standard_normal((50, 1))
              for v in (1., -5., 4., 0.)]
    assert probe.linear_r2(feat, target, 3) < .05


def test_probe_of_each_stream_and_target():
    fresh = fresh_of(length=80)
    noise = np.random.default_rng(9)
    feat = {'endogenous': [one.state for one in fresh],
            'exogenous': [noise.standard_normal((80, 7)) for _ in fresh]}
    found = probe.probe(fresh, feat, 10, cartpole=True)
    assert set(found) == {'probe/episodes'} | {
        f'probe/{stream}/{target}' for stream in feat
        for target in ('robot', 'background', 'pole')}
    assert found['probe/endogenous/robot'] > .99
    assert found['probe/endogenous/pole'] > .99
    assert found['probe/exogenous/robot'] < .1
    assert found['probe/endogenous/background'] < .1
    assert found['probe/episodes'].tolist() == [3, 1]
    plain = probe.probe(fresh_of(length=80, background=False), feat, 10)
    assert set(plain) == {'probe/episodes', 'probe/endogenous/robot',
                          'probe/exogenous/robot'}


def test_background_components_are_read_where_they_are_shown():
    fresh = fresh_of(length=80)
    shown = [probe.small(one.background) for one in fresh]
    assert shown[0].shape == (80, 256)
    reduced = probe.components(shown, 3)
    assert reduced[0].shape == (80, 8)
    found = probe.probe(fresh, {'joint': reduced}, 10)
    assert found['probe/joint/background'] > .9


@pytest.mark.slow
def test_fresh_truth_is_that_of_the_same_frame():
    """The video frame is behind the robot, which hides it, in every row."""
    config, _ = settings.resolve([
        '--configs', 'debug', '--time_limit', '40', '--eval_workers', '1'])
    one, two = collect_fresh(config, 0, 2)
    shown = (one.arrays['image'] == one.background).all(-1)
    assert shown[~one.robot].mean() > .97
    assert shown[one.robot].mean() < .02
    late = np.roll(one.background, 1, 0)
    assert (one.arrays['image'] == late).all(-1).mean() < .7
    assert one.state.shape == (21, 24)
    assert 'state' not in one.arrays
    assert (one.arrays['image'] != two.arrays['image']).any()


# What actions earn.


class Told:
    """A model in which an action's first part is the reward it earns."""

    action_size = 1

    def __init__(self):
        self.rssm, self.heads = self, {'reward': self._reward}
        self.dtype = tf.float32

    def imagine(self, action, start, draws):
        self.start = start
        return {'action': action}

    def get_feat(self, state):
        return state['action']

    def _reward(self, feat):
        self.reward = feat[..., 0]
        return self

    def mode(self):
        return self.reward


def test_action_effects_beside_the_simulator():
    config, _ = settings.resolve([
        '--configs', 'debug', '--task', 'dmcdrv_cartpole_swingup',
        '--action_repeat', '8'])
    fresh = fresh_of()
    index = separation.choose_rows([14] * 4, 100, 10, 0)
    found = action_effects.action_effects(
        config, Told(), fresh, index, {'deter': np.zeros((16, 2))}, 3)
    predicted = found['action_effects/predicted']
    horizon = config.imag_horizon
    assert set(predicted) == {-2.0 * horizon, 2.0 * horizon}
    # From one state only the sign of the push counts.
    true = found['action_effects/true']
    assert len(set(np.abs(true).round(5))) == 1
    assert np.abs(true[0]) > .01
    assert abs(found['action_effects/correlation']) == pytest.approx(1)
    # What lifts the pole: pushing the cart towards its tip.
    task = StateTask('cartpole_swingup', action_repeat=8)
    state = fresh[0].physics[0]        # it leans to where a push of 1 goes
    better, worse = (action_effects.simulated(
        task, state, np.array([push]), horizon) for push in (1.0, -1.0))
    assert better > worse
    assert action_effects.simulated(
        task, state, np.array([1.0]), horizon) == better


def test_a_predicted_reward_is_the_mean_of_different_futures():
    config, _ = settings.resolve(
        ['--configs', 'debug', '--rssm.discrete', '0'])
    model = WorldModel(config, (64, 64, 3), 2, Scope(0, 'world_model'))
    start, sums = model.rssm.initial(3), []
    found = action_effects.imagined(
        model, {key: value.numpy() for key, value in start.items()},
        np.ones((3, 2), np.float32), 4, 5)
    for number in range(action_effects.FUTURES):
        states = model.rssm.imagine(tf.ones((3, 4, 2)), start, CounterDraws(
            5, 'measure/action_effects', tf.constant(number, tf.int64)))
        reward = model.heads['reward'](model.rssm.get_feat(states)).mode()
        sums.append(reward.numpy().sum(1))
    assert np.ptp(sums, 0).min() > 1e-3
    np.testing.assert_allclose(found, np.mean(sums, 0), rtol=1e-4, atol=1e-6)


def test_correlation_with_what_never_changes_is_not_a_number():
    assert np.isnan(action_effects.correlation(np.ones(3), np.arange(3)))
    assert action_effects.correlation(
        np.arange(3.), -np.arange(3.)) == pytest.approx(-1)
