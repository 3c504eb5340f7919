"""InfoGating: a contrastive multi-step inverse model behind learned masks.

Baselines 7.1 (the author's code for V-D4RL): behaviour
cloning on the detached features. `infogating.head: drq_bc` puts DrQ+BC's actor
and critic there instead (7.2).
"""

from __future__ import annotations

import numpy as np

from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import Scope, variables_by_name
from dreamerv2_base.noise import Draws
from dreamerv2_base.store import EpisodeStore
from dreamerv2_base.tf import tensors, tf
from semopo_tf.baselines.bc import cloning_loss
from semopo_tf.baselines.drq_bc import ActorCritic
from semopo_tf.baselines.drq_data import StackSampler
from semopo_tf.baselines.drq_nets import Head, schedule
from semopo_tf.baselines.infogating_nets import (
    GROUPS,
    Energy,
    FeatureEncoder,
    MaskNetwork,
    gated,
    gating_layers,
    mask_of,
    mask_sizes,
    perturbed,
)
from semopo_tf.baselines.pixel_method import (
    Metrics,
    PixelMethod,
    Tensors,
    augmented,
)
from semopo_tf.baselines.torch_adam import TorchAdam, step
from semopo_tf.method import Batch, Phase

HEADS = ('bc', 'drq_bc')


class CloningHead(tf.Module):
    """Behaviour cloning on features [B, F]."""

    def __init__(self, drq, inputs: int, action_size: int, scope: Scope):
        super().__init__()
        self.drq = drq
        self._policy = Head(
            scope / 'policy', inputs, drq.hidden_dim, action_size)
        self._opt = TorchAdam(scope, 'policy', variables_by_name(
            self._policy), drq.lr, drq.eps)

    def actor(self, features: tf.Tensor) -> tf.Tensor:
        """μ [B, A]."""
        return tf.tanh(self._policy(features))

    def update(self, features: tf.Tensor, batch: Tensors, std: tf.Tensor,
               draws: Draws) -> Metrics:
        """One step; the features carry no gradient."""
        with tf.GradientTape() as tape:
            loss, metrics = cloning_loss(
                self.actor(features), std, batch['action'], self.drq, draws)
        step(tape, loss, self._opt)
        return {'policy_loss': loss, **metrics}


class InfoGatingAgent(tf.Module):
    """Mask network, encoder, energy, and a policy on detached features."""

    def __init__(self, config: Config, action_size: int, scope: Scope):
        super().__init__()
        self.drq, self.set = drq, gate = config.drq, config.infogating
        self.action_size = action_size
        image = (drq.image_size, 3 * drq.frame_stack)
        self.encoder = FeatureEncoder(
            scope / 'encoder', image, gating_layers(gate.filters),
            drq.feature_dim)
        self.mask_net = MaskNetwork(
            scope / 'mask_net', image, drq.frame_stack, gate.mask_filters,
            gate.mask_units)
        self.energy = Energy(scope / 'energy', drq.feature_dim, action_size,
                             gate.energy_units)
        self.head: CloningHead | ActorCritic = (
            CloningHead if gate.head == 'bc' else ActorCritic)(
                drq, drq.feature_dim, action_size, scope)
        self._inverse_opt = TorchAdam(scope, 'inverse', {
            **variables_by_name(self.encoder), **self.energy.trained},
            drq.lr, drq.eps)
        self._mask_opt = TorchAdam(scope, 'mask', variables_by_name(
            self.mask_net), drq.lr, drq.eps)

    def train(self, batch: Tensors, iteration: tf.Tensor,
              draws: Draws) -> Metrics:
        """One update: encoder and energy, masks, then the policy."""
        obs, later = (augmented(batch[key], key, self.drq, draws)
                      for key in ('obs', 'obs_k'))
        with tf.GradientTape() as tape:
            loss, metrics, shown = self.representation_loss(
                obs, later, batch['action'], iteration, draws)
        step(tape, loss, self._inverse_opt, self._mask_opt)
        features = tf.stop_gradient(self.encoder(shown))
        std = schedule(self.drq.stddev_schedule, iteration)
        return {**metrics, **self._train_head(features, batch, std, draws),
                'batch_reward': tf.reduce_mean(batch['reward'])}

    def representation_loss(self, obs: tf.Tensor, later: tf.Tensor,
                            action: tf.Tensor, iteration: tf.Tensor,
                            draws: Draws,
                            ) -> tuple[tf.Tensor, Metrics, tf.Tensor]:
        """Inverse loss and sparsity; the (half gated) obs as third value.

        In the warm start the inverse loss does not reach the masks and the
        sparsity term has the other sign, which opens them. Afterwards:
        inverse + sparsity · S1 + sparsity_square · S2, where S1 and S2 are
        the means of m and m² over both observations.
        """
        warm = tf.cast(iteration < self.set.warm_start, tf.float32)
        logits = [self._logits(images, site, iteration, draws)
                  for images, site in ((obs, 'obs'), (later, 'obs_k'))]
        masks = [mask_of(found) for found in logits]
        # Equal to the mask; in the warm start without its gradient.
        open_masks = [warm * tf.stop_gradient(mask) + (1.0 - warm) * mask
                      for mask in masks]
        shown, shown_later = (
            self._half_gated(images, mask, site, draws)
            for images, mask, site in zip(
                (obs, later), open_masks, ('obs', 'obs_k'), strict=True))
        inverse = self._inverse_loss(shown, shown_later, action, draws)
        first = tf.reduce_mean([tf.reduce_mean(mask) for mask in masks])
        second = tf.reduce_mean([
            tf.reduce_mean(tf.square(mask)) for mask in masks])
        loss = inverse + (1.0 - 2.0 * warm) * self.set.sparsity * first
        loss += (1.0 - warm) * self.set.sparsity_square * second
        metrics = {'inverse_loss': inverse, 'representation_loss': loss,
                   'mask_mean': first, 'mask_square_mean': second}
        for found, site in zip(logits, ('obs', 'obs_k'), strict=True):
            metrics[f'mask_logit_mean_{site}'] = tf.reduce_mean(found)
        return loss, metrics, shown

    def act(self, images: tf.Tensor) -> tf.Tensor:
        """μ [N, A] on the un-gated stacks uint8 [N, S, S, C] (trap 20)."""
        return self.head.actor(self.encoder(images))

    def _logits(self, images, site, iteration, draws: Draws):
        """Mask logits [B, S, S, F], perturbed in the first iterations.

        Site mask/…: normal of the same shape.
        """
        logits = self.mask_net(images)

        def noisy():
            normal = draws.normal(f'mask/{site}', logits.shape)
            return perturbed(logits, normal, self.set.noise_std,
                             self.set.noise_clip)

        return tf.cond(iteration < self.set.noise_iterations, noisy,
                       lambda: logits)

    def _half_gated(self, images, mask, site, draws: Draws):
        """Gated frames 0…255, but a random half of the rows as they are.

        Site ungated/…: uniform [B]; the rows with the lowest numbers stay.
        """
        count = images.shape[0]
        kept = int(count * self.set.ungated)
        rank = tf.argsort(tf.argsort(draws.uniform(
            f'ungated/{site}', (count,)), stable=True), stable=True)
        whole = (rank < kept)[:, None, None, None]
        return tf.where(whole, tf.cast(images, tf.float32),
                        gated(images, mask))

    def _inverse_loss(self, now, later, action, draws: Draws) -> tf.Tensor:
        """Cross-entropy of the true action among uniform ones; logits are
        negative energies. Site negatives: uniform [B, n, A]."""
        shape = (action.shape[0], self.set.negatives, self.action_size)
        others = 2.0 * draws.uniform('negatives', shape) - 1.0
        actions = tf.concat([action[:, None], others], 1)
        energies = self.energy(
            self.encoder(now), self.encoder(later), actions)
        log_normalizer = tf.reduce_logsumexp(-energies, 1)
        return tf.reduce_mean(log_normalizer + energies[:, 0])

    def _train_head(self, features, batch, std, draws: Draws) -> Metrics:
        if isinstance(self.head, CloningHead):
            return self.head.update(features, batch, std, draws)
        following = augmented(batch['next_obs'], 'next_obs', self.drq, draws)
        return self.head.learn(
            lambda: features, tf.stop_gradient(self.encoder(following)),
            batch, std, draws)


