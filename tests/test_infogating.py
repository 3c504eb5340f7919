"""InfoGating: masks, inverse model, trap 20, the recording, the method."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import Scope, variables_by_name
from dreamerv2_base.noise import RecordedDraws, RecordingDraws
from dreamerv2_base.store import open_store
from dreamerv2_base.tf import tf
from semopo_tf import parity_drq
from semopo_tf.baselines.bc import augmented
from semopo_tf.baselines.drq_nets import noisy_action, schedule
from semopo_tf.baselines.infogating import InfoGating, InfoGatingAgent
from semopo_tf.baselines.infogating_nets import (
    BatchNorm,
    Block,
    Energy,
    MaskNetwork,
    gated,
    mask_of,
    perturbed,
    resized,
)
from tests.helpers import make_folder
from tests.test_drq import batch_of, configured, draws, recording


def config_of(**changes):
    return configured('infogating', 'drq_debug', **changes)


def full_batch():
    batch = batch_of()
    return {**batch, 'obs_k': tf.reverse(batch['obs'], [0])}


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'episodes'
    return open_store([make_folder(folder, 3, rows=20, actions=2)])


def values(module):
    return {k: v.numpy() for k, v in variables_by_name(module).items()}


# Layers.


@pytest.mark.parametrize(('old', 'new'), [
    (84, 42), (42, 21), (21, 10), (10, 5), (5, 10), (10, 21), (21, 42),
    (42, 84)])
def test_nearest_resizing_takes_the_floor(old, new):
    x = np.random.default_rng(0).normal(size=(2, old, old, 2)).astype('f4')
    index = np.floor(np.arange(new) * old / new).astype(int)
    assert np.array_equal(resized(tf.constant(x), new),
                          x[:, index][:, :, index])


def test_blocks_normalise_groups_of_channels():
    block = Block(Scope(0, 'm'), 3, 16)
    x = np.random.default_rng(0).normal(2, 3, (2, 6, 6, 3)).astype('f4')
    kernel = variables_by_name(block)['m/kernel']
    y = tf.nn.conv2d(x, kernel, 1, 'SAME').numpy().reshape(2, 36, 8, 2)
    mean = y.mean((1, 3), keepdims=True)
    y = (y - mean) / np.sqrt(y.var((1, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(
        block(x), np.maximum(y.reshape(2, 6, 6, 16), 0), atol=2e-5)


def test_batch_norm_keeps_statistics_as_pytorch_does():
    norm = BatchNorm(Scope(0, 'm'), 3)
    x = np.random.default_rng(0).normal(2, 3, (5, 4, 3)).astype('f4')
    y = norm(tf.constant(x)).numpy().reshape(-1, 3)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(y.std(0), 1, atol=1e-4)
    flat = x.reshape(-1, 3)
    np.testing.assert_allclose(norm.running_mean, .1 * flat.mean(0), 1e-5)
    np.testing.assert_allclose(
        norm.running_var, .9 + .1 * flat.var(0, ddof=1), 1e-5)


def test_the_energy_of_a_pair_is_that_of_its_tiled_rows():
    energy = Energy(Scope(0, 'm'), 3, 2, 8)
    rng = np.random.default_rng(0)
    now, later = rng.normal(size=(2, 4, 3)).astype('f4')
    actions = rng.normal(size=(4, 5, 2)).astype('f4')
    rows = np.concatenate([np.repeat(now[:, None], 5, 1), np.repeat(
        later[:, None], 5, 1), actions], -1).reshape(20, 8)
    arrays = values(energy)
    hidden = rows @ arrays['m/hidden/kernel']
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    expected = np.maximum(hidden, 0) @ arrays['m/out/kernel']
    np.testing.assert_allclose(
        energy(*map(tf.constant, (now, later, actions))),
        expected.reshape(4, 5), atol=1e-5)


def test_the_mask_network_starts_as_pytorchs_layers_do():
    arrays = values(MaskNetwork(Scope(0, 'm'), (36, 9), 3, 8, 16))
    limits = {'m/down0/kernel': 9 * 9, 'm/mlp1/bias': 16, 'm/final/kernel': 8}
    for name, fan_in in limits.items():
        largest = np.abs(arrays[name]).max() * np.sqrt(fan_in)
        assert .8 < largest <= 1


def test_features_and_actions_end_in_a_tanh():
    agent = InfoGatingAgent(config_of(), 2, Scope(0))
    batch = full_batch()
    features = agent.encoder(batch['obs']).numpy()
    # A layer norm as it starts is below the tanh.
    normed = np.arctanh(features.astype(np.float64))
    np.testing.assert_allclose(normed.mean(1), 0, atol=1e-4)
    np.testing.assert_allclose(normed.std(1), 1, atol=1e-3)
    kernel = variables_by_name(agent.head)['policy/dense2/kernel']
    kernel.assign(1e4 * kernel)
    np.testing.assert_allclose(np.abs(agent.act(batch['obs'])), 1, atol=1e-3)


def logits_of_grey(**biases):
    """Mask logits of frames of the middle value, 127.5, less the last
    layer's bias. Layers of the bottleneck have the given biases, or none."""
    net = MaskNetwork(Scope(0, 'm'), (36, 9), 3, 8, 16)
    variables = variables_by_name(net)
    for layer in ('mlp0', 'mlp1', 'mlp2'):
        bias = variables[f'm/{layer}/bias']
        bias.assign(tf.fill(bias.shape, biases.get(layer, 0.0)))
    return net(tf.fill((1, 36, 36, 9), 127.5)) - variables['m/final/bias']


