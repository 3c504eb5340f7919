"""The separated model against the plain formulation of its two losses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import variables_by_name
from dreamerv2_base.noise import CounterDraws
from dreamerv2_base.tf import compiled, tf
from semopo_tf import doctor, settings
from semopo_tf.agent import PenalizedAgent
from semopo_tf.world_model_method import WorldModelMethod
from tests.helpers import ROOT

B, T, A = 2, 4, 3


def make(*flags):
    config, _ = settings.resolve(['--configs', 'debug', *flags])
    return PenalizedAgent(config, (64, 64, 3), A)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return {key: tf.constant(value) for key, value in
            doctor.fake_batch(rng, B, T, 64, A).items()}


def draws(step=0):
    return CounterDraws(0, 'test', tf.constant(step, tf.int64))


DRP = ('--disen_scales.reward', '50', '--grad_heads', 'reward',
       '--num_reward_opt_iters', '2')


def plain_losses(model, data, noise):
    """L_model and L_exo of spec section 4, each complete in itself."""
    from dreamerv2_base.distributions import UnitNormal
    endo, outputs, _ = model.endogenous_losses(data, noise)
    exo, exo_feat, _ = model.exogenous_losses(data, noise)
    exo.update(model.dissociation_loss(exo_feat, data)[0])
    image = UnitNormal(
        model.decoder(outputs['feat'], exo_feat)['joint'], 3)
    image = -tf.reduce_mean(image.log_prob(data['image']))
    return model.weighted(endo) + image, tf.add_n([*exo.values()]) + image


@pytest.mark.parametrize('flags', [(), DRP])
def test_one_backward_pass_gives_the_gradients_of_two(flags):
    agent = make(*flags)
    model, data = agent.world_model, batch()
    if flags:  # the head is trained before the losses are formed
        _, feat, _ = model.exogenous_losses(model.preprocess(data), draws())
        model.train_exogenous_head(feat, model.preprocess(data))
    expected = {}
    for number, optimizer in enumerate(
            (model.optimizer, model.exo_optimizer)):
        with tf.GradientTape() as tape:
            losses = plain_losses(model, model.preprocess(data), draws())
        grads = tape.gradient(losses[number], optimizer.targets)
        from dreamerv2_base.optimizer import clip, global_norm
        grads = optimizer.select(grads)
        expected[optimizer.label] = clip(grads, global_norm(grads), 100.0)
    if flags:  # train() would train the head again: keep it as it is
        model.train_exogenous_head = lambda feat, data: ({}, {})
    outputs, _ = model.train(data, draws())
    for label, grads in expected.items():
        found = outputs['grad_clipped'][label]
        assert grads.keys() == found.keys()
        for name in grads:
            np.testing.assert_allclose(
                found[name], grads[name], rtol=2e-4, atol=1e-6,
                err_msg=f'{label} {name}')


def test_both_optimizers_step_the_joint_decoder():
    model = make().world_model
    shared = set(model.optimizer.targets) & set(model.exo_optimizer.targets)
    assert shared == set(variables_by_name(model.decoder))
    assert any('mask1' in name for name in shared)


@pytest.mark.parametrize('flags', [
    (), ('--separate_wm', 'False', '--grad_heads', 'decoder', 'reward')])
def test_the_weights_of_the_losses_count(flags):
    """7 free nats, more than any KL here, are what a KL term costs."""
    agent = make('--kl.free', '7', '--disen_scales.kl_disen', '2',
                 '--loss_scales.kl', '3', '--loss_scales.reward', '30', *flags)
    outputs, found = agent.model_train(batch(), draws())
    assert np.max(outputs['kl']) < 5
    near = {'rtol': 0, 'atol': 0.01}  # float32 of 11,000 nats
    np.testing.assert_allclose(
        found['model_loss'] - found['image_loss'],
        3 * 7 + 30 * found['reward_loss'], **near)
    if not flags:
        np.testing.assert_allclose(
            found['disen_loss'] - found['image_loss'],
            2 * 7 + 1.5 * found['disen/disen_only_image_loss'], **near)


def test_trap_14_the_exogenous_weight_acts_squared():
    model = make('--disen_scales.disen_only', '1.5').world_model
    losses, _, metrics = model.exogenous_losses(
        model.preprocess(batch()), draws())
    alone = float(metrics['disen/disen_only_image_loss']) / 1.5
    np.testing.assert_allclose(losses['exo_only'], 2.25 * alone, rtol=1e-6)


def test_trap_14_dissociation_reaches_the_exogenous_encoder():
    for flags, reached in ((DRP, True), ((*DRP[:2], '--grad_heads', 'none'),
                                         False)):
        model = make(*flags).world_model
        data = model.preprocess(batch())
        with tf.GradientTape() as tape:
            _, feat, _ = model.exogenous_losses(data, draws())
            loss = model.dissociation_loss(feat, data)[0]['reward']
        grads = tape.gradient(loss, variables_by_name(model.exo_encoder))
        moved = any(g is not None and np.abs(g).max() > 0
                    for g in grads.values())
        assert moved == reached


def test_trap_13_one_step_raises_the_head_error_and_spares_the_head():
    # Gaussian: classes, drawn, do not change with a small step.
    agent = make(*DRP, '--rssm.discrete', '0')
    model, data = agent.world_model, batch()
    prepared = model.preprocess(data)

    def head_error():
        _, feat, _ = model.exogenous_losses(prepared, draws())
        dist = model.exo_heads['reward'](feat)
        return -float(tf.reduce_mean(dist.log_prob(prepared['reward'])))

    # Only the dissociation moves only the exogenous encoder.
    before = head_error()
    encoder = variables_by_name(model.exo_encoder)
    with tf.GradientTape() as tape:
        _, feat, _ = model.exogenous_losses(prepared, draws())
        loss = model.dissociation_loss(feat, prepared)[0]['reward']
    for name, grad in tape.gradient(loss, encoder).items():
        encoder[name].assign_sub(1e-4 * grad)
    assert head_error() > before + 1e-5
    # The outer step leaves the head to its inner updates.
    names = set(variables_by_name(*model.exo_heads.values()))
    assert not names & set(model.optimizer.targets)
    assert not names & set(model.exo_optimizer.targets)
    assert names == set(model.exo_head_optimizer.targets)


def test_unread_head_is_left_out_at_weight_zero():
    model = make().world_model
    before = {k: v.numpy() for k, v in variables_by_name(
        *model.exo_heads.values()).items()}
    outputs, metrics = model.train(batch(), draws())
    assert 'disen_reward' not in outputs['grad_clipped']
    assert 'disen_reward_loss' not in metrics
    for name, value in variables_by_name(*model.exo_heads.values()).items():
        np.testing.assert_array_equal(before[name], value)


def test_exogenous_stream_sees_no_actions():
    for flags, blind in (((), True), (('--disen_action_type', 'main'),
                                      False)):
        model = make(*flags).world_model
        data = model.preprocess(batch())
        other = {**data, 'action': -data['action']}
        first, _ = model.filter_exogenous(data, draws())
        second, _ = model.filter_exogenous(other, draws())
        same = np.array_equal(first['deter'], second['deter'])
        assert same == blind


def test_rewards_do_not_shape_the_endogenous_latents():
    model = make().world_model
    data = model.preprocess(batch())
    with tf.GradientTape() as tape:
        _, post, _ = model.filter(data, draws())
        loss = model.head_losses(model.rssm.get_feat(post), data)['reward']
    grads = tape.gradient(loss, variables_by_name(model.encoder))
    assert all(g is None for g in grads.values())


def test_forward_kl_starts_at_the_prior():
    # q = (1/2, 1/2), p = (3/4, 1/4): KL(p ‖ q) = ¾ ln 3/2 + ¼ ln 1/2; the
    # other one, KL(q ‖ p), is 0.143841. The prior is pulled harder here too.
    model = make('--kl.forward', 'True', '--kl.free', '0').world_model
    post = tf.Variable(np.log([[[[0.5, 0.5]]]]), dtype=tf.float32)
    prior = tf.Variable(np.log([[[[0.75, 0.25]]]]), dtype=tf.float32)
    with tf.GradientTape() as tape:
        loss, value = model.rssm.kl_loss(
            {'logit': post}, {'logit': prior}, **model.config.kl)
    np.testing.assert_allclose(value, [[0.130812]], atol=1e-6)
    np.testing.assert_allclose(loss, 0.130812, atol=1e-6)
    slopes = tape.gradient(loss, [post, prior])
    # 0.2 (q − p) and 0.8 p (ln p/q − KL).
    np.testing.assert_allclose(slopes[0], [[[[-0.05, 0.05]]]], atol=1e-6)
    np.testing.assert_allclose(
        slopes[1], [[[[0.164792, -0.164792]]]], atol=1e-6)


def test_mask_mixes_the_two_means():
    model = make().world_model
    size = model.rssm.feat_size
    endo, exo = (tf.random.stateless_normal((1, 2, size), (s, 0))
                 for s in (1, 2))
    out = model.decoder(endo, exo)
    mixed = out['mask'] * out['endogenous'] + (
        1 - out['mask']) * out['exogenous']
    np.testing.assert_allclose(out['joint'], mixed, atol=1e-6)
    assert out['mask'].shape == (1, 2, 64, 64, 1)
    assert 0 < np.min(out['mask']) <= np.max(out['mask']) < 1


def test_trap_3_lambda_changes_the_actor_gradient_through_the_dynamics():
    # With a critic that is constant and rewards that are zero, only the
    # pathwise gradient of −λu is left.
    gradients = []
    for weight in ('0', '5'):
        agent = make('--offline_lmbd', weight, '--actor_ent', '0')
        for head in (*agent.world_model.heads.values(),
                     agent.behavior.critic, agent.behavior.slow_critic):
            for variable in head.variables:
                variable.assign(tf.zeros_like(variable))
        outputs, _ = agent.agent_train(batch(), draws())
        gradients.append(max(float(np.abs(g).max()) for g in outputs[
            'grad_clipped']['actor'].values()))
    assert gradients[0] == 0.0
    assert gradients[1] > 0.0


def test_world_model_is_frozen_in_the_policy_phase():
    agent = make()
    before = {k: v.numpy() for k, v in variables_by_name(
        agent.world_model).items()}
    agent.agent_train(batch(), draws())
    for name, value in variables_by_name(agent.world_model).items():
        np.testing.assert_array_equal(before[name], value, err_msg=name)


def test_the_joint_update_pays_no_penalty_and_the_policy_update_does():
    agent = make('--offline_lmbd', '50', '--offline_penalty_type', 'meandis',
                 '--imag_horizon', '2')
    model = agent.world_model
    joint, _ = agent.train(batch(), draws())
    alone, _ = agent.agent_train(batch(1), draws(1))
    for outputs, weight in ((joint, 0), (alone, 50)):
        seq = outputs['seq']  # made by the model as it is now
        mean = model.heads['reward'](seq['feat']).mode().numpy()
        logit = model.rssm.ensemble_stats(seq['deter'])['logit'].numpy()
        probs = np.exp(logit) / np.exp(logit).sum(-1, keepdims=True)
        apart = ((probs - probs.mean(0)) ** 2).sum((-2, -1))
        penalty = np.sqrt(apart).mean(0)
        assert 50 * penalty.mean() > 1
        np.testing.assert_allclose(
            outputs['reward'], mean - weight * penalty, atol=1e-4)


def test_the_penalty_that_is_logged_is_of_all_imagined_states():
    agent = make('--offline_lmbd', '7', '--imag_horizon', '3')
    outputs, metrics = agent.agent_train(batch(), draws())
    reward, _ = agent.model_reward(outputs['seq'])
    np.testing.assert_allclose(metrics['penalty_mean'], np.mean(
        reward - outputs['reward']), rtol=1e-4)


def slow_and_fast(behavior):
    """Variables of the slow critic and of the critic, [(slow, fast)]."""
    return list(zip(variables_by_name(behavior.slow_critic).values(),
                    variables_by_name(behavior.critic).values(),
                    strict=True))


@pytest.mark.parametrize(('fraction', 'moved'), [
    ('1', [1, 1, 1, 4, 4, 4, 7]), ('0.5', [1, 1, 1, 2.5, 2.5, 2.5, 4.75])])
def test_slow_critic_is_copied_at_update_0_and_every_nth(fraction, moved):
    behavior = make('--slow_target_update', '3',
                    '--slow_target_fraction', fraction).behavior
    pairs = slow_and_fast(behavior)
    start = [fast.numpy() for _, fast in pairs]
    for step in range(7):
        for _, fast in pairs:  # at `step` it is step + 1 above its start
            fast.assign_add(tf.ones_like(fast))
        behavior.update_slow_target()
        for (slow, _), value in zip(pairs, start, strict=True):
            np.testing.assert_allclose(
                slow, value + moved[step], rtol=1e-6, err_msg=str(step))


def test_a_policy_update_ends_with_the_copy():
    agent, copies = make(
        '--slow_target_update', '3', '--imag_horizon', '2'), []
    for step in range(2):
        agent.agent_train(batch(step), draws(step))
        copies.append(all(np.array_equal(slow, fast) for slow, fast
                          in slow_and_fast(agent.behavior)))
    assert copies == [True, False]


@pytest.mark.parametrize('kind', ['reinforce', 'both'])
def test_other_actor_gradients_give_finite_updates(kind):
    agent = make('--actor_grad', kind)
    outputs, metrics = agent.agent_train(batch(), draws())
    assert np.isfinite(metrics['actor_loss'])
    assert max(float(np.abs(g).max()) for g in outputs[
        'grad_clipped']['actor'].values()) > 0


@pytest.mark.parametrize(('precision', 'jit'), [
    ('16', 'eager'), ('bf16', 'eager'),
    pytest.param('16', 'none', marks=pytest.mark.slow)])
def test_half_precision_trains_with_float32_distributions(precision, jit):
    agent = make('--precision', precision)
    outputs, metrics = compiled(agent.model_train, jit)(batch(), draws())
    # A norm may overflow at first: then the scale shrinks.
    assert all(np.isfinite(float(value)) for name, value in metrics.items()
               if name.endswith('loss'))
    post = outputs['post']
    assert post['logit'].dtype == tf.float32
    assert post['deter'].dtype == agent.world_model.dtype != tf.float32
    _, metrics = agent.agent_train(batch(), draws())
    assert np.isfinite(float(metrics['actor_loss']))


def test_float16_has_the_gradients_of_float32():
    """Unscaled once, in every optimizer; Gaussian, as draws of classes would
    be others. The scale of 256 overflows nowhere here."""
    flags = ('--rssm.discrete', '0', '--.*_opt.clip', '0', '--imag_horizon',
             '2', '--disen_inner', 'always', '--num_reward_opt_iters', '1')
    found = []
    for precision in ('32', '16'):
        agent = make('--precision', precision, *flags)
        model, behavior = agent.world_model, agent.behavior
        for scale in (model.loss_scale, model.exo_head_scale,
                      behavior.actor_scale, behavior.critic_scale):
            if precision == '16':
                scale._scale.assign(256.0)
        updates = (agent.model_train, agent.agent_train)
        grads = [update(batch(), draws())[0]['grad_clipped']
                 for update in updates]
        found.append({
            label: np.concatenate([np.ravel(one) for one in values.values()])
            for label, values in (grads[0] | grads[1]).items()})
    assert set(found[0]) == {
        'model', 'disen', 'disen_reward', 'actor', 'critic'}
    for label, whole in found[0].items():
        half, norm = found[1][label], np.linalg.norm
        np.testing.assert_allclose(
            norm(half), norm(whole), rtol=0.01, err_msg=label)
        assert half @ whole > 0.999 * norm(half) * norm(whole) > 0, label


def test_float16_skips_an_update_that_overflows():
    agent = make('--precision', '16')
    model = agent.world_model
    model.loss_scale._scale.assign(2.0 ** 120)
    before = {k: v.numpy() for k, v in variables_by_name(
        model.encoder, model.optimizer).items()}
    _, metrics = agent.model_train(batch(), draws())
    assert float(metrics['model_skipped_updates']) == 1
    for name, value in variables_by_name(
            model.encoder, model.optimizer).items():
        np.testing.assert_array_equal(before[name], value, err_msg=name)


def test_every_loss_scale_tells_of_its_own_skipped_updates():
    agent = make('--precision', '16', '--disen_inner', 'always')
    model, behavior = agent.world_model, agent.behavior
    for scale, value in ((model.exo_head_scale, 2.0 ** 120),
                         (behavior.actor_scale, 2.0 ** 120),
                         (model.loss_scale, 1.0),
                         (behavior.critic_scale, 1.0)):
        scale._scale.assign(value)
    found = {}
    for train in (agent.model_train, agent.agent_train):
        found.update(train(batch(), draws())[1])
    skipped = {name: float(value) for name, value in found.items()
               if name.endswith('_skipped_updates')}
    assert skipped.pop('disen_reward_skipped_updates') >= 1
    assert skipped == {'model_skipped_updates': 0, 'actor_skipped_updates': 1,
                       'critic_skipped_updates': 0}
    assert float(found['actor_loss_scale']) == 2.0 ** 119
    with np.load(ROOT / 'tests/parity/data/semopo_released.npz') as trace:
        released = {key.split('/metric/')[1] for key in trace.files
                    if '/metric/' in key}
    ours = (ROOT / 'docs' / 'name_map.md').read_text().split(
        '## Metrics of ours')[1].split('##')[0]
    assert {name for name in found if f'`{name}`' not in ours} == (
        released - {'disen/disen_reward_loss'})  # docs/divergences.md


def test_video_frames_are_in_range_and_named_as_in_the_released_code():
    config, _ = settings.resolve(['--configs', 'debug'])
    method = WorldModelMethod(config, None, action_size=A)
    rng = np.random.default_rng(0)
    videos = method.videos(doctor.fake_batch(rng, B, T, 64, A), 0)
    assert set(videos) == {'openl_joint', 'openl_main', 'openl_disen',
                           'openl_mask'}
    assert videos['openl_joint'].shape == (T, 3 * 64, B * 64, 3)
    for frames in videos.values():
        assert frames.min() >= 0
        assert frames.max() <= 1
    again = method.videos(
        doctor.fake_batch(np.random.default_rng(0), B, T, 64, A), 0)
    np.testing.assert_array_equal(
        videos['openl_joint'], again['openl_joint'])


def test_unknown_settings_are_user_errors():
    with pytest.raises(UserError, match='grad_heads'):
        make('--grad_heads', 'everything')
    with pytest.raises(UserError, match='norm'):
        make('--rssm.norm', 'layer')
    with pytest.raises(UserError, match='mlp_keys'):
        make('--encoder.mlp_keys', 'state')


def test_action_information_is_its_formula():
    model, data = make().world_model, batch()
    found = model.action_information(data, draws())
    rssm, ready = model.rssm, model.preprocess(data)
    _, post, _ = model.filter(ready, draws().scope('endo'))
    gain = []
    for b, t, k in itertools.product(
            range(B), range(1, T), range(rssm.ensemble)):
        before = {key: post[key][b:b + 1, t - 1] for key in ('stoch', 'deter')}
        after = rssm.get_dist({key: x[b:b + 1, t] for key, x in post.items()})
        other, own = (after.kl(rssm.get_dist(rssm.img_step(
            before, ready['action'][i:i + 1, t], tf.constant(k), None)))
            for i in ((b - 1) % B, b))
        gain.append(float(other[0] - own[0]))
    np.testing.assert_allclose(found, np.mean(gain), rtol=1e-4, atol=1e-7)
    assert abs(found) > 1e-5


def test_a_stream_that_no_action_moves_has_no_action_information():
    model, data = make().world_model, batch()
    kernel, = (v for v in model.rssm.variables
               if v.name.startswith('world_model/rssm/img_in/kernel'))
    kernel.assign(tf.concat([kernel[:-A], tf.zeros((A, kernel.shape[1]))], 0))
    assert float(model.action_information(data, draws())) == 0
