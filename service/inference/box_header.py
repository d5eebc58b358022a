"""Limits on AVIF and HEIC files, checked before a decoder sees them.

A file says the size of its image in one place and is coded in another, in as many pieces as it
likes, which may have sizes of their own. What counts is all that may have to be decoded.
"""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from models.boxes import boxes
from service.errors import TooLarge, UndecodableImage

# Above what phones write: tiles of 512 x 512 pixels, of 48 megapixels and of their gain map.
MOST_ITEMS, MOST_PIECES = 1024, 2**12
# As many times the pixels allowed: those of the image, of its transparency and of previews.
CODED_SHARE = 3
AV1, HEVC, GRID, MIME = b"av01", b"hvc1", b"grid", b"mime"
# ISO/IEC 23008-12 and its AV1 and HEVC bindings: how an image item may be coded.
DECODED = {AV1, HEVC, GRID}
PADDING = 64  # pixels: the largest block
SEQUENCE_HEADER, FRAME_HEADER, FRAME = 1, 3, 6  # AV1's units (section 6.2.2)
PARAMETERS = 32  # HEVC's first unit that is not of a picture (ITU-T H.265, table 7-1)


@dataclass
class _Items:
    """The items of a file by number. `sizes`: width and height as said by their properties;
    `crops`: what is to be kept of them; `extents`: offset and length of their bytes."""

    primary: int = -1
    kinds: dict[int, bytes] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    crops: dict[int, tuple[int, int]] = field(default_factory=dict)
    prefixes: dict[int, int] = field(default_factory=dict)
    extents: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    used: Counter[int] = field(default_factory=Counter)


def check(data: bytes, max_pixels: int) -> None:
    """Refuses files that would cost too much to open or to decode.

    Raises:
        UndecodableImage: it is damaged, or has more parts than an image needs.
        TooLarge: more than `max_pixels` pixels, in all that is coded `CODED_SHARE` times as many.
    """
    try:
        items = _read(data)
        primary = items.kinds.get(items.primary)
        if primary is None:
            raise UndecodableImage("the file has no still image; send one frame of it")
        if primary not in DECODED:
            name = primary.decode("ascii", "replace")
            raise UndecodableImage(f"an image coded as {name!r} is not supported; save it again")
        for width, height in items.sizes.values():
            _check_pixels(width, height, max_pixels)
        _check_crop(items)
        coded = sum(_coded(data, items, item) for item in items.kinds)
    except (struct.error, IndexError, ValueError):
        raise UndecodableImage("the image is damaged or truncated within its header") from None
    if coded > CODED_SHARE * max_pixels:
        raise TooLarge(f"the image has {coded} pixels in its parts; the limit is {max_pixels}")


def _check_crop(items: _Items) -> None:
    """libheif crops, Pillow's AVIF does not. Encoders also fill up blocks and crop that away."""
    size, crop = items.sizes.get(items.primary), items.crops.get(items.primary)
    if AV1 not in items.kinds.values() or size is None or crop is None:
        return
    if any(kept <= side - PADDING for side, kept in zip(size, crop, strict=True)):
        raise UndecodableImage(
            f"the AVIF image is to be cropped to {crop[0]} x {crop[1]} pixels, which this service "
            "does not do; crop it before you send it"
        )