def test_the_mask_network_takes_grey_for_zero():
    # x/255 − .5: no layer but the last one then has anything to show.
    assert not logits_of_grey().numpy().any()


@pytest.mark.parametrize('layer', ['mlp0', 'mlp1', 'mlp2'])
def test_every_layer_of_the_bottleneck_has_a_relu(layer):
    # Of grey, a layer's bias is all it gives: below zero, nothing is left.
    assert not logits_of_grey(**{layer: -1.0}).numpy().any()
    assert logits_of_grey(**{layer: 1.0}).numpy().any()


# Trap 20.


def test_hidden_pixels_are_black_and_masks_are_one_per_frame():
    images = tf.constant(np.full((1, 4, 4, 9), 200, np.uint8))
    mask = np.ones((1, 4, 4, 3), np.float32)
    mask[..., 1] = 0
    found = gated(images, tf.constant(mask)).numpy()
    assert (found[..., 3:6] == 0).all()
    assert (found[..., :3] == 200).all()
    assert (found[..., 6:] == 200).all()
    net = MaskNetwork(Scope(0, 'm'), (36, 9), 3, 8, 16)
    assert net(tf.zeros((2, 36, 36, 9))).shape == (2, 36, 36, 3)


def test_masks_are_between_hidden_and_shown():
    found = mask_of(tf.constant([-2.0, 0.0, 1.0, 9.0])).numpy()
    np.testing.assert_allclose(found, [0, 0, np.tanh(1), 1], rtol=1e-6)
    noisy = perturbed(tf.zeros(3), tf.constant([9.0, .1, -9.0]), .5, .3)
    np.testing.assert_allclose(noisy, [.3, .05, -.3], rtol=1e-6)


def test_noisy_logits_stay_within_one_straight_through():
    logits = tf.constant([2.0, .9, .5, -.9, -3.0])
    normal = tf.constant([0.0, .4, .4, -.4, .4])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        noisy = perturbed(logits, normal, .5, .3)
    np.testing.assert_allclose(noisy, [1, 1, .7, -1, -1], rtol=1e-6)
    assert np.array_equal(tape.gradient(noisy, logits), np.ones(5))


def fix_masks(agent, logit):
    """The same logit in all masks, whatever the frames show."""
    final = variables_by_name(agent.mask_net)
    final['mask_net/final/kernel'].assign(
        tf.zeros_like(final['mask_net/final/kernel']))
    final['mask_net/final/bias'].assign([logit, logit, logit])


class Asked:
    """In the place of an energy: a table, and what it was asked for."""

    def __init__(self, table):
        self.table = tf.constant(table)

    def __call__(self, now, later, actions):
        self.now, self.later, self.actions = (
            x.numpy() for x in (now, later, actions))
        return self.table


def shown_and_masks(iteration, **changes):
    """The gated obs beside the plain one, masks closed by hand."""
    agent = InfoGatingAgent(config_of(**changes), 2, Scope(0))
    fix_masks(agent, -9.0)
    batch = full_batch()
    _, _, shown = agent.representation_loss(
        batch['obs'], batch['obs_k'], batch['action'],
        tf.constant(iteration), draws())
    return shown.numpy(), batch['obs'].numpy()


@pytest.mark.parametrize('share', [.5, .25, 0.0])
def test_half_of_the_rows_are_left_as_they_are(share):
    shown, plain = shown_and_masks(50.0, **{'infogating.ungated': share})
    same = [np.array_equal(a, b) for a, b in zip(shown, plain, strict=True)]
    black = [not a.any() for a in shown]
    assert sum(same) == round(4 * share)
    assert np.array_equal(np.logical_not(same), black)


