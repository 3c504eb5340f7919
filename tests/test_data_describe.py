"""`run.py data describe` and `list`, and the numbers behind them."""

from __future__ import annotations

import base64
import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import run
from datasets import build, describe, registry, scene, table3
from datasets.validate import Report, validate
from dreamerv2_base.errors import UserError
from semopo_tf import settings
from tests.helpers import ROOT, make_folder


def test_action_statistics():
    found = describe.action_statistics(np.array(
        [[-1, 0.0], [-1, 0.5], [1, 0.0], [1, 0.5]]))
    assert found.mean.tolist() == [0, 0.25]
    assert found.std.tolist() == [1, 0.25]
    assert found.limit.tolist() == [1, 0]
    assert found.shares[0, [0, -1]].tolist() == [0.5, 0.5]
    # Two bins of a half each, per dimension: 2 ln 2.
    assert found.histogram_entropy == pytest.approx(1.3862944)
    # ½ ln det(2πe diag(1, 1/16)): ln(2πe) + ln(1/4).
    assert found.gaussian_entropy == pytest.approx(1.4515827)
    flat = describe.action_statistics(np.zeros((5, 2)))
    assert flat.histogram_entropy == 0
    assert flat.gaussian_entropy == -np.inf


def test_uniform_actions_are_near_the_bound():
    rng = np.random.default_rng(0)
    found = describe.action_statistics(rng.uniform(-1, 1, (20000, 1)))
    assert found.histogram_entropy == pytest.approx(np.log(50), abs=0.01)


def test_statistics():
    found = table3.statistics([4, 1, 2, 3])
    assert found == table3.Statistics(
        2.5, 1.118033988749895, 1.0, 1.75, 2.5, 3.25, 4.0)
    assert table3.Statistics(maximum=3.0).known() == {'maximum': 3.0}


# Baselines 6.6: maximum of `random`, of `medium_replay`, range of `medium`;
# 10.1: smallest and largest return of all three.
@pytest.mark.parametrize(('task', 'random', 'replay', 'medium', 'all_three'), [
    ('walker_walk', 199.1, 398.2, (401.5, 598.0), (5.0, 598.0)),
    ('cheetah_run', 198.2, 396.5, (300.5, 403.2), (1.7, 403.2)),
    ('hopper_hop', 19.5, 39.9, (40.3, 84.9), (0.0, 84.9)),
    ('humanoid_walk', 5.7, 359.0, (526.5, 609.4), (0.0, 609.4)),
    ('car_racing', 149.2, 297.3, (302.3, 449.9), (-82.0, 449.9))])
def test_extremes_of_table_3(task, random, replay, medium, all_three):
    levels = [table3.TABLE[task, level]
              for level in ('random', 'medium_replay', 'medium')]
    assert [one.maximum for one in levels] == [random, replay, medium[1]]
    assert levels[2].minimum == medium[0]
    assert table3.RANGES[task] == all_three


def test_other_numbers_of_table_3():
    """Of `random`, and Car Racing's minima (baselines 6.6 and 10.6)."""
    assert table3.TABLE['cheetah_run', 'random'].mean == 78
    assert table3.TABLE['hopper_hop', 'random'].median == 0
    car = [table3.TABLE['car_racing', level]
           for level in ('random', 'medium_replay')]
    assert car[0].mean == 10.3
    assert [one.minimum for one in car] == [-82, -82]


def test_a_deviation_is_no_return(tmp_path):
    """It has no place among the lines on the axis of returns."""
    named = dataclasses.replace(
        registry.find('walker_walk_random'),
        statistics=table3.Statistics(mean=40.0, std=7.0, maximum=90.0))
    figure = describe._returns_figure(Report(tmp_path, named, [], []))
    axes, = figure.axes
    assert [text.get_text().strip() for text in axes.texts] == [
        'mean', 'maximum']
    assert [line.get_xdata()[0] for line in axes.lines] == [40.0, 90.0]


def test_contact_sheet():
    image = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 4, 4, 3), np.uint8)
    sheet = describe.contact_sheet([image, image])
    assert sheet.shape == (12, 60, 3)
    assert sheet[3, 3::6, 0].tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16, 19]
    assert (sheet[0] == 255).all()


def page_of(folder: Path) -> str:
    assert run.main(['data', 'describe', str(folder)]) == 0
    return (folder / 'describe.html').read_text()


def test_page(tmp_path, capsys):
    folder = make_folder(tmp_path / 'walker_walk' / 'random', 9, rows=12)
    page = page_of(folder)
    assert capsys.readouterr().out.strip() == str(folder / 'describe.html')
    assert '<h1>walker_walk_random</h1>' in page
    assert 'http' not in re.sub(r'base64,[^"]*', '', page)  # of its own
    assert '99 actions' in page  # 9 episodes of 11, resets left out
    assert 'DIFFERS rows: 9 of 9 episodes: 12 rows' in page
    code = re.search(r'image/png;base64,([^"]*)', page)[1]
    sheet = cv2.imdecode(np.frombuffer(base64.b64decode(code), np.uint8), 1)
    assert sheet.shape == (7 * 66, 10 * 66, 3)
    # The first row is the episode of the lowest return.
    lowest = min(folder.glob('*.npz'),
                 key=lambda path: np.load(path)['reward'].sum())
    np.testing.assert_array_equal(
        sheet[1:65, 1:65, ::-1], np.load(lowest)['image'][0])


