"""What the configuration means: allowed values, aliases, inert flags."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from dreamerv2_base.config import Config, Presets, load_config
from dreamerv2_base.errors import UserError
from semopo_tf import controllers, registry

ROOT = Path(__file__).resolve().parents[1]

CHOICES = {
    'method': ('auto', *registry.METHODS),
    'precision': ('32', '16', 'bf16'),
    'jit': ('none', 'xla', 'eager'),
    'scan': ('while', 'unroll'),
    'transition': ('drawn', 'all'),
    'backward': ('joint', 'separate'),
    'pixel': ('product', 'convolution'),
    'actor_passes': ('once', 'twice'),
    'scene': ('stock', 'grey_floor'),
    'collect_policy': tuple(controllers.POLICIES),
    'sampling': ('auto', 'paper', 'released', 'random'),
    'disen_action_type': ('none', 'main'),
    'disen_inner': ('auto', 'always'),
    'actor_grad': ('auto', 'dynamics', 'reinforce', 'both'),
    'clip_rewards': ('identity', 'sign', 'tanh'),
    # Those of penalties.py, ours and the released ones.
    'offline_penalty_type': (
        'disagreement', 'mean_disagreement', 'log_prob', 'mixture_std',
        'max_aleatoric', 'max_pairwise', 'ensemble_variance', 'none',
        'meandis', 'log_prob_ens', 'mixstd_mean'),
}

# The released code's values where ours are spelled differently.
ALIASES = {'jit': {'True': 'none', 'true': 'none', 'False': 'eager',
                   'false': 'eager'}}

# Keys of the released code that change nothing, there or here.
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
    'expl_behavior', 'expl_noise', 'envs', 'dataset.batch', 'dataset.length',
    'eval_every', 'replay.capacity', 'snapshot_every',
)

# … and those of offline training alone.
OFFLINE_ONLY = (
    'offline_dir', 'offline_model_dataset', 'offline_train_dataset',
    'offline_model_train_steps', 'model_train_steps', 'agent_train_steps',
    'offline_model_loaddir', 'model_starts', 'model_start_updates',
    'initial_joint_step', 'sampling',
    'offline_penalty_type', 'offline_lmbd', 'cache_embeddings', 'skip_broken',
)


@functools.cache
def presets() -> Presets:
    """The blocks of the project's configs.yaml, read once."""
    return Presets.read(ROOT / 'configs.yaml')


def resolve(arguments: list[str]) -> tuple[Config, list[str]]:
    """Command line -> checked configuration and the names of its presets."""
    config, names = presets().parse(arguments)
    return check(config), names


def saved(path: Path) -> Config:
    """The configuration in a run's config.yaml.

    Keys that are newer than the run get their defaults, which compute what
    was computed before there were such keys. Raises UserError for keys that
    are no more.
    """
    return presets().defaults.update(load_config(path).flat(), str(path))


def check(config: Config) -> Config:
    """Aliases replaced, values that only make sense together checked.

    Raises UserError for a value outside a key's choices.
    """
    for key, table in ALIASES.items():
        config = config.update({key: table.get(config[key], config[key])})
    for key, allowed in CHOICES.items():
        if config[key] not in allowed:
            raise UserError(
                f'{key}: expected one of {", ".join(allowed)}, found '
                f'{config[key]!r}; give --{key} {allowed[0]}')
    if config.offline_split_val:
        raise UserError('offline_split_val: expected False, found True: a '
                        'validation split is not part of this package; leave '
                        'the flag out')
    if len(config.render_size) != 2 or config.render_size[0] != (
            config.render_size[1]):
        raise UserError(f'render_size: expected two equal numbers, found '
                        f'{list(config.render_size)}; give --render_size 64 64')
    positive = ('steps', 'offline_model_train_steps', 'model_train_steps',
                'model_starts', 'model_start_updates',
                'agent_train_steps', 'imag_horizon', 'rssm.ensemble',
                'log_updates', 'save_updates', 'eval_envs', 'eval_workers',
                'eval_eps', 'final_eval_eps', 'action_repeat',
                'collect_episodes')
    for key in positive:
        least = 2 if key == 'imag_horizon' else 1
        if config[key] < least and not (
                key in ('steps', 'offline_model_train_steps')
                and config[key] == 0):
            raise UserError(f'{key}: expected at least {least}, found '
                            f'{config[key]}; give --{key} {least}')
    if several_starts(config) and config.offline_model_dataset.batch < 2:
        raise UserError(
            'model_starts: expected batches of at least 2 chunks to judge '
            'starts by, found offline_model_dataset.batch 1; give '
            '--offline_model_dataset.batch 2 or --model_starts 1')
    return config


