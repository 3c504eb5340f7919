"""The separated world model of section 3.3: two streams, one mask.

The endogenous stream (+) sees the actions and predicts the reward; the
exogenous stream (−) sees zero actions. Both are decoded together through a
learned mask. Spec sections 4 and 5; a walk through one training step is in
docs/training_step.md.
"""

from __future__ import annotations

from dreamerv2_base.config import Config
from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import MLP, Conv, ConvDecoder, Scope
from dreamerv2_base.noise import Draws
from dreamerv2_base.optimizer import LossScale
from dreamerv2_base.rssm import State
from dreamerv2_base.sums import total
from dreamerv2_base.tf import tf
from dreamerv2_base.world_model import (
    Batch,
    Metrics,
    Outputs,
    WorldModel,
    apply_all,
    compared,
    film,
    flatten_time,
    gradients,
    open_loop,
    optimizer_of,
)
from semopo_tf.settings import exo_only_c


class MaskDecoder(tf.Module):
    """Features -> image mean [..., 3] and mask features [..., 3]."""

    CHANNELS = 3

    def __init__(self, decoder: ConvDecoder):
        super().__init__()
        self._decoder = decoder

    def __call__(self, feat: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, mask = tf.split(self._decoder(feat), 2, -1)
        return image, mask


class JointDecoder(tf.Module):
    """Both mask decoders and the 1×1 convolution that mixes them.

    o = m μ+ + (1 − m) μ−, m = sigmoid(conv([mask features +, −])).
    """

    def __init__(self, scope: Scope, endogenous: ConvDecoder,
                 exogenous: ConvDecoder):
        super().__init__()
        self.endogenous = MaskDecoder(endogenous)
        self.exogenous = MaskDecoder(exogenous)
        self._dtype = scope.dtype
        self.mask = Conv(scope / 'mask' / 'mask1', 2 * MaskDecoder.CHANNELS, 1,
                         kernel=1, stride=1)

    def __call__(self, endo_feat: tf.Tensor, exo_feat: tf.Tensor,
                 ) -> dict[str, tf.Tensor]:
        """Features [B, T, F] of both streams -> 'joint', 'endogenous' and
        'exogenous' means [B, T, h, w, 3] and 'mask' [B, T, h, w, 1]."""
        endo, endo_mask = self.endogenous(endo_feat)
        exo, exo_mask = self.exogenous(exo_feat)
        mask = self._mix(tf.concat([endo_mask, exo_mask], -1))
        return {'joint': mask * endo + (1 - mask) * exo, 'mask': mask,
                'endogenous': endo, 'exogenous': exo}

    def _mix(self, features: tf.Tensor) -> tf.Tensor:
        shape = features.shape
        flat = tf.reshape(features, (-1, *shape[-3:]))
        logit = self.mask(tf.cast(flat, self._dtype))
        mask = self.mixed(tf.cast(logit, tf.float32))
        return tf.reshape(mask, (*shape[:-1], 1))

    def mixed(self, logit: tf.Tensor) -> tf.Tensor:
        """m in [0, 1] from the mixed mask features [n, h, w, 1]."""
        return tf.sigmoid(logit)


class SeparatedWorldModel(WorldModel):
    """SeMOPO's world model (Se), with TIA's reward dissociation as an option.

    Policy learning uses the endogenous stream alone, through the interface of
    the one-stream model: `encoder`, `rssm` and `heads` are the endogenous
    ones.
    """

    decoder: JointDecoder  # of both streams, where the base has one of one
    decoder_type: type[JointDecoder] = JointDecoder

    def __init__(self, config: Config, image, action_size: int, scope: Scope):
        if config.disen_action_type not in ('none', 'main'):
            raise UserError(
                "disen_action_type: expected 'none' (zero actions) or 'main' "
                f'(the true ones), found {config.disen_action_type!r}; set '
                '--disen_action_type none')
        super().__init__(config, image, action_size, scope)

    # Learning.

    def train(self, batch: Batch, draws: Draws) -> tuple[Outputs, Metrics]:
        """One step of both optimizers from one backward pass.

        The joint decoder's gradient is the same in both losses (only ℓ_img
        reaches it) and the streams meet only in ℓ_img, so the gradient of
        L_kl+ + L_kl− − ℓ_img − ℓ_r − w ℓ_exo-only (+ λ_R ℓ_r−) holds every
        gradient that either optimizer needs (spec section 4).
        """
        data = self.preprocess(batch)
        apart = self.config.backward == 'separate'
        with tf.GradientTape(persistent=apart) as tape:
            endo_losses, outputs, metrics = self.endogenous_losses(data, draws)
            exo_losses, exo_feat, found = self.exogenous_losses(data, draws)
            metrics.update(found)
            image = self.image_loss(
                lambda *feats: self.decoder(*feats)['joint'],
                outputs['feat'], exo_feat, image=data['image'])
            # Before ℓ_r−, which takes the updated R−.
            with tape.stop_recording():
                found, head_grads = self.train_exogenous_head(exo_feat, data)
            metrics.update(found)
            dissociation, found = self.dissociation_loss(exo_feat, data)
            metrics.update(found)
            exo_losses.update(dissociation)
            endo_loss = self.weighted(endo_losses)
            exo_loss = total([*exo_losses.values()])
            # As the released code takes them, the joint decoder's gradient
            # comes out of both passes, and is the same.
            losses = [endo_loss + image, exo_loss + image] if apart else [
                endo_loss + exo_loss + image]
            scaled = [self.loss_scale.scale(loss) for loss in losses]
        groups = [[self.optimizer], [self.exo_optimizer]] if apart else [
            [self.optimizer, self.exo_optimizer]]
        grads = {}
        for loss, optimizers in zip(scaled, groups, strict=True):
            grads.update(gradients(tape, loss, *optimizers))
        del tape  # it may be persistent, and then holds every activation
        applied, clipped = apply_all(
            self.loss_scale, grads, [self.optimizer, self.exo_optimizer])
        metrics.update(applied, image_loss=image,
                       model_loss=endo_loss + image,
                       disen_loss=exo_loss + image)
        outputs['grad_clipped'] = {**clipped, **head_grads}
        return outputs, metrics

    def endogenous_losses(self, data: Batch, draws: Draws,
                          ) -> tuple[dict[str, tf.Tensor], Outputs, Metrics]:
        """L_kl+ and −ℓ_r: the endogenous terms of section 3.3's objective
        but ℓ_img. Also the outputs and metrics."""
        embed, post, prior = self.filter(data, draws.scope('endo'))
        kl_loss, kl = self.rssm.kl_loss(post, prior, **self.config.kl)
        feat = self.rssm.get_feat(post)
        losses = {'kl': kl_loss, **self.head_losses(feat, data)}
        metrics = {f'{name}_loss': losses[name] for name in self.heads}
        metrics.update(self.latent_metrics(post, prior, kl))
        outputs = {'embed': embed, 'feat': feat, 'post': post,
                   'prior': prior, 'kl': kl}
        return losses, outputs, metrics

    def exogenous_losses(self, data: Batch, draws: Draws,
                         ) -> tuple[dict[str, tf.Tensor], tf.Tensor, Metrics]:
        """kl_disen · L_kl− and −w ℓ_exo-only, the exogenous features and
        metrics.

        The released computation applies the weight c twice, to the likelihood
        and to the loss: w = c². The paper has no such term (c = 0).
        """
        scales = self.config.disen_scales
        post, prior = self.filter_exogenous(data, draws.scope('exo'))
        kl_loss, kl = self.exo_rssm.kl_loss(post, prior, **self.config.kl)
        feat = self.exo_rssm.get_feat(post)
        losses = {'kl': scales.kl_disen * kl_loss}
        metrics = {
            'disen/kl': tf.reduce_mean(kl),
            'disen/prior_ent': tf.reduce_mean(
                self.exo_rssm.get_dist(prior).entropy()),
            'disen/post_ent': tf.reduce_mean(
                self.exo_rssm.get_dist(post).entropy())}
        c = exo_only_c(self.config)
        if c:
            alone = self.image_loss(
                self.exo_only_decoder, feat, image=data['image'])
            losses['exo_only'] = c ** 2 * alone
            metrics['disen/disen_only_image_loss'] = c * alone
        return losses, feat, metrics

    def filter_exogenous(self, data: Batch, draws: Draws,
                         ) -> tuple[State, State]:
        """Posterior and prior of the exogenous stream, [B, T, ...]."""
        action = data['action']
        if self.config.disen_action_type == 'none':
            action = tf.zeros_like(action)
        return self.exo_rssm.observe(
            self.in_slices(self.exo_encoder, data['image']), action,
            data['is_first'], draws)

    def action_information(self, batch: Batch, draws: Draws) -> tf.Tensor:
        """How many nats the endogenous prior owes to the actions, [].

        mean KL(q_t ‖ p(· | s_{t−1}, a')) − KL(q_t ‖ p(· | s_{t−1}, a_t)), a'
        being the action of another chunk of the batch, over all members: an
        estimate of what a_t says of the next state, I(s_t; a_t | s_{t−1}).
        Large where the stream holds what actions move, near 0 where it holds
        the background (ours; docs/results/mini.md).

        batch: chunks [B, T] of at least two of each.
        """
        data = self.preprocess(batch)
        _, post, _ = self.filter(data, draws.scope('endo'), learn=False)
        before = {key: flatten_time(x[:, :-1]) for key, x in post.items()}
        after = {key: flatten_time(x[:, 1:]) for key, x in post.items()}
        action = data['action'][:, 1:]
        own, other = (self.rssm.surprise(before, flatten_time(taken), after)
                      for taken in (action, tf.roll(action, 1, 0)))
        return tf.reduce_mean(other - own)

    # Reward dissociation (spec section 5).

    def train_exogenous_head(self, feat: tf.Tensor, data: Batch,
                             ) -> tuple[Metrics, dict]:
        """Inner iterations of R− on stopped features, by its own optimizer.

        With adversarial weight 0 nothing reads R−, so they are left out
        (`disen_inner` auto) and only time is saved.
        """
        if not self._inner_iterations:
            return {}, {}
        feat = tf.stop_gradient(feat)
        for _ in range(self._inner_iterations):
            with tf.GradientTape() as tape:
                dist = self.exo_heads['reward'](feat)
                loss = -tf.reduce_mean(dist.log_prob(data['reward']))
                scaled = self.exo_head_scale.scale(loss)
            grads = gradients(tape, scaled, self.exo_head_optimizer)
            metrics, clipped = apply_all(
                self.exo_head_scale, grads, [self.exo_head_optimizer])
        return {'disen_reward_loss': loss, **metrics}, clipped

    def dissociation_loss(self, feat: tf.Tensor, data: Batch,
                          ) -> tuple[dict[str, tf.Tensor], Metrics]:
        """+ λ_R ℓ_r− of features [B, T, F]: latents that cannot predict the
        reward; nothing with weight 0."""
        weight = self.config.disen_scales.reward
        if not weight:
            return {}, {}
        dist = self.exo_heads['reward'](self._reach('reward', feat))
        likelihood = tf.reduce_mean(dist.log_prob(data['reward']))
        # Divided by its weight as in the released log, where it is −inf at 0.
        return {'reward': weight * likelihood}, {
            'disen/disen_reward_loss': likelihood / weight}

    # What a person looks at.

    def decode(self, feat: tf.Tensor) -> tf.Tensor:
        """Unmasked endogenous mean [..., h, w, 3] of features [..., F], in
        [-0.5, 0.5]."""
        return self.decoder.endogenous(feat)[0]

    def video(self, batch: Batch, draws: Draws, filtered: int = 5,
              ) -> dict[str, tf.Tensor]:
        """Joint, endogenous and exogenous reconstructions [T, 3h, B·w, 3]
        (truth, model, error) and the mask [T, h, B·w, 1]."""
        data = self.preprocess(batch)
        endo = open_loop(
            self.encoder, self.rssm, data, draws, 'endo', filtered)
        if self.config.disen_action_type == 'none':
            data = {**data, 'action': tf.zeros_like(data['action'])}
        exo = open_loop(
            self.exo_encoder, self.exo_rssm, data, draws, 'exo', filtered)
        decoded = self.decoder(
            self.rssm.get_feat(endo), self.exo_rssm.get_feat(exo))
        truth = tf.cast(data['image'], tf.float32) + 0.5
        names = {'joint': 'joint', 'main': 'endogenous',
                 'disen': 'exogenous'}
        videos = {f'openl_{name}': film(compared(truth, decoded[key] + 0.5))
                  for name, key in names.items()}
        return {**videos, 'openl_mask': film(decoded['mask'])}

    # Construction.

    def _build_parts(self, scope: Scope) -> None:
        self.exo_encoder = self._encoder(scope / 'exo_encoder')
        self.exo_rssm = self._rssm(scope / 'exo_rssm')
        self.exo_heads = {'reward': MLP(
            scope / 'exo_heads' / 'reward', self.exo_rssm.feat_size,
            **self.config.reward_head)}
        channels = 2 * MaskDecoder.CHANNELS
        self.decoder = self.decoder_type(
            scope, self.decoder_of(scope / 'endo_decoder', channels),
            self.decoder_of(scope / 'exo_decoder', channels))
        if exo_only_c(self.config):
            self.exo_only_decoder = self.decoder_of(
                scope / 'exo_only_decoder')

    def _build_optimizers(self, scope: Scope) -> None:
        config = self.config
        super()._build_optimizers(scope)
        modules = [self.exo_encoder, self.exo_rssm, self.decoder]
        if exo_only_c(self.config):
            modules.append(self.exo_only_decoder)
        self.exo_optimizer = optimizer_of(
            scope, 'disen', modules, config.model_opt)
        # The released head takes the model's learning rate, not
        # disen_reward_lr.
        self.exo_head_optimizer = optimizer_of(
            scope, 'disen_reward', [*self.exo_heads.values()],
            config.model_opt)
        self.exo_head_scale = LossScale(
            scope / 'exo_head_loss_scale', 'disen_reward')

    @property
    def _inner_iterations(self) -> int:
        if (self.config.disen_inner == 'auto'
                and not self.config.disen_scales.reward):
            return 0
        return self.config.num_reward_opt_iters
