"""The builder's parts: recipes, selection, state episodes, command line."""

from __future__ import annotations

import json

import imageio
import numpy as np
import pytest

import run
from datasets import (
    behaviour,
    build,
    probes,
    recipes,
    rendering,
    state_episodes,
)
from datasets.selection import select
from dreamerv2_base.envs.dmc import DMC
from dreamerv2_base.errors import UserError
from semopo_tf import data_match, doctor, settings
from semopo_tf.environments import EnvSpec

INF = float('inf')


def options(*arguments):
    """What the parser makes of `data build …`."""
    return run.parser().parse_known_args(['data', 'build', *arguments])


def call(*arguments):
    known, rest = options(*arguments)
    return known.call(known, rest)


def make_states(folder, returns, name='set', terminal=()):
    """State episodes with given returns, three rows each."""
    states = state_episodes.EpisodeFolder(folder, name)
    for number, value in enumerate(returns):
        states.write(number, {
            'physics': np.full((3, 2), number, np.float64),
            'state': np.float32([[number, row] for row in range(3)]),
            'action': np.float32([[0], [.1], [.2]]),
            'reward': np.float32([0, value / 2, value / 2]),
            'is_first': np.array([True, False, False]),
            'is_last': np.array([False, False, True]),
            'is_terminal': np.array([False, False, number in terminal]),
            'seed': np.array(number, np.int64)})
    return states


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize('task', [
    'walker_walk', 'cheetah_run', 'hopper_hop', 'humanoid_walk',
    'car_racing'])
def test_counts_are_table_3s(task):
    counts = {level: recipes.RECIPES[f'{task}_{level}'].episodes
              for level in ('random', 'medium_replay', 'medium')}
    assert counts == {'random': 200, 'medium_replay': 400, 'medium': 200}


@pytest.mark.parametrize(('name', 'band'), [
    ('walker_walk_random', (-INF, 200)),
    ('walker_walk_medium_replay', (-INF, 400)),
    ('walker_walk_medium', (401.5, 598.0)),
    ('cheetah_run_random', (-INF, 200)),
    ('cheetah_run_medium_replay', (-INF, 400)),
    ('cheetah_run_medium', (300.5, 403.2)),
    ('hopper_hop_random', (-INF, 20)),
    ('hopper_hop_medium_replay', (-INF, 40)),
    ('hopper_hop_medium', (40.3, 84.9)),
    ('humanoid_walk_random', (-INF, 6)),
    ('humanoid_walk_medium_replay', (-INF, 360)),
    ('humanoid_walk_medium', (526.5, 609.4)),
    ('car_racing_random', (-INF, 150)),
    ('car_racing_medium_replay', (-INF, 300)),
    ('car_racing_medium', (302.3, 449.9))])
def test_bands_are_those_inferred_from_table_3(name, band):
    assert recipes.RECIPES[name].band == band


def test_the_levels_of_a_task_share_their_training_run():
    words = {name: behaviour.words(recipe, build.resolve(recipe, []))
             for name, recipe in recipes.RECIPES.items()}
    assert (words['walker_walk_random'] == words['walker_walk_medium_replay']
            == words['walker_walk_medium'])
    assert words['walker_walk_random'] != words['cheetah_run_random']


def test_an_unknown_set_names_the_nearest():
    with pytest.raises(UserError, match='nearest: walker_walk_medium'):
        recipes.find('walker_walk_medum')


# -------------------------------------------------------------- selection


def chosen(returns, band, count, pick):
    return select(returns, band, count, pick, 'BUFFER', 'more --steps')


def test_in_order_takes_evenly_among_the_allowed():
    returns = [10, 500, 20, 30, 200, 40, 50]  # the band is open at its end
    assert chosen(returns, (-INF, 200), 3, 'order') == [0, 3, 6]


def test_first_takes_the_first_in_the_band():
    returns = [400, 450, 600, 401.5, 598, 500]
    assert chosen(returns, (401.5, 598), 3, 'first') == [1, 3, 5]


def test_spread_takes_returns_evenly_in_order_of_collection():
    returns = [0, 1, 2, 100, 3, 48, 700, 4, 25, 5, 74]
    assert chosen(returns, (0, 600), 5, 'spread') == [0, 3, 5, 8, 10]


def test_spread_takes_every_episode_once():
    assert chosen([5, 5, 5, 5, 100], (0, 600), 5, 'spread') == list(range(5))


