"""What the configuration means: allowed values and aliases."""

from __future__ import annotations

import functools
import math
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
    # Rewards and values are modes, which a Bernoulli does not have here.
    'reward_head.dist': ('mse',), 'critic.dist': ('mse',),
    'discount_head.dist': ('binary', 'mse'),
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

# The smallest value of a number …
LEAST = {
    'seed': 0, 'steps': 0, 'offline_model_train_steps': 0, 'imag_horizon': 2,
    'keep_checkpoints': 1, 'model_opt.lr': 0, 'actor_opt.lr': 0,
    'critic_opt.lr': 0, 'drq.lr': 0, 'mopo.lr': 0, 'sac.lr': 0,
    'replay.capacity': 1,
    'time_limit': 0, 'slice_frames': 0, 'video_frames': 1,
    'model_train_steps': 1, 'model_starts': 1, 'model_start_updates': 1,
    'model_start_worth': 0,
    'agent_train_steps': 1, 'log_updates': 1, 'save_updates': 1,
    'eval_envs': 1, 'eval_workers': 1, 'eval_eps': 1, 'final_eval_eps': 1,
    'action_repeat': 1, 'collect_episodes': 1, 'image_size': 1,
    'rssm.ensemble': 1, 'rssm.hidden': 1, 'rssm.deter': 1, 'rssm.stoch': 1,
    'rssm.discrete': 0, 'dataset.batch': 1, 'dataset.length': 2,
    'offline_model_dataset.batch': 1, 'offline_model_dataset.length': 2,
    'offline_train_dataset.batch': 1, 'offline_train_dataset.length': 2,
    'discount': 0, 'discount_lambda': 0, 'video_alpha': 0,
    'sampling_epoch_updates': 1, 'sampling_start': 1,
    'sampling_grow_updates': 1,
    'drq.batch_size': 1, 'drq.nstep': 1, 'drq.frame_stack': 1,
    'drq.update_every_steps': 1, 'drq.replay_buffer_size': 1,
    'drq.cql_samples': 1, 'infogating.negatives': 1,
    'infogating.max_offset': 1, 'lompo.agent_iters_per_step': 1,
    'lompo.agent_batch_size': 1, 'lompo.cql_samples': 1,
    'lompo.cache_episodes': 1, 'lompo.cache_sequences': 1,
    'mopo.max_epochs': 0, 'mopo.horizon': 1, 'mopo.batch': 1,
    'mopo.rollout_rows': 1, 'mopo.rollout_every': 1,
    'mopo.rollout_rounds': 1, 'mopo.real_share': 0, 'sac.batch': 1}
# … and the largest, where there is one.
MOST = {'discount': 1, 'discount_lambda': 1, 'video_alpha': 1,
        'mopo.real_share': 1}

# Folders: `~` is the home directory.
FOLDERS = ('logdir', 'cache_dir', 'video_dir', 'offline_model_loaddir')


@functools.cache
def presets() -> Presets:
    """The blocks of the project's configs.yaml, read once."""
    return Presets.read(ROOT / 'configs.yaml')


def defaults_text() -> str:
    """The block of all keys as configs.yaml has it, with its comments."""
    lines = (ROOT / 'configs.yaml').read_text().splitlines()
    first = lines.index('defaults:') + 1
    last = next(number for number in range(first, len(lines))
                if lines[number] and not lines[number].startswith(' ')
                and not lines[number].startswith('#'))
    while lines[last - 1].startswith('#') or not lines[last - 1]:
        last -= 1  # the comment of the block after it
    return '\n'.join(lines[first:last]).strip('\n')


