"""SeMOPO: a policy learned inside the endogenous one of two streams.

The paper's method: `semopo_tf.separated_model` (section 3.3),
`semopo_tf.conservative` (3.4), `semopo_tf.penalties` (equation 2).
"""

from __future__ import annotations

from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.store import EpisodeStore
from semopo_tf.world_model_method import WorldModelMethod


class SeMOPO(WorldModelMethod):
    """Two streams: what actions control, and the rest."""

    def __init__(self, config: Config, store: EpisodeStore | None = None,
                 action_size: int | None = None):
        if not config.separate_wm:
            raise UserError(
                'method semopo: expected separate_wm True (two streams), found '
                'False; give --configs released or paper')
        super().__init__(config, store, action_size)
