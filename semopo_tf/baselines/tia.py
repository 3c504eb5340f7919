"""TIA, Task Informed Abstractions: the learner that collected LQV-D4RL.

Baselines 6. What is implemented is TIA's idea on
DreamerV2 (6.5), not its DM Control variant on Dreamer (6.1 to 6.3):

* two equal streams, both with the real actions (`disen_action_type` main),
  mixed by a learned mask; the distractor stream is decoded alone, too;
* the task stream predicts the reward, and the reward shapes it; the
  distractor's latents are kept from it: λ_Radv log N(r | R⁻) is added to
  their loss, after 20 inner updates of R⁻ on the same batch;
* the joint decoder belongs to both optimizers, each with its own Adam state;
* world model, actor and critic are updated together, online, with the
  exploration, triggers and snapshots of the DM Control variant (6.4).

It is `SeparatedWorldModel` in the loop of `semopo_tf.online`: networks,
latents, KL, policy learning and optimizers are DreamerV2's. λ_Os is
`disen_scales.disen_only` squared, because the model applies that weight twice.
"""

from __future__ import annotations

from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.online import EpisodeBuffer
from semopo_tf.online import DreamerV2

# What makes it TIA: key, what is wanted, in words and as a test.
NEEDED = (
    ('separate_wm', 'True', lambda value: value),
    ('disen_action_type', 'main', lambda value: value == 'main'),
    ('disen_scales.reward', 'a weight above 0', lambda value: value > 0),
    ('grad_heads', 'with reward', lambda value: 'reward' in value),
    ('exo_only_decoder', 'True', lambda value: value),
)


class TIA(DreamerV2):
    """Two streams and reward dissociation, trained online.

    Raises UserError for a configuration that leaves a part of it out.
    """

    def __init__(self, config: Config, store: EpisodeBuffer | None = None,
                 action_size: int | None = None):
        for key, wanted, good in NEEDED:
            if not good(config[key]):
                raise UserError(f'method tia: expected {key} {wanted}, found '
                                f'{config[key]!r}; give --configs tia')
        super().__init__(config, store, action_size)
