"""Limits on what a file may demand of its decoder, checked in its header before decoding.

A few bytes can demand gigabytes or minutes. Each limit is far above what cameras, browsers and
drawing programs write, and keeps the worst accepted file near one second of one CPU.
"""

from __future__ import annotations

import io
import math
import re
import struct

from PIL import Image

from models import boxes
from models.preprocess import JPEGS, InputSpec, steps
from service.errors import TooLarge, UndecodableImage
from service.inference import box_header
from service.inference.file_kinds import kind_of
from service.inference.unreadable import decoded_kinds, why_unreadable

# Pillow reads headers, GIF's blocks and BMP's runs in Python, at a microsecond or more each.
READS = 2**17
# Each chunk may inflate to a megabyte.
PNG_COMPRESSED = {b"iCCP", b"zTXt", b"iTXt"}
PNG_COMPRESSED_CHUNKS = 32
# Pillow concatenates them, copying all earlier ones for each.
EXIF_SEGMENTS = 16
# Each scan is a pass over the whole image; encoders write about ten.
JPEG_SCANS, JPEG_SCANS_OF_LARGEST = 100, 20
# As many as encoders write by default, and a few more.
QUICK_SCANS = 12
JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
# Its decoder holds three canvases of four bytes a pixel; other decoders hold one.
WEBP_SHARE = 2
# AVIF's and HEIC's decoders are of films: they take several times as long for a pixel as others.
BOX_SHARE = 2
# Pillow decodes these compressions of BMP in Python.
BMP_RUN_LENGTHS, BMP_RUN_LENGTH_PIXELS = (1, 2), 2**22
# The classic header; BigTIFF has 64-bit counts.
TIFF_MAGIC = {b"II*\0": "<", b"MM\0*": ">"}
TIFF_DIRECTORIES, TIFF_ENTRIES = 8, 1024
TIFF_POINTERS = {34665, 34853, 40965}  # EXIF, GPS and interoperability
# Pillow makes a Python object of each value of a tag: none for bytes, costly ones for rationals.
TIFF_BYTES, TIFF_RATIONALS, TIFF_LONGS = {1, 2, 7}, {5, 10}, {4, 13}
TIFF_VALUES, TIFF_RATIONAL_VALUES, TIFF_NESTED_VALUES = 200_000, 64, 4096
TIFF_TILE_WIDTH, TIFF_TILE_LENGTH = 322, 323
# Other compressions have headers of their own, whose demands are not checked here.
TIFF_COMPRESSIONS = {
    "raw",
    "packbits",
    "tiff_lzw",
    "tiff_deflate",
    "tiff_adobe_deflate",
    "jpeg",
    "tiff_ccitt",
    "group3",
    "group4",
}
PLANES = 6  # the most samples per pixel in Pillow


def source(data: bytes) -> io.BytesIO:
    """A file object that stops a decoder after `READS` reads."""
    if boxes.is_boxes(data):
        return io.BytesIO(boxes.still(data))  # It is read once.
    # A small file has too few bytes for so many reads, and counting would slow it down.
    return Counted(data) if len(data) > READS // 2 else io.BytesIO(data)


class Counted(io.BytesIO):
    _left = READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise UndecodableImage("the image is split into too many pieces; save it again")
        return super().read(size)


