"""Offline DV2: DreamerV2 with a penalised reward, one stream.

Baselines 1. SeMOPO's two phases, penalty and policy
learning with `separate_wm` False.
"""

from __future__ import annotations

from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.store import EpisodeStore
from semopo_tf.world_model_method import WorldModelMethod


class OfflineDV2(WorldModelMethod):
    """One world model for everything that is seen."""

    def __init__(self, config: Config, store: EpisodeStore | None = None,
                 action_size: int | None = None):
        if config.separate_wm:
            raise UserError(
                'method offline_dv2: expected separate_wm False, found True; '
                'give --configs offline_dv2')
        super().__init__(config, store, action_size)
