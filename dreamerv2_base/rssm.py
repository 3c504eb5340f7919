"""The ensemble RSSM: a recurrent state-space model with K prior heads.

Spec section 2 ("Ensemble RSSM") and 3 (its KL term). One trunk (input layer
and GRU) is shared; the K heads predict the next stochastic state from the same
deterministic one, and their spread is the model's uncertainty.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from dreamerv2_base.distributions import DiagonalNormal, OneHot
from dreamerv2_base.errors import UserError
from dreamerv2_base.loops import Deferred, scan
from dreamerv2_base.nets import Dense, GRUCell, Scope, activation
from dreamerv2_base.noise import Draws
from dreamerv2_base.sums import branches
from dreamerv2_base.tf import tf

# Keys: 'stoch' [..., S, C] or [..., S], 'deter' [..., D], and the statistics
# 'logit' [..., S, C] or 'mean', 'std' [..., S] (float32).
State = dict[str, tf.Tensor]

# (kernels [K, D, hidden], biases), (kernels [K, hidden, stats], biases).
Heads = tuple[tuple[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]

STD_ACTIVATIONS = {
    'softplus': tf.nn.softplus,
    'sigmoid': tf.sigmoid,
    'sigmoid2': lambda raw: 2 * tf.sigmoid(raw / 2),
}


class EnsembleRSSM(tf.Module):
    """RSSM whose prior is a uniform ensemble of K heads.

    At every prior step one member index is drawn uniformly for the whole
    batch, and that member's statistics are the prior. `transition` 'drawn'
    evaluates that member alone, 'all' evaluates every member at every step
    and picks, as the released code does: the same numbers, more work.
    `cell(scope, inputs, size)` makes the recurrent cell.
    """

    def __init__(self, scope: Scope, action_size: int, embed_size: int,
                 ensemble: int, stoch: int, deter: int, hidden: int,
                 discrete: int, act: str = 'elu', norm: str = 'none',
                 std_act: str = 'sigmoid2', min_std: float = 0.1,
                 loop: str = 'while', transition: str = 'drawn',
                 cell: Callable[[Scope, int, int], tf.Module] = GRUCell):
        super().__init__()
        if norm != 'none' or std_act not in STD_ACTIVATIONS:
            raise UserError(
                f"rssm: expected norm 'none' and std_act one of "
                f'{sorted(STD_ACTIVATIONS)}, found {norm!r} and {std_act!r}; '
                'set --rssm.norm none --rssm.std_act sigmoid2')
        self.ensemble, self.stoch, self.deter = ensemble, stoch, deter
        self.discrete, self.dtype = discrete, scope.dtype
        self.stoch_flat = stoch * (discrete or 1)
        self.feat_size = self.stoch_flat + deter
        self._act = activation(act)
        self._std_act, self._min_std = STD_ACTIVATIONS[std_act], min_std
        self._loop, self._transition = loop, transition
        stats = stoch * discrete if discrete else 2 * stoch
        self._img_in = Dense(
            scope / 'img_in', self.stoch_flat + action_size, hidden)
        self._gru = cell(scope / 'gru', hidden, deter)
        self._img_out = [Dense(scope / f'img_out_{k}', deter, hidden)
                         for k in range(ensemble)]
        self._img_dist = [Dense(scope / f'img_dist_{k}', hidden, stats)
                          for k in range(ensemble)]
        self._obs_out = Dense(scope / 'obs_out', deter + embed_size, hidden)
        self._obs_dist = Dense(scope / 'obs_dist', hidden, stats)

    # States and their distributions.

    def initial(self, batch: int) -> State:
        """The zero state of `batch` sequences."""
        shape = (batch, self.stoch, *self._classes)
        state = {'deter': tf.zeros((batch, self.deter), self.dtype),
                 'stoch': tf.zeros(shape, self.dtype)}
        if self.discrete:
            return {**state, 'logit': tf.zeros(shape)}
        return {**state, 'mean': tf.zeros(shape), 'std': tf.zeros(shape)}

    def get_feat(self, state: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """[stoch flattened, deter], shape [..., feat_size]."""
        flat = self._flat(state['stoch'])
        return tf.concat([flat, state['deter']], -1)

    def get_dist(self, state: Mapping[str, tf.Tensor]) -> Any:
        """The distribution of `stoch`, [...], of the statistics in `state`:
        OneHot or DiagonalNormal."""
        if self.discrete:
            return OneHot(tf.cast(state['logit'], tf.float32))
        return DiagonalNormal(tf.cast(state['mean'], tf.float32),
                              tf.cast(state['std'], tf.float32))

    def sample(self, stats: Mapping[str, tf.Tensor],
               noise: tf.Tensor | None) -> tf.Tensor:
        """A draw of `stoch`; the mode where `noise` is None."""
        dist = self.get_dist(stats)
        value = dist.mode() if noise is None else dist.sample(noise)
        return tf.cast(value, self.dtype)

    def noise(self, draws: Draws, site: str, lead: tuple) -> tf.Tensor:
        """The random numbers behind latent samples of shape `lead`."""
        shape = (*lead, self.stoch, *self._classes)
        if self.discrete:
            return draws.uniform(site, shape)
        return draws.normal(site, shape)

    # Filtering.

    def observe(self, embed: tf.Tensor, action: tf.Tensor,
                is_first: tf.Tensor, draws: Draws,
                state: State | None = None, sample: bool = True,
                learn: bool = True) -> tuple[State, State]:
        """Filter a sequence: posterior and prior states, [B, T, ...].

        Args:
          embed: [B, T, E] embeddings of the observations.
          action: [B, T, A], the action that led to each observation.
          is_first: [B, T]; where True, the previous state and action are 0.
          draws: sites 'posterior' [T, B, S, (C)] and 'index' [T].
          state: state before the first observation, [B, ...].
          sample: False takes the posterior's mode.
          learn: False where no gradient of the weights will be taken.

        The prior holds statistics and 'deter' only: its samples are not used
        in filtering (`sample` makes them where they are wanted).
        """
        batch, length = embed.shape[0], embed.shape[1]
        state = self.initial(batch) if state is None else state
        keep = 1.0 - tf.cast(is_first, self.dtype)[..., None]
        action = tf.cast(action, self.dtype) * keep
        index = draws.integers('index', (length,), self.ensemble)
        noise = ([self.noise(draws, 'posterior', (length, batch))]
                 if sample else [])
        carry = (state['stoch'], state['deter'])
        if self._transition == 'all':
            post, prior = self._observe_whole(
                carry, action, embed, keep, index, noise)
        else:
            post = self._observe_divided(
                carry, action, embed, keep, noise, learn)
            prior = {'deter': post['deter'],
                     **self.member_stats(post['deter'], index)}
        return ({k: _time_major(v) for k, v in post.items()},
                {k: _time_major(v) for k, v in prior.items()})

    def _observe_divided(self, carry, action, embed, keep, noise, learn,
                         ) -> State:
        """Posteriors [T, B, ...]; what needs no recurrence stays outside.

        Outside of the loop: the parts of the input layers that do not depend
        on the state, and all kernel gradients.
        """
        from_action, recur = self._divided(
            self._img_in, action, self.stoch_flat)
        from_embed, hidden_kernel = self._divided(
            self._obs_out, embed, self.deter)
        kernels = {'img_in': recur, 'obs_out': hidden_kernel,
                   'obs_dist': self._obs_dist.cast_kernel()}
        if isinstance(self._gru, GRUCell):
            kernels['gru'] = self._gru.kernel
        lead = (embed.shape[1], embed.shape[0])
        deferred = Deferred(kernels, lead, learn)
        inputs = [_time_major(x) for x in (from_action, from_embed, keep)]
        inputs += [*deferred.offsets, *noise]

        def step(carry, now):
            from_action, from_embed, keep, *rest = now
            product = deferred.at(rest[:len(deferred.offsets)])
            stoch = self._flat(carry[0]) * keep
            hidden = self._act(product('img_in', stoch) + from_action)
            deter = self._gru(hidden, carry[1] * keep, *(
                [functools.partial(product, 'gru')]
                if 'gru' in kernels else []))
            deter, carried, seen = branches(deter, 3)
            hidden = self._act(product('obs_out', seen) + from_embed)
            stats = self._stats(self._obs_dist(
                hidden, functools.partial(product, 'obs_dist')))
            stoch = self.sample(
                self._named(stats), rest[-1] if noise else None)
            return (stoch, carried), (stoch, deter, *stats, *product.inputs)

        _, out = scan(step, carry, tuple(inputs), lead[0], self._loop)
        end = len(out) - len(deferred.offsets)
        deferred.record(out[end:])
        stats = self._named(out[2:end])
        return {'stoch': out[0], 'deter': out[1], **stats}

    def _observe_whole(self, carry, action, embed, keep, index, noise,
                       ) -> tuple[State, State]:
        """Posteriors and priors [T, B, ...], each step whole.

        As the released code: input layers on concatenated inputs and all K
        heads, each layer by itself, at every step.
        """
        inputs = [_time_major(x) for x in (action, embed, keep)]

        def step(carry, now):
            action, embed, keep, index, *noise = now
            stoch, deter = self._flat(carry[0]) * keep, carry[1] * keep
            hidden = self._act(self._img_in(tf.concat([stoch, action], -1)))
            deter = self._gru(hidden, deter)
            prior = self._pick(self._each_head(deter[None]), index[None])
            hidden = self._act(self._obs_out(tf.concat([deter, embed], -1)))
            stats = self._stats(self._obs_dist(hidden))
            stoch = self.sample(
                self._named(stats), noise[0] if noise else None)
            return (stoch, deter), (
                stoch, deter, *stats, *(x[0] for x in prior.values()))

        _, out = scan(step, carry, (*inputs, index, *noise),
                      embed.shape[1], self._loop)
        half = len(out) // 2 + 1
        post = {'stoch': out[0], 'deter': out[1], **self._named(out[2:half])}
        return post, {'deter': out[1], **self._named(out[half:])}

    # Prediction.

    def stacked_heads(self) -> Heads:
        """Weights of the K heads, stacked: once per rollout is enough."""
        def stack(layers):
            return (
                tf.cast(tf.stack([x.kernel for x in layers]), self.dtype),
                tf.cast(tf.stack([x.bias for x in layers]), self.dtype))
        return stack(self._img_out), stack(self._img_dist)

    def img_step(self, state: Mapping[str, tf.Tensor], action: tf.Tensor,
                 index: tf.Tensor, noise: tf.Tensor | None,
                 heads: Heads | None = None) -> State:
        """One prior step with member `index` [] of the ensemble, [N, ...]."""
        from_action, recur = self._divided(
            self._img_in, action, self.stoch_flat)
        hidden = self._act(
            tf.matmul(self._flat(state['stoch']), recur) + from_action)
        deter = self._gru(hidden, state['deter'])
        stats = {k: v[0] for k, v in self.member_stats(
            deter[None], index[None], heads).items()}
        stoch = self.sample(stats, noise)
        return {'stoch': stoch, 'deter': deter, **stats}

    def imagine(self, action: tf.Tensor, state: State, draws: Draws) -> State:
        """Open loop: states [B, T, ...] that follow actions [B, T, A].

        Draw sites: 'index' [T], 'prior' [T, B, S, (C)].
        """
        batch, length = action.shape[0], action.shape[1]
        index = draws.integers('index', (length,), self.ensemble)
        noise = self.noise(draws, 'prior', (length, batch))
        steps, heads = [], self.stacked_heads()
        for t in range(length):
            state = self.img_step(
                state, action[:, t], index[t], noise[t], heads)
            steps.append(state)
        return {key: tf.stack([s[key] for s in steps], 1) for key in state}

    def member_stats(self, deter: tf.Tensor, index: tf.Tensor,
                     heads: Heads | None = None) -> State:
        """Prior statistics by one member per leading row.

        deter [L, N, D], index [L] -> statistics [L, N, S, (C)].
        """
        if self._transition == 'all':
            return self._pick(self._each_head(deter), index)

        def drawn(layer):
            kernel, bias = layer
            return tf.gather(kernel, index), tf.gather(bias, index)

        hidden, out = heads or self.stacked_heads()
        return self._by_head(deter, (drawn(hidden), drawn(out)))

    def ensemble_stats(self, deter: tf.Tensor) -> State:
        """Prior statistics by all K members: [..., D] -> [K, ..., S, (C)]."""
        if self._transition == 'all':
            return self._each_head(deter)
        flat = tf.reshape(deter, (1, -1, deter.shape[-1]))
        shape = tf.concat([[self.ensemble], tf.shape(deter)[:-1]], 0)
        shaped = {}
        for key, value in self._by_head(flat, self.stacked_heads()).items():
            rest = value.shape[2:]
            value = tf.reshape(value, tf.concat([shape, rest], 0))
            shaped[key] = tf.ensure_shape(
                value, (self.ensemble, *deter.shape[:-1], *rest))
        return shaped

    def surprise(self, before: Mapping[str, tf.Tensor], action: tf.Tensor,
                 after: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """KL(q(after) ‖ p_k(· | before, action)), mean over members k, [N].

        before: 'stoch', 'deter' [N, ...] of a state; action [N, A]; after:
        statistics [N, ...] of the posterior that follows. Nats.
        """
        before = {key: tf.cast(before[key], self.dtype)
                  for key in ('stoch', 'deter')}
        ahead = self.img_step(before, action, tf.constant(0), None)
        members = self.get_dist(self.ensemble_stats(ahead['deter']))
        return tf.reduce_mean(self.get_dist(after).kl(members), 0)

    def _pick(self, stats: State, index: tf.Tensor) -> State:
        """Of statistics [K, L, N, ...] those of member index[l] in row l."""
        rows = tf.stack([index, tf.range(tf.size(index))], 1)
        return {key: tf.gather_nd(value, rows)
                for key, value in stats.items()}

    def _each_head(self, deter: tf.Tensor) -> State:
        """As `ensemble_stats`, one head after the other."""
        found = [self._stats(dist(self._act(out(deter))))
                 for out, dist in zip(
                     self._img_out, self._img_dist, strict=True)]
        return self._named(
            [tf.stack(x) for x in zip(*found, strict=True)])

    def _by_head(self, deter: tf.Tensor, heads: Heads) -> State:
        """Row l of deter [L or 1, N, D] through head l."""
        (kernel, bias), (out_kernel, out_bias) = heads
        hidden = self._act(tf.matmul(deter, kernel) + bias[:, None])
        out = tf.matmul(hidden, out_kernel) + out_bias[:, None]
        return self._named(self._stats(out))

    # The KL term.

    def kl_loss(self, post: State, prior: State, forward: bool = False,
                balance: float = 0.8, free: float = 1.0,
                free_avg: bool = True) -> tuple[tf.Tensor, tf.Tensor]:
        """Balanced KL with free nats. Spec section 3.

        L = (1−b) max(mean KL(q ‖ sg p), free) + b max(mean KL(sg q ‖ p),
        free), the mean over batch and time taken before the max (`free_avg`).

        Returns: the loss [] and the KL per element [B, T]: KL(q ‖ p), with
        `forward` KL(p ‖ q).
        """
        q, p = self.get_dist(post), self.get_dist(prior)

        def clipped(value):
            if free_avg:
                return tf.maximum(tf.reduce_mean(value), free)
            return tf.reduce_mean(tf.maximum(value, free))

        if forward:
            train_post, train_prior = p.stopped().kl(q), p.kl(q.stopped())
        else:
            train_post, train_prior = q.kl(p.stopped()), q.stopped().kl(p)
        loss = ((1 - balance) * clipped(train_post)
                + balance * clipped(train_prior))
        return loss, train_post

    # Pieces.

    @property
    def _classes(self) -> tuple[int, ...]:
        return (self.discrete,) if self.discrete else ()

    def _flat(self, stoch: tf.Tensor) -> tf.Tensor:
        if not self.discrete:
            return stoch
        shape = tf.concat([tf.shape(stoch)[:-2], [self.stoch_flat]], 0)
        flat = tf.reshape(stoch, shape)
        return tf.ensure_shape(flat, (*stoch.shape[:-2], self.stoch_flat))

    def _divided(self, layer: Dense, x: tf.Tensor, offset: int,
                 ) -> tuple[tf.Tensor, tf.Tensor]:
        """A layer on [state, x], in two: x W[offset:] + b, and W[:offset].

        The first part needs no recurrence; cutting the kernel outside of the
        loop keeps its gradient from being padded at every step.
        """
        kernel = layer.cast_kernel()
        state_kernel, x_kernel = tf.split(
            kernel, [offset, kernel.shape[0] - offset])
        bias = tf.cast(layer.bias, self.dtype)
        return tf.matmul(tf.cast(x, self.dtype), x_kernel) + bias, state_kernel

    def _stats(self, x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        x = tf.cast(x, tf.float32)
        if self.discrete:
            shape = tf.concat(
                [tf.shape(x)[:-1], [self.stoch, self.discrete]], 0)
            logit = tf.reshape(x, shape)
            return (tf.ensure_shape(
                logit, (*x.shape[:-1], self.stoch, self.discrete)),)
        mean, raw = tf.split(x, 2, -1)
        return mean, self._std_act(raw) + self._min_std

    def _named(self, stats) -> State:
        names = ('logit',) if self.discrete else ('mean', 'std')
        return dict(zip(names, stats, strict=True))


def _time_major(x: tf.Tensor) -> tf.Tensor:
    """Swap the first two axes."""
    return tf.transpose(x, [1, 0, *range(2, len(x.shape))])
