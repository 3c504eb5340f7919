"""Flags without effect: what a user gave and nothing will read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from dreamerv2_base.config import Config
from semopo_tf import registry
from semopo_tf.settings import exo_only_c, sampling_of

# Keys of the released code that change nothing here. A name stands for all
# keys below it.
NO_EFFECT = (
    'atari_grayscale', 'envs_parallel', 'log_every',
    'offline_datset_type', 'offline_dataset_incremental_step',
    'disen_reward_lr', 'disag_target', 'disag_log', 'disag_models',
    'disag_offset', 'disag_action_cond', 'expl_model_loss',
    'expl_intr_scale', 'expl_extr_scale', 'disen_scales.discount',
    'disen_scales.proprio', 'loss_scales.proprio', 'log_keys_sum',
    'log_keys_mean', 'log_keys_max', 'log_keys_video', 'replay.ongoing',
    'encoder.mlp_layers', 'decoder.mlp_layers',
    'replay.minlen', 'replay.maxlen', 'drq.num_expl_steps',
)

# Keys of online training: data are not collected while learning offline.
ONLINE_ONLY = (
    'prefill', 'pretrain', 'train_every', 'train_steps', 'expl_until',
    'expl_behavior', 'expl_noise', 'envs', 'dataset',
    'eval_every', 'replay.capacity', 'snapshot_every',
)

# … and those of offline training alone.
OFFLINE_ONLY = (
    'offline_dir', 'offline_model_dataset', 'offline_train_dataset',
    'offline_model_train_steps', 'model_train_steps', 'agent_train_steps',
    'offline_model_loaddir', 'model_starts', 'model_start_updates',
    'model_start_worth', 'initial_joint_step', 'sampling',
    'offline_penalty_type', 'offline_lmbd', 'cache_embeddings', 'skip_broken',
)

# Keys that only some methods read, with those methods. Every method reads the
# keys that stand in no row.
# tests/test_battery.py watches what the methods read.
READERS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (('lompo',), ('lompo',)),
    (('drq',), registry.PIXEL_METHODS),
    (('drq.alpha',), ('drq_bc',)),
    (('drq.bc_noise',), ('bc', 'infogating')),
    (('drq.critic_target_tau',), ('drq_bc', 'drq_cql')),
    (('drq.min_q_weight', 'drq.cql_samples', 'drq.cql_temperature',
      'drq.cql_importance_sample', 'drq.cql_dataset_action'), ('drq_cql',)),
    (('drq.filters',), ('drq_bc', 'drq_cql', 'bc')),
    (('infogating',), ('infogating',)),
    (('mopo', 'sac'), ('mopo',)),
    (('behaviour',), ()),  # of run.py data build
    (('rssm', 'encoder', 'decoder', 'reward_head', 'discount_head',
      'model_opt', 'grad_heads', 'pred_discount', 'clip_rewards', 'scan',
      'pixel', 'loss_scales', 'slice_frames',
      'offline_model_train_steps', 'offline_model_dataset.batch', 'actor',
      'critic', 'actor_opt', 'critic_opt', 'discount', 'imag_horizon',
      'eval_state_mean'), registry.WORLD_MODELS),
    (('kl', 'transition', 'backward', 'actor_passes', 'cache_embeddings',
      'model_train_steps',
      'initial_joint_step', 'offline_model_loaddir', 'model_starts',
      'model_start_updates', 'model_start_worth',
      'offline_train_dataset.batch', 'replay',
      'sampling', 'sampling_epoch_updates', 'sampling_start',
      'sampling_grow_updates', 'sampling_cap_last',
      'sampling_collapse_equal', 'offline_penalty_type', 'offline_tune_lmbd',
      'offline_lmbd_cons', 'separate_wm', 'disen_action_type', 'disen_scales',
      'disen_inner', 'exo_only_decoder', 'num_reward_opt_iters',
      'discount_lambda', 'actor_grad', 'actor_grad_mix', 'actor_ent',
      'slow_target', 'slow_target_update', 'slow_target_fraction',
      'slow_baseline', 'reward_norm', 'eval_noise'), registry.DREAMERS),
    (('actor.dist', 'actor.min_std', 'critic.dist'), registry.DREAMERS),
    (('offline_lmbd',), (*registry.WORLD_MODELS, 'mopo')),
    (('offline_video_every',), (*registry.WORLD_MODELS, 'infogating')),
    (('image_size', 'offline_model_dataset.length'),
     (*registry.WORLD_MODELS, *registry.PIXEL_METHODS)),
    (('offline_train_dataset.length',),
     (*registry.DREAMERS, *registry.PIXEL_METHODS)),
)

# Keys that one scheme of sampling reads.
SCHEMES = {
    'sampling_epoch_updates': ('paper',), 'sampling_start': ('released',),
    'sampling_grow_updates': ('released',), 'sampling_cap_last': ('released',),
    'sampling_collapse_equal': ('released',),
    'replay.sort_rewards': ('paper', 'released'),
    'replay.reverse': ('paper', 'released')}


def below(key: str, names: Iterable[str]) -> bool:
    """Whether a key is one of `names` or a part of one."""
    return any(key == name or key.startswith(f'{name}.') for name in names)


def unread(config: Config) -> list[str]:
    """Keys that the configuration's method does not read."""
    method = registry.method_name(config)
    names = [name for keys, methods in READERS if method not in methods
             for name in keys]
    return [key for key in config.flat() if below(key, names)]


