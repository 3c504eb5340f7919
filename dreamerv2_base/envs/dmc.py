"""DM Control tasks as pixel environments. Spec section 10."""

from __future__ import annotations

import difflib
import logging
from typing import Any

import numpy as np

from dreamerv2_base.envs.opengl import choose_renderer
from dreamerv2_base.errors import UserError

Observation = dict[str, Any]

# Checker colours of the modified suite that DBC and TIA collected with
# (baselines 9.2): stock -> grey, or a more saturated blue.
STOCK_CHECKER = ((.1, .2, .3), (.2, .3, .4))
GREY_CHECKER = ((.1, .1, .1), (.2, .2, .2))
BLUE_CHECKER = ((.1, .1, .4), (.2, .2, .8))
GREY_DOMAINS = ('walker', 'cheetah', 'hopper', 'stacker')


def default_camera(task: str) -> int:
    """The camera of a task, or of all tasks of a domain."""
    return 2 if 'quadruped' in task else 0


class DMC:
    """A task of the DM Control suite.

    Args:
      task: `walker_walk` style name.
      size: (height, width) of the frames.
      action_repeat: control steps per action; their rewards are summed.
      camera: -1 means 0, but 2 for quadruped.
      scene: 'stock', or 'grey_floor' as in DBC and TIA.
      shadows: whether MuJoCo casts shadows.
      time_limit: control steps of an episode; 0 for the task's own.
      state_key: whether observations have a `state`, the simulator's.

    Actions are in [-1, 1]. Raises UserError for an unknown task or
    camera.
    """

    def __init__(self, task: str, size: tuple[int, int] = (64, 64),
                 action_repeat: int = 2, camera: int = -1,
                 scene: str = 'stock', shadows: bool = True,
                 time_limit: int = 0, state_key: bool = False):
        choose_renderer()
        self._random = np.random.RandomState(0)
        self._env, domain = _load(task, self._random)
        if camera == -1:
            camera = default_camera(domain)
        cameras = self.physics.model.ncam
        if not -1 < camera < cameras:
            raise UserError(
                f'dmc_camera: expected 0 to {cameras - 1} in {task}, found '
                f'{camera}; give --dmc_camera -1, the usual one')
        self._size, self._repeat, self._camera = size, action_repeat, camera
        self._limit, self._count = time_limit, 0
        self._state_key = state_key
        spec = self._env.action_spec()
        self._low, self._high = spec.minimum, spec.maximum
        self.action_size = int(np.prod(spec.shape))
        self._last: Any = None
        self._dress(domain, scene, shadows)

    @property
    def physics(self) -> Any:
        """The simulator."""
        return self._env.physics

    def reset(self, seed: int) -> Observation:
        """Start an episode that depends on `seed` alone."""
        self._random.seed(seed % 2 ** 32)
        self._last = self._env.reset()
        self._count = 0
        return self._observation(0.0, first=True)

    def step(self, action: np.ndarray) -> Observation:
        """Hold an action [A] in [-1, 1] for `action_repeat` steps."""
        action = np.clip(np.asarray(action, np.float64), -1, 1)
        control = self._low + (action + 1) / 2 * (self._high - self._low)
        reward = 0.0
        for _ in range(self._repeat):
            self._last = self._env.step(control)
            self._count += 1
            reward += self._last.reward or 0.0
            if self._last.last() or self._over():
                break
        return self._observation(reward)

    def render(self) -> np.ndarray:
        """The frame as it is, uint8 [height, width, 3]."""
        return self.physics.render(*self._size, camera_id=self._camera)

    def segmentation(self) -> np.ndarray:
        """True on the pixels of the robot, bool [height, width].

        That is, of geometries of moving bodies. (A dog is a skin: not seen.)
        """
        import mujoco
        found, kind = np.moveaxis(self.physics.render(
            *self._size, camera_id=self._camera, segmentation=True), -1, 0)
        geometry = kind == mujoco.mjtObj.mjOBJ_GEOM
        # Those of the world body, number 0, are the floor and the scenery.
        body = self.physics.model.geom_bodyid[np.where(geometry, found, 0)]
        return geometry & (body > 0)

    def state(self) -> np.ndarray:
        """The task's own observation, flattened, float32."""
        values = self._last.observation.values()
        return np.concatenate(
            [np.ravel(value) for value in values]).astype(np.float32)

    def get_state(self) -> np.ndarray:
        """Positions, velocities and activations of the simulator, float64."""
        return self.physics.get_state()

    def set_state(self, state: np.ndarray) -> None:
        """Put the simulator into a state of `get_state`; then `render()`."""
        self.physics.set_state(state)
        self.physics.forward()

    def close(self) -> None:
        self._env.close()

    def _over(self) -> bool:
        return bool(self._limit) and self._count >= self._limit

    def _observation(self, reward: float, first: bool = False) -> Observation:
        ended = self._last.last() or self._over()
        terminal = self._last.last() and self._last.discount == 0
        found = {'image': self.render(), 'reward': float(reward),
                 'is_first': first, 'is_last': bool(ended),
                 'is_terminal': bool(terminal)}
        return {**found, 'state': self.state()} if self._state_key else found

    def _dress(self, domain: str, scene: str, shadows: bool) -> None:
        model = self.physics.model
        if scene == 'grey_floor':
            colours = (GREY_CHECKER if domain in GREY_DOMAINS
                       else BLUE_CHECKER)
            _repaint(model, 'grid', dict(
                zip(STOCK_CHECKER, colours, strict=True)))
            _repaint(model, 'skybox', {(1., 1., 1.): (0., 0., 0.)})
        elif scene != 'stock':
            raise UserError(f'scene: expected stock or grey_floor, found '
                            f'{scene!r}; give --scene stock')
        if not shadows:
            model.light_castshadow[:] = 0