def check_bytes(data: bytes, max_pixels: int) -> None:
    """Refuses files that would cost too much just to open.

    Raises:
        UndecodableImage: the header demands more than any image needs.
        TooLarge: more than `max_pixels` pixels.
    """
    if data.startswith(b"\xff\xd8"):
        if data.count(b"Exif\0\0") > EXIF_SEGMENTS:
            raise _absurd("parts of EXIF")
    elif data.startswith(b"\x89PNG"):
        if sum(map(data.count, PNG_COMPRESSED)) > PNG_COMPRESSED_CHUNKS:
            raise _absurd("compressed texts and profiles")
    elif data.startswith(b"RIFF"):
        _check_webp(data, max_pixels // WEBP_SHARE)
    elif data.startswith((b"II", b"MM")):
        _check_tiff(data)
    elif boxes.is_boxes(data):
        kind = kind_of(data)
        if kind is not None and kind in decoded_kinds():
            box_header.check(data, max_pixels // BOX_SHARE)


def is_quick(data: bytes) -> bool:
    """Whether a PNG or JPEG of few bytes and few pixels is decoded in about a millisecond: it has
    nothing that inflates to more than its pixels, and few passes over them."""
    if data.startswith(b"\x89PNG"):
        return not any(chunk in data for chunk in PNG_COMPRESSED)
    return data.count(START_OF_SCAN) <= QUICK_SCANS


def has_end(jpeg: bytes) -> bool:
    """Whether a marker of the end follows the last scan, perhaps with more behind it."""
    return jpeg.endswith(END_OF_IMAGE) or jpeg.rfind(END_OF_IMAGE) > jpeg.rfind(START_OF_SCAN)


def check_opened(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Refuses an image opened from `data` whose pixels would cost too much to decode.

    Raises: as `check_bytes`.
    """
    width, height = image.size
    check_pixels(width, height, max_pixels)
    if image.format in JPEGS:
        _check_scans(data, width * height, max_pixels)
    if image.format == "BMP" and image.info.get("compression") in BMP_RUN_LENGTHS:
        check_pixels(width, height, min(BMP_RUN_LENGTH_PIXELS, max_pixels))
    if image.format == "TIFF":
        _check_tiff_tiles(image, max_pixels)


def check_pixels(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise TooLarge(f"the image has {width} x {height} pixels; the limit is {limit} in all")


def resized_pixels(width: int, height: int, spec: InputSpec) -> int:
    """The most pixels that an image of this size has when resized, whichever way EXIF turns it."""
    ways = ((width, height), (height, width))
    return max(math.prod(steps(*way, spec).resized) for way in ways)


def _absurd(what: str) -> UndecodableImage:
    return UndecodableImage(f"the image's header has too many {what}; save it again without them")


def _check_scans(data: bytes, pixels: int, max_pixels: int) -> None:
    most = min(JPEG_SCANS, JPEG_SCANS_OF_LARGEST * max_pixels // pixels)
    # The same two bytes may occur by chance after the image, as in an embedded video.
    if data.count(START_OF_SCAN) > most and _scans(data, most) > most:
        raise _absurd("scans")


def _scans(data: bytes, most: int) -> int:
    """The number of scans before the end of the image; counting stops above `most`."""
    scans, position = 0, 2
    while scans <= most and (marker := JPEG_MARKER.search(data, position)):
        if marker[0] == END_OF_IMAGE:
            break
        scans += marker[0] == START_OF_SCAN
        position = marker.end()
        position += max(2, int.from_bytes(data[position : position + 2], "big"))
    return scans


def _check_webp(data: bytes, max_pixels: int) -> None:
    """Checks the size here: WebP's decoder allocates its canvas before Pillow knows it."""
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return  # The decoder will refuse it.
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(body[at : at + 3], "little") for at in (4, 7))
    elif kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", body[6:10]))
    check_pixels(width, height, max_pixels)


def _check_tiff(data: bytes) -> None:
    """Checks the directories that Pillow reads: the first one and those of EXIF."""
    if data[:4] not in TIFF_MAGIC:  # BigTIFF, cameras' raw formats, or a text
        raise UndecodableImage(why_unreadable(data))
    order = TIFF_MAGIC[data[:4]]
    try:
        pending = [struct.unpack_from(f"{order}I", data, 4)[0]]
        seen: set[int] = set()
        while pending:
            offset = pending.pop()
            if offset in seen:
                continue
            seen.add(offset)
            if len(seen) > TIFF_DIRECTORIES:
                raise _absurd("directories")
            pending += _check_directory(data, offset, order, nested=len(seen) > 1)
    except struct.error:
        raise UndecodableImage("the TIFF image is truncated within its header") from None


def _check_directory(data: bytes, offset: int, order: str, nested: bool) -> list[int]:
    """Checks a directory; returns the offsets of those it points to."""
    (entries,) = struct.unpack_from(f"{order}H", data, offset)
    if entries > TIFF_ENTRIES:
        raise _absurd("tags")
    most = TIFF_NESTED_VALUES if nested else TIFF_VALUES
    pointers = []
    for at in range(offset + 2, offset + 2 + 12 * entries, 12):
        tag, kind, count, value = struct.unpack_from(f"{order}HHII", data, at)
        limit = TIFF_RATIONAL_VALUES if kind in TIFF_RATIONALS else most
        if kind not in TIFF_BYTES and count > limit:
            raise _absurd(f"values of tag {tag}")
        if tag in TIFF_POINTERS:
            if kind not in TIFF_LONGS or count != 1:
                raise _absurd(f"kinds of tag {tag}")
            pointers.append(value)
    return pointers


def _check_tiff_tiles(image: Image.Image, max_pixels: int) -> None:
    compression = image.info.get("compression")
    if compression not in TIFF_COMPRESSIONS:
        raise UndecodableImage(
            f"TIFF compression {compression} is not supported; save it with LZW or Deflate"
        )
    tags = getattr(image, "tag_v2", {})
    sides = [tags.get(tag, 1) for tag in (TIFF_TILE_WIDTH, TIFF_TILE_LENGTH)]
    if not all(isinstance(side, int) for side in sides):
        raise UndecodableImage("the TIFF image's tiles have no size")
    check_pixels(sides[0], sides[1], max_pixels)
    # Overlapping strips would be decoded as often as they are listed.
    areas = (
        (right - left) * (lower - upper)
        for _, (left, upper, right, lower), *_ in getattr(image, "tile", ())
    )
    if sum(areas) > PLANES * image.width * image.height:
        raise _absurd("strips")