def warnings(config: Config, given: Mapping[str, object] | None = None,
             ) -> list[str]:
    """What a user should know before the run starts: flags without effect.

    `given` holds the keys (or groups, or regexes of keys) set on the command
    line; others are not named. Each key is named once.
    """
    notes: dict[str, str] = {}
    for key, note in _reasons(config, _named(config, given or {})):
        notes.setdefault(key, note)
    return [*notes.values(), *_hopper(config), *_exogenous_reward(config)]


def of_an_evaluation(config: Config, given: Mapping[str, object],
                     ) -> list[str]:
    """The same for flags of the environment alone, of `run.py evaluate`."""
    return [note for _, note in _of_the_task(config, _named(config, given))]


def _named(config: Config, given: Iterable[str]) -> list[str]:
    """The keys that flags (keys, groups, regexes of keys) change."""
    flags = [*given]
    known = {*flags, *(key for flag in flags for key in config.matching(flag))}
    return [key for key in config.flat() if below(key, known)]


def _reasons(config: Config, named: list[str]) -> Iterator[tuple[str, str]]:
    """(key, why it has no effect), the most general reason first."""
    for key in named:
        if below(key, NO_EFFECT):
            yield key, (f'{key} has no effect (kept because the released code '
                        'has it)')
        if key == 'offline_model_save_every':
            yield key, ('offline_model_save_every has no effect: everything '
                        'is saved every save_updates updates')
        if key.startswith(('expl_opt', 'expl_head', 'expl_reward')):
            yield key, (f'{key} has no effect: exploration by disagreement is '
                        'not part of this package')
    method = registry.method_name(config)
    online = method in registry.ONLINE
    for key in named:
        if below(key, OFFLINE_ONLY if online else ONLINE_ONLY):
            yield key, (f'{key} has no effect '
                        f'{"online" if online else "offline"}')
    for key in sorted(set(named) & set(unread(config))):
        yield key, f'{key} has no effect: method {method} does not read it'
    if method in registry.WORLD_MODELS and not config.pred_discount:
        for key in named:
            if below(key, ('discount_head', 'loss_scales.discount')):
                yield key, f'{key} has no effect while pred_discount is False'
    yield from _of_the_task(config, named)
    if method in registry.DREAMERS:
        yield from _of_a_dreamer(config, named)


def _of_the_task(config: Config, named: list[str],
                 ) -> Iterator[tuple[str, str]]:
    """Keys of what is seen, where the environment does not show it."""
    # Here, because it takes a moment and only training asks.
    from semopo_tf.environments import VIDEO_KEYS, unused_keys
    for key in unused_keys(config.task):
        yield from _among(named, key, f'{key} has no effect in {config.task}')
    if config.video_dir == 'none':
        for key in VIDEO_KEYS[1:]:
            yield from _among(
                named, key, f'{key} has no effect while video_dir is none')


