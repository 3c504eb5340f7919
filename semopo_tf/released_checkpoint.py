"""Checkpoints of the released code: pickles of arrays without names.

A published checkpoint is a tuple of NumPy arrays in a fixed order. `agent`
files (`variables.pkl`) hold everything, `world model` files (`model_*.pkl`,
`final_model.pkl`) the model alone. Optimizer state was never saved. Reading
one admits arrays and scalars and executes nothing else. Spec section 12.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreamerv2_base.checkpoint import Checkpoints, is_weight
from dreamerv2_base.config import Config, read_yaml
from dreamerv2_base.errors import UserError
from dreamerv2_base.files import whole
from semopo_tf import export, settings

Arrays = dict[str, np.ndarray]

STEP = 'step'
# Entries that are no weights, with the types the released code gives them.
SCALARS = {STEP: np.int32, 'behavior/slow_critic_updates': np.int32,
           'behavior/reward_norm/magnitude': np.float64}
BEHAVIOR = ('slow_critic_updates', 'slow_critic', 'actor', 'critic',
            'reward_norm')
TWO_STREAMS = ('exo_encoder', 'exo_heads', 'exo_decoder', 'exo_only_decoder',
               'exo_rssm', 'encoder', 'heads', 'endo_decoder', 'mask', 'rssm')
ONE_STREAM = ('encoder', 'heads', 'rssm')

# What a checkpoint of NumPy arrays may name when it is read.
_ALLOWED = {
    ('numpy', 'ndarray'), ('numpy', 'dtype'),
    *((f'numpy.{core}.{module}', name)
      for core in ('core', '_core')
      for module, name in (('multiarray', '_reconstruct'),
                           ('multiarray', 'scalar'),
                           ('numeric', '_frombuffer')))}

# Which setting explains an unexpected size.
_KEYS = (('rssm/gru', 'rssm.deter'), ('rssm/img_in', 'rssm.hidden'),
         ('rssm/img_dist', 'rssm.stoch, rssm.discrete or rssm.hidden'),
         ('rssm/', 'rssm.hidden, rssm.deter or encoder.cnn_depth'),
         ('encoder', 'encoder.cnn_depth'), ('decoder', 'decoder.cnn_depth'),
         ('reward', 'reward_head.units'), ('discount', 'discount_head.units'),
         ('actor', 'actor.units or the action size'),
         ('critic', 'critic.units'))


class _ArraysOnly(pickle.Unpickler):
    """Reads tuples, lists, numbers and NumPy arrays; nothing else."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f'it asks for {module}.{name}, which is not an array')
        return super().find_class(module, name)


def read_pickle(path: Path) -> list[np.ndarray]:
    """Entries of a published checkpoint, in their order.

    Raises UserError, and runs nothing, for any other content.
    """
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes())).load()
    except FileNotFoundError:
        raise UserError(f'{path}: expected a checkpoint, found no file'
                        ) from None
    except Exception as error:  # a hostile file may fail in any way
        raise UserError(
            f'{path}: expected a pickled tuple of NumPy arrays, found a file '
            f'that is refused ({str(error)[:200]})') from None
    if not isinstance(content, tuple | list):
        raise UserError(f'{path}: expected a tuple of arrays, found a '
                        f'{type(content).__name__}')
    for number, entry in enumerate(content):
        if not isinstance(entry, np.ndarray | np.generic) or (
                entry.dtype.kind not in 'biuf'):
            kind = getattr(entry, 'dtype', type(entry).__name__)
            raise UserError(f'{path}: entry {number}: expected an array of '
                            f'numbers, found {kind}')
    return [np.asarray(entry) for entry in content]


def write_pickle(path: Path, arrays: Mapping[str, np.ndarray],
                 order: list[str]) -> None:
    """Write arrays as the released code does: a tuple in its order."""
    entries = tuple(
        SCALARS[name](arrays[name]) if name in SCALARS
        else np.asarray(arrays[name], np.float32) for name in order)
    with whole(path) as partial:
        partial.write_bytes(pickle.dumps(entries, protocol=4))


