"""DreamerV2's world model: encoder, ensemble RSSM, decoder and heads.

Spec sections 1 (preprocessing), 2, 3 and 4 (its one-stream form).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dreamerv2_base.config import Config
from dreamerv2_base.distributions import UnitNormal
from dreamerv2_base.errors import UserError
from dreamerv2_base.nets import (
    MLP,
    ConvDecoder,
    Encoder,
    Scope,
    variables_by_name,
)
from dreamerv2_base.noise import Draws
from dreamerv2_base.optimizer import LossScale, Optimizer
from dreamerv2_base.rssm import EnsembleRSSM, State
from dreamerv2_base.slices import in_slices
from dreamerv2_base.sums import gradient, total
from dreamerv2_base.tf import tf

Batch = Mapping[str, tf.Tensor]
Metrics = dict[str, tf.Tensor]
# What a training step returns besides its metrics: 'embed' [B, T, E], 'feat'
# [B, T, F], 'kl' [B, T], 'post', 'prior' (states) and 'grad_clipped'
# {optimizer: {variable: gradient}}.
Outputs = dict[str, Any]

CLIP_REWARDS = {'identity': tf.identity, 'sign': tf.sign, 'tanh': tf.tanh}


class WorldModel(tf.Module):
    """One-stream world model and its optimizer.

    Args:
      config: the resolved configuration.
      image: shape of an observation, (height, width, 3).
      action_size: A.
      scope: where the variables live, `world_model` by convention.
    """

    def __init__(self, config: Config, image: tuple[int, int, int],
                 action_size: int, scope: Scope):
        super().__init__()
        self.config, self.image, self.action_size = config, image, action_size
        self.dtype = scope.dtype
        self.encoder = self._encoder(scope / 'encoder')
        self.rssm = self._rssm(scope / 'rssm')
        self.heads = {'reward': self._head(scope, 'reward')}
        if config.pred_discount:
            self.heads['discount'] = self._head(scope, 'discount')
        self._build_parts(scope)
        unknown = set(config.grad_heads) - {
            'decoder', 'reward', 'discount', 'none'}
        if unknown:
            raise UserError(
                'grad_heads: expected decoder, reward, discount or none, '
                f'found {sorted(unknown)}; set --grad_heads decoder reward')
        self.loss_scale = LossScale(scope / 'loss_scale', 'model')
        self._build_optimizers(scope)

    # Data.

    def preprocess(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Images to [-0.5, 0.5], rewards clipped, discounts times γ.

        `batch` may hold `embed` [B, T, E] in place of `image` when the
        encoder is frozen.
        """
        data = {key: batch[key] for key in ('action', 'is_first')}
        if 'embed' in batch:
            data['embed'] = batch['embed']
        else:
            data['image'] = tf.cast(
                batch['image'], self.dtype) / 255.0 - 0.5
        reward = tf.cast(batch['reward'], tf.float32)
        data['reward'] = CLIP_REWARDS[self.config.clip_rewards](reward)
        if 'discount' in batch:
            going_on = tf.cast(batch['discount'], tf.float32)
        else:
            going_on = 1.0 - tf.cast(batch['is_terminal'], tf.float32)
        data['discount'] = self.config.discount * going_on
        return data

    def filter(self, data: Batch, draws: Draws, state: State | None = None,
               sample: bool = True, learn: bool = True,
               ) -> tuple[tf.Tensor, State, State]:
        """Embeddings [B, T, E], posterior and prior of preprocessed data.

        `learn` False: no gradient of the weights will be taken.
        """
        embed = (data['embed'] if 'embed' in data
                 else self.in_slices(self.encoder, data['image']))
        post, prior = self.rssm.observe(
            embed, data['action'], data['is_first'], draws, state, sample,
            learn)
        return embed, post, prior

    # Learning.

    def train(self, batch: Batch, draws: Draws) -> tuple[Outputs, Metrics]:
        """One gradient step on a batch of chunks [B, T]. Spec section 4."""
        data = self.preprocess(batch)
        with tf.GradientTape() as tape:
            loss, outputs, metrics = self.loss(data, draws.scope('endo'))
            scaled = self.loss_scale.scale(loss)
        metrics['model_loss'] = loss
        grads = gradients(tape, scaled, self.optimizer)
        applied, outputs['grad_clipped'] = apply_all(
            self.loss_scale, grads, [self.optimizer])
        return outputs, {**metrics, **applied}

    def loss(self, data: Batch, draws: Draws,
             ) -> tuple[tf.Tensor, Outputs, Metrics]:
        """L = L_kl − ℓ_img − ℓ_r (− ℓ_discount), weighted by loss_scales."""
        embed, post, prior = self.filter(data, draws)
        kl_loss, kl = self.rssm.kl_loss(post, prior, **self.config.kl)
        feat = self.rssm.get_feat(post)
        losses = {'kl': kl_loss, **self.head_losses(feat, data)}
        losses['image'] = self.image_loss(
            self.decode, self._reach('decoder', feat), image=data['image'])
        outputs = {'embed': embed, 'feat': feat, 'post': post,
                   'prior': prior, 'kl': kl}
        metrics = {f'{key}_loss': value for key, value in losses.items()}
        metrics.update(self.latent_metrics(post, prior, kl))
        return self.weighted(losses), outputs, metrics

    def head_losses(self, feat: tf.Tensor, data: Batch,
                    ) -> dict[str, tf.Tensor]:
        """−ℓ_r and, where predicted, −ℓ_discount: mean log-likelihoods."""
        losses = {}
        for name, head in self.heads.items():
            dist = head(self._reach(name, feat))
            losses[name] = -tf.reduce_mean(dist.log_prob(data[name]))
        return losses

    def image_loss(self, decode: Callable[..., tf.Tensor], *feat: tf.Tensor,
                   image: tf.Tensor) -> tf.Tensor:
        """−ℓ: mean over frames of −log N(image; decode(*feat), 1), []."""
        def log_prob(image, *feat):
            return UnitNormal(decode(*feat), 3).log_prob(image)
        return -tf.reduce_mean(self.in_slices(log_prob, image, *feat))

    def in_slices(self, function: Callable[..., tf.Tensor],
                  *inputs: tf.Tensor) -> tf.Tensor:
        """function(*inputs) of frames [B, T, ...], `slice_frames` at once."""
        return in_slices(function, self.config.slice_frames, *inputs)

    def weighted(self, losses: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Σ loss_scales[name] · loss, scale 1 where none is given."""
        scales = self.config.loss_scales
        return total([float(scales.get(name, 1.0)) * value
                      for name, value in losses.items()])

    def latent_metrics(self, post: State, prior: State, kl: tf.Tensor,
                       ) -> Metrics:
        entropy = lambda state: tf.reduce_mean(  # noqa: E731
            self.rssm.get_dist(state).entropy())
        return {'model_kl': tf.reduce_mean(kl), 'prior_ent': entropy(prior),
                'post_ent': entropy(post)}

    # Imagination.

    def imagine(self, policy: Callable, start: State, horizon: int,
                draws: Draws, terminal: tf.Tensor | None = None,
                ) -> dict[str, tf.Tensor]:
        """Roll the policy out in the model. Spec section 6, steps 2 and 4.

        Args:
          policy: maps features [N, F] to an action distribution.
          start: posterior states, flattened to [N, ...].
          horizon: H.
          draws: sites 'action' [H, N, A], 'index' [H], 'prior' [H, N, ...].
          terminal: [N], whether the start states are terminal.

        Returns: 'feat' [H+1, N, F], 'action' [H+1, N, A] (element 0 is zero),
        'deter', 'stoch', the prior statistics, 'discount' and 'weight'
        [H+1, N], 'entropy' [H, N] of the policy in states 0 … H−1.
        """
        count = start['deter'].shape[0]
        uniform = draws.uniform('action', (horizon, count, self.action_size))
        index = draws.integers('index', (horizon,), self.rssm.ensemble)
        noise = self.rssm.noise(draws, 'prior', (horizon, count))
        state, heads = dict(start), self.rssm.stacked_heads()
        sequence = [{**state, 'feat': self.rssm.get_feat(state),
                     'action': tf.zeros((count, self.action_size))}]
        entropy = []
        for t in range(horizon):
            now = policy(tf.stop_gradient(sequence[-1]['feat']))
            action = now.sample(uniform[t])
            entropy.append(now.entropy())
            state = self.rssm.img_step(
                state, action, index[t], noise[t], heads)
            sequence.append({**state, 'feat': self.rssm.get_feat(state),
                             'action': action})
        stacked = {key: tf.stack([x[key] for x in sequence])
                   for key in sequence[0]}
        stacked['entropy'] = tf.stack(entropy)
        stacked['discount'] = self._discount(stacked['feat'], terminal)
        stacked['weight'] = tf.math.cumprod(tf.concat([
            tf.ones_like(stacked['discount'][:1]),
            stacked['discount'][:-1]], 0), 0)
        return stacked

    def _discount(self, feat, terminal):
        gamma = self.config.discount
        if 'discount' not in self.heads:
            return tf.fill(feat.shape[:-1], gamma)
        predicted = self.heads['discount'](feat).mean
        if terminal is None:
            return predicted
        # The start states are real: their discount is known.
        first = gamma * (1.0 - tf.cast(terminal, tf.float32))
        return tf.concat([first[None], predicted[1:]], 0)

    # What a person looks at.

    def decode(self, feat: tf.Tensor) -> tf.Tensor:
        """Mean image of features [..., F], in [-0.5, 0.5], float32."""
        return self.decoder(feat)

    def video(self, batch: Batch, draws: Draws, filtered: int = 5,
              ) -> dict[str, tf.Tensor]:
        """Filtered and open-loop reconstructions, {name: [T, 3h, B·w, 3]}.

        The first `filtered` frames are reconstructed from posteriors, the
        rest is predicted from the actions alone. Rows: truth, model, error.
        """
        data = self.preprocess(batch)
        states = open_loop(
            self.encoder, self.rssm, data, draws, 'endo', filtered)
        model = self.decode(self.rssm.get_feat(states)) + 0.5
        truth = tf.cast(data['image'], tf.float32) + 0.5
        return {'openl_image': film(compared(truth, model))}

    # Construction, overridden where a model has more parts.

    def _encoder(self, scope: Scope) -> Encoder:
        settings = self.config.encoder
        _image_only(settings)
        return Encoder(scope, self.image, settings.cnn_depth,
                       settings.cnn_kernels, settings.act, settings.norm)

    def _rssm(self, scope: Scope) -> EnsembleRSSM:
        return EnsembleRSSM(
            scope, self.action_size, self.encoder.size, **self.config.rssm,
            loop=self.config.scan, transition=self.config.transition)

    def _head(self, scope: Scope, name: str) -> MLP:
        return MLP(scope / 'heads' / name, self.rssm.feat_size,
                   **self.config[f'{name}_head'])

    def decoder_of(self, scope: Scope, channels: int = 3) -> ConvDecoder:
        """An image decoder from features, with `channels` outputs."""
        settings = self.config.decoder
        _image_only(settings)
        return ConvDecoder(scope, self.rssm.feat_size, channels,
                           settings.cnn_depth, settings.cnn_kernels,
                           settings.act, settings.norm, self.config.pixel)

    def _build_parts(self, scope: Scope) -> None:
        """What a world model has besides encoder, RSSM and heads."""
        self.decoder = self.decoder_of(scope / 'heads' / 'decoder')

    def _build_optimizers(self, scope: Scope) -> None:
        modules = [self.encoder, self.rssm, self.decoder, *self.heads.values()]
        self.optimizer = optimizer_of(
            scope, 'model', modules, self.config.model_opt)

    def _reach(self, name: str, feat: tf.Tensor) -> tf.Tensor:
        """Features with gradient for heads that may shape the latents."""
        if name in self.config.grad_heads:
            return feat
        return tf.stop_gradient(feat)


# Shared with models of more than one stream.


def optimizer_of(scope: Scope, name: str, modules, settings) -> Optimizer:
    """An optimizer over all variables of `modules`."""
    return Optimizer(scope, name, variables_by_name(*modules), **settings)


def gradients(tape: tf.GradientTape, loss: tf.Tensor,
              *optimizers: Optimizer) -> dict[str, tf.Tensor]:
    """Gradients of everything the optimizers train, by variable name."""
    targets: dict[str, tf.Variable] = {}
    for optimizer in optimizers:
        targets.update(optimizer.targets)
    return gradient(tape, loss, targets)


def apply_all(loss_scale: LossScale, grads: Mapping[str, tf.Tensor],
              optimizers: list[Optimizer],
              ) -> tuple[Metrics, dict[str, dict[str, tf.Tensor]]]:
    """Unscale once, then apply each optimizer in order.

    In float16 an update with any non-finite gradient is skipped whole.
    """
    connected = loss_scale.unscale(
        {key: grad for key, grad in grads.items() if grad is not None})
    grads = {key: connected.get(key) for key in grads}
    finite = None
    if loss_scale.active:
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g))
                                for g in connected.values()])
    metrics, clipped = {}, {}
    for optimizer in optimizers:
        found, clipped[optimizer.label] = optimizer.apply(grads, finite)
        metrics.update(found)
    if finite is not None:
        metrics.update(loss_scale.update(finite))
    return metrics, clipped


def open_loop(encoder: Encoder, rssm: EnsembleRSSM, data: Batch, draws: Draws,
              stream: str, filtered: int) -> State:
    """States [B, T, ...]: `filtered` posteriors, then predictions.

    Draw sites: {stream}/…, {stream}_openloop/….
    """
    post, _ = rssm.observe(
        encoder(data['image'][:, :filtered]), data['action'][:, :filtered],
        data['is_first'][:, :filtered], draws.scope(stream))
    last = {key: value[:, -1] for key, value in post.items()}
    ahead = rssm.imagine(data['action'][:, filtered:], last,
                         draws.scope(f'{stream}_openloop'))
    return {key: tf.concat([post[key], ahead[key]], 1) for key in post}


def compared(truth: tf.Tensor, model: tf.Tensor) -> tf.Tensor:
    """Truth, model and error stacked along the height, [B, T, 3h, w, C]."""
    error = (model - truth + 1.0) / 2.0
    return tf.concat([truth, model, error], 2)


def film(video: tf.Tensor) -> tf.Tensor:
    """[B, T, h, w, C] -> [T, h, B·w, C]: the batch side by side."""
    batch, length, height, width, channels = video.shape
    frames = tf.transpose(video, (1, 2, 0, 3, 4))
    return tf.reshape(frames, (length, height, batch * width, channels))


def flatten_time(x: tf.Tensor) -> tf.Tensor:
    """[B, T, ...] -> [B·T, ...]."""
    return tf.reshape(x, (-1, *x.shape[2:]))


def _image_only(settings) -> None:
    found = (settings.mlp_keys, settings.cnn_keys)
    if found != ('$^', 'image'):
        raise UserError(
            "encoder and decoder: expected mlp_keys '$^' and cnn_keys "
            f"'image' (the observations are images), found {found}; leave "
            'these keys out')