def test_too_few_in_the_band_tells_what_helps():
    with pytest.raises(UserError) as error:
        chosen([10, 250, 30], (-INF, 200), 3, 'order')
    assert str(error.value) == (
        'BUFFER: expected 3 episodes with returns in [-inf, 200), found 2 of '
        '3; give --episodes 2, or a new --buffer with more --steps')


def test_none_in_the_band_does_not_suggest_none():
    with pytest.raises(UserError, match='found 0 of 1; give a new --buffer'):
        chosen([300], (-INF, 200), 3, 'order')


# --------------------------------------------------------- state episodes


def test_states_as_transitions(tmp_path):
    import h5py
    folder = make_states(tmp_path / 'states', [3.0, 5.0], terminal=[1])
    path = tmp_path / 'states.hdf5'
    state_episodes.write_transitions(folder.files(), path)
    with h5py.File(path) as file:
        found = {key: file[key][:].tolist() for key in file}
    assert found['observations'] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert found['next_observations'] == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert found['rewards'] == [1.5, 1.5, 2.5, 2.5]
    assert np.allclose(found['actions'], [[.1], [.2], [.1], [.2]])
    assert found['terminals'] == [False, False, False, True]
    assert found['timeouts'] == [False, True, False, False]


def test_a_gap_in_a_buffer_is_an_error(tmp_path):
    folder = make_states(tmp_path, [1, 2, 3])
    folder.files()[1].unlink()
    with pytest.raises(UserError, match='expected episode 1 of this buffer'):
        folder.files()


def test_a_broken_state_episode_is_an_error(tmp_path):
    path = make_states(tmp_path, [1]).files()[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match='a broken file'):
        state_episodes.read(path)


def test_an_episode_depends_on_its_seed_alone():
    """Not on the environments beside it, nor on what they did before."""
    config = build.resolve(
        recipes.RECIPES['walker_walk_random'], ['--time_limit', '12'])
    tasks = state_episodes.make_tasks(config, 'walker_walk', 2)

    def actor(rows):
        return np.sin(rows['state'][:, :6])

    alone, = state_episodes.run(tasks[:1], actor, [3])
    _, beside = state_episodes.run(tasks, actor, [8, 3])
    assert alone['reward'].shape == (7,)
    assert alone['is_last'].tolist() == [False] * 6 + [True]
    assert not alone['is_terminal'].any()
    assert alone.keys() == beside.keys()
    for key, value in alone.items():
        np.testing.assert_array_equal(value, beside[key])


# ----------------------------------------------------------- command line


def test_no_task_beside_the_set():
    with pytest.raises(UserError, match='expected no --task'):
        call('walker_walk_random', '--task', 'dmc_walker_walk')


def test_no_episodes_are_no_set():
    with pytest.raises(UserError, match='expected at least 1, found 0'):
        call('walker_walk_random', '--episodes', '0')


def test_a_misspelt_key_is_an_error():
    with pytest.raises(UserError, match='behavior'):
        call('walker_walk_random', '--behavior.max_rounds', '3')


def test_a_scripted_set_and_its_manifest(tmp_path, capsys):
    out, buffer = tmp_path / 'set', tmp_path / 'buffer'
    arguments = (
        'cartpole_swingup_scripted', '--episodes', '3', '--out', str(out),
        '--buffer', str(buffer), '--time_limit', '8', '--workers', '1',
        '--video_dir', 'procedural', '--video_frames', '20')
    assert call(*arguments) == 0
    assert 'cartpole_swingup_scripted: 3 episodes' in capsys.readouterr().out
    manifest = out / 'manifest.json'
    known = json.loads(manifest.read_text())
    assert known['totals']['episodes'] == 3
    assert known['totals']['rows'] == 15
    recipe = known['recipe']
    assert recipe['set']['policy'] == 'cartpole_mixed'
    assert recipe['buffer']['seed'] == 0
    assert recipe['frames']['video_dir'] == 'procedural'
    assert 'videos' not in recipe
    assert len(recipe['episodes']) == 3
    assert set(recipe['versions']) == {
        'tensorflow', 'dm-control', 'mujoco', 'numpy', 'commit'}
    assert len(recipe['probes']) == 3
    assert probes.differences(out, recipe) == [0, 0, 0]
    before = manifest.read_text()
    assert call(*arguments) == 0
    assert manifest.read_text() == before  # there was nothing to do

    with pytest.raises(UserError, match='another seed'):
        call(*arguments, '--seed', '1')
    with pytest.raises(UserError, match='found 2000'):
        call(*arguments, '--scene', 'grey_floor')