def variable_order(shapes: Mapping[str, tuple], kind: str,
                   config: Config) -> list[str]:
    """Names of the entries of an `agent` or `world_model` file.

    Within a module variables go by layer name, `kernel` before `bias` (and
    `gamma` before `beta`); modules go as the released objects hold them.
    """
    modules = TWO_STREAMS if config.separate_wm else ONE_STREAM
    groups = [f'world_model/{name}' for name in modules]
    if kind == 'agent':
        groups = [f'behavior/{name}' for name in BEHAVIOR] + groups
    order = [STEP]
    for group in groups:
        members = [name for name in shapes
                   if name == group or name.startswith(f'{group}/')]
        order += sorted(members, key=_layer_key)
    return order


def _layer_key(name: str) -> tuple:
    rank = {'kernel': 0, 'bias': 1, 'gamma': 2, 'beta': 3}
    layer, _, leaf = name.rpartition('/')
    # The norm of the GRU follows the cell's own weights.
    return (layer.removesuffix('/norm'), rank.get(leaf, 0))


def shapes_of(config: Config, action_size: int) -> dict[str, tuple]:
    """Shapes of all variables a published agent of this configuration has."""
    from dreamerv2_base.nets import variables_by_name
    from semopo_tf.agent import PenalizedAgent
    if config.separate_wm and not settings.exo_only_c(config):
        raise UserError(
            'exo_only_decoder: expected True, found False: every published '
            'two-stream checkpoint has that decoder; give a configuration '
            'with exo_only_decoder True')
    if config.offline_tune_lmbd:
        raise UserError('offline_tune_lmbd: expected False, found True: where '
                        'the released file keeps λ is not recorded; give a '
                        'configuration with offline_tune_lmbd False')
    agent = PenalizedAgent(
        config, (config.image_size, config.image_size, 3), action_size)
    return {name: tuple(variable.shape) for name, variable
            in variables_by_name(agent).items() if is_weight(name)}


def name_entries(entries: list[np.ndarray], config: Config,
                 path: Path) -> Arrays:
    """Name the entries of a published checkpoint.

    Raises UserError saying which entry has another shape, what was expected
    and which configuration key would explain it.
    """
    action_size = _action_size(entries, config, path)
    shapes = shapes_of(config, action_size)
    orders = {kind: variable_order(shapes, kind, config)
              for kind in ('agent', 'world_model')}
    fits = [order for order in orders.values() if len(order) == len(entries)]
    if not fits:
        raise UserError(
            f'{path}: expected {len(orders["agent"])} entries (agent) or '
            f'{len(orders["world_model"])} (world model), found '
            f'{len(entries)}; check separate_wm, rssm.ensemble, '
            'pred_discount and the layers of the heads')
    order = fits[0]
    for number, (name, entry) in enumerate(zip(order, entries, strict=True)):
        expected = () if name in SCALARS else shapes[name]
        if tuple(entry.shape) != tuple(expected):
            raise UserError(
                f'{path}: entry {number} ({name}): expected shape '
                f'{tuple(expected)}, found {tuple(entry.shape)}; check '
                f'{_explain(name)}')
    return dict(zip(order, entries, strict=True))


def _action_size(entries, config: Config, path) -> int:
    """A, read off the only matrix whose rows are latents and actions."""
    flat = config.rssm.stoch * (config.rssm.discrete or 1)
    actor = [entry for entry in entries if entry.ndim == 2
             and entry.shape[1] == config.rssm.hidden
             and flat < entry.shape[0] < flat + 100
             and entry.shape[0] not in (
                 config.rssm.deter, flat + config.rssm.deter)]
    if not actor:
        raise UserError(
            f'{path}: expected a recurrent input of {flat} latents and the '
            f'actions to {config.rssm.hidden} units, found none; check '
            'rssm.stoch, rssm.discrete and rssm.hidden')
    return int(actor[0].shape[0]) - flat


def _explain(name: str) -> str:
    return next((key for part, key in _KEYS if part in name),
                'the configuration')


# Converting between the three kinds.


def convert(source: Path, target: Path, config_file: Path) -> str:
    """Convert a checkpoint; kinds are told by suffix.

    `.pkl` is published, `.npz` holds arrays named as in the traces, a folder
    is a run folder of this package. Returns what was done, in one line.
    """
    config = settings.check(settings.presets().defaults.update(
        read_yaml(config_file), config_file.name))
    arrays = _read(source, config)
    kind = ('agent' if any(name.startswith('behavior/') for name in arrays)
            else 'world_model')
    _write(target, arrays, kind, config)
    return f'{kind} with {len(arrays)} entries: {source} -> {target}'


