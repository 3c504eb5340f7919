"""InfoGating: masks, inverse model, trap 20, the recording, the method."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import Scope, variables_by_name
from dreamerv2_base.noise import RecordingDraws
from dreamerv2_base.store import open_store
from dreamerv2_base.tf import tf
from semopo_tf import parity_drq
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


def shown_and_masks(iteration, **changes):
    """The gated obs beside the plain one, masks closed by hand."""
    agent = InfoGatingAgent(config_of(**changes), 2, Scope(0))
    final = variables_by_name(agent.mask_net)
    final['mask_net/final/kernel'].assign(
        tf.zeros_like(final['mask_net/final/kernel']))
    final['mask_net/final/bias'].assign([-9.0, -9.0, -9.0])
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


def test_the_policy_learns_on_the_gated_frames():
    # All rows gated, all masks closed: the frames cannot matter.
    losses = []
    for name in ('obs', 'next_obs'):
        agent = InfoGatingAgent(
            config_of(**{'infogating.ungated': 0.0}), 2, Scope(0))
        final = variables_by_name(agent.mask_net)
        final['mask_net/final/kernel'].assign(
            tf.zeros_like(final['mask_net/final/kernel']))
        final['mask_net/final/bias'].assign([-9.0, -9.0, -9.0])
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


def test_an_uninformative_energy_has_the_loss_of_guessing():
    agent = InfoGatingAgent(config_of(), 2, Scope(0))
    out = variables_by_name(agent.energy)['energy/out/kernel']
    out.assign(tf.zeros_like(out))
    batch = full_batch()
    _, metrics, _ = agent.representation_loss(
        batch['obs'], batch['obs_k'], batch['action'], tf.constant(50.0),
        draws())
    assert float(metrics['inverse_loss']) == pytest.approx(np.log(5))


# The recording, and the method.


def test_agrees_with_the_recording():
    report = parity_drq.replay(recording('infogating'), {})
    assert set(report.errors) == {'losses', 'weights', 'actions'}
    assert report.agrees, {g: report.worst(g) for g in report.errors}


@pytest.mark.parametrize('changes', [
    {'infogating.sparsity': 0.2}, {'infogating.noise_clip': 0.2},
    {'infogating.warm_start': 9000}])
def test_a_difference_is_noticed(changes):
    changes = {**changes, 'jit': 'eager'}
    assert not parity_drq.replay(recording('infogating'), changes).agrees


@pytest.mark.parametrize('head', ['bc', 'drq_bc'])
def test_saved_and_loaded_goes_on_with_the_same_numbers(head, store):
    config = config_of(jit='eager', **{'infogating.head': head})

    def updates(method, start, stop):
        phase = method.phases()[0]
        source = phase.source(store)
        for i in range(start, stop):
            phase.train(source.batch(i), i)

    whole, first = (InfoGating(config, store) for _ in range(2))
    updates(whole, 0, 2)
    updates(first, 0, 1)
    second = InfoGating(config, store)
    second.load(first.state())
    updates(second, 1, 2)
    for key, value in whole.state().items():
        assert np.array_equal(value, second.state()[key]), key


def test_updates_are_one_graph(store):
    # Past the noise and the warm start as well as before.
    method = InfoGating(config_of(), store)
    phase = method.phases()[0]
    source = phase.source(store)
    losses = [float(phase.train(source.batch(i), i)['inverse_loss'])
              for i in range(5)]
    assert np.isfinite(losses).all()
    assert method.graph.experimental_get_tracing_count() == 1


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
