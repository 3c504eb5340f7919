"""World model and actor-critic as one agent. Spec sections 4, 6 and 9."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from dreamerv2_base.actor_critic import ActorCritic, Imagined
from dreamerv2_base.config import Config
from dreamerv2_base.nets import Scope
from dreamerv2_base.noise import CounterDraws, Draws
from dreamerv2_base.rssm import State
from dreamerv2_base.tf import compute_dtype, tf
from dreamerv2_base.world_model import (
    Batch,
    Metrics,
    Outputs,
    WorldModel,
    flatten_time,
)


class Agent(tf.Module):
    """DreamerV2. Subclasses change the model (`make_world_model`) and the
    imagined reward (`reward`).

    Args:
      config: the resolved configuration.
      image: shape of an observation, (height, width, 3).
      action_size: A.
    """

    def __init__(self, config: Config, image: tuple[int, int, int],
                 action_size: int):
        super().__init__()
        self.config, self.action_size = config, action_size
        root = Scope(config.seed, '', compute_dtype(config.precision))
        self.world_model = self.make_world_model(
            config, image, action_size, root / 'world_model')
        self.behavior = ActorCritic(
            config, self.world_model.rssm.feat_size, action_size,
            root / 'behavior')

    def make_world_model(self, config: Config, image: tuple[int, int, int],
                         action_size: int, scope: Scope) -> WorldModel:
        """The world model of this agent; the arguments are WorldModel's."""
        return WorldModel(config, image, action_size, scope)

    # Learning.

    def model_train(self, batch: Batch, draws: Draws,
                    ) -> tuple[Outputs, Metrics]:
        """One update of the world model on chunks [B, T]."""
        return self.world_model.train(batch, draws)

    def agent_train(self, batch: Batch, draws: Draws,
                    ) -> tuple[Outputs, Metrics]:
        """One update of actor and critic; the world model is frozen."""
        data = self.world_model.preprocess(batch)
        _, post, _ = self.world_model.filter(
            data, draws.scope('endo'), learn=False)
        return self.behave(post, batch, draws)

    def train(self, batch: Batch, draws: Draws) -> tuple[Outputs, Metrics]:
        """One joint update of everything, with the unpenalised reward."""
        outputs, metrics = self.world_model.train(batch, draws)
        more, found = self.behave(outputs['post'], batch, draws, joint=True)
        return {**outputs, **more}, {**metrics, **found}

    def behave(self, post: State, batch: Batch, draws: Draws,
               joint: bool = False) -> tuple[Outputs, Metrics]:
        """Actor-critic update from all T posteriors of each chunk."""
        start = {key: tf.stop_gradient(flatten_time(value))
                 for key, value in post.items()}
        terminal = flatten_time(batch['is_terminal'])
        reward = self.model_reward if joint else self.reward
        return self.behavior.train(
            self.world_model, start, reward, draws, terminal)

    def model_reward(self, seq: Imagined) -> tuple[tf.Tensor, Outputs]:
        """The reward head's mean, [H+1, N]."""
        return self.world_model.heads['reward'](seq['feat']).mode(), {}

    def reward(self, seq: Imagined) -> tuple[tf.Tensor, Outputs]:
        """The reward that the policy is trained on, [H+1, N]."""
        return self.model_reward(seq)

    # Acting.

    def initial(self, count: int, key: int) -> dict[str, tf.Tensor]:
        """Policy state of `count` environments; `key` fixes its draws."""
        state = self.world_model.rssm.initial(count)
        return {**state, 'action': tf.zeros((count, self.action_size)),
                'counter': tf.constant(key, tf.int64)}

    @functools.partial(tf.function, autograph=False)
    def act(self, image: tf.Tensor, is_first: tf.Tensor,
            state: Mapping[str, tf.Tensor], explore: bool = False,
            ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Action [N, A] for images [N, h, w, 3], and the next state.

        Evaluation takes the actor's mode from a sampled posterior
        (`eval_state_mean` takes the posterior's mode).
        """
        draws = CounterDraws(self.config.seed, 'act', state['counter'])
        action, latent = self.act_step(
            image, is_first, state, draws, explore)
        return action, {**latent, 'action': action,
                        'counter': state['counter'] + 1}

    def act_step(self, image: tf.Tensor, is_first: tf.Tensor,
                 state: Mapping[str, tf.Tensor], draws: Draws,
                 explore: bool = False) -> tuple[tf.Tensor, State]:
        """One step of `act` with given draws (sites endo/…, action)."""
        data = {'image': tf.cast(image, self.world_model.dtype) / 255.0 - 0.5,
                'action': state['action'], 'is_first': is_first}
        data = {key: value[:, None] for key, value in data.items()}
        latent = {k: state[k] for k in state if k not in ('action', 'counter')}
        sample = explore or not self.config.eval_state_mean
        _, post, _ = self.world_model.filter(
            data, draws.scope('endo'), latent, sample, learn=False)
        latent = {key: value[:, 0] for key, value in post.items()}
        actor = self.behavior.actor(self.world_model.rssm.get_feat(latent))
        if explore:
            noise = draws.uniform('action', tuple(actor.loc.shape))
            return actor.sample(noise), latent
        action = actor.mode()
        if self.config.eval_noise:
            noise = draws.normal('eval_noise', tuple(action.shape))
            action = tf.clip_by_value(
                action + self.config.eval_noise * noise, -1.0, 1.0)
        return action, latent

    def policy(self, observation: Mapping[str, np.ndarray],
               state: dict | None, key: int = 0,
               explore: bool = False) -> tuple[np.ndarray, dict]:
        """Batched policy for rollouts: actions [N, A] as NumPy."""
        if state is None:
            state = self.initial(len(observation['image']), key)
        action, state = self.act(
            tf.convert_to_tensor(observation['image']),
            tf.convert_to_tensor(observation['is_first']), state, explore)
        return action.numpy(), state