def _check_pixels(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise TooLarge(f"the image has {width} x {height} pixels; the limit is {limit} in all")


def _read(data: bytes) -> _Items:
    items, stored = _Items(), 0
    meta = [box for box in boxes(data) if box.kind == b"meta"]
    if len(meta) != 1:
        return items
    parts = list(boxes(data, meta[0].body + 4, meta[0].end))
    idat = next((part.body for part in parts if part.kind == b"idat"), 0)
    for kind, _, body, end in parts:
        part = _Reader(data, body, end)
        if kind == b"pitm":
            items.primary = part.number(2 if part.version() == 0 else 4)
        elif kind == b"iinf":
            _read_kinds(part, items)
        elif kind == b"iloc":
            _read_places(part, items, idat)
        elif kind == b"iref":
            _read_references(part, items)
        elif kind == b"iprp":
            stored += 1
            _read_properties(part, items)
    if stored > 1:
        raise ValueError("several tables of properties")
    return items


class _Reader:
    """Big-endian numbers between two positions."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data, self.at, self.end = data, at, end
        self.flags = 0

    def number(self, size: int) -> int:
        at, self.at = self.at, self.at + size
        if self.at > self.end:
            raise struct.error("it ends within")
        return int.from_bytes(self.data[at : self.at], "big")

    def version(self) -> int:
        """The version of a full box, which also has `flags`."""
        version, self.flags = self.number(1), self.number(3)
        return version

    def count(self, size: int) -> int:
        count = self.number(size)
        if count > MOST_ITEMS:
            raise UndecodableImage(
                f"the image has {count} parts of a kind; the limit is {MOST_ITEMS}; save it again"
            )
        return count


def _read_kinds(part: _Reader, items: _Items) -> None:
    part.count(2 if part.version() == 0 else 4)
    for box in boxes(part.data, part.at, part.end):
        entry = _Reader(part.data, box.body, box.end)
        version = entry.version()
        if box.kind != b"infe" or version < 2:
            continue
        item = entry.number(2 if version == 2 else 4)
        kind = (entry.number(2) and b"") or part.data[entry.at : entry.at + 4]
        if item in items.kinds or len(items.kinds) >= MOST_ITEMS:
            raise ValueError("items are not numbered once")
        items.kinds[item] = kind
        if kind == MIME:
            # Its name, type and encoding; decompressing may make much of few bytes.
            texts = part.data[entry.at + 4 : entry.end].split(b"\0")
            if len(texts) > 2 and texts[2]:
                raise UndecodableImage("the image has compressed metadata; save it again without")


def _read_places(part: _Reader, items: _Items, idat: int) -> None:
    version = part.version()
    sizes = part.number(2)
    offset, length, base, index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    wide = 2 if version < 2 else 4
    for _ in range(part.count(wide)):
        item = part.number(wide)
        method = part.number(2) & 15 if version else 0
        if method > 1:
            raise ValueError("bytes of an item in another one")
        part.number(2)
        start = part.number(base) + (idat if method == 1 else 0)
        for _ in range(part.count(2)):
            if version and index:
                part.number(index)
            at, size = start + part.number(offset), part.number(length)
            items.extents[item].append((at, size or len(part.data) - at))


def _read_references(part: _Reader, items: _Items) -> None:
    wide = 2 if part.version() == 0 else 4
    for box in boxes(part.data, part.at, part.end):
        entry = _Reader(part.data, box.body, box.end)
        entry.number(wide)
        for _ in range(entry.count(2)):
            item = entry.number(wide)
            if box.kind == b"dimg":
                items.used[item] += 1


def _read_properties(part: _Reader, items: _Items) -> None:
    properties: list[_Property] = []
    for box in boxes(part.data, part.at, part.end):
        if box.kind == b"ipco":
            properties += (
                _property(inner.kind, _Reader(part.data, inner.body, inner.end))
                for inner in boxes(part.data, box.body, box.end)
            )
        elif box.kind == b"ipma":
            _associate(_Reader(part.data, box.body, box.end), properties, items)


class _Property(NamedTuple):
    size: tuple[int, int] | None = None
    prefix: int = 0
    crop: tuple[int, int] | None = None


def _property(kind: bytes, part: _Reader) -> _Property:
    if kind == b"ispe":
        part.version()
        return _Property(size=(part.number(4), part.number(4)))
    if kind == b"clap":  # fractions
        width, height = (part.number(4) // (part.number(4) or 1) for _ in range(2))
        return _Property(crop=(width, height))
    if kind == b"hvcC":
        part.number(21)
        return _Property(prefix=(part.number(1) & 3) + 1)
    return _Property()


def _associate(part: _Reader, properties: list[_Property], items: _Items) -> None:
    wide = 2 if part.version() == 0 else 4
    for _ in range(part.count(4)):
        item = part.number(wide)
        for _ in range(part.number(1)):
            index = part.number(2) & 0x7FFF if part.flags & 1 else part.number(1) & 0x7F
            if not 0 < index <= len(properties):
                continue
            size, prefix, crop = properties[index - 1]
            if size is not None:
                items.sizes[item] = max(items.sizes.get(item, (0, 0)), size, key=_area)
            if crop is not None:
                items.crops[item] = crop
            items.prefixes[item] = max(items.prefixes.get(item, 0), prefix)


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _coded(data: bytes, items: _Items, item: int) -> int:
    """The pixels to decode of an item, as often as others are made of it."""
    kind = items.kinds[item]
    if kind not in (AV1, HEVC):
        return 0
    coded = b"".join(data[at : at + size] for at, size in items.extents[item])
    if len(coded) > len(data):
        raise ValueError("items share their bytes")
    if kind == AV1:
        pixels = _pixels_of_av1(coded)
    else:
        # libheif refuses pictures that are larger than the item says.
        if item not in items.sizes:
            raise ValueError("an item without a size")
        pixels = _area(items.sizes[item]) * _pictures_of_hevc(coded, items.prefixes.get(item, 4))
    return pixels * max(1, items.used[item])


def _pixels_of_av1(coded: bytes) -> int:
    """The pixels of all frames, at the largest size of a sequence (AV1, section 5.3)."""
    largest = frames = at = 0
    for _ in range(MOST_PIECES):
        if at >= len(coded):
            return largest * frames
        header = coded[at]
        at += 2 if header & 4 else 1
        size = len(coded) - at
        if header & 2:
            size, at = _leb128(coded, at)
        kind = header >> 3 & 15
        if kind == SEQUENCE_HEADER:
            largest = max(largest, _area(_size_of_av1(coded[at : at + size])))
        frames += kind in (FRAME_HEADER, FRAME)
        at += size
    raise ValueError("too many units")


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for position in range(8):
        byte = data[at + position]
        value |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return value, at + position + 1
    raise ValueError("a number is too long")


class _Bits:
    def __init__(self, data: bytes) -> None:
        self.bits, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        self.left -= count
        if self.left < 0:
            raise ValueError("it ends within")
        return self.bits >> self.left & (1 << count) - 1


def _size_of_av1(header: bytes) -> tuple[int, int]:
    """The largest width and height of frames (AV1, section 5.5.1)."""
    bits = _Bits(header[:64])
    bits.read(4)  # profile, still picture
    if bits.read(1):  # the reduced header of a still picture
        bits.read(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return bits.read(width_bits) + 1, bits.read(height_bits) + 1


def _skip_operating_points(bits: _Bits) -> None:
    model, delay = 0, 0
    if bits.read(1):  # timing
        bits.read(32)
        bits.read(32)
        if bits.read(1):  # equal intervals, of a length in Golomb's code
            zeros = 0
            while not bits.read(1):
                zeros += 1
            bits.read(zeros)
        model = bits.read(1)
        if model:
            delay = bits.read(5) + 1
            bits.read(32 + 5 + 5)
    shown = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)
        if model and bits.read(1):
            bits.read(2 * delay + 1)
        if shown and bits.read(1):
            bits.read(4)


def _pictures_of_hevc(coded: bytes, prefix: int) -> int:
    """The number of pictures, of which each begins with its first slice."""
    return sum(
        kind < PARAMETERS and bool(first & 0x80) for kind, first in _units_of_hevc(coded, prefix)
    )


def _units_of_hevc(coded: bytes, prefix: int) -> Iterator[tuple[int, int]]:
    """The type of each unit, and the byte behind its header."""
    at = 0
    for _ in range(MOST_PIECES):
        if at >= len(coded):
            return
        size = int.from_bytes(coded[at : at + prefix], "big")
        begin = at + prefix
        if size >= 3:
            yield coded[begin] >> 1 & 0x3F, coded[begin + 2]
        at = begin + size
    raise ValueError("too many units")
