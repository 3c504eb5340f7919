"""`run.py data validate` tells apart, by name, what can be wrong."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

import run
from datasets import convert, facts, manifest, registry
from datasets.checks import Finding
from datasets.table3 import Statistics
from datasets.validate import prepare, render, validate
from dreamerv2_base.errors import UserError
from tests import data_sets
from tests.data_sets import tiny_set, write_set


@pytest.fixture(scope='module')
def frames():
    """Frames by scene, rendered when first asked for."""
    known: dict[str, np.ndarray] = {}

    def get(name):
        if name not in known:
            known[name] = data_sets.render(name)
        return known[name]
    return get


@pytest.fixture(scope='module')
def clean(tmp_path_factory, frames):
    folder = tmp_path_factory.mktemp('clean') / 'walker_walk' / 'random'
    return write_set(folder, frames('grayscale'))


@pytest.fixture(autouse=True)
def small_sets(monkeypatch):
    for level in ('random', 'medium_replay'):
        monkeypatch.setitem(registry.SETS, f'walker_walk_{level}',
                            tiny_set(level))


def copy(clean, tmp_path, level='random') -> Path:
    return Path(shutil.copytree(clean, tmp_path / 'walker_walk' / level))


def edited(tmp_path, frames, edit, level='random', count=data_sets.COUNT):
    return write_set(tmp_path / 'walker_walk' / level, frames('grayscale'),
                     count, edit)


def found(report) -> dict[str, Finding]:
    """The first finding of every check."""
    return {one.check: one for one in reversed(report.findings)}


def test_clean_set_passes(clean, tmp_path, capsys):
    folder = copy(clean, tmp_path)
    assert run.main(['data', 'validate', str(folder)]) == 0
    text = capsys.readouterr().out
    assert 'this is walker_walk_random, as far as it is known' in text
    assert 'background: grayscale video; floor: video floor' in text
    assert re.search(r'episodes +4 +4 +\+0\n', text)
    assert re.search(r'mean +30\.00 +not known here\n', text)
    assert re.search(r'quartile1 +17\.50', text)
    assert 'DIFFERS' not in text
    assert 'note ' not in text


def test_second_check_reads_nothing(clean, tmp_path, monkeypatch):
    folder = copy(clean, tmp_path)
    first = validate(folder)
    assert first.reused == 0
    monkeypatch.setattr(facts, '_entry', None)  # would fail if called
    second = validate(folder)
    assert second.reused == 4
    assert second.exit_code == 0
    assert second.entries == first.entries
    words = json.loads((folder / 'manifest.json').read_text())
    assert words['totals'] == {
        'files': 4, 'episodes': 4, 'rows': 2004,
        'bytes': sum(file.stat().st_size for file in folder.glob('*.npz'))}
    assert (words['set'], words['verdict']) == ('walker_walk_random', 'named')


def test_manifest_agrees_with_the_store(clean, tmp_path):
    """One digest for a set's files, here and in run folders."""
    from dreamerv2_base.store import open_store
    folder = copy(clean, tmp_path)
    validate(folder)
    assert json.loads((folder / 'manifest.json').read_text())['digest'] == (
        open_store([folder], cache=tmp_path / 'cache').digest)


# What the issue lists, each by its name.


def test_missing_file_by_count(clean, tmp_path):
    folder = copy(clean, tmp_path)
    sorted(folder.glob('*.npz'))[2].unlink()
    report = validate(folder)
    assert list(found(report)) == ['episodes']
    assert found(report)['episodes'].text == (
        '3 episodes, expected 4: a file is missing')
    assert report.exit_code == 1


def test_missing_file_by_manifest(clean, tmp_path):
    folder = copy(clean, tmp_path)
    validate(folder)
    before = (folder / 'manifest.json').read_bytes()
    lost = sorted(folder.glob('*.npz'))[2]
    lost.unlink()
    report = validate(folder)
    assert lost.name in found(report)['missing_file'].text
    assert (folder / 'manifest.json').read_bytes() == before
    assert 'give --renew' in render(report)
    validate(folder, renew=True)
    assert 'missing_file' not in found(validate(folder))