def _of_a_dreamer(config: Config, named: list[str],
                  ) -> Iterator[tuple[str, str]]:
    """Keys that other keys switch off."""
    if not config.offline_tune_lmbd:
        yield from _among(named, 'offline_lmbd_cons', (
            f'offline_lmbd_cons {config.offline_lmbd_cons:g} has no effect '
            'while offline_tune_lmbd is False: the penalty weight is '
            f'offline_lmbd = {config.offline_lmbd:g}'))
    else:
        yield from _among(named, 'offline_lmbd', (
            'offline_lmbd has no effect while offline_tune_lmbd is True: the '
            'penalty weight begins at 1 and is tuned'))
    if config.offline_penalty_type == 'none':
        yield from _among(named, 'offline_lmbd', (
            'offline_lmbd has no effect while offline_penalty_type is none'))
    if not config.separate_wm:
        for key in named:
            if key.startswith(('disen_', 'model_start')) or key in (
                    'num_reward_opt_iters', 'exo_only_decoder', 'backward'):
                yield key, f'{key} has no effect while separate_wm is False'
    elif not config.disen_scales.reward and config.disen_inner == 'auto':
        yield from _among(named, 'num_reward_opt_iters', (
            'num_reward_opt_iters has no effect at disen_scales.reward 0: '
            'nothing reads the exogenous reward head'))
    yield from _of_the_gradients(config, named)
    if config.sampling != 'auto':
        yield from _among(named, 'replay.incremental', (
            'replay.incremental has no effect while sampling is '
            f'{config.sampling}'))
    sampling = sampling_of(config)
    for key, schemes in SCHEMES.items():
        if sampling not in schemes:
            yield from _among(named, key, (
                f'{key} has no effect under {sampling} sampling'))


def _of_the_gradients(config: Config, named: list[str],
                      ) -> Iterator[tuple[str, str]]:
    kind = config.actor_grad
    unused = {'auto': ('actor_grad_mix', 'slow_baseline'),
              'dynamics': ('actor_grad_mix', 'slow_baseline'),
              'reinforce': ('actor_grad_mix',), 'both': ()}
    for key in unused[kind]:
        yield from _among(named, key, (
            f'{key} has no effect while actor_grad is {kind}'))


def _among(named: list[str], key: str, note: str,
           ) -> Iterator[tuple[str, str]]:
    if key in named:
        yield key, note


def _hopper(config: Config) -> list[str]:
    """Weights of the other tasks, where hopper has its own (sections 4 and 5,
    baselines 6.2)."""
    if not config.separate_wm or not config.task.endswith('hopper_hop'):
        return []
    weights = config.disen_scales
    if registry.method_name(config) == 'tia':
        own = weights.reward == 30000 and round(weights.disen_only ** 2, 4) == 2
        return [] if own else [
            f'disen_scales.reward is {weights.reward:g} and disen_only '
            f'{weights.disen_only:g}; for hopper TIA has 30000 and √2: give '
            '--configs tia_hopper_hop alone']
    found = []
    if exo_only_c(config) == 1.5:
        found.append('disen_scales.disen_only is 1.5, of the other tasks; '
                     'hopper has 2: give --disen_scales.disen_only 2')
    if weights.reward == 20000:
        found.append('disen_scales.reward is 20000, of the other tasks; '
                     'hopper has 30000: give --configs se_rs_drp_hopper')
    return found


def _exogenous_reward(config: Config) -> list[str]:
    if not config.separate_wm:
        return []
    found = []
    if config.disen_scales.reward and 'reward' not in config.grad_heads:
        found.append('disen_scales.reward has no effect on the latents while '
                     'reward is not among grad_heads')
    if config.pred_discount and config.disen_scales.discount:
        found.append('disen_scales.discount has no effect: the exogenous '
                     'stream has no discount head')
    return found
