"""The boxes that AVIF and HEIC files are made of (ISO/IEC 14496-12, section 4.2)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

MOST_BOXES = 2**12
# The film of an animated file, and what a decoder skips.
FILM, SKIPPED = b"moov", b"free"
FILM_BRANDS = (b"avis", b"msf1", b"hevc", b"hevx", b"heis", b"hevs")


class Box(NamedTuple):
    """`start`, `body` and `end`: where it, its contents and what follows it begin."""

    kind: bytes
    start: int
    body: int
    end: int


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """The boxes between two positions.

    Raises:
        ValueError: there are too many.
        struct.error: one is cut.
    """
    last = len(data) if end is None else end
    for _ in range(MOST_BOXES):
        if start >= last:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if size == 1:
            size, body = *struct.unpack_from(">Q", data, body), body + 8
        stop = last if size == 0 else start + size
        if not body <= stop <= last:
            raise struct.error("a box is cut")
        yield Box(kind, start, body, stop)
        start = stop
    raise ValueError("too many boxes")


def is_boxes(data: bytes) -> bool:
    return data[4:8] == b"ftyp"


def still(data: bytes) -> bytes:
    """`data` of as many bytes, in which a decoder finds the still image only, not a film too."""
    try:
        films = [box for box in boxes(data) if box.kind == FILM]
    except (struct.error, ValueError):  # The decoder will refuse it.
        return data
    if not films:
        return data
    changed = bytearray(data)
    for film in films:
        changed[film.start + 4 : film.start + 8] = SKIPPED
    end = min(len(data), struct.unpack_from(">I", data)[0])
    for at in (8, *range(16, end - 3, 4)):
        if data[at : at + 4] in FILM_BRANDS:
            changed[at : at + 4] = b"avif" if data[at : at + 4] == b"avis" else b"heic"
    return bytes(changed)