def test_500_rows(tmp_path, frames):
    folder = edited(tmp_path, frames, lambda number, one: (
        {key: value[:-1] for key, value in one.items()}
        | {'is_last': one['is_first'][499::-1]} if number == 3 else one))
    report = validate(folder)
    assert list(found(report)) == ['rows']
    assert '1 of 4 episodes: 500 rows, expected 501' in (
        found(report)['rows'].text)
    assert report.exit_code == 1


def test_float16_rewards(tmp_path, frames):
    folder = edited(tmp_path, frames, lambda number, one: {
        **one, 'reward': one['reward'].astype(np.float16)})
    report = validate(folder)
    assert list(found(report)) == ['half_precision']
    assert found(report)['half_precision'].text.startswith(
        '4 of 4 episodes: reward at half precision')
    assert report.exit_code == 0  # as TIA stores them: said, and allowed
    assert report.returns[0] == pytest.approx(10, rel=2 ** -11)


def test_reversed_time_inside_of_episodes(tmp_path, frames):
    folder = edited(tmp_path, frames, lambda number, one: {
        key: value[::-1] for key, value in one.items()})
    report = validate(folder)
    assert list(found(report)) == ['time_reversed']
    assert report.exit_code == 1


def test_reversed_time_without_flags(tmp_path, frames):
    folder = edited(tmp_path, frames, lambda number, one: {
        key: value[::-1] for key, value in one.items()
        if not key.startswith('is_')})
    assert list(found(validate(folder))) == ['time_reversed']


def test_reversed_order_of_files(tmp_path, frames, monkeypatch):
    """A training buffer gets better with time."""
    monkeypatch.setitem(registry.SETS, 'walker_walk_medium_replay', tiny_set(
        'medium_replay', episodes=(12,)))

    def write(name, totals):
        rewards = np.zeros((12, 501), np.float32)
        rewards[:, 1:] = np.array(totals)[:, None] / 500
        return write_set(
            tmp_path / name / 'walker_walk' / 'medium_replay',
            frames('grayscale')[:, :8, :8], 12,
            lambda number, one: {**one, 'reward': rewards[number]})
    totals = [20, 10, 40, 70, 50, 60, 100, 80, 130, 110, 90, 120]
    rising, falling = write('a', totals), write('b', totals[::-1])
    assert 'order_reversed' not in found(validate(rising))
    assert 'order_reversed' in found(validate(falling))


def test_colour_background(tmp_path, frames):
    folder = write_set(tmp_path / 'walker_walk' / 'random', frames('colour'))
    report = validate(folder)
    assert list(found(report)) == ['colour_background']
    assert report.exit_code == 1


def test_no_background(tmp_path, frames):
    folder = write_set(tmp_path / 'walker_walk' / 'random', frames('plain'))
    report = validate(folder)
    assert list(found(report)) == ['background']
    assert report.scene == {'background': 'plain', 'floor': 'plain floor'}


def test_grey_floor(tmp_path, frames):
    folder = write_set(tmp_path / 'walker_walk' / 'random',
                       frames('grey_floor'))
    report = validate(folder)
    assert list(found(report)) == ['grey_floor']
    assert report.scene == {'background': 'grayscale video',
                            'floor': 'grey floor'}
    assert report.exit_code == 0  # the scene of DBC and TIA: said, allowed


def test_84_pixels(tmp_path, frames):
    folder = write_set(tmp_path / 'walker_walk' / 'random', frames('84px'))
    report = validate(folder)
    assert list(found(report)) == ['image_size']
    assert 'frames of 84x84 px, expected 64x64' in (
        found(report)['image_size'].text)
    assert report.exit_code == 1


@pytest.mark.parametrize('key', ['reward', 'action'])
def test_nan(tmp_path, frames, key):
    def edit(number, one):
        if number == 3:
            one[key][77] = np.nan
        return one
    report = validate(edited(tmp_path, frames, edit))
    assert list(found(report)) == ['not_finite']
    assert found(report)['not_finite'].text == (
        f'1 of 4 episodes: NaN or infinity in {key} (first '
        '20000101T000003-00000000000000000000000000000003-500.npz)')
    assert report.exit_code == 1


def test_equal_returns(tmp_path, frames):
    folder = edited(tmp_path, frames, lambda number, one: {
        **one, 'reward': np.float32([0, *[0.0625] * 500])}
        if number < 3 else one)
    report = validate(folder)
    assert list(found(report)) == ['equal_returns']
    assert '2 episodes share their return with another (3 have 31.25)' in (
        found(report)['equal_returns'].text)