def _read(source: Path, config: Config) -> Arrays:
    if source.is_dir():
        arrays, state = Checkpoints(source / 'ckpt').load()
        export.expect_whole(source, state)
        kept = {name: value for name, value in arrays.items()
                if is_weight(name)}
        step = np.array(state['at'].get('step', 0), np.int32)
        return {STEP: step, **kept}
    if source.suffix == '.pkl':
        return name_entries(read_pickle(source), config, source)
    if source.suffix == '.npz':
        try:
            with np.load(source, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except (OSError, EOFError, ValueError,
                zipfile.BadZipFile) as error:
            raise UserError(f'{source}: expected named arrays (.npz), found '
                            f'{error}') from None
    raise UserError(f'{source}: expected a .pkl, an .npz or a run folder, '
                    f'found {source.suffix or "nothing"}')


def _write(target: Path, arrays: Arrays, kind: str, config: Config) -> None:
    if target.suffix == '.npz':
        np.savez(target, **arrays)
    elif target.suffix == '.pkl':
        size = _named_action_size(arrays, config)
        shapes = shapes_of(config, size)
        order = variable_order(shapes, kind, config)
        full = {**_default_scalars(), **arrays}
        missing = [name for name in order if name not in full]
        if missing:
            raise UserError(f'{target}: expected {len(order)} arrays, '
                            f'missing {missing[:3]}; check the configuration')
        write_pickle(target, full, order)
    else:
        _write_run(target, arrays, config)


def _write_run(folder: Path, arrays: Arrays, config: Config) -> None:
    """A run folder at the start of the policy phase, with these weights."""
    from dreamerv2_base.nets import variables_by_name
    from semopo_tf.training import Position, saved_state
    from semopo_tf.world_model_method import WorldModelMethod
    size = _named_action_size(arrays, config)
    config = config.update({'logdir': str(folder)})
    method = WorldModelMethod(config, None, action_size=size)
    variables = variables_by_name(method.agent)
    _expect_weights(folder, arrays, variables)
    for name, variable in variables.items():
        if name in arrays:
            if tuple(variable.shape) != tuple(np.shape(arrays[name])):
                raise UserError(
                    f'{name}: expected shape {tuple(variable.shape)}, found '
                    f'{np.shape(arrays[name])}; check {_explain(name)}')
            variable.assign(arrays[name])
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / 'config.yaml').exists():
        raise UserError(f'{folder}: expected a new folder, found a run in it; '
                        'give another OUT')
    config.save(folder / 'config.yaml')
    (folder / 'data.json').write_text(json.dumps(
        {'action_size': size, 'returns': [], 'episodes': []}))
    phases = method.phases()
    at = Position([phase.name for phase in phases].index('agent'))
    Checkpoints(folder / 'ckpt').save(
        at.count(phases), method.state(), saved_state(at, None, None),
        pin=True)


def _expect_weights(folder: Path, arrays: Arrays,
                    variables: Mapping[str, Any]) -> None:
    """Nothing is left at its initial value, nothing given is left out.

    What a file may lack: the state of optimizers, and the policy as a whole.
    """
    policy = any(name.startswith('behavior/') for name in arrays)
    missing = [name for name in variables if name not in arrays
               and is_weight(name) and name not in SCALARS
               and (policy or not name.startswith('behavior/'))]
    unknown = [name for name in arrays if name not in variables
               and name != STEP]
    for found, problem in ((missing, 'missing'), (unknown, 'unknown')):
        if found:
            raise UserError(
                f'{folder}: expected arrays for the weights of this '
                f'configuration, found {len(found)} {problem}, first '
                f'{found[0]}; check {_explain(found[0])}')


def _named_action_size(arrays: Arrays, config: Config) -> int:
    kernel = arrays.get('world_model/rssm/img_in/kernel')
    if kernel is None:
        raise UserError('checkpoint: expected world_model/rssm/img_in/kernel, '
                        'found none; is this a file of named arrays?')
    return int(kernel.shape[0]) - config.rssm.stoch * (
        config.rssm.discrete or 1)


def _default_scalars() -> Arrays:
    values = {STEP: 0, 'behavior/slow_critic_updates': 0,
              'behavior/reward_norm/magnitude': 1}
    return {name: np.array(value, SCALARS[name])
            for name, value in values.items()}
