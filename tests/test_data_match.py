"""Data of another task, background or scene than the evaluation's."""

from __future__ import annotations

import numpy as np
import pytest

from dreamerv2_base.episodes import write_episode
from dreamerv2_base.errors import UserError
from dreamerv2_base.store import open_store
from semopo_tf import data_match, settings
from tests.helpers import make_episode


def config_of(*flags):
    return settings.resolve(['--configs', 'released', *flags])[0]


@pytest.mark.parametrize(('folder', 'task', 'flag'), [
    ('cheetah_run/random', 'dmcdrv_walker_walk', '--task dmcdrv_cheetah_run'),
    ('walker_walk/medrep', 'dmc_hopper_hop', '--task dmc_walker_walk'),
    ('car_racing/random', 'dmcdrv_walker_walk', '--task car_racing'),
    ('walker_walk/random', 'dmcdrv_walker_walk', None),
    ('car_racing/random', 'gym_carracing', None),
    ('mine', 'dmcdrv_walker_run', None)])
def test_task_by_the_names_of_folders(tmp_path, folder, task, flag):
    config = config_of('--task', task, '--offline_dir',
                       str(tmp_path / folder))
    if flag is None:
        data_match.check_task(config)
    else:
        with pytest.raises(UserError, match=flag):
            data_match.check_task(config)


@pytest.mark.parametrize(('flags', 'background', 'floor', 'given'), [
    ('--task dmcdrv_walker_walk', 'grayscale video', 'video floor', []),
    ('--task dmcdrv_walker_walk', 'colour video', 'unclear',
     ['--background_grayscale False']),
    ('--background_grayscale False', 'grayscale video', 'unclear',
     ['--background_grayscale True']),
    ('--task dmcdrv_walker_walk', 'plain', 'plain floor',
     ['--task dmc_walker_walk']),
    ('--task dmc_walker_walk', 'plain', 'plain floor', []),
    ('--task dmc_walker_walk', 'colour video', 'unclear',
     ['--task dmcdrv_walker_walk']),
    ('--task dmcdrv_walker_walk', 'grayscale video', 'grey floor',
     ['--scene grey_floor']),
    ('--scene grey_floor', 'grayscale video', 'video floor',
     ['--scene stock']),
    ('--task car_racing', 'its own', 'its own', []),
    ('--task dmcdrv_walker_walk', 'mixed', 'mixed', [])])
def test_what_is_seen_against_what_is_evaluated(
        flags, background, floor, given):
    notes = data_match.compare(config_of(*flags.split()), background, floor)
    assert [note.split('give ')[1] for note in notes] == given


def test_frames_of_the_data_are_looked_at(tmp_path):
    """Gray noise before a task without videos."""
    episode = make_episode()
    episode['image'] = np.repeat(episode['image'][..., :1], 3, -1)
    write_episode(tmp_path, episode, 0, f'{0:032x}')
    store = open_store([tmp_path])
    folder = ['--offline_dir', str(tmp_path)]
    notes = data_match.scene_notes(
        config_of('--task', 'dmc_humanoid_walk', *folder), store)
    assert len(notes) == 1
    assert 'show grayscale video' in notes[0]
    assert not data_match.scene_notes(
        config_of('--task', 'dmcdrv_humanoid_walk', *folder), store)