def test_the_lowest_numbers_drawn_name_the_ungated_rows():
    # All masks are closed: what is not black is un-gated.
    agent = InfoGatingAgent(config_of(), 2, Scope(0))
    fix_masks(agent, -9.0)
    agent.energy = asked = Asked(np.zeros((4, 5), np.float32))
    agent.encoder = lambda images: images
    batch = full_batch()
    agent.representation_loss(
        batch['obs'], batch['obs_k'], batch['action'], tf.constant(50.0),
        RecordedDraws({'ungated/obs': np.float32([.9, .1, .8, .2]),
                       'ungated/obs_k': np.float32([.3, .9, .5, .1]),
                       'negatives': np.zeros((4, 4, 2), np.float32)}))
    assert [i for i in range(4) if asked.now[i].any()] == [1, 3]
    assert [i for i in range(4) if asked.later[i].any()] == [0, 3]


def test_the_policy_learns_on_the_gated_frames():
    # All rows gated, all masks closed: the frames cannot matter.
    losses = []
    for name in ('obs', 'next_obs'):
        agent = InfoGatingAgent(
            config_of(**{'infogating.ungated': 0.0}), 2, Scope(0))
        fix_masks(agent, -9.0)
        batch = full_batch()
        metrics = agent.train({**batch, 'obs': batch[name]},
                              tf.constant(50.0), draws())
        losses.append(float(metrics['policy_loss']))
    assert losses[0] == losses[1]


def test_rows_are_drawn_for_both_observations_separately():
    spy = RecordingDraws(draws())
    agent = InfoGatingAgent(config_of(), 2, Scope(0))
    agent.train(full_batch(), tf.constant(0.0), spy)
    assert {'shift/obs', 'shift/obs_k', 'mask/obs', 'mask/obs_k',
            'ungated/obs', 'ungated/obs_k', 'negatives',
            'actor_action'} == set(spy.arrays)


@pytest.mark.parametrize('head', ['bc', 'drq_bc'])
def test_the_policy_does_not_train_the_encoder(head):
    # Two agents that differ in the head's step size alone.
    encoders = []
    for scale in (1.0, 3.0):
        agent = InfoGatingAgent(
            config_of(**{'infogating.head': head}), 2, Scope(0))
        for name, variable in variables_by_name(agent.head).items():
            if name.endswith('dense2/kernel'):
                variable.assign(scale * variable)
        agent.train(full_batch(), tf.constant(50.0), draws())
        encoders.append(values(agent.encoder))
    for name, value in encoders[0].items():
        assert np.array_equal(value, encoders[1][name]), name


# In the warm start, with gradients of a few hundred ε, and after it.
@pytest.mark.parametrize(('iteration', 'rel'), [(0.0, .01), (50.0, 1e-3)])
def test_the_first_step_moves_every_array_by_the_step_size(iteration, rel):
    # Adam's first step is 3e-4 wherever a gradient is far above ε, 1e-8.
    agent = InfoGatingAgent(config_of(), 2, Scope(0))
    parts = (agent.mask_net, agent.encoder, agent.energy, agent.head._policy)
    before = [values(part) for part in parts]
    agent.train(full_batch(), tf.constant(iteration), draws())
    for part, old in zip(parts, before, strict=True):
        for name, value in values(part).items():
            # The softmax cancels the energy's last bias.
            if 'running_' not in name and name != 'energy/out/bias':
                moved = np.abs(value - old[name]).max()
                assert moved == pytest.approx(3e-4, rel=rel), name


def test_the_policy_learns_on_features_of_the_updated_encoder():
    agent, same = (InfoGatingAgent(config_of(**{'drq.lr': 0.01}), 2, Scope(0))
                   for _ in range(2))
    batch, iteration = full_batch(), tf.constant(50.0)
    metrics = agent.train(batch, iteration, draws())
    # The shown frames and the policy before the update, the encoder after it.
    noise = draws()
    obs, later = (augmented(batch[key], key, same.drq, noise)
                  for key in ('obs', 'obs_k'))
    _, _, shown = same.representation_loss(
        obs, later, batch['action'], iteration, noise)
    std = schedule(same.drq.stddev_schedule, iteration)
    normal = noise.normal('actor_action', (4, 2))
    losses = []
    for encoder in (agent.encoder, same.encoder):
        action = noisy_action(same.head.actor(encoder(shown)), std,
                              same.drq.stddev_clip, normal)
        losses.append(np.mean(np.square(action - batch['action'])))
    assert float(metrics['policy_loss']) == pytest.approx(losses[0], rel=1e-5)
    assert losses[1] != pytest.approx(losses[0], rel=1e-3)


