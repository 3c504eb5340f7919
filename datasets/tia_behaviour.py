"""TIA as a behaviour policy: the way LQV-D4RL was collected.

Its run folder is `run/` in the buffer (`semopo_tf.online`, spec of the
baselines 6.4). When training is over, the episodes of its buffer are brought
back from their seeds and actions as simulator states; from there on all is as
with other policies. Car Racing has no states to render from, so there the
episodes stay what the run wrote: frames.

The policy of the medium level is one snapshot, of which whole waves of
episodes are played as in an evaluation, without exploration noise (6.6:
unknown whether the paper's had any) and before the videos of an evaluation,
not those that the policy was trained on: a policy that is frozen is measured,
and its level should not be that of videos known by heart. They only decide
what it does; the frames of the set are rendered anew, before the videos of
the set as all of its episodes are. Every wave is a pure function of the
run, the snapshot and its number, so a build that was killed ends in the same
files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets import recipes, state_episodes
from datasets.behaviour import TRIES, Stopped, lies, within
from datasets.recipes import Recipe
from datasets.state_episodes import Arrays, EpisodeFolder, StateTask
from dreamerv2_base.config import Config
from dreamerv2_base.envs.rollout import Finished, episode_seed
from dreamerv2_base.episodes import KEYS
from dreamerv2_base.errors import UserError
from dreamerv2_base.files import write_json
from dreamerv2_base.logger import Progress
from dreamerv2_base.noise import fold
from semopo_tf import commands, online
from semopo_tf.evaluation import Evaluator

NEAR = 8  # training episodes before and after a snapshot that speak for it


class Training:
    """A run of TIA in a buffer (`datasets.behaviour.Behaviour`)."""

    def __init__(self, recipe: Recipe, config: Config, folder: Path,
                 identity: str):
        self._run, self._folder = folder / 'run', folder
        self._config = config.update({'logdir': str(self._run)})
        self._recipe, self._identity = recipe, identity
        self._path = folder / 'trained.json'
        self._keeper = _Frames() if recipe.kept == 'frames' else _States(
            self._config, recipe.task,
            EpisodeFolder(folder / 'episodes', identity))
        self.outcome: dict[str, Any] | None = None

    def train(self) -> dict[str, Any]:
        """Train to the end, or go on; then keep what was collected."""
        if not self._path.exists():
            code = commands.train_run(
                self._config, [recipes.TIA_PRESETS[self._recipe.task]], [],
                'the same command')
            if code:
                raise Stopped(code)
            write_json(self._path, {
                'decisions': self._config.steps,
                'episodes': len(online.collected(self._run)),
                'snapshots': online.snapshots(self._run)})
        self.outcome = json.loads(self._path.read_text())
        files = self._files()
        path = self._folder / 'states.hdf5'
        if self._recipe.kept == 'states' and not path.exists():
            state_episodes.write_transitions(files, path)
        return self.outcome

    def episodes(self, count: int) -> list[Path]:
        """Those of the run, its uniform ones (`prefill`) included."""
        return self._files()

    def frozen(self, count: int, band: Sequence[float]) -> list[Path]:
        """Episodes of one snapshot, see `datasets.behaviour.Behaviour`."""
        size = self._config.behaviour.round_episodes
        with _Player(self._run, self._config) as player:
            decisions = self._search(player, band)
            self.outcome = {**(self.outcome or {}), 'snapshot': decisions}
            inside: list[Path] = []
            bar = Progress(count, 0, 'episodes of the snapshot')
            for number in range(-(-TRIES * count // size)):
                found = [path for path in self._wave(player, decisions, number)
                         if lies(path, band)]
                inside += found
                bar.update(len(found))
                if len(inside) >= count:
                    break
            bar.close()
        return inside

    def _files(self) -> list[Path]:
        return self._keeper.collected(online.collected(self._run))

    def _search(self, player: _Player, band: Sequence[float]) -> int:
        """The snapshot of a policy in a band: its first wave says so.

        Those first whose training returns were nearest the band's middle.
        """
        order = self._by_nearness(float(np.mean(band)))
        means: list[float] = []
        bar = Progress(len(order), 0, 'snapshots tried')
        for decisions in order:
            returns = [state_episodes.total_of(path)
                       for path in self._wave(player, decisions, 0)]
            means.append(float(np.mean(returns)))
            bar.update(1)
            bar.show({'reward_mean': means[-1]})
            if within(returns, band):
                bar.close()
                return decisions
        bar.close()
        spread = (f' (means {min(means):.1f} to {max(means):.1f})' if means
                  else '')
        raise UserError(
            f'{self._run}: expected a snapshot whose policy has returns in '
            f'{list(band)}, found none among {len(means)}{spread}; give a new '
            '--buffer with more --steps or another --seed, or --band LOW HIGH')

    def _by_nearness(self, goal: float) -> list[int]:
        found = online.collected(self._run)
        returns = [one.total for one in found]
        ends = np.cumsum([one.rows - 1 for one in found])  # in decisions

        def distance(decisions: int) -> float:
            place = int(np.searchsorted(ends, decisions))
            return abs(float(np.mean(
                returns[max(place - NEAR, 0):place + NEAR])) - goal)

        return sorted(online.snapshots(self._run), key=distance)

    def _wave(self, player: _Player, decisions: int,
              number: int) -> list[Path]:
        """The files of a wave; played unless all of them are there."""
        size = self._config.behaviour.round_episodes
        folder = EpisodeFolder(
            self._folder / 'frozen' / f'{decisions:09d}',
            f'{self._identity}/frozen/{decisions}')
        done = folder.files((number + 1) * size)[number * size:]
        if len(done) == size:
            return done
        seed = fold(self._config.seed, 'frozen', decisions, number) % 2 ** 31
        return [self._keeper.keep(
            folder, number * size + i, episode_seed(seed, i), episode.arrays)
            for i, episode in enumerate(player.play(decisions, size, seed))]


class _States:
    """Keeps episodes as simulator states, from their seeds and actions."""

    def __init__(self, config: Config, task: str, episodes: EpisodeFolder):
        self._config, self._name = config, task
        self._episodes = episodes
        self._task: StateTask | None = None

    def collected(self, found: Sequence[online.Collected]) -> list[Path]:
        """A file for every episode of the run; those missing are made."""
        done = len(self._episodes.files())
        bar = Progress(len(found), done, 'episodes as simulator states')
        for number in range(done, len(found)):
            one = found[number]
            self.keep(self._episodes, number, one.seed, state_episodes.load(
                one.path, ('action', 'reward')))
            bar.update(1)
        bar.close()
        return self._episodes.files()

    def keep(self, folder: EpisodeFolder, number: int, seed: int,
             arrays: Mapping[str, np.ndarray]) -> Path:
        """Write an episode of `seed` with its `action` and `reward`."""
        if self._task is None:
            self._task, = state_episodes.make_tasks(
                self._config, self._name, 1)
        return folder.write(number, replayed(
            self._task, seed, arrays['action'], arrays['reward']))


class _Frames:
    """Keeps episodes as they were seen."""

    def collected(self, found: Sequence[online.Collected]) -> list[Path]:
        """The run's own files."""
        return [one.path for one in found]

    def keep(self, folder: EpisodeFolder, number: int, seed: int,
             arrays: Mapping[str, np.ndarray]) -> Path:
        return folder.write(number, {
            **{key: arrays[key] for key in KEYS},
            'log_seed': np.array(seed, np.int64)})


