"""Archives as they are downloaded: recognised, checked for parts, unpacked.

Known are zip and tar files, the several zips into which a file share packs a
big folder (`NAME-20240601T101500Z-001.zip`, `-002.zip`, ...), split zips
(`NAME.z01` ... `NAME.zip`) and files cut by bytes (`NAME.zip.001`,
`NAME.tar.gz.aa`). Only regular files come out, and only below the folder
that the user named.
"""

from __future__ import annotations

import contextlib
import functools
import lzma
import re
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from datasets.parts import joined, one_disk
from dreamerv2_base.errors import UserError
from dreamerv2_base.files import expect_space, whole

TAR = r'\.(?:tar|tar\.gz|tgz|tar\.bz2|tar\.xz|txz)'
SHARE = re.compile(r'(.*-\d{8}T\d{6}Z(?:-\d+)?)-(\d{3})\.zip', re.I)
SPLIT = re.compile(r'(.*)\.z(\d{2,3})', re.I)
CUT = re.compile(rf'(.*(?:\.zip|{TAR}))\.(\d+|(?!gz|xz)[a-z][a-z])', re.I)
WHOLE = re.compile(rf'(.*)(?:\.zip|{TAR})', re.I)
FOREIGN = re.compile(r'.*\.(?:7z|rar|tar\.zst)(?:\.\d+)?', re.I)
JUNK = ('__MACOSX', '.DS_Store')
DEPTH = 3  # archives within archives

DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError,
           lzma.LZMAError, struct.error, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class Archive:
    """One archive: the files that it consists of, in order.

    `kind`: 'share' (each file a zip of its own), 'split' (a zip over several
    disks), 'cut' (one file cut into several), 'whole'. `place`: where it was
    found, relative to the tree.
    """

    name: str
    kind: str
    files: tuple[Path, ...]
    place: Path = field(default_factory=Path)

    @property
    def stem(self) -> str:
        """Its name without endings and time."""
        name = re.sub(r'-\d{8}T\d{6}Z.*', '', self.name)
        whole = WHOLE.fullmatch(name)
        return whole[1] if whole else name


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    crc: int | None
    open: Callable[[], IO[bytes]]


def find(path: Path) -> list[Archive]:
    """Archives at a path (a file or a tree), sorted by name.

    Hidden files and folders are passed over. Raises UserError naming a
    missing part, and for kinds that Python cannot unpack, with the command
    that does.
    """
    root = path.parent if path.is_file() else path
    # A file may be one part of several: its neighbours are looked at too.
    files = sorted(path.parent.iterdir() if path.is_file()
                   else path.rglob('*'))
    groups: dict[tuple[str, Path], dict[str, Path]] = defaultdict(dict)
    for file in files:
        hidden = any(part.startswith('.')
                     for part in file.relative_to(root).parts)
        if hidden or not file.is_file():
            continue
        kind, stem, key = _classify(file)
        if kind == 'foreign':
            raise UserError(
                f'{file}: expected a zip or tar archive, found one that is '
                f'not unpacked here; unpack it: 7z x {file.name}')
        if kind:
            groups[kind, stem][key] = file
    found = [_archive(kind, stem, members, root)
             for (kind, stem), members in groups.items()
             if not _last_disk(kind, stem, groups)]
    return sorted((archive for archive in found
                   if path.is_dir() or path in archive.files),
                  key=lambda archive: archive.files)


def unpack(archives: Sequence[Archive], target: Path) -> int:
    """Unpack archives, and those inside them, below `target`.

    Each goes where it lay in its tree, into a folder of its own name when its
    files have no folder. Files that are there already, complete and equal,
    stay as they are, so an interrupted unpacking goes on. Returns how many
    files were written.

    Raises UserError for damaged archives, too little space, members that
    point outside of `target`, and two different files of one name.
    """
    target.mkdir(parents=True, exist_ok=True)
    waiting, count = [(archive, 0) for archive in archives], 0
    while waiting:
        archive, depth = waiting.pop(0)
        written, inner = _unpack_one(archive, target)
        count += written
        if depth < DEPTH:
            waiting += [(nested, depth + 1) for nested in inner]
    return count


def _classify(file: Path) -> tuple[str, Path, str]:
    """(kind, what the parts of an archive share, which part)."""
    for kind, pattern in (('share', SHARE), ('split', SPLIT), ('cut', CUT)):
        if match := pattern.fullmatch(file.name):
            return kind, file.with_name(match[1]), match[2].lower()
    if FOREIGN.fullmatch(file.name):
        return 'foreign', file, ''
    whole = WHOLE.fullmatch(file.name)
    return ('whole', file, '') if whole else ('', file, '')


def _last_disk(kind: str, stem: Path, groups: dict) -> bool:
    return kind == 'whole' and ('split', stem.with_suffix('')) in groups


