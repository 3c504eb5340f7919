"""Archives: recognised, their parts counted, unpacked once and safely."""

from __future__ import annotations

import io
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from datasets import archives
from datasets.readers import find_sets
from datasets.validate import prepare
from dreamerv2_base.errors import UserError
from tests.helpers import make_folder

FILES = {f'walker_walk/random/{name}.npz': name.encode() * 400
         for name in ('one', 'two', 'three')}


def zipped(files=FILES) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as bag:
        for name, data in files.items():
            bag.writestr(name, data)
    return buffer.getvalue()


def tarred(mode='gz', files=FILES) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f'w:{mode}') as bag:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            bag.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def unpacked(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob('*') if path.is_file()}


def write(folder: Path, **files: bytes) -> None:
    for name, data in files.items():
        (folder / name.replace('__', '.')).write_bytes(data)


@pytest.mark.parametrize(('name', 'data'), [
    ('set.zip', zipped()), ('set.tar', tarred('')),
    ('set.tar.gz', tarred('gz')), ('set.tgz', tarred('gz')),
    ('set.tar.xz', tarred('xz')), ('set.tar.bz2', tarred('bz2')),
    ('my.target.zip', zipped())])
def test_whole_archives(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    found = archives.find(tmp_path)
    assert [(one.name, one.kind) for one in found] == [(name, 'whole')]
    assert archives.unpack(found, tmp_path / 'out') == 3
    assert unpacked(tmp_path / 'out') == FILES
    # Again: what is there and equal stays.
    assert archives.unpack(found, tmp_path / 'out') == 0


@pytest.mark.parametrize(('names', 'data'), [
    (['set.zip.001', 'set.zip.002', 'set.zip.003'], zipped()),
    (['set.tar.gz.aa', 'set.tar.gz.ab', 'set.tar.gz.ac'], tarred())])
def test_files_cut_by_bytes(tmp_path, names, data):
    third = len(data) // 3 + 1
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(data[number * third:][:third])
    found = archives.find(tmp_path)
    assert [one.kind for one in found] == ['cut']
    assert archives.unpack(found, tmp_path / 'out') == 3
    assert unpacked(tmp_path / 'out') == FILES
    (tmp_path / names[1]).rename(tmp_path / 'elsewhere')
    with pytest.raises(UserError, match=rf'found no {names[1]}; download'):
        archives.find(tmp_path)
    (tmp_path / 'elsewhere').rename(tmp_path / names[1])
    (tmp_path / names[2]).unlink()  # nobody can know by the names
    with pytest.raises(UserError, match='or its end is missing'):
        archives.unpack(archives.find(tmp_path), tmp_path / 'other')


def split_zip(folder: Path) -> list[Path]:
    """A zip over three disks: entries anywhere, places told per disk."""
    names, disks, entries = list(FILES), [], []
    for number, name in enumerate(names):
        data, label = FILES[name], name.encode()
        sums = struct.pack('<3L', zlib.crc32(data), len(data), len(data))
        head = b'' if number else b'PK\x07\x08'  # the mark of a split zip
        fixed = struct.pack('<5H', 20, 0, 0, 0, 33)
        entries.append(
            b'PK\x01\x02' + struct.pack('<H', 20) + fixed + sums
            + struct.pack('<5HLL', len(label), 0, 0, number, 0, 0, len(head))
            + label)
        disks.append(head + b'PK\x03\x04' + fixed + sums
                     + struct.pack('<2H', len(label), 0) + label + data)
    begin = len(disks[2])
    table = b''.join(entries)
    disks[2] += table + struct.pack(
        '<4s4H2LH', b'PK\x05\x06', 2, 2, 1, 3, len(table), begin, 0)
    paths = [folder / name for name in ('set.z01', 'set.z02', 'set.zip')]
    for path, data in zip(paths, disks, strict=True):
        path.write_bytes(data)
    return paths


def test_split_zip(tmp_path):
    paths = split_zip(tmp_path)
    found = archives.find(tmp_path)
    assert [(one.kind, one.files) for one in found] == [
        ('split', tuple(paths))]
    assert archives.unpack(found, tmp_path / 'out') == 3
    assert unpacked(tmp_path / 'out') == FILES


@pytest.mark.parametrize('lost', [0, 1, 2])
def test_split_zip_without_a_part(tmp_path, lost):
    path = split_zip(tmp_path)[lost]
    path.unlink()
    with pytest.raises(UserError, match=rf'no {path.name}.*download'):
        archives.unpack(archives.find(tmp_path), tmp_path / 'out')
    assert unpacked(tmp_path / 'out') == {}


def test_split_zip_of_the_zip_program(tmp_path):
    """The same with another program's file, where it is there."""
    program = shutil.which('zip')
    if program is None:
        pytest.skip('no zip program here')
    import random
    import subprocess
    data = random.Random(0).randbytes(150_000)
    (tmp_path / 'in').mkdir()
    for name in ('one', 'two'):
        (tmp_path / 'in' / f'{name}.npz').write_bytes(data[::-1] + data)
    subprocess.run([program, '-q', '-s', '65536', '-r', '../set.zip', '.'],
                   cwd=tmp_path / 'in', check=True)
    assert len(list(tmp_path.glob('set.z*'))) > 5
    found = [one for one in archives.find(tmp_path) if one.kind == 'split']
    archives.unpack(found, tmp_path / 'out')
    assert unpacked(tmp_path / 'out') == {
        f'set/{name}.npz': data[::-1] + data for name in ('one', 'two')}


def test_parts_of_a_share(tmp_path):
    names = list(FILES)
    for number, name in enumerate(names, 1):
        (tmp_path / f'lqv-20240601T101500Z-{number:03d}.zip').write_bytes(
            zipped({name: FILES[name]}))
    found = archives.find(tmp_path)
    assert [len(one.files) for one in found] == [3]
    archives.unpack(found, tmp_path / 'out')
    assert unpacked(tmp_path / 'out') == FILES
    # Naming one part speaks of all.
    assert archives.find(found[0].files[1]) == archives.find(tmp_path)


def test_archives_within_archives(tmp_path):
    (tmp_path / 'all.zip').write_bytes(zipped({
        'lqv/walker.zip': zipped(), '__MACOSX/x': b'', 'lqv/.DS_Store': b''}))
    archives.unpack(archives.find(tmp_path), tmp_path / 'out')
    assert {f'lqv/{name}': data for name, data in FILES.items()} == {
        name: data for name, data in unpacked(tmp_path / 'out').items()
        if name.endswith('npz')}


def test_damaged_archive(tmp_path):
    data = bytearray(zipped())
    data[200] ^= 255
    (tmp_path / 'set.zip').write_bytes(data)
    with pytest.raises(UserError, match=r'set\.zip: .*damaged.*again'):
        archives.unpack(archives.find(tmp_path), tmp_path / 'out')
    (tmp_path / 'set.zip').write_bytes(zipped()[:-30])
    with pytest.raises(UserError, match='damaged'):
        archives.unpack(archives.find(tmp_path), tmp_path / 'out')


@pytest.mark.parametrize('name', ['../evil.npz', '/tmp/evil.npz', 'a/../../b'])
def test_members_outside_are_refused(tmp_path, name):
    (tmp_path / 'set.zip').write_bytes(zipped({name: b'x'}))
    with pytest.raises(UserError, match='do not use this archive'):
        archives.unpack(archives.find(tmp_path), tmp_path / 'out')
    assert unpacked(tmp_path) == {
        'set.zip': (tmp_path / 'set.zip').read_bytes()}


def test_other_file_of_the_same_name_stays(tmp_path):
    (tmp_path / 'set.zip').write_bytes(zipped())
    place = tmp_path / 'out' / next(iter(FILES))
    place.parent.mkdir(parents=True)
    place.write_bytes(b'mine')
    with pytest.raises(UserError, match='new or empty folder'):
        archives.unpack(archives.find(tmp_path), tmp_path / 'out')
    assert place.read_bytes() == b'mine'


def test_foreign_kinds_have_their_command(tmp_path):
    (tmp_path / 'set.7z').write_bytes(b'')
    with pytest.raises(UserError, match=r'7z x set\.7z'):
        archives.find(tmp_path)


def test_archives_need_a_place(tmp_path):
    episodes = make_folder(tmp_path / 'a', 2, rows=3)
    (tmp_path / 'packed').mkdir()
    (tmp_path / 'packed' / 'set.zip').write_bytes(zipped({
        f'walker_walk/random/{file.name}': file.read_bytes()
        for file in episodes.glob('*.npz')}))
    with pytest.raises(UserError, match='give --unpack FOLDER'):
        prepare(tmp_path / 'packed', None)
    place = tmp_path / 'out'
    assert prepare(tmp_path / 'packed', place) == find_sets(place) == [
        place / 'walker_walk' / 'random']
