"""Files in pieces, read as one: cut by bytes, or zips over several disks."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from dreamerv2_base.errors import UserError

END = struct.Struct('<4s4H2LH')  # the zip format's end of central directory
ENTRY = 46  # bytes of a directory entry before its texts
LARGE = 2 ** 32 - 1  # stands for "look elsewhere" in zips above 4 GB


def joined(files: Sequence[Path]) -> IO[bytes]:
    """The bytes of all files, end to end; closing it closes them."""
    return io.BufferedReader(_Joined(files))


def one_disk(files: Sequence[Path]) -> IO[bytes]:
    """A zip over several disks (files in order) as a zip on one.

    Its directory says on which disk, and where there, an entry begins; it is
    rewritten for places in the joined bytes.

    Raises UserError for a missing disk and for archives above 4 GB, BadZipFile
    for damaged ones.
    """
    source = _Joined(files)
    tail = source.at(max(0, source.size - END.size - 2 ** 16), source.size)
    found = tail.rfind(b'PK\x05\x06')
    if found < 0:
        raise zipfile.BadZipFile('it has no directory')
    _, disk, home, _, count, size, offset, _ = END.unpack_from(tail, found)
    if len(files) != disk + 1:
        raise UserError(
            f'{files[-1].parent}: expected {disk + 1} parts of the archive, '
            f'found {len(files)} (no {files[-1].stem}.z{disk:02d}); '
            'download that part too')
    if LARGE in (size, offset) or source.size >= LARGE:
        raise UserError(
            f'{files[-1]}: expected a split zip below 4 GB, found a larger '
            f'one; join it: zip -s 0 {files[-1].name} --out whole.zip')
    begin = source.starts[home] + offset
    directory = bytearray(source.at(begin, begin + size))
    spot = 0
    for _ in range(count):
        texts = struct.unpack_from('<3H', directory, spot + 28)
        disk, = struct.unpack_from('<H', directory, spot + 34)
        place, = struct.unpack_from('<L', directory, spot + 42)
        struct.pack_into('<H', directory, spot + 34, 0)
        struct.pack_into('<L', directory, spot + 42,
                         source.starts[disk] + place)
        spot += ENTRY + sum(texts)
    end = END.pack(b'PK\x05\x06', 0, 0, count, count, size, begin, 0)
    return io.BufferedReader(_Patched(source, begin, bytes(directory) + end))


class _Window(io.RawIOBase):
    """A file to read whose bytes `at` gives."""

    size = 0
    _place = 0

    def at(self, begin: int, end: int) -> bytes:
        """The bytes [begin, end) of the file."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._place, self.size)[whence]
        if base + offset < 0:
            raise OSError('expected a place in the file, found one before it')
        self._place = base + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        data = self.at(self._place, min(self._place + len(buffer), self.size))
        buffer[:len(data)] = data
        self._place += len(data)
        return len(data)


class _Joined(_Window):
    """Attributes: `starts`, the place of each file's first byte."""

    def __init__(self, files: Sequence[Path]):
        self._streams = [file.open('rb') for file in files]
        self.starts = []
        for file in files:
            self.starts.append(self.size)
            self.size += file.stat().st_size

    def at(self, begin: int, end: int) -> bytes:
        pieces = []
        for start, stream in zip(self.starts, self._streams, strict=True):
            stream.seek(max(0, begin - start))
            pieces.append(stream.read(max(0, end - max(begin, start))))
            if start + stream.tell() >= end:
                break
        return b''.join(pieces)

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        super().close()


class _Patched(_Window):
    """The first `kept` bytes of a file, then others."""

    def __init__(self, source: _Joined, kept: int, rest: bytes):
        self._source, self._kept, self._rest = source, kept, rest
        self.size = kept + len(rest)

    def at(self, begin: int, end: int) -> bytes:
        head = self._source.at(begin, min(end, self._kept)) if (
            begin < self._kept) else b''
        return head + self._rest[max(0, begin - self._kept):
                                 max(0, end - self._kept)]

    def close(self) -> None:
        self._source.close()
        super().close()