class _Player:
    """Plays snapshots of a run, one after the other, in the same processes.

    Args:
      run: its folder. config: its configuration.
    """

    def __init__(self, run: Path, config: Config):
        self._run = run
        self._evaluator = Evaluator(config.update(
            {'eval_envs': config.behaviour.round_episodes}))
        self._method: tuple[int, Any] = -1, None

    def play(self, decisions: int, count: int, seed: int) -> list[Finished]:
        """Episodes with all arrays; number i starts from
        `episode_seed(seed, i)`, `seed` below 2^31."""
        if self._method[0] != decisions:
            self._method = decisions, online.snapshot_method(
                self._run, decisions)
        return self._evaluator.play(self._method[1], count, seed, keep=True)

    def __enter__(self) -> _Player:
        return self

    def __exit__(self, *_: object) -> None:
        self._evaluator.close()


def replayed(task: StateTask, seed: int, action: np.ndarray,
             reward: np.ndarray) -> Arrays:
    """An episode as simulator states, from its seed and actions.

    Args:
      task: with the action repeat and the time limit of the episode.
      action: [L, A], row t led to row t; row 0 is not looked at.
      reward: [L] float32, to be found again exactly.

    Raises UserError when another simulator gives other rewards.
    """
    later = iter(action[1:])
    episode, = state_episodes.run(
        [task], lambda rows: next(later, action[0])[None], [seed])
    if not np.array_equal(episode['reward'], reward):
        raise UserError(
            f'episode of seed {seed}: expected the rewards of its seed and '
            'actions again, found others; build with the versions of '
            'dm-control and mujoco that it was collected with (versions.json '
            'of the run), or give a new --buffer')
    return episode