def test_acting_does_not_depend_on_the_masks():
    agent = InfoGatingAgent(config_of(), 2, Scope(0))
    obs = full_batch()['obs']
    before = agent.act(obs).numpy()
    for variable in variables_by_name(agent.mask_net).values():
        variable.assign(variable + 1.0)
    assert np.array_equal(before, agent.act(obs).numpy())


def mask_gradient(iteration, **changes):
    agent = InfoGatingAgent(config_of(**changes), 2, Scope(0))
    batch = full_batch()
    bias = variables_by_name(agent.mask_net)['mask_net/final/bias']
    bias.assign([.5, .5, .5])
    with tf.GradientTape() as tape:
        loss, metrics, _ = agent.representation_loss(
            batch['obs'], batch['obs_k'], batch['action'],
            tf.constant(iteration), draws())
    return tape.gradient(loss, bias).numpy(), float(loss), metrics


def test_the_warm_start_opens_masks_and_nothing_else_moves_them():
    # The inverse loss is detached: other negatives, the same gradient.
    grads = [mask_gradient(0.0, **{'infogating.negatives': count})
             for count in (4, 9)]
    assert (grads[0][0] < 0).all()
    np.testing.assert_array_equal(grads[0][0], grads[1][0])
    _, loss, metrics = grads[0]
    assert loss == pytest.approx(float(
        metrics['inverse_loss'] - .1 * metrics['mask_mean']), rel=1e-5)


def test_after_the_warm_start_masks_are_closed_and_learn():
    grads = [mask_gradient(6.0, **{'infogating.negatives': count})
             for count in (4, 9)]
    assert not np.array_equal(grads[0][0], grads[1][0])
    _, loss, metrics = grads[0]
    assert loss == pytest.approx(float(
        metrics['inverse_loss'] + .1 * metrics['mask_mean']
        + .001 * metrics['mask_square_mean']), rel=1e-5)


@pytest.mark.parametrize(('iteration', 'sparsity'), [
    (0.0, -.1 * .6), (50.0, .1 * .6 + .001 * .42)])
def test_the_sparsity_terms_of_masks_set_by_hand(iteration, sparsity):
    # Half of the masks of obs .2, half .6; all of those of obs_k .8. Means
    # .4 and .8, of squares (.04 + .36) / 2 = .2 and .64.
    agent = InfoGatingAgent(config_of(**{
        'infogating.noise_iterations': 0}), 2, Scope(0))
    shape = (4, 36, 18, 3)
    found = iter([np.concatenate([np.full(shape, .2), np.full(shape, .6)], 2),
                  np.full((4, 36, 36, 3), .8)])
    agent.mask_net = lambda images: tf.constant(
        np.arctanh(next(found)), tf.float32)
    batch = full_batch()
    loss, metrics, _ = agent.representation_loss(
        batch['obs'], batch['obs_k'], batch['action'],
        tf.constant(iteration), draws())
    assert float(metrics['mask_mean']) == pytest.approx(.6, rel=1e-5)
    assert float(metrics['mask_square_mean']) == pytest.approx(.42, rel=1e-5)
    assert float(loss - metrics['inverse_loss']) == pytest.approx(
        sparsity, abs=1e-6)


def test_an_uninformative_energy_has_the_loss_of_guessing():
    agent = InfoGatingAgent(config_of(), 2, Scope(0))
    out = variables_by_name(agent.energy)['energy/out/kernel']
    out.assign(tf.zeros_like(out))
    batch = full_batch()
    _, metrics, _ = agent.representation_loss(
        batch['obs'], batch['obs_k'], batch['action'], tf.constant(50.0),
        draws())
    assert float(metrics['inverse_loss']) == pytest.approx(np.log(5))


def test_the_true_action_is_told_from_uniform_ones():
    agent = InfoGatingAgent(config_of(**{
        'infogating.negatives': 2, 'infogating.ungated': 1.0}), 2, Scope(0))
    batch = {key: value[:2] for key, value in full_batch().items()}
    # Logits are negative energies, the true action's is the first: its share
    # is ¼ of ¼ + ½ + 1 in one row, ½ of ½ + 1 + 1 in the other.
    agent.energy = asked = Asked(np.log(np.float32([[4, 2, 1], [2, 1, 1]])))
    agent.encoder = lambda images: images
    noise = {'ungated/obs': np.float32([.1, .2]),
             'ungated/obs_k': np.float32([.1, .2]),
             'negatives': np.float32([[[.5, .75], [0, 1]],
                                      [[.25, .5], [1, .125]]])}
    _, metrics, _ = agent.representation_loss(
        batch['obs'], batch['obs_k'], batch['action'], tf.constant(50.0),
        RecordedDraws(noise))
    assert float(metrics['inverse_loss']) == pytest.approx(
        (np.log(7) + np.log(5)) / 2, rel=1e-6)
    assert np.array_equal(asked.actions[:, 0], batch['action'])
    assert np.array_equal(asked.actions[:, 1:], [
        [[0, .5], [-1, 1]], [[-.5, 0], [1, -.75]]])
    assert np.array_equal(asked.now, batch['obs'])
    assert np.array_equal(asked.later, batch['obs_k'])
    assert not np.array_equal(asked.now, asked.later)


