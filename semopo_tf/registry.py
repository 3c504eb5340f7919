"""Names of the methods and where their classes live.

docs/adding_a_method.md has the steps of adding one.
"""

from __future__ import annotations

import importlib

from dreamerv2_base.config import Config

# name: (module, class)
METHODS: dict[str, tuple[str, str]] = {
    'semopo': ('semopo_tf.semopo', 'SeMOPO'),
    'drq_bc': ('semopo_tf.baselines.drq_bc', 'DrQBC'),
    'drq_cql': ('semopo_tf.baselines.drq_cql', 'DrQCQL'),
    'bc': ('semopo_tf.baselines.bc', 'BC'),
    'infogating': ('semopo_tf.baselines.infogating', 'InfoGating'),
    'mopo': ('semopo_tf.baselines.mopo', 'MOPO'),
    'lompo': ('semopo_tf.baselines.lompo', 'LOMPO'),
    'dreamerv2': ('semopo_tf.online', 'DreamerV2'),
    'tia': ('semopo_tf.baselines.tia', 'TIA'),
    'offline_dv2': ('semopo_tf.baselines.offline_dv2', 'OfflineDV2'),
}

# Methods that collect their own data (`semopo_tf.online`).
ONLINE = ('dreamerv2', 'tia')
# DreamerV2 and what extends it; with a world model of frames; neither.
DREAMERS = ('semopo', 'offline_dv2', *ONLINE)
WORLD_MODELS = (*DREAMERS, 'lompo')
PIXEL_METHODS = ('drq_bc', 'drq_cql', 'bc', 'infogating')


def offline_models() -> tuple[str, ...]:
    """Methods whose world model is learned offline."""
    return tuple(name for name in WORLD_MODELS if name not in ONLINE)


def method_name(config: Config) -> str:
    """The method a configuration asks for; `auto` goes by separate_wm."""
    if config.method != 'auto':
        return config.method
    return 'semopo' if config.separate_wm else 'offline_dv2'


def method_class(config: Config) -> type:
    """The class of a configuration's method (imports TensorFlow)."""
    module, name = METHODS[method_name(config)]
    return getattr(importlib.import_module(module), name)
