"""The numbers of configs.yaml are those of the published runs.

Where a recorded trace holds the published configuration, the presets are
compared with it key by key, and what a recording made smaller is named.
Elsewhere the numbers stand here, with their section of the specification.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from semopo_tf import parity_lompo, settings
from semopo_tf.experiments import metrics, scales
from semopo_tf.parity import Trace
from semopo_tf.world_model_method import WorldModelMethod

DATA = Path(__file__).parent / 'parity' / 'data'


def preset(name):
    presets = settings.presets()
    return settings.check(presets.apply(presets.defaults, [name]))


def differences(name, recorded):
    """Our values where a preset is not what was recorded."""
    ours = preset(name).flat()
    assert not set(recorded) - set(ours)
    return {key: ours[key] for key, value in recorded.items()
            if ours[key] != value}


# SeMOPO and Offline DV2. The recordings are of the published defaults in
# small sizes: what the published command and preset say instead (spec section
# 11 and of the baselines 1.3), and names of ours.
COMMAND = {
    'rssm.ensemble': 7, 'rssm.hidden': 200, 'rssm.deter': 200,
    'rssm.stoch': 32, 'rssm.discrete': 32, 'encoder.cnn_depth': 48,
    'decoder.cnn_depth': 48, 'reward_head.units': 400,
    'discount_head.units': 400, 'actor.units': 400, 'critic.units': 400,
    'task': 'dmcdrv_walker_walk', 'steps': 100000, 'precision': '16',
    'offline_lmbd_cons': 10.0, 'jit': 'none', 'logdir': 'runs/semopo',
    'video_dir': 'procedural'}
CONSERVATIVE = {'replay.incremental': True, 'replay.sort_rewards': True}
# Offline DV2 has no second stream: no effect there.
ONE_STREAM = {'disen_scales.reward': 0.0}


@pytest.mark.parametrize(('trace', 'name', 'more'), [
    ('semopo_released', 'released', CONSERVATIVE),
    # Other penalties, weights and heads were recorded, too.
    ('offline_dv2_meandis', 'offline_dv2', {
        **ONE_STREAM, 'offline_lmbd': 5.0}),
    ('offline_dv2_tuned_lambda', 'offline_dv2', {
        **ONE_STREAM, 'offline_tune_lmbd': False}),
    ('offline_dv2_gaussian', 'offline_dv2', {
        **ONE_STREAM, 'offline_penalty_type': 'meandis'}),
    ('offline_dv2_logprob', 'offline_dv2', {
        **ONE_STREAM, 'offline_penalty_type': 'meandis',
        'pred_discount': False, 'grad_heads': ['decoder', 'reward']})])
def test_a_preset_is_the_recorded_configuration(trace, name, more):
    recorded = Trace(DATA / f'{trace}.npz').config
    assert len(recorded) == 171
    assert differences(name, recorded) == {**COMMAND, **more}


# LOMPO and the model-free methods: what their cases name, beside sizes that a
# recording made smaller (baselines 2.2, 2.6, 3.3).
LOMPO_KEYS = {
    **parity_lompo.CASE_KEYS, 'im_size': 'image_size',
    'dense_act': '(rssm|reward_head|actor|critic).act',
    'precision': 'precision', 'action_repeat': 'action_repeat',
    'eval_noise': 'eval_noise', 'pcont': 'pred_discount',
    'weight_decay': 'model_opt.wd',
    'model_train_steps': 'offline_model_train_steps',
    'model_batch_size': 'offline_model_dataset.batch',
    'model_batch_length': 'offline_model_dataset.length',
    'agent_train_steps': 'steps', 'start_training': 'lompo.start_training',
    'agent_iters_per_step': 'lompo.agent_iters_per_step',
    'agent_batch_size': 'lompo.agent_batch_size'}
LOMPO_SIZES = {
    'rssm.deter': 256, 'rssm.hidden': 256, 'rssm.stoch': 64,
    'rssm.ensemble': 7, 'encoder.cnn_depth': 32, 'decoder.cnn_depth': 32,
    'reward_head.units': 256, 'actor.units': 256, 'critic.units': 256,
    'lompo.agent_batch_size': 256, 'lompo.cql_samples': 16}
DRQ_KEYS = {'algo': 'method', **{key: f'drq.{key}' for key in (
    'lr', 'feature_dim', 'hidden_dim', 'critic_target_tau', 'num_expl_steps',
    'update_every_steps', 'stddev_schedule', 'stddev_clip')}}
DRQ_SIZES = {'drq.feature_dim': 50, 'drq.hidden_dim': 1024}


@pytest.mark.parametrize(('trace', 'keys', 'sizes'), [
    ('lompo', LOMPO_KEYS, LOMPO_SIZES),
    ('drq_bc', DRQ_KEYS, DRQ_SIZES), ('drq_cql', DRQ_KEYS, DRQ_SIZES),
    ('bc', DRQ_KEYS, DRQ_SIZES)])
def test_a_preset_is_the_recorded_case(trace, keys, sizes):
    case = Trace(DATA / f'{trace}.npz').case
    config = preset(trace)
    recorded = config.update({
        ours: case[theirs] for theirs, ours in keys.items()})
    assert {key: ours for key, (ours, _)
            in config.difference(recorded).items()} == sizes


def test_the_paper_differs_from_the_released_command_in_what_it_says():
    ours, released = preset('paper'), preset('released')
    assert {key: value for key, (value, _)
            in ours.difference(released).items()} == {
        # Spec section 11.
        'offline_lmbd': 10.0, 'offline_penalty_type': 'disagreement',
        'model_opt.lr': 6e-5, 'rssm.hidden': 1024, 'rssm.discrete': 0,
        'encoder.cnn_depth': 32, 'decoder.cnn_depth': 32,
        'exo_only_decoder': False, 'offline_model_train_steps': 25000,
        # Section 8: trajectories in the order of the data.
        'sampling': 'paper', 'replay.incremental': False,
        'replay.sort_rewards': False,
        # Section 9: the joint step is the released code's.
        'initial_joint_step': False,
        # Without effect; not given.
        'offline_lmbd_cons': 1.5, 'precision': '32'}


def test_updates_of_the_model_are_whole_blocks():
    """Section 9: 25,001 asked are 25,100 done."""
    done = {name: WorldModelMethod(preset(name), None, 6).phases()[0].updates
            for name in ('released', 'paper')}
    assert done == {'released': 25100, 'paper': 25000}


# What no recording holds. Of the baselines' specification: `B`.
PIXELS = {
    # B 3.1 to 3.3
    'drq.image_size': 84, 'drq.frame_stack': 3,
    'drq.replay_buffer_size': 1000000, 'drq.ignore_terminals': True,
    'drq.augment': True, 'drq.pad': 4, 'drq.hidden_dim': 1024,
    # B 3.4 (Adam's epsilon: B 0.2)
    'drq.lr': 3e-4, 'drq.eps': 1e-8, 'drq.batch_size': 256,
    'drq.discount': 0.99, 'drq.update_every_steps': 2,
    'drq.stddev_schedule': 'linear(1.0,0.1,250000)', 'drq.stddev_clip': 0.3,
    'steps': 550000, 'action_repeat': 2, 'precision': '32',
    # B 3.6
    'eval_eps': 10, 'agent_train_steps': 5000}
LITERALS = {
    'released': {
        # 8: the window; an epoch of the paper's is one update.
        'sampling': 'released', 'sampling_start': 10,
        'sampling_grow_updates': 100, 'sampling_cap_last': True,
        'sampling_collapse_equal': True, 'sampling_epoch_updates': 1,
        # 4 and 9
        'exo_only_decoder': True, 'initial_joint_step': True,
        'model_starts': 1, 'agent_train_steps': 1000, 'eval_eps': 10,
        # 10
        'action_repeat': 2, 'render_size': [64, 64], 'image_size': 64,
        'scene': 'stock', 'shadows': True, 'background_grayscale': True,
        'video_frames': 1000, 'video_alpha': 1.0,
        # B 10.2: 50 episodes per seed and set.
        'final_eval_eps': 50},
    'lompo': {
        # B 2.2 to 2.4
        'rssm.std_act': 'softplus', 'rssm.min_std': 0.1,
        'lompo.cache_episodes': 1000, 'lompo.cache_sequences': 100000,
        'lompo.buffer_size': 0, 'grad_heads': ['decoder', 'reward'],
        # B 2.6
        'actor_opt.wd': 0.0, 'critic_opt.wd': 0.0,
        # Ours: as of the other methods (docs/divergences.md).
        'agent_train_steps': 1000, 'eval_eps': 10},
    'drq_bc': {**PIXELS, 'drq.filters': 32, 'drq.alpha': 2.5},  # B 3.5
    'drq_cql': {  # B 4
        **PIXELS, 'drq.filters': 32, 'drq.min_q_weight': 10.0,
        'drq.cql_samples': 10, 'drq.cql_temperature': 1.0,
        'drq.cql_importance_sample': False, 'drq.cql_dataset_action': True},
    'bc': {**PIXELS, 'drq.filters': 32, 'drq.bc_noise': True},  # B 5
    'infogating': {  # B 7.1
        **PIXELS, 'agent_train_steps': 2500, 'drq.feature_dim': 256,
        'drq.bc_noise': True, 'infogating.head': 'bc',
        'infogating.filters': 128, 'infogating.mask_filters': 32,
        'infogating.mask_units': 128, 'infogating.energy_units': 256,
        'infogating.negatives': 256, 'infogating.max_offset': 15,
        'infogating.ungated': 0.5, 'infogating.sparsity': 0.1,
        'infogating.sparsity_square': 0.001, 'infogating.warm_start': 5000,
        'infogating.noise_iterations': 1000, 'infogating.noise_std': 0.5,
        'infogating.noise_clip': 0.3},
    'mopo': {
        # B 8.1
        'mopo.act': 'swish', 'mopo.lr': 1e-3,
        'mopo.batch': 256, 'mopo.logvar_decay': 1e-4,
        'mopo.logvar_range': [-10.0, 0.5], 'mopo.bound_weight': 0.01,
        'mopo.scale_targets': False, 'mopo.holdout_share': 0.2,
        'mopo.holdout_rows': 1000, 'mopo.improvement': 0.01,
        'mopo.patience': 5,
        # B 8.2 and 8.3
        'mopo.penalty': 'aleatoric', 'mopo.real_share': 0.05,
        'agent_train_steps': 1000, 'eval_eps': 10,
        'sac.target_entropy': 'released'},
    'tia': {
        'rssm.ensemble': 1,  # B 1.1: DreamerV2's own prior
        # B 6.2 to 6.4, in decisions of two control steps
        'imag_horizon': 15, 'num_reward_opt_iters': 20,
        'disen_action_type': 'main', 'scene': 'grey_floor',
        'dataset.batch': 50, 'dataset.length': 50, 'prefill': 2500,
        'pretrain': 100, 'train_every': 500, 'train_steps': 100,
        'expl_noise': 0.3, 'steps': 500000, 'snapshot_every': 10000,
        'eval_every': 2500, 'eval_eps': 1, 'action_repeat': 2,
        # … and B 1.3 to 1.5, of DreamerV2
        'rssm.discrete': 32, 'rssm.stoch': 32, 'rssm.deter': 200,
        'encoder.cnn_depth': 48, 'decoder.cnn_depth': 48,
        'encoder.act': 'elu', 'kl.free': 1.0, 'kl.balance': 0.8,
        'kl.forward': False, 'model_opt.lr': 3e-4, 'model_opt.eps': 1e-5,
        'model_opt.wd': 1e-6, 'actor_ent': 1e-4, 'slow_target': True,
        'actor.dist': 'auto'}}


def test_the_numbers_of_the_evaluation():
    # B 10.3: of a profile; as many for every interval.
    assert (metrics.RESAMPLES, metrics.LEVEL) == (2000, 0.95)
    # B 10.4
    assert [scales.SCALES[name].samples
            for name in scales.FULL_SIZE] == [1000, 1000]


@pytest.mark.parametrize('name', LITERALS)
def test_numbers_that_no_recording_holds(name):
    config = preset(name)
    assert {key: config[key] for key in LITERALS[name]} == LITERALS[name]
