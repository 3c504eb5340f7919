"""Replaying traces of the world-model methods (SeMOPO, TIA, Offline DV2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamerv2_base.nets import variables_by_name
from dreamerv2_base.noise import RecordedDraws
from dreamerv2_base.tf import compiled, tensors, tf
from semopo_tf import settings
from semopo_tf.agent import PenalizedAgent
from semopo_tf.parity import Report, Trace, inject

# The published mixstd_mean mixes members of unrelated states (spec of the
# baselines 1.6), so what follows from its penalty is not compared.
MISMIXED = 'mixstd_mean'


def replay(trace: Trace, changes: Mapping[str, Any]) -> Report:
    """Model steps, policy steps, acting and the video of one trace."""
    report = Report(trace.path.stem)
    agent = build_agent(trace, changes)
    inject(variables_by_name(agent), trace.below('init'), trace.path)
    _replay_model(agent, trace, report)
    if agent.config.offline_penalty_type == MISMIXED:
        report.skipped.append(
            'policy steps: the published mixstd_mean mixes unrelated states; '
            'the intended penalty is held by golden number G4')
        return report
    _replay_policy(agent, trace, report)
    _replay_acting(agent, trace, report)
    _replay_video(agent, trace, report)
    return report


def build_agent(trace: Trace, changes: Mapping[str, Any]) -> PenalizedAgent:
    """The agent of a trace's configuration, in its sizes."""
    config = settings.presets().defaults.update(
        trace.config, trace.path.name)
    # The trace holds the exogenous head's inner updates, read or not.
    config = config.update({'disen_inner': 'always', **changes})
    image = next(value.shape[-3:] for key, value in trace.items()
                 if key.endswith('/batch/image'))
    return PenalizedAgent(
        settings.check(config), image, int(trace.case['A']))


def _replay_model(agent, trace, report):
    update = _compiled(agent, agent.model_train)
    for i in range(trace.count('model')):
        outputs, metrics = update(
            _batch(trace, f'model{i}'), _noise(trace, f'model{i}'))
        report.metrics(metrics, trace.below(f'model{i}/metric'),
                       f'model{i}/')
        _compare_states(agent, outputs, trace, i, report)
        _compare_gradients(outputs, trace, f'model{i}', report)
    report.weights(variables_by_name(agent), trace, 'after_model')


def _compare_gradients(outputs, trace, step, report):
    """Every recorded one, by label and weight."""
    ours = {f'{label}/{name}': value
            for label, found in outputs['grad_clipped'].items()
            for name, value in found.items()}
    report.add_all('gradients', ours, trace.below(f'{step}/grad_clipped'))


def _compare_states(agent, outputs, trace, i, report):
    recorded = trace.below(f'model{i}/out')
    # Filtering needs no prior samples; drawn here for the comparison alone.
    noise = tf.constant(trace[f'noise/model{i}/endo/prior'])
    prior = outputs['prior']
    axes = [1, 0, *range(2, noise.shape.rank)]
    sample = agent.world_model.rssm.sample(prior, tf.transpose(noise, axes))
    ours = {key: outputs[key] for key in ('embed', 'feat', 'kl')}
    ours.update({f'post/{k}': v for k, v in outputs['post'].items()})
    ours.update({f'prior/{k}': v for k, v in prior.items()})
    ours['prior/stoch'] = sample
    report.add_all('states', ours, recorded, f'model{i}/')


def _replay_policy(agent, trace, report):
    update = _compiled(agent, agent.agent_train)
    for i in range(trace.count('agent')):
        outputs, metrics = update(
            _batch(trace, f'agent{i}'), _noise(trace, f'agent{i}'))
        report.metrics(metrics, trace.below(f'agent{i}/metric'), f'agent{i}/')
        report.add_all('imagination', outputs['seq'],
                       trace.below(f'agent{i}/seq'), f'agent{i}/seq/')
        for key in ('penalty', 'reward', 'target'):
            report.add('targets', f'agent{i}/{key}', outputs[key],
                       trace[f'agent{i}/{key}'])
        _compare_gradients(outputs, trace, f'agent{i}', report)
    report.weights(variables_by_name(agent), trace, 'after_agent')


def _replay_acting(agent, trace, report):
    if 'act/action' not in trace:
        return
    report.add('actions', 'act/action', acted(agent, trace),
               trace['act/action'])


def acted(agent: PenalizedAgent, trace: Trace) -> np.ndarray:
    """Actions [B, T, A] on the recorded observations, state carried."""
    batch, noise = _batch(trace, 'act'), trace.below('noise/act')
    state = agent.initial(batch['image'].shape[0], 0)
    actions = []
    for t in range(batch['image'].shape[1]):
        draws = RecordedDraws({k: v[t:t + 1] for k, v in noise.items()})
        action, latent = agent.act_step(
            batch['image'][:, t], batch['is_first'][:, t], state, draws)
        state = {**latent, 'action': action}
        actions.append(action)
    return tf.stack(actions, 1).numpy()


def _replay_video(agent, trace, report):
    recorded = {key: value for key, value in trace.below('report').items()
                if key.startswith('openl_')}
    if not recorded:
        return
    draws = RecordedDraws(trace.below('noise/report'))
    video = agent.world_model.video(
        _batch(trace, 'report'), draws, trace['noise/report/endo/index'].size)
    if 'openl_mask' in video:
        # The published report brightens the mask by 0.5, as if it were an
        # image around 0; ours shows the mask itself.
        video['openl_mask'] += 0.5
    if 'report/frames' in trace:  # a trimmed trace holds some frames only
        video = {key: tf.gather(value, trace['report/frames'])
                 for key, value in video.items()}
    report.add_all('video', video, recorded)


def _batch(trace: Trace, name: str) -> dict[str, tf.Tensor]:
    return tensors(trace.below(f'{name}/batch'))


def _compiled(agent, train):
    """One update as a graph, as training runs it (eager where asked)."""
    def update(data, noise):
        return train(data, RecordedDraws(noise))
    return compiled(update, agent.config.jit)


def _noise(trace: Trace, name: str) -> dict[str, tf.Tensor]:
    return tensors(trace.below(f'noise/{name}'))