def test_hdf5_with_a_wrong_cut(clean, tmp_path):
    convert.convert(clean, tmp_path / 'whole.hdf5', 'hdf5')
    folder = tmp_path / 'walker_walk' / 'random'
    folder.mkdir(parents=True)
    edges = [0, 1000, 1503, 2004]  # the second is right, the first not
    with h5py.File(tmp_path / 'whole.hdf5') as whole:
        for number in range(3):
            with h5py.File(folder / f'walker_{number}.hdf5', 'w') as part:
                for key, value in whole.items():
                    part[key] = value[edges[number]:edges[number + 1]]
    report = validate(folder)
    texts = [one.text for one in report.findings if one.check == 'shard_cut']
    assert texts == ['walker_0.hdf5 ends inside an episode',
                     'walker_1.hdf5 begins inside an episode']
    assert report.exit_code == 1


def test_hdf5_with_right_cuts(clean, tmp_path):
    folder = tmp_path / 'walker_walk' / 'random'
    convert.convert(clean, folder, 'hdf5', shards=2)
    report = validate(folder)
    assert report.findings == []
    assert report.verdict == 'named'
    assert len(report.episodes) == 4


def test_zip_part_missing(clean, tmp_path):
    files = sorted(clean.glob('*.npz'))
    for number in (1, 2, 3, 4):
        name = tmp_path / f'walker_walk-20240601T101500Z-{number:03d}.zip'
        with zipfile.ZipFile(name, 'w') as bag:
            for file in files[number - 1:number]:
                bag.write(file, f'walker_walk/random/{file.name}')
    place = tmp_path / 'out'
    sets = prepare(tmp_path, place)
    assert sets == [place / 'walker_walk' / 'random']
    assert validate(sets[0]).exit_code == 0
    name = 'walker_walk-20240601T101500Z-002.zip'
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf'found no {name}; download'):
        prepare(tmp_path, tmp_path / 'other')
    assert not (tmp_path / 'other').exists()


# More of the same.


def test_actions_rewards_flags_copies(tmp_path, frames):
    def edit(number, one):
        if number == 0:
            one['action'][5, 0] = 1.5
        if number == 1:
            one['reward'][5] = 2.5
        if number == 2:
            one['is_first'][7] = True
        if number == 3:
            one['action'][0] = 0.5
        return one
    folder = edited(tmp_path, frames, edit)
    report = validate(folder)
    assert {'action_range', 'reward_range', 'flags', 'first_row'} == (
        set(found(report)))
    assert 'is_first in rows [0, 7]' in found(report)['flags'].text
    shutil.copy(sorted(folder.glob('*.npz'))[3],
                folder / f'20010101T000000-{"f" * 32}-500.npz')
    report = validate(folder, renew=True)
    assert '1 of 5 episodes are copies' in found(report)['duplicates'].text


def test_missing_keys_and_types(tmp_path, frames):
    def edit(number, one):
        if number == 0:
            del one['reward']
        if number == 1:
            one['image'] = one['image'][:, ::8, ::8].astype(np.float32)
        return one
    report = validate(edited(tmp_path, frames, edit))
    assert set(found(report)) == {'keys', 'types'}
    assert found(report)['keys'].text.startswith(
        '1 of 4 episodes: without reward')
    assert 'image is float32 [8, 8, 3], expected uint8' in (
        found(report)['types'].text)


def test_broken_file_is_named(clean, tmp_path):
    folder = copy(clean, tmp_path)
    broken = sorted(folder.glob('*.npz'))[1]
    broken.write_bytes(broken.read_bytes()[:20000])
    report = validate(folder)
    assert broken.name in found(report)['unreadable'].text
    assert report.exit_code == 1


@pytest.mark.parametrize('make', [
    lambda path: path.mkdir(), lambda path: path.symlink_to('nowhere')])
def test_what_is_no_file_hides_no_other_set(clean, tmp_path, capsys, make):
    make(copy(clean, tmp_path) / 'zz.npz')
    make(Path(shutil.copytree(clean, tmp_path / 'mine')) / 'aa.npz')
    (tmp_path / 'shards').mkdir()
    make(tmp_path / 'shards' / 'one.hdf5')
    for _ in range(2):  # without manifests, and with those of the first check
        assert run.main(['data', 'validate', str(tmp_path)]) == 1
        text = capsys.readouterr().out
        assert text.count('unreadable') == 3
        for name in ('zz.npz', 'aa.npz', 'one.hdf5'):
            assert f'{name}: expected' in text