def _archive(kind: str, stem: Path, members: dict[str, Path],
             root: Path) -> Archive:
    keys = sorted(members)
    files = [members[key] for key in keys]
    if kind == 'split':
        _complete(keys, f'{stem.name}.z{{}}', stem.parent)
        last = stem.with_name(f'{stem.name}.zip')
        if not last.exists():
            raise _missing(last)
        files.append(last)
    elif kind == 'share':
        _complete(keys, f'{stem.name}-{{}}.zip', stem.parent)
    elif kind == 'cut':
        _complete(keys, f'{stem.name}.{{}}', stem.parent)
    return Archive(stem.name, kind, tuple(files),
                   stem.parent.relative_to(root))


def _complete(keys: list[str], pattern: str, folder: Path) -> None:
    """Raise UserError for a part that the sequence jumps over."""
    if keys[0].isdigit():
        first = min(1, int(keys[0]))
        expected = [f'{number:0{len(keys[0])}d}'
                    for number in range(first, int(keys[-1]) + 1)]
    else:
        expected = [chr(97 + number // 26) + chr(97 + number % 26)
                    for number in range(len(keys))]
    for key in expected:
        if key not in keys:
            raise _missing(folder / pattern.format(key))


def _missing(path: Path) -> UserError:
    return UserError(f'{path.parent}: expected every part of the archive, '
                     f'found no {path.name}; download that part too')


def _unpack_one(archive: Archive, target: Path) -> tuple[int, list[Archive]]:
    """How many files were written, and the archives among them."""
    written, nested = 0, []
    try:
        with contextlib.ExitStack() as stack:
            members = _members(archive, stack)
            flat = any(len(PurePosixPath(member.name).parts) == 1
                       for member in members)
            place = archive.place / archive.stem if flat else archive.place
            paths = [place / _safe(archive, member) for member in members]
            _check_space(archive, members, target)
            for member, path in _progress(members, paths, archive.name):
                written += _extract(archive, member, target / path)
                if WHOLE.fullmatch(path.name):
                    nested.append(Archive(
                        path.name, 'whole', (target / path,), path.parent))
    except DAMAGED as error:
        more = '' if archive.kind == 'whole' else ' (or its end is missing)'
        raise UserError(
            f'{archive.files[-1]}: expected a complete archive, found a '
            f'damaged one{more} ({error}); download it again') from None
    return written, nested


def _members(archive: Archive, stack: contextlib.ExitStack) -> list[_Member]:
    """The regular files of an archive, which stays open in `stack`."""
    if archive.kind == 'share':
        streams = [joined([file]) for file in archive.files]
    elif archive.kind == 'split':
        streams = [one_disk(archive.files)]
    else:
        streams = [joined(archive.files)]
    found = []
    for stream in streams:
        stack.enter_context(stream)
        if archive.kind in ('whole', 'cut') and re.search(
                rf'{TAR}$', archive.name, re.I):
            tar = stack.enter_context(tarfile.open(fileobj=stream))
            found += [_Member(entry.name, entry.size, None,
                              functools.partial(_opened, tar, entry))
                      for entry in tar if entry.isfile()]
        else:
            bag = stack.enter_context(zipfile.ZipFile(stream))
            found += [_Member(entry.filename, entry.file_size, entry.CRC,
                              functools.partial(bag.open, entry))
                      for entry in bag.infolist() if not entry.is_dir()]
    return [member for member in found
            if not set(PurePosixPath(member.name).parts) & set(JUNK)]


def _opened(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(entry)
    if file is None:
        raise tarfile.TarError(f'{entry.name} is no regular file')
    return file


def _safe(archive: Archive, member: _Member) -> PurePosixPath:
    path = PurePosixPath(member.name.replace('\\', '/'))
    if path.is_absolute() or '..' in path.parts:
        raise UserError(
            f'{archive.files[0]}: expected members below their folder, found '
            f'{member.name!r}; do not use this archive')
    return path


def _extract(archive: Archive, member: _Member, path: Path) -> bool:
    """Write a member so that it is there whole or not at all."""
    if path.exists():
        if _same(path, member):
            return False
        raise UserError(
            f'{path}: expected the file of {archive.name}, found another of '
            'that name; give --unpack a new or empty folder')
    path.parent.mkdir(parents=True, exist_ok=True)
    with (member.open() as source, whole(path) as partial,
          partial.open('wb') as file):
        shutil.copyfileobj(source, file, 2 ** 20)
    return True


def _same(path: Path, member: _Member) -> bool:
    if path.stat().st_size != member.size:
        return False
    with path.open('rb') as file:
        found = _crc(file)
    if member.crc is not None:
        return found == member.crc
    with member.open() as source:
        return found == _crc(source)


def _crc(stream: IO[bytes]) -> int:
    found = 0
    while block := stream.read(2 ** 20):
        found = zlib.crc32(block, found)
    return found


def _check_space(archive: Archive, members: Sequence[_Member],
                 target: Path) -> None:
    # Nothing is subtracted for what is there already: a margin.
    expect_space(target, sum(member.size for member in members), archive.name,
                 'give --unpack a folder on another disk')


def _progress(members: Sequence[_Member], paths: Sequence[Path], name: str):
    from tqdm import tqdm
    return tqdm(list(zip(members, paths, strict=True)),
                desc=f'unpacking {name}', unit='file', leave=False,
                disable=not sys.stderr.isatty())
