"""Where the encoded bytes of images lie, for reading any of them; small enough to copy to worker
processes."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models import files

# A zip archive of a few kilobytes may hold gigabytes of zeros.
LARGEST = 2**29
LOCAL_HEADER = struct.Struct("<4s5H3I2H")


class Store(Protocol):
    """The bytes of images, by their index."""

    def read(self, index: int) -> bytes: ...

    def sizes(self) -> NDArray[np.int64]:
        """The number of bytes of each image, int64 [N]; -1: it cannot be read."""
        ...

    def part(self, rows: NDArray[np.int64]) -> Store: ...


@dataclass(frozen=True, slots=True)
class Files:
    """Files below `folder`: `names` bytes [N]. `lines` int64 [N]: those of the list `source` that
    name them; empty: none does."""

    folder: Path
    names: NDArray[np.bytes_]
    lines: NDArray[np.int64]
    source: str = ""

    def read(self, index: int) -> bytes:
        try:
            return files.read(self._path(index))
        except FileNotFoundError:
            if not len(self.lines):
                raise
            line = f"line {self.lines[index]} of {self.source}"
            raise FileNotFoundError(f"No such file, says {line}") from None

    def sizes(self) -> NDArray[np.int64]:
        return np.array([_size(self._path(index)) for index in range(len(self.names))], np.int64)

    def part(self, rows: NDArray[np.int64]) -> Files:
        lines = self.lines[rows] if len(self.lines) else self.lines
        return replace(self, names=self.names[rows], lines=lines)

    def _path(self, index: int) -> Path:
        return self.folder / os.fsdecode(self.names[index])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


@dataclass(frozen=True, slots=True)
class Slices:
    """Slices of `files`: `places` int64 [N, 2 or 3] has the offset, the length, and the index of
    the file, which is 0 without that column."""

    files: tuple[Path, ...]
    places: NDArray[np.int64]

    def read(self, index: int) -> bytes:
        offset, length, *file = map(int, self.places[index])
        with self.files[file[0] if file else 0].open("rb") as opened:
            opened.seek(offset)
            return opened.read(length)

    def sizes(self) -> NDArray[np.int64]:
        return self.places[:, 1]

    def part(self, rows: NDArray[np.int64]) -> Slices:
        return replace(self, places=self.places[rows])


@dataclass(frozen=True, slots=True)
class Zipped:
    """Members of a zip archive: `places` int64 [N, 4], see `unzipped`."""

    file: Path
    places: NDArray[np.int64]

    def read(self, index: int) -> bytes:
        return unzipped(self.file, self.places[index].tolist())

    def sizes(self) -> NDArray[np.int64]:
        return self.places[:, 2]

    def part(self, rows: NDArray[np.int64]) -> Zipped:
        return replace(self, places=self.places[rows])


def unzipped(path: Path, place: Sequence[int]) -> bytes:
    """The content of a stored or deflated member of a zip archive. `place`: the offset of its local
    header, its packed and unpacked sizes, and its CRC-32.

    Raises:
        ValueError: it is damaged.
    """
    at, packed, size, checksum = place
    with path.open("rb") as file:
        file.seek(at)
        head = file.read(LOCAL_HEADER.size)
        if len(head) < LOCAL_HEADER.size or head[:4] != b"PK\x03\x04":
            raise ValueError("the archive is damaged here")
        _, _, _, method, *_, name, extra = LOCAL_HEADER.unpack(head)
        file.seek(name + extra, os.SEEK_CUR)
        content = file.read(packed)
    if method:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = unpacker.decompress(content, size + 1)  # Never more, whatever it holds.
        except zlib.error as error:
            raise ValueError(f"the archive is damaged here: {error}") from None
    if len(content) != size or zlib.crc32(content) != checksum:
        raise ValueError("the archive is damaged here: its checksum differs")
    return content