@pytest.mark.parametrize(('iteration', 'obs', 'obs_k'), [
    (0.0, .6, .3), (2.0, .6, .3), (3.0, .5, .5), (50.0, .5, .5)])
def test_the_first_iterations_have_noise_on_the_logits(iteration, obs, obs_k):
    agent = InfoGatingAgent(config_of(**{
        'infogating.noise_iterations': 3, 'infogating.noise_std': .5}),
        2, Scope(0))
    fix_masks(agent, .5)
    batch, shape = full_batch(), (4, 36, 36, 3)
    noise = {'mask/obs': np.full(shape, .2, np.float32),
             'mask/obs_k': np.full(shape, -.4, np.float32),
             'ungated/obs': np.arange(4), 'ungated/obs_k': np.arange(4),
             'negatives': np.full((4, 4, 2), .5, np.float32)}
    _, metrics, _ = agent.representation_loss(
        batch['obs'], batch['obs_k'], batch['action'],
        tf.constant(iteration), RecordedDraws(noise))
    assert float(metrics['mask_logit_mean_obs']) == pytest.approx(obs)
    assert float(metrics['mask_logit_mean_obs_k']) == pytest.approx(obs_k)


# The recording, and the method.


def test_agrees_with_the_recording():
    report = parity_drq.replay(recording('infogating'), {})
    assert set(report.errors) == {
        'losses', 'weights', 'changes', 'actions'}
    assert report.agrees, {g: report.worst(g) for g in report.errors}


def test_a_difference_is_noticed():
    trace, eagerly = recording('infogating'), {'jit': 'eager'}
    assert parity_drq.replay(trace, eagerly).agrees
    for key, value in (
            ('sparsity', .2), ('noise_clip', .2), ('warm_start', 9000)):
        changed = {**eagerly, f'infogating.{key}': value}
        assert not parity_drq.replay(trace, changed).agrees, key


def test_all_of_the_critics_head_is_saved_and_loaded():
    # test_battery.py stops and resumes the method with its cloning head.
    first, second = (InfoGating(
        config_of(seed=seed, **{'infogating.head': 'drq_bc'}), None,
        action_size=2) for seed in (0, 1))
    ours, theirs = (variables_by_name(m.agent) for m in (first, second))
    for variable in ours.values():  # moments and counters start at zero
        variable.assign(variable + 1.0)
    second.load(first.state())
    assert ours.keys() == theirs.keys()
    assert 'critic_target/q1/dense0/kernel' in theirs
    for name, variable in ours.items():
        assert np.array_equal(variable, theirs[name]), name


def test_updates_are_one_graph(store):
    # Past the noise and the warm start as well as before.
    method = InfoGating(config_of(), store)
    phase = method.phases()[0]
    source = phase.source(store)
    losses = [float(phase.train(source.batch(i), i)['inverse_loss'])
              for i in range(5)]
    assert np.isfinite(losses).all()
    assert phase.train.graph.experimental_get_tracing_count() == 1


def test_pictures_of_the_masks(store):
    method = InfoGating(config_of(), store)
    source = method.phases()[0].source(store)
    film = method.videos(source.video_batch(0), 0)['gating']
    assert film.shape == (19, 3 * 36, 3 * 36, 3)
    assert film.min() >= 0
    assert film.max() <= 1
    truth, mask, shown = np.split(film, 3, 1)
    np.testing.assert_allclose(truth * mask, shown, atol=1e-6)


@pytest.mark.parametrize(('changes', 'message'), [
    ({'infogating.head': 'cql'}, r'infogating\.head: expected one of'),
    ({'infogating.mask_filters': 12}, 'multiple of 8'),
    ({'infogating.negatives': 0}, r'negatives: expected at least 1')])
def test_settings_that_cannot_run_are_user_errors(changes, message):
    with pytest.raises(UserError, match=message):
        InfoGating(config_of(**changes), None, action_size=2)
