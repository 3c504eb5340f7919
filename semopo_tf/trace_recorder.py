"""Recording a trace of this package (`run.py diff --record FILE`).

The same format as the recordings of the published code (docs/traces.md), so
that another machine, TensorFlow version or implementation can be held to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from dreamerv2_base.checkpoint import is_weight
from dreamerv2_base.config import Config
from dreamerv2_base.nets import values_by_name
from dreamerv2_base.noise import CounterDraws, RecordingDraws
from dreamerv2_base.tf import tensors, tf
from semopo_tf.agent import PenalizedAgent
from semopo_tf.doctor import fake_batch

Arrays = dict[str, Any]

BATCH, LENGTH, ACTIONS, STEPS = 2, 5, 3, 2
TRAINED = ('world_model', 'behavior')


def record(path: Path, config: Config) -> None:
    """Two model steps, two policy steps and acting, on noise.

    The trace is made eagerly: the graph that training runs has to agree with
    it, not with itself.
    """
    image = (config.image_size, config.image_size, 3)
    config = config.update({'precision': '32', 'disen_inner': 'always'})
    agent = PenalizedAgent(config, image, ACTIONS)
    arrays: Arrays = {
        'config': json.dumps(config.flat()),
        'case': json.dumps({'A': ACTIONS, 'B': BATCH, 'T': LENGTH,
                            'reference': 'semopo_tf'}),
        **_under('init', _weights(agent))}
    rng = np.random.default_rng(config.seed)
    for i in range(STEPS):
        arrays.update(_model_step(agent, rng, i))
    arrays.update(_under('after_model', _weights(agent)))
    for i in range(STEPS):
        arrays.update(_policy_step(agent, rng, i))
    arrays.update(_under('after_agent', _weights(agent, ('behavior',))))
    arrays.update(_acting(agent, rng))
    np.savez_compressed(path, **{
        key: np.asarray(value) for key, value in arrays.items()})


def _model_step(agent, rng, i: int) -> Arrays:
    name = f'model{i}'
    batch, draws = _batch(agent, rng), _draws(name)
    outputs, metrics = agent.model_train(batch, draws)
    out = {key: outputs[key] for key in ('embed', 'feat', 'kl')}
    out.update({f'post/{k}': v for k, v in outputs['post'].items()})
    out.update({f'prior/{k}': v for k, v in outputs['prior'].items()})
    # The reader wants prior samples, which filtering does not draw.
    noise = agent.world_model.rssm.noise(
        draws, 'endo/prior', (LENGTH, BATCH))
    axes = [1, 0, *range(2, noise.shape.rank)]
    out['prior/stoch'] = agent.world_model.rssm.sample(
        outputs['prior'], tf.transpose(noise, axes))
    return {**_under(f'{name}/batch', batch),
            **_under(f'{name}/metric', metrics),
            **_under(f'{name}/out', out),
            **_gradients(name, outputs),
            **_under(f'noise/{name}', draws.arrays)}


def _policy_step(agent, rng, i: int) -> Arrays:
    name = f'agent{i}'
    batch, draws = _batch(agent, rng), _draws(name)
    outputs, metrics = agent.agent_train(batch, draws)
    seq = {key: outputs['seq'][key]
           for key in ('feat', 'action', 'discount', 'weight')}
    return {**_under(f'{name}/batch', batch),
            **_under(f'{name}/metric', metrics),
            **_under(f'{name}/seq', seq),
            **{f'{name}/{key}': outputs[key]
               for key in ('penalty', 'reward', 'target')},
            **_gradients(name, outputs),
            **_under(f'noise/{name}', draws.arrays)}


def _acting(agent, rng) -> Arrays:
    batch = _batch(agent, rng)
    state, actions, noise = agent.initial(BATCH, 0), [], []
    for t in range(LENGTH):
        draws = _draws(f'act{t}')
        action, latent = agent.act_step(
            batch['image'][:, t], batch['is_first'][:, t], state, draws)
        state = {**latent, 'action': action}
        actions.append(action)
        noise.append(draws.arrays)
    joined = {key: np.concatenate([np.asarray(n[key]) for n in noise])
              for key in noise[0]}
    return {**_under('act/batch', batch), **_under('noise/act', joined),
            'act/action': tf.stack(actions, 1)}


def _batch(agent: PenalizedAgent, rng) -> dict[str, tf.Tensor]:
    return tensors(fake_batch(
        rng, BATCH, LENGTH, agent.config.image_size, ACTIONS))


def _draws(name: str) -> RecordingDraws:
    return RecordingDraws(CounterDraws(0, name, tf.constant(0, tf.int64)))


def _weights(agent, tops=TRAINED) -> Arrays:
    return {name: value for name, value in values_by_name(agent).items()
            if name.startswith(tops) and is_weight(name)}


def _gradients(name: str, outputs) -> Arrays:
    return {f'{name}/grad_clipped/{label}/{key}': value
            for label, grads in outputs['grad_clipped'].items()
            for key, value in grads.items()}


def _under(prefix: str, arrays) -> Arrays:
    return {f'{prefix}/{key}': np.asarray(value)
            for key, value in arrays.items()}