def test_page_names_broken_files(tmp_path, capsys):
    folder = make_folder(tmp_path / 'a', 3, rows=12)
    broken = sorted(folder.glob('*.npz'))[0]
    broken.write_bytes(b'no')
    assert broken.name in page_of(folder)
    for path in folder.glob('*.npz'):
        path.write_bytes(b'no')
    with pytest.raises(UserError, match=r'see run\.py data validate'):
        describe.describe(validate(folder), tmp_path / 'x.html')
    assert not (tmp_path / 'x.html').exists()


def look_of(colour, noise=0.0):
    rng = np.random.default_rng(0)
    image = np.asarray(colour) + noise * rng.standard_normal((20, 64, 64, 1))
    return scene.look(np.broadcast_to(
        np.clip(image, 0, 255), (20, 64, 64, 3)).astype(np.uint8))


@pytest.mark.parametrize(('colour', 'kind'), [
    ([20, 40, 80], 'plain'), ([120, 120, 120], 'grayscale video'),
    ([40, 90, 60], 'colour video')])
def test_backgrounds_are_told_apart(colour, kind):
    """Real frames: tests/test_data_validate.py."""
    judged = scene.judge([look_of(colour, 5)], 'walker_walk')
    assert judged['background'] == kind
    both = scene.judge([look_of([20, 40, 80]), look_of([90, 90, 90])],
                       'walker_walk')
    assert both['background'] == 'mixed'


# The registry.


def test_registry():
    assert len(registry.SETS) == 15 + 30 + 2
    lqv = [one for one in registry.SETS.values() if one.family == 'lqv']
    assert len(lqv) == 15
    assert sum(one.episodes[0] for one in lqv) == 5 * (200 + 400 + 200)
    for one in lqv:
        low, high = table3.RANGES[one.task]
        for value in one.statistics.known().values():
            assert low <= value <= high, one.name


@pytest.mark.parametrize(('path', 'name'), [
    ('data/lqv_d4rl/walker_walk/random', 'walker_walk_random'),
    ('x/cheetah_run/medrep', 'cheetah_run_medium_replay'),
    ('x/hopper_hop_medium', 'hopper_hop_medium'),
    ('vd4rl_data/main/walker_walk/medium_expert/84px',
     'vd4rl_walker_walk_medium_expert_84px'),
    ('vd4rl_data/main/walker_walk/random', 'vd4rl_walker_walk_random_64px'),
    ('vd4rl_data/distracting/walker_walk/random/84px', None),
    ('walker_walk', None), ('some/random/folder', None)])
def test_sets_are_guessed_from_paths(tmp_path, path, name):
    found = registry.guess(tmp_path / path)
    assert (found and found.name) == name


def test_unknown_name_has_a_neighbour():
    with pytest.raises(UserError, match='nearest: walker_walk_random'):
        registry.find('walker_walk_randm')


def test_list(tmp_path, capsys):
    make_folder(tmp_path / 'lqv_d4rl' / 'walker_walk' / 'random', 1, rows=3)
    assert run.main(['data', 'list', '--data', str(tmp_path),
                     '--family', 'lqv']) == 0
    text = capsys.readouterr().out
    assert len([line for line in text.splitlines() if 'npz' in line]) == 15
    row = next(line for line in text.splitlines()
               if 'walker_walk_random ' in line)
    assert '199.1' in row
    assert 'yes' in row
    assert text.count('yes') == 1
    assert run.main(['data', 'list', 'car_racing_random']) == 0
    text = capsys.readouterr().out
    assert 'rows:            not known here\n' in text
    assert 'returns:         mean 10.3, minimum -82, maximum 149.2' in text


def test_data_tools_do_without_tensorflow(tmp_path):
    """And help is there at once."""
    code = ("import sys, run\n"
            "try: run.main(['data', '--help'])\n"
            "except SystemExit: pass\n"
            "run.main(['data', 'list', 'walker_walk_random'])\n"
            "from datasets import convert, describe, validate\n"
            "assert 'tensorflow' not in sys.modules\n"
            "assert 'mujoco' not in sys.modules\n")
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=False,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ('list', 'validate', 'describe', 'convert', 'build'):
        assert word in done.stdout


README = (ROOT / 'datasets' / 'README.md').read_text()


@pytest.mark.parametrize('line', [
    line.split('  #')[0].removeprefix('python run.py ')
    for line in README.splitlines() if line.startswith('python run.py ')])
def test_commands_of_the_readme_are_accepted(line):
    given = shlex.split(line)
    options, rest = run.parser().parse_known_args(given)
    if given[:2] == ['data', 'build']:
        build.resolve(build.wanted(options), rest)
    elif options.command == 'data':
        assert rest == []
    else:
        settings.resolve(rest)


def test_every_check_is_explained():
    source = (ROOT / 'datasets' / 'checks.py').read_text()
    names = {*re.findall(r"Finding\(\s*'(\w+)'", source),
             *re.findall(r"_each\(\w+, '(\w+)'", source), 'shard_cut',
             'unreadable', 'missing_file', 'extra_file', 'changed_file',
             'time_reversed', 'colour_background'}
    assert len(names) > 20
    for name in names:
        assert f'`{name}`' in README, name