def test_changed_file(clean, tmp_path):
    folder = copy(clean, tmp_path)
    validate(folder)
    file = sorted(folder.glob('*.npz'))[0]
    file.touch()  # another time, the same content
    assert validate(folder).reused == 4
    file.write_bytes(sorted(folder.glob('*.npz'))[1].read_bytes())
    report = validate(folder)
    assert file.name in found(report)['changed_file'].text
    assert 'duplicates' in found(report)


def test_statistics_of_table3(clean, tmp_path, monkeypatch):
    def verdict(**known):
        monkeypatch.setitem(registry.SETS, 'walker_walk_random', tiny_set(
            statistics=Statistics(**known)))
        return validate(folder).verdict
    folder = copy(clean, tmp_path)
    assert verdict(maximum=50.0, mean=30.0) == 'named'
    assert verdict(maximum=50.04) == 'named'
    assert verdict(maximum=52.0) == 'equivalent'
    assert verdict(maximum=199.1) == 'differs'
    assert 'maximum 50.0 instead of 199.1' in (
        found(validate(folder))['statistics'].text)


def test_tree_and_its_exit_code(clean, tmp_path, capsys):
    copy(clean, tmp_path)
    other = copy(clean, tmp_path, 'medium_replay')
    assert run.main(['data', 'validate', str(tmp_path)]) == 0
    next(other.glob('*.npz')).unlink()
    assert run.main(['data', 'validate', str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert text.count('this is walker_walk_random,') == 2
    assert 'missing_file' in text


def test_set_of_no_name(clean, tmp_path):
    folder = shutil.copytree(clean, tmp_path / 'mine')
    report = validate(folder)
    assert (report.verdict, report.exit_code) == ('sound', 0)
    text = render(report)
    assert 'Table 3' not in text
    assert 'sound: nothing wrong was found' in text
    assert validate(folder, 'walker_walk_random').exit_code == 0


def test_names_without_a_time_and_with_a_wrong_length(clean, tmp_path):
    folder = shutil.copytree(clean, tmp_path / 'mine')
    paths = sorted(folder.glob('*.npz'))
    rows = int(paths[0].stem.split('-')[-1])
    paths[0].rename(folder / f'ep0-{rows}.npz')
    note = found(validate(folder, renew=True))['names']
    assert 'name without a time: episodes are taken in order' in note.text
    paths[1].rename(folder / f'ep1-{rows + 7}.npz')
    texts = [one.text for one in validate(folder, renew=True).findings
             if one.check == 'names']
    assert any('the length in the name is neither' in text for text in texts)


@pytest.mark.parametrize('layout', ['mapped', 'minari'])
def test_layouts_that_are_not_read_say_what_is(clean, tmp_path, layout):
    folder = tmp_path / 'my set-v0'
    convert.convert(clean, folder, layout)
    with pytest.raises(UserError, match=(
            f"found them {layout}; .* data convert '.*my set-v0' FOLDER")):
        validate(folder)


def test_own_data_that_are_not_sound(clean, tmp_path):
    folder = shutil.copytree(clean, tmp_path / 'mine')
    path = sorted(folder.glob('*.npz'))[0]
    with np.load(path) as file:
        episode = dict(file)
    episode['reward'][3] = np.nan
    np.savez_compressed(path, **episode)
    report = validate(folder)
    assert (report.verdict, report.exit_code) == ('differs', 1)
    assert 'not sound' in render(report)


def test_read_only_folder_is_checked_all_the_same(clean, tmp_path,
                                                  monkeypatch):
    def refuse(*_, **__):
        raise PermissionError
    monkeypatch.setattr(manifest, 'write', refuse)
    report = validate(copy(clean, tmp_path))
    assert report.manifest is None
    assert report.exit_code == 0
    assert 'no manifest: the folder cannot be written' in render(report)


@pytest.mark.parametrize('words', [
    ['validate', '/nowhere'], ['validate', '.', '--set', 'walker_wlak'],
    ['describe', '/nowhere'], ['list', 'walker_walk_randm']])
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert run.main(['data', *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith('error: ')