class InfoGating(PixelMethod):
    """InfoGating with a cloning head, or DrQ+BC's on the features."""

    agent_type = InfoGatingAgent

    def __init__(self, config: Config, store: EpisodeStore | None = None,
                 action_size: int | None = None):
        check_gating(config)
        super().__init__(config, store, action_size)
        self._masks = tf.function(
            lambda images: mask_of(self.agent.mask_net(images)))

    def phases(self) -> list[Phase]:
        """One phase, with pictures of the masks."""
        config = self.config
        return [Phase('train', config.steps, self._update, self.source,
                      config.agent_train_steps, config.offline_video_every,
                      prepare=tensors)]

    def source(self, store: EpisodeStore) -> StackSampler:
        return StackSampler(
            store, self.config.drq, self.config.seed, 'train',
            next_obs=self.config.infogating.head == 'drq_bc',
            max_offset=self.config.infogating.max_offset)

    def videos(self, batch: Batch, key: int) -> dict[str, np.ndarray]:
        """Newest frame, its mask and the gated frame, one above the other.

        `batch['obs']`: stacks [E, T, S, S, C] of consecutive rows; episodes
        side by side. No noise and no shift.
        """
        films = []
        for stacks in batch['obs']:
            masks = self._masks(tf.constant(stacks))
            shown = gated(stacks, masks).numpy()[..., -3:] / 255
            mask = np.repeat(masks.numpy()[..., -1:], 3, -1)
            films.append(np.concatenate(
                [stacks[..., -3:] / 255, mask, shown], 1))
        return {'gating': np.concatenate(films, 2).astype(np.float32)}


def check_gating(config) -> None:
    """Raises UserError for settings that InfoGating cannot run with."""
    gate = config.infogating
    if gate.head not in HEADS:
        raise UserError(
            f'infogating.head: expected one of {", ".join(HEADS)}, found '
            f'{gate.head!r}; give --infogating.head bc')
    if gate.mask_filters % GROUPS:
        raise UserError(
            f'infogating.mask_filters: expected a multiple of {GROUPS} '
            f'(groups of the norm), found {gate.mask_filters}; give '
            '--infogating.mask_filters 32')
    if mask_sizes(config.drq.image_size)[-1] < 1:
        raise UserError(
            'drq.image_size: expected 84, found '
            f'{config.drq.image_size}, too small for the mask network; give '
            '--drq.image_size 84')