def _load(task: str, random: np.random.RandomState) -> tuple[Any, str]:
    from dm_control import suite  # after the choice of a renderer
    known = {f'{domain}_{name}': (domain, name)
             for domain, name in suite.ALL_TASKS}
    # Short names of PlaNet's benchmark.
    known['cup_catch'] = ('ball_in_cup', 'catch')
    if task not in known:
        near = difflib.get_close_matches(task, known, 1)
        hint = f' (nearest: {near[0]})' if near else ''
        raise UserError(f'task: expected a DM Control task, found {task!r}'
                        f'{hint}; give --task dmcdrv_walker_walk')
    domain, name = known[task]
    log = logging.getLogger('absl')
    log.addFilter(_is_news)
    try:
        env = suite.load(domain, name, task_kwargs={'random': random})
    finally:
        log.removeFilter(_is_news)
    return env, domain


def _is_news(record: logging.LogRecord) -> bool:
    """False for a remark of MuJoCo on dm_control's own model files."""
    return "'settotalmass' is deprecated" not in record.getMessage()


def _repaint(model: Any, texture: str,
             colours: dict[tuple, tuple]) -> None:
    """Replace colours of a texture; before the first frame is drawn."""
    names = [model.id2name(i, 'texture') for i in range(model.ntex)]
    if texture not in names:
        return  # a few tasks have no floor
    number = names.index(texture)
    start = model.tex_adr[number]
    count = (model.tex_height[number] * model.tex_width[number]
             * model.tex_nchannel[number])
    channels = int(model.tex_nchannel[number])
    texels = model.tex_data[start:start + count].reshape(-1, channels)
    painted = texels.copy()
    for old, new in colours.items():
        # The compiler truncates colours to bytes; allow for rounding.
        distance = np.abs(texels[:, :3].astype(int) - np.multiply(old, 255))
        painted[(distance < 1.5).all(1), :3] = np.multiply(new, 255)
    model.tex_data[start:start + count] = painted.ravel()
