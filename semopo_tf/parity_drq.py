"""Replaying traces of DrQ+BC, DrQ+CQL, BC and InfoGating (docs/traces.md).

The recordings are in PyTorch's layouts: linear kernels [out, in], convolutions
[out, in, h, w], images channel-first, features flattened as (channel, height,
width). All of that is converted here and nowhere else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import Scope, values_by_name, variables_by_name
from dreamerv2_base.noise import RecordedDraws
from dreamerv2_base.tf import compiled, tensors, tf
from semopo_tf import settings
from semopo_tf.baselines.bc import BCAgent
from semopo_tf.baselines.drq_bc import DrQAgent
from semopo_tf.baselines.drq_cql import DrQCQLAgent
from semopo_tf.baselines.infogating import InfoGatingAgent
from semopo_tf.parity import TOLERANCES, Report, Trace, inject

Arrays = dict[str, np.ndarray]

AGENTS: dict[str, Any] = {
    'bc': BCAgent, 'drq_bc': DrQAgent, 'drq_cql': DrQCQLAgent,
    'infogating': InfoGatingAgent}

# Released layers -> ours, tried in order; sequences count their ReLUs too.
LAYERS = (
    (r'encoder/convnet\.(\d+)', lambda i: f'encoder/conv{i // 2}'),
    (r'encoder/linear\.0', 'encoder/feature'),
    (r'encoder/linear\.1', 'encoder/feature/norm'),
    (r'(actor|critic|critic_target)/trunk\.0', r'\1/trunk'),
    (r'(actor|critic|critic_target)/trunk\.1', r'\1/trunk/norm'),
    (r'actor/policy\.(\d+)', lambda i: f'actor/policy/dense{i // 2}'),
    (r'critic/Q1\.(\d+)', lambda i: f'critic/q1/dense{i // 2}'),
    (r'critic/Q2\.(\d+)', lambda i: f'critic/q2/dense{i // 2}'),
    (r'critic_target/Q1\.(\d+)',
     lambda i: f'critic_target/q1/dense{i // 2}'),
    (r'critic_target/Q2\.(\d+)',
     lambda i: f'critic_target/q2/dense{i // 2}'),
    (r'mask_net/(down|up)\.(\d+)\.[01]', r'mask_net/\1\2'),
    (r'mask_net/mlp\.(\d+)', lambda i: f'mask_net/mlp{i // 2}'),
    (r'mask_net/final_conv', 'mask_net/final'),
    (r'policy/policy\.(\d+)', lambda i: f'policy/dense{i // 2}'),
    (r'inv_model/projector\.layer1\.0', 'energy/hidden'),
    (r'inv_model/projector\.layer1\.1', 'energy/norm'),
    (r'inv_model/projector\.layer2', 'energy/out'),
)
# InfoGating's policy has a trunk that is never called.
UNUSED = re.compile(r'policy/trunk\.|.*num_batches_tracked')

# Where rounding decides an element nothing can be compared. What it decides is
# measured: the updates are made again from weights that differ in their last
# bits, by as much as another order of a sum of thousands does.
LAST_BITS = 4 * 2.0 ** -23
# What restarts give is of a few kinds, and a kind that is not met is not
# allowed for. The widest of InfoGating's is met by a fifth to a quarter of
# them: eight miss it once in eight times, as many as these once in thousands
# (docs/results/main_job.md).
RESTARTS = 32
REACH = 4.0  # times the largest difference of so few restarts
MOST_LEFT_OUT = 0.05  # of all elements

# Draws in the order in which they were recorded -> our sites.
SITES = {
    'bc': {'shift_0': 'shift/obs', 'normal_0': 'actor_action'},
    'drq_bc': {
        'shift_0': 'shift/obs', 'shift_1': 'shift/next_obs',
        'normal_0': 'target_action', 'normal_1': 'actor_action'},
    'drq_cql': {
        'shift_0': 'shift/obs', 'shift_1': 'shift/next_obs',
        'normal_0': 'target_action', 'uniform_action_0': 'random_actions',
        'normal_1': 'current_actions', 'normal_2': 'next_actions',
        'normal_3': 'actor_action'},
    'infogating': {
        'shift_1': 'shift/obs', 'shift_2': 'shift/obs_k',
        'permutation_0': 'ungated/obs', 'permutation_1': 'ungated/obs_k',
        'negative_action_0': 'negatives'},
}


def replay(trace: Trace, changes: Mapping[str, Any]) -> Report:
    """Compare losses, updated weights and the action of one trace.

    Sizes come from the trace's arrays. Raises UserError when an array does
    not fit the network of its own trace.
    """
    report = Report(trace.path.stem)
    config = config_of(trace, changes)
    init = converted(trace, 'init')
    agent = AGENTS[trace.case['algo']](
        config, _rows(trace, 'action').shape[1], Scope(config.seed))
    variables = variables_by_name(agent)
    fresh = values_by_name(agent)
    update = _compiled(agent, config)

    def updates(weights: Arrays) -> list[dict[str, tf.Tensor]]:
        for name, value in fresh.items():
            variables[name].assign(value)
        inject(variables, weights, trace.path)
        return [update(_batch(trace, i),
                       tf.constant(trace[f'step{i}/global_step'], tf.float32),
                       _draws(trace, i, config))
                for i in range(trace.count('step'))]

    for i, metrics in enumerate(updates(init)):
        _compare_losses(metrics, trace, i, report)
    if 'act/obs' in trace:
        images = tf.constant(_last(trace['act/obs'][None]))
        report.add('actions', 'act/action', agent.act(images)[0],
                   trace['act/action'])
    ours = values_by_name(agent)

    def again(seed: int) -> Arrays:
        updates(_last_bits_changed(init, seed))
        return values_by_name(agent)

    # Losses or actions that differ: more than rounding, which excuses nothing.
    doubt = Doubt(ours, again, RESTARTS if report.agrees else 0)
    _compare_weights(ours, converted(trace, 'after'), init, doubt, report)
    return report


def config_of(trace: Trace, changes: Mapping[str, Any]) -> Config:
    """The preset of the trace's method, in the sizes of its arrays."""
    name = trace.case['algo']
    presets = settings.presets()
    config = presets.apply(presets.defaults, [name])
    found = {f'drq.{key}': trace.case[key] for key in (
        'lr', 'critic_target_tau', 'update_every_steps', 'stddev_schedule',
        'stddev_clip', 'min_q_weight') if key in trace.case}
    image = _rows(trace, 'obs').shape
    found |= {'drq.batch_size': image[0], 'drq.image_size': image[2],
              'drq.frame_stack': image[1] // 3,
              'drq.cql_importance_sample': bool(
                  trace.case.get('importance', False))}
    found |= _sizes(trace, name)
    return settings.check(
        config.update(found, trace.path.name).update(changes))


