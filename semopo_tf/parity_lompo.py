"""Replaying traces of LOMPO (docs/traces.md).

Model steps, one call of the generator of imagined rows, policy steps. The
released names of the layers are mapped to those of this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamerv2_base.checkpoint import is_weight
from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import Scope, variables_by_name
from dreamerv2_base.noise import RecordedDraws
from dreamerv2_base.tf import compiled, tensors, tf
from semopo_tf import settings
from semopo_tf.baselines.lompo_agent import LompoAgent
from semopo_tf.baselines.lompo_buffers import imagined_transitions
from semopo_tf.baselines.lompo_model import LompoModel
from semopo_tf.parity import Report, Trace, inject

Arrays = Mapping[str, np.ndarray]

# First parts of a name: released -> ours; layers are handled below.
MODULES = {
    'encoder': 'world_model/encoder', 'rssm': 'world_model/rssm',
    'decoder': 'world_model/heads/decoder',
    'reward': 'world_model/heads/reward', 'actor': 'behavior/actor',
    'q1': 'behavior/q1', 'q2': 'behavior/q2',
    'target_q1': 'behavior/target_q1', 'target_q2': 'behavior/target_q2'}
RSSM_LAYERS = {'img1': 'img_in', 'obs1': 'obs_out', 'obs2': 'obs_dist',
               'gru': 'gru'}
HEADS = {'img2': 'img_out', 'img3': 'img_dist'}

# Optimizers: ours -> released.
OPTIMIZERS = {'model': 'model', 'q': 'qf', 'actor': 'actor'}

# Settings that a case names: its key -> ours.
CASE_KEYS = {
    'stoch_size': 'rssm.stoch', 'deter_size': 'rssm.(deter|hidden)',
    'num_models': 'rssm.ensemble', 'dense_act': 'rssm.act',
    'num_units': '(reward_head|actor|critic).units',
    'cnn_depth': '(encoder|decoder).cnn_depth',
    'cnn_act': '(encoder|decoder).act', 'kl_scale': 'loss_scales.kl',
    'model_lr': 'model_opt.lr', 'q_lr': 'critic_opt.lr',
    'actor_lr': 'actor_opt.lr',
    'grad_clip': '(model|critic|actor)_opt.clip',
    'lmbd': 'offline_lmbd', 'horizon': 'imag_horizon',
    'discount': 'discount', 'penalty_type': 'lompo.penalty_type',
    'alpha': 'lompo.alpha', 'cql_samples': 'lompo.cql_samples',
    'tau': 'lompo.tau', 'expl_amount': 'lompo.expl_amount'}


def replay(trace: Trace, changes: Mapping[str, Any]) -> Report:
    """Compare losses, gradients, weights and imagined rows of one trace.

    Sizes come from the trace's case; sections that a trace does not have are
    left out. Raises UserError when an array does not fit its own case.
    """
    report = Report(trace.path.stem)
    config = config_of(trace, changes)
    height, width, channels = next(
        value.shape[-3:] for key, value in trace.items()
        if key.endswith('/batch/image'))
    actions = int(trace.case['A'])
    model = LompoModel(config, (height, width, channels), actions,
                       Scope(config.seed, 'world_model'))
    agent = LompoAgent(config, model.rssm.feat_size, actions,
                       Scope(config.seed, 'behavior'))
    variables = {released(name): variable for name, variable
                 in variables_by_name(model, agent).items()}
    inject(variables, trace.below('init'), trace.path)
    _replay_model(model, variables, trace, report, config.jit)
    _replay_generator(model, agent, trace, report)
    _replay_agent(agent, variables, trace, report, config.jit)
    return report


def config_of(trace: Trace, changes: Mapping[str, Any]) -> Config:
    """The configuration of a trace: the preset `lompo` in its sizes.

    Recorded draws are independent for each row of a batch.
    """
    presets = settings.presets()
    config = presets.apply(presets.defaults, ['lompo'])
    missing = sorted(set(CASE_KEYS) - set(trace.case))
    if missing:
        raise UserError(f'{trace.path}: case: expected LOMPO\'s settings, '
                        f'found none named {missing[:3]}; see docs/traces.md')
    found = {ours: trace.case[key] for key, ours in CASE_KEYS.items()}
    found['(reward_head|actor|critic).act'] = trace.case['dense_act']
    found['lompo.shared_noise'] = False
    return settings.check(
        config.update(found, trace.path.name).update(changes))


def released(name: str) -> str:
    """The trace's name of one of our variables (others stay as they are).

    `world_model/rssm/img_out_2/kernel` -> `rssm/img2_2/kernel`.
    """
    for theirs, ours in MODULES.items():
        if not name.startswith(f'{ours}/') or not is_weight(name):
            continue
        layer, _, leaf = name.removeprefix(f'{ours}/').partition('/')
        return f'{theirs}/{_layer(theirs, layer)}/{leaf}'
    return name


def _layer(module: str, layer: str) -> str:
    if module == 'rssm':
        names = {ours: theirs for theirs, ours in RSSM_LAYERS.items()}
        for theirs, ours in HEADS.items():
            if layer.startswith(f'{ours}_'):
                return f'{theirs}{layer.removeprefix(ours)}'
        return names[layer]
    if module in ('encoder', 'decoder'):
        first = {'encoder': 1, 'decoder': 2}[module]
        if layer == 'convin':
            return 'h1'
        return f'h{int(layer.removeprefix("conv")) + first}'
    return layer.replace('dense', 'h').replace('out', 'hout')


def _replay_model(model: LompoModel, variables, trace: Trace,
                  report: Report, jit: str) -> None:
    def update(batch, noise):
        outputs, metrics = model.train(batch, RecordedDraws(noise))
        return outputs['grad_clipped'], metrics

    train = compiled(update, jit)
    for i in range(trace.count('model')):
        noise = {f'endo/{site}': value for site, value
                 in trace.below(f'noise/model{i}').items()}
        grads, metrics = train(
            tensors(trace.below(f'model{i}/batch')), tensors(noise))
        _compare_step(report, trace, f'model{i}', grads, metrics)
    report.weights(variables, trace, 'after_model')


def _replay_generator(model: LompoModel, agent: LompoAgent, trace: Trace,
                      report: Report) -> None:
    if not trace.below('generate/latent'):
        return
    batch, noise = trace.below('generate/batch'), trace.below('noise/generate')
    # Draws are recorded for the starts that are data; ours rolls out all.
    real = batch['mask'].reshape(-1)
    for site in ('imagine/action', 'imagine/prior'):
        full = np.zeros((len(noise[site]), real.size, noise[site].shape[-1]),
                        np.float32)
        full[:, real] = noise[site]
        noise[site] = full
    rows = model.generate(
        agent.actor, tensors(batch), RecordedDraws(tensors(noise)))
    kept = imagined_transitions(
        {key: value.numpy() for key, value in rows.items()}, batch['mask'])
    for name in ('rewards', 'terminals'):
        kept[name] = kept[name][:, None]
    report.add_all('targets', kept, trace.below('generate/latent'),
                   'generate/latent/')


def _replay_agent(agent: LompoAgent, variables, trace: Trace,
                  report: Report, jit: str) -> None:
    def update(rows, noise):
        return agent.train(rows, RecordedDraws(noise))

    train = compiled(update, jit)
    for i in range(trace.count('agent')):
        rows = trace.below(f'agent{i}/batch')
        for name in ('rewards', 'terminals'):
            rows[name] = rows[name][:, 0]
        # Recorded as actions in [-1, 1]; the site holds numbers in (0, 1).
        uniform = (trace[f'noise/agent{i}/uniform_action'] + 1) / 2
        grads, metrics = train(
            tensors(rows), {'uniform_action': tf.constant(uniform)})
        _compare_step(report, trace, f'agent{i}', grads, metrics)
    report.weights(variables, trace, 'after_agent')


def _compare_step(report: Report, trace: Trace, step: str, grads,
                  metrics) -> None:
    """Losses, gradient norms and clipped gradients of one update."""
    for ours, theirs in OPTIMIZERS.items():
        recorded = trace.below(f'{step}/grad_clipped/{theirs}')
        if recorded:
            found = {released(k): v for k, v in grads[ours].items()}
            report.add_all('gradients', found, recorded, f'{step}/')
    for group, kind in (('losses', 'loss'), ('gradients', 'grad_norm')):
        for name, value in trace.below(f'{step}/{kind}').items():
            report.add(group, f'{step}/{kind}/{name}',
                       metrics[f'{name}_{kind}'], value)