def test_frames_that_another_machine_draws_otherwise(tmp_path, capsys):
    """As a set that was drawn by another camera; a file that is gone; a set
    that is not known to be drawn here; none."""
    arguments = ('cartpole_swingup_scripted', '--episodes', '2', '--buffer',
                 str(tmp_path / 'buffer'), '--time_limit', '8', '--workers',
                 '1', '--shadows', 'False')

    def doctor_says(out):
        found = doctor.Findings()
        doctor.check_frames(settings.resolve(
            ['--configs', 'released', '--offline_dir', str(out)])[0], found)
        return capsys.readouterr().out, found.remarks, found.problems

    for name, videos in (('plain', 'none'), ('videos', 'procedural')):
        out = tmp_path / name
        assert call(*arguments, '--out', str(out), '--video_dir', videos) == 0
        capsys.readouterr()
        assert doctor_says(out) == (
            f'frames of {out}: 2 drawn again, mean difference at most 0.00 of '
            '255\n', [], [])
        path = out / 'manifest.json'
        known = json.loads(path.read_text())
        known['recipe']['frames']['camera'] = 1
        path.write_text(json.dumps(known))
        [remark] = doctor_says(out)[1]
        assert 'draws other frames' in remark
    file = out / known['recipe']['probes'][0]['file']
    file.unlink()
    assert str(file) in doctor_says(out)[2][0]
    path.unlink()
    assert 'no states are kept' in doctor_says(out)[0]
    assert doctor_says(tmp_path / 'gone')[0].endswith('not there yet\n')


def test_a_probe_counts_every_pixel_without_video(tmp_path):
    image = np.zeros((3, 64, 64, 3), np.uint8)
    env = DMC('cartpole_swingup')
    env.reset(0)
    physics = env.get_state()
    image[1] = env.render()
    image[1, 0, 0] ^= 128  # of the sky: behind it there may be a video
    np.savez(tmp_path / 'a.npz', image=image, reward=np.zeros(3, np.float32),
             action=np.zeros((3, 1), np.float32))
    for videos, expected in (('none', 128 / 64 ** 2), ('procedural', 0)):
        spec = EnvSpec('cartpole_swingup', video_dir=videos)
        assert probes.differences(tmp_path, {
            'frames': rendering.settings(spec),
            'probes': [{'file': 'a.npz', 'row': 1, 'seed': 0,
                        'physics': physics.tolist()}]}) == [expected]
    env.close()


def test_a_set_records_its_videos(tmp_path):
    videos, out = tmp_path / 'videos', tmp_path / 'set'
    videos.mkdir()
    for name in 'ab':
        imageio.mimwrite(videos / f'{name}.mp4', [
            np.zeros((32, 32, 3), np.uint8)] * 2, fps=10)
    assert call(
        'cartpole_swingup_scripted', '--episodes', '1', '--out', str(out),
        '--buffer', str(tmp_path / 'buffer'), '--time_limit', '8',
        '--workers', '1', '--video_dir', str(videos),
        '--video_frames', '4') == 0
    found = json.loads((out / 'manifest.json').read_text())['recipe']
    assert sorted(found['videos']) == [
        [path.name, path.stat().st_size] for path in sorted(videos.iterdir())]


def test_a_sets_own_preset_says_what_its_frames_look_like():
    recipe = recipes.find('cartpole_swingup_mixed')
    assert build.resolve(recipe, []).dmc_camera == 1
    assert build.resolve(recipe, ['--dmc_camera', '0']).dmc_camera == 0
    recipe = recipes.find('walker_walk_mixed')
    assert build.resolve(recipe, []).dmc_camera == -1


def test_training_tells_where_evaluation_shows_something_else(tmp_path):
    def notes(*flags):
        return data_match.recipe_notes(settings.resolve([
            '--configs', 'released', '--offline_dir', str(tmp_path),
            '--task', 'dmcdrv_cartpole_swingup', *flags])[0])

    assert notes('--video_dir', 'videos') == []
    assert 'drawn backgrounds' in notes()[0]
    spec = EnvSpec('cartpole_swingup', camera=1, shadows=False)
    (tmp_path / 'manifest.json').write_text(json.dumps({
        'format': 1, 'recipe': {'frames': rendering.settings(spec)}}))
    camera, shadows = notes('--dmc_camera', '-1')
    assert camera == ('dmc_camera: the data were rendered with 1, this run is '
                      'evaluated with 0; give --dmc_camera 1')
    assert shadows.endswith('give --shadows False')
    assert notes('--dmc_camera', '1', '--shadows', 'False') == []