def _sizes(trace: Trace, name: str) -> dict[str, int]:
    """Widths of the networks, from the shapes of their kernels."""
    kernel = {key: value.shape for key, value in
              trace.below('init').items() if key.endswith('weight')}
    try:
        filters = kernel['encoder/convnet.0.weight'][0]
        if name != 'infogating':
            found = {'drq.filters': filters,
                     'drq.feature_dim': kernel['actor/trunk.0.weight'][0],
                     'drq.hidden_dim': kernel['actor/policy.0.weight'][0]}
        else:
            found = {
                'infogating.filters': filters,
                'drq.feature_dim': kernel['encoder/linear.0.weight'][0],
                'drq.hidden_dim': kernel['policy/policy.0.weight'][0],
                'infogating.mask_filters':
                    kernel['mask_net/down.0.0.weight'][0],
                'infogating.mask_units': kernel['mask_net/mlp.1.weight'][0],
                'infogating.energy_units':
                    kernel['inv_model/projector.layer2.weight'][1],
                'infogating.negatives': len(
                    trace['noise/step0/negative_action_0'])
                    // len(_rows(trace, 'obs'))}
        if name == 'drq_cql':
            found['drq.cql_samples'] = trace[
                'noise/step0/uniform_action_0'].shape[1]
    except KeyError as error:
        raise UserError(f'{trace.path}: expected {error} in a trace of '
                        f'{name}, found none; see docs/traces.md') from None
    return {key: int(value) for key, value in found.items()}


def _compiled(agent, config: Config):
    def update(batch, iteration, noise):
        return agent.train(batch, iteration, RecordedDraws(noise))
    return compiled(update, config.jit)


# Layouts.


def converted(trace: Trace, section: str) -> Arrays:
    """Variables of a section by our names, in our layouts.

    A target critic that is left out of `init` starts as the critic.
    """
    found: Arrays = {}
    for name, value in trace.below(section).items():
        if not UNUSED.match(name):
            found |= _variable(trace, name, value)
    if section == 'init' and trace.case['algo'].startswith('drq'):
        copies = {f'critic_target/{key.removeprefix("critic/")}': value
                  for key, value in found.items()
                  if key.startswith('critic/')}
        found = copies | found
    return found


def _variable(trace: Trace, name: str, value: np.ndarray) -> Arrays:
    layer, _, leaf = name.rpartition('.')
    place = _layer(layer)
    if place is None:
        raise UserError(f'{trace.path}: init/{name} has no counterpart in '
                        f'{trace.case["algo"]}; see docs/traces.md')
    if leaf.startswith('running_'):
        return {f'{place}/{leaf}': value}
    if leaf == 'bias':
        plain = value.ndim == 1 and _is_norm(layer)
        if name == 'mask_net/mlp.5.bias':
            value = _regrouped(value, 0, _channels(trace, name))
        return {f'{place}/{"beta" if plain else "bias"}': value}
    if value.ndim == 1:
        return {f'{place}/gamma': value}
    if value.ndim == 4:
        return {f'{place}/kernel': value.transpose(2, 3, 1, 0)}
    kernel = value.T
    channels = _channels(trace, name)
    if channels:
        axis = 1 if name == 'mask_net/mlp.5.weight' else 0
        kernel = _regrouped(kernel, axis, channels)
    return {f'{place}/kernel': kernel}


def _layer(name: str) -> str | None:
    for pattern, place in LAYERS:
        found = re.fullmatch(pattern, name)
        if found:
            return (place(int(found[1])) if callable(place)
                    else found.expand(place))
    return None


def _is_norm(layer: str) -> bool:
    return bool(re.fullmatch(
        r'.*/trunk\.1|encoder/linear\.1|mask_net/(down|up)\.\d+\.1'
        r'|inv_model/projector\.layer1\.1', layer))


def _channels(trace: Trace, name: str) -> int:
    """Channels of the image behind a flattened axis of a layer, else 0."""
    if re.fullmatch(r'(actor|critic|critic_target)/trunk\.0\.weight'
                    r'|encoder/linear\.0\.weight', name):
        return len(trace['init/encoder/convnet.6.weight'])
    if re.fullmatch(r'mask_net/mlp\.(1\.weight|5\.weight|5\.bias)', name):
        return len(trace['init/mask_net/down.4.0.weight'])
    return 0


def _regrouped(array: np.ndarray, axis: int, channels: int) -> np.ndarray:
    """A flattened axis from (channel, h, w) to (h, w, channel) order."""
    size = array.shape[axis]
    side = math.isqrt(size // channels)
    order = np.arange(size).reshape(channels, side, side)
    return np.take(array, order.transpose(1, 2, 0).reshape(-1), axis)


def _last(images: np.ndarray) -> np.ndarray:
    """[B, C, H, W] -> [B, H, W, C]."""
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


# One step.


def _rows(trace: Trace, key: str) -> np.ndarray:
    name = f'step0/batch/{key}'
    if name not in trace:
        raise UserError(f'{trace.path}: expected {name}, found none; see '
                        'docs/traces.md')
    return trace[name]


def _batch(trace: Trace, i: int) -> dict[str, tf.Tensor]:
    recorded = trace.below(f'step{i}/batch')
    found = {key: _last(value) for key, value in recorded.items()
             if value.ndim == 4}
    found['action'] = recorded['action']
    found['reward'] = recorded['nstep_reward'][:, 0]
    found['discount'] = recorded['nstep_discount'][:, 0]
    return tensors(found)


def _draws(trace: Trace, i: int, config: Config) -> dict[str, tf.Tensor]:
    """Recorded draws by our sites: uniforms in (0, 1), NHWC, ranks."""
    noise, name = trace.below(f'noise/step{i}'), trace.case['algo']
    sites = dict(SITES[name])
    found: Arrays = {}
    if name == 'infogating':
        _mask_noise(noise, sites, found, config)
    for recorded, site in sites.items():
        value = noise[recorded]
        if site.startswith('ungated'):
            # Row p[j] gets number j: sorting gives the permutation back.
            value = np.argsort(value).astype(np.float32)
        if site in ('negatives', 'random_actions'):
            value = (value + 1.0) / 2.0
        if site == 'negatives':
            value = value.reshape(config.drq.batch_size, -1, value.shape[-1])
        found[site] = value
    return tensors(found)


def _mask_noise(noise: Arrays, sites: dict[str, str], found: Arrays,
                config: Config) -> None:
    """The normals of a step with noise on the masks, and of one without."""
    drq = config.drq
    shape = (drq.batch_size, drq.image_size, drq.image_size, drq.frame_stack)
    last = sum(key.startswith('normal_') for key in noise) - 1
    sites[f'normal_{last}'] = 'actor_action'
    for number, site in enumerate(('mask/obs', 'mask/obs_k')):
        found[site] = np.zeros(shape, np.float32)
        if last > number:
            found[site] = _last(noise[f'normal_{number}'])


def _compare_losses(metrics, trace: Trace, i: int, report: Report) -> None:
    recorded = trace.below(f'step{i}/metric')
    for key, value in trace.below(f'step{i}/loss').items():
        recorded[f'{key}_loss'] = value
    report.metrics(metrics, recorded, f'step{i}/')
    logits = trace.below(f'step{i}/mask_logit_mean')
    if logits:
        # Together: the mean of one map may be near 0 by chance.
        ours = [metrics[f'mask_logit_mean_{site}']
                for site in ('obs', 'obs_k')]
        report.add('losses', f'step{i}/mask_logit_mean', np.asarray(ours),
                   np.asarray([logits['0'], logits['1']]))


# Weights.


def _last_bits_changed(weights: Arrays, seed: int) -> Arrays:
    """Every element up or down by a few units of its last place, by chance."""
    rng = np.random.default_rng(seed)
    return {name: (value * (1 + LAST_BITS * rng.choice([-1, 1], value.shape))
                   ).astype(value.dtype) for name, value in weights.items()}


class Doubt:
    """How far the last bits of the first weights can move each element.

    Adam's first steps divide a gradient by its own size: where it is nothing
    but rounding (the bias that a softmax cancels, a unit whose rows cancel in
    a batch norm) the weight moves by a whole step in a direction that is
    chance, and later gradients are of that weight.

    Args:
      ours: the weights after the updates.
      again: those of a restart, which is named by a number.
      restarts: how many to make at most.
    """

    def __init__(self, ours: Arrays, again: Callable[[int], Arrays],
                 restarts: int):
        self._ours, self._again = ours, again
        self._most, self._made = restarts, 0
        self._found = {name: np.zeros(value.shape)
                       for name, value in ours.items()}

    def explains(self, name: str, gap: np.ndarray) -> np.ndarray:
        """Which elements may be so far off.

        More restarts only add to what is explained, so none is made once
        every gap is.
        """
        while self._made < self._most and (gap > self._found[name]).any():
            self._restart()
        return gap <= self._found[name]

    def _restart(self) -> None:
        for name, value in self._again(self._made).items():
            self._found[name] = np.maximum(
                self._found[name], REACH * np.abs(value - self._ours[name]))
        self._made += 1


def _compare_weights(ours: Arrays, recorded: Arrays, init: Arrays,
                     doubt: Doubt, report: Report) -> None:
    """The weights and how far they are from `init`, as Report.weights does.

    Elements beyond the tolerance that rounding explains are left out, and
    counted in the report; none where too many are beyond it to be chance.
    """
    report.add_all('weights', ours, {
        name: value for name, value in recorded.items()
        if name not in ours or ours[name].shape != value.shape}, 'after/')
    names = [name for name, value in recorded.items()
             if name in ours and ours[name].shape == value.shape]
    _compare_group('weights', {name: (ours[name], recorded[name])
                               for name in names}, doubt, report)
    _compare_group('changes', {
        name: (ours[name] - init[name], recorded[name] - init[name])
        for name in names
        if name in init and not np.array_equal(recorded[name], init[name])},
        doubt, report)


def _compare_group(group: str, pairs: dict[str, tuple[np.ndarray, np.ndarray]],
                   doubt: Doubt, report: Report) -> None:
    gaps = {name: np.abs(ours - recorded)
            for name, (ours, recorded) in pairs.items()}
    beyond = {name: gaps[name] > TOLERANCES[group] * np.abs(recorded).max()
              for name, (_, recorded) in pairs.items()}
    of = sum(which.size for which in beyond.values())
    left_out = {}
    if sum(map(np.sum, beyond.values())) <= MOST_LEFT_OUT * of:
        left_out = {name: which & doubt.explains(
            name, np.where(which, gaps[name], 0.0))
            for name, which in beyond.items()}
    count = sum(map(np.sum, left_out.values()))
    for name, (ours, recorded) in pairs.items():
        report.add(group, f'after/{name}', np.where(
            left_out.get(name, False), recorded, ours), recorded)
    if count:
        report.skipped.append(f'{group}: {count} of {of} elements, which '
                              'rounding decides')