def sampling_of(config: Config) -> str:
    """paper, released or random; `auto` follows the released flag."""
    if config.sampling != 'auto':
        return config.sampling
    return 'released' if config.replay.incremental else 'random'


def several_starts(config: Config) -> bool:
    """Whether a run begins more than one model (`model_starts`).

    One stream has nothing to swap; a model that is given is not begun.
    """
    return (config.separate_wm and config.model_starts > 1
            and config.offline_model_train_steps > 0
            and config.offline_model_loaddir == 'none')


def warnings(config: Config, given: Mapping[str, object] | None = None,
             ) -> list[str]:
    """What a user should know before the run starts: flags without effect.

    `given` holds the keys set on the command line; others are not named.
    """
    given = given or {}
    named = {key for key in config.flat()
             if any(key == g or key.startswith(f'{g}.') for g in given)}
    found = [f'{key} has no effect (kept because the released code has it)'
             for key in NO_EFFECT if key in named]
    online = registry.method_name(config) in registry.ONLINE
    found += [f'{key} has no effect {"online" if online else "offline"}'
              for key in (OFFLINE_ONLY if online else ONLINE_ONLY)
              if key in named]
    if 'offline_model_save_every' in named:
        found.append('offline_model_save_every has no effect: everything is '
                     'saved every save_updates updates')
    found += [f'{key} has no effect: exploration by disagreement is not part '
              'of this package' for key in named
              if key.startswith(('expl_opt', 'expl_head', 'expl_reward'))]
    if not config.offline_tune_lmbd and 'offline_lmbd_cons' in named:
        found.append(
            f'offline_lmbd_cons {config.offline_lmbd_cons:g} has no effect '
            'while offline_tune_lmbd is False: the penalty weight is '
            f'offline_lmbd = {config.offline_lmbd:g}')
    if config.offline_tune_lmbd and 'offline_lmbd' in named:
        found.append('offline_lmbd has no effect while offline_tune_lmbd is '
                     'True: the penalty weight begins at 1 and is tuned')
    own_penalty = registry.method_name(config) in ('lompo', 'mopo')
    if (config.offline_penalty_type == 'none' and 'offline_lmbd' in named
            and not own_penalty):
        found.append('offline_lmbd has no effect while offline_penalty_type '
                     'is none')
    found += _two_stream_warnings(config, named)
    if sampling_of(config) == 'random':
        found += [f'{key} has no effect under random sampling' for key in
                  ('replay.sort_rewards', 'replay.reverse',
                   'sampling_start', 'sampling_grow_updates') if key in named]
    return found


def _two_stream_warnings(config: Config, named: set[str]) -> list[str]:
    keys = [key for key in named if key.startswith('disen_')
            and key not in NO_EFFECT] + [
        key for key in ('num_reward_opt_iters', 'exo_only_decoder')
        if key in named]
    if not config.separate_wm:
        return [f'{key} has no effect while separate_wm is False'
                for key in keys]
    found = []
    if config.disen_scales.reward == 20000 and (
            config.task.endswith('hopper_hop')):
        found.append('disen_scales.reward is 20000, of the other tasks; '
                     'hopper has 30000: give --configs se_rs_drp_hopper')
    if (not config.disen_scales.reward and config.disen_inner == 'auto'
            and 'num_reward_opt_iters' in named):
        found.append('num_reward_opt_iters has no effect at '
                     'disen_scales.reward 0: nothing reads the exogenous '
                     'reward head')
    if config.disen_scales.reward and 'reward' not in config.grad_heads:
        found.append('disen_scales.reward has no effect on the latents while '
                     'reward is not among grad_heads')
    if config.pred_discount and config.disen_scales.discount:
        found.append('disen_scales.discount has no effect: the exogenous '
                     'stream has no discount head')
    return found