def preset_groups() -> dict[str, list[str]]:
    """Names of the presets by their headings in configs.yaml."""
    lines = (ROOT / 'configs.yaml').read_text().splitlines()
    groups: dict[str, list[str]] = {}
    names: list[str] = []
    for line, before in zip(lines[1:], lines, strict=False):
        if before.startswith('# ---'):
            names = groups.setdefault(line.removeprefix('# '), [])
        elif (name := line.partition(':')[0]) in presets().names:
            names.append(name)
    return {title: found for title, found in groups.items() if found}


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
    config = config.update({
        **{key: home(config[key]) for key in FOLDERS},
        'offline_dir': [home(folder) for folder in config.offline_dir]})
    for key, allowed in CHOICES.items():
        if config[key] not in allowed:
            raise UserError(
                f'{key}: expected one of {", ".join(allowed)}, found '
                f'{config[key]!r}; give --{key} {allowed[0]}')
    if config.offline_split_val:
        raise UserError('offline_split_val: expected False, found True: a '
                        'validation split is not part of this package; leave '
                        'the flag out')
    _check_numbers(config)
    _check_render_size(config)
    if several_starts(config) and config.offline_model_dataset.batch < 2:
        raise UserError(
            'model_starts: expected batches of at least 2 chunks to judge '
            'starts by, found offline_model_dataset.batch 1; give '
            '--offline_model_dataset.batch 2 or --model_starts 1')
    return config


def home(folder: str) -> str:
    """A path with the home directory in place of a leading `~`."""
    return str(Path(folder).expanduser()) if folder.startswith('~') else folder


def _check_numbers(config: Config) -> None:
    for key, least in LEAST.items():
        most = MOST.get(key, math.inf)
        if not least <= config[key] <= most:  # so that NaN is refused, too
            wanted = (f'{least} to {most}' if key in MOST
                      else f'at least {least}')
            raise UserError(
                f'{key}: expected {wanted}, found {config[key]:g}; give '
                f'--{key} {most if config[key] > most else least}')
    for key, value in config.flat().items():
        if key.endswith('_opt.opt') and value != 'adam':
            raise UserError(f'{key}: expected adam, the only one there is, '
                            f'found {value!r}; leave the flag out')


def _check_render_size(config: Config) -> None:
    height, *others = config.render_size
    if others != [height]:
        raise UserError(f'render_size: expected two equal numbers, found '
                        f'{list(config.render_size)}; give --render_size 64 64')


def check_frames(config: Config) -> None:
    """Raises UserError for frames of a size that a world model cannot draw.

    Methods that resize their frames check for themselves.
    """
    method = registry.method_name(config)
    if method not in registry.WORLD_MODELS:
        return
    drawn = 1
    for kernel in config.decoder.cnn_kernels:
        drawn = 2 * (drawn - 1) + kernel
    for key, size, flag in (
            ('image_size', config.image_size, f'{drawn}'),
            ('render_size', config.render_size[0], f'{drawn} {drawn}')):
        if size != drawn:
            raise UserError(
                f'{key}: expected {drawn}, the size that the decoder of '
                f'{method} draws (decoder.cnn_kernels), found {size}; give '
                f'--{key} {flag}; frames of another size: run.py data convert '
                f'FOLDER NEW --to npz --size {drawn}')


def sampling_of(config: Config) -> str:
    """paper, released or random; `auto` follows the released flag."""
    if config.sampling != 'auto':
        return config.sampling
    return 'released' if config.replay.incremental else 'random'


def model_updates(config: Config) -> int:
    """Updates of the model phase: whole blocks. Spec section 9."""
    block = config.model_train_steps
    return -(-config.offline_model_train_steps // block) * block


def exo_only_c(config: Config) -> float:
    """c of the term that decodes frames from the exogenous stream alone, whose
    weight is c²; 0, and no such decoder, in the paper. Spec section 4."""
    return (config.disen_scales.disen_only
            if config.separate_wm and config.exo_only_decoder else 0.0)


def several_starts(config: Config) -> bool:
    """Whether a run begins more than one model (`model_starts`).

    One stream has nothing to swap; a model that is given is not begun.
    """
    return (config.separate_wm and config.model_starts > 1
            and config.offline_model_train_steps > 0
            and config.offline_model_loaddir == 'none')
