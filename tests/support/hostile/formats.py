"""Files of image formats from their parts, so that each part may be wrong."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from tests.conftest import encoded

# Samples of a pixel for each colour type of PNG, and where and how far apart Adam7's passes are.
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
Tag = tuple[int, int, int, bytes]  # number, type, count, value or what stands elsewhere


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def picture(size: tuple[int, int] = (48, 40), mode: str = "RGB") -> Image.Image:
    """Smooth, so that what lossy formats make of it looks alike."""
    return Image.open(io.BytesIO(encoded("PNG", size))).convert(mode)


@functools.cache
def noise(count: int) -> bytes:
    return np.random.default_rng(7).bytes(count)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG, with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int = 32,
    height: int = 32,
    depth: int = 8,
    colour: int = 2,
    *,
    interlaced: bool = False,
    pixels: bytes | None = None,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG of noise; `pixels` stands for its compressed data, the rest are chunks around it."""
    if pixels is None:
        rows = b""
        for left, top, right, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
            wide, high = -(-(width - left) // right), -(-(height - top) // down)
            if wide > 0 and high > 0:
                stride = -(-wide * depth * PNG_SAMPLES[colour] // 8)
                rows += (b"\0" + noise(stride)) * high
        pixels = zlib.compress(rows)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    palette = chunk(b"PLTE", noise(3 << depth)) if colour == 3 else b""
    parts = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    first, middle, last = (chunk(kind, data) for kind, data in parts)
    return b"\x89PNG\r\n\x1a\n" + first + palette + before + middle + after + last


def segment(marker: int, data: bytes) -> bytes:
    """A part of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg(before: bytes = b"", **options: object) -> bytes:
    """A JPEG with segments put before all others."""
    whole = saved(picture(), "JPEG", **options)
    return whole[:2] + before + whole[2:]


def frame(jpeg: bytes, marker: int, change: Sequence[tuple[int, int]]) -> bytes:
    """`jpeg` with another kind of frame, and bytes of the frame's header changed."""
    at = next(
        jpeg.find(bytes([0xFF, kind, 0])) for kind in (0xC0, 0xC2) if bytes([0xFF, kind, 0]) in jpeg
    )
    changed = bytearray(jpeg)
    changed[at + 1] = marker
    for offset, value in change:
        changed[at + 4 + offset] = value
    return bytes(changed)


def exif(tags: Iterable[Tag], order: str = ">") -> bytes:
    return b"Exif\0\0" + tiff(tags, order=order)


def tiff(
    tags: Iterable[Tag], *, order: str = "<", following: int = 0, data: bytes = b"", at: int = 0
) -> bytes:
    """A TIFF of one directory; values of more than 4 bytes stand behind it, then `data`.

    `following` is the offset of the next directory. A tag whose value is empty points to `data`,
    `at` bytes into it.
    """
    listed = sorted(tags)
    behind = 8 + 2 + 12 * len(listed) + 4
    values = b"".join(value for *_, value in listed if len(value) > 4)
    entries = b""
    offset = behind
    for number, kind, count, value in listed:
        inline = value.ljust(4, b"\0")
        if not value:
            inline = struct.pack(f"{order}I", behind + len(values) + at)
        elif len(value) > 4:
            inline = struct.pack(f"{order}I", offset)
            offset += len(value)
        entries += struct.pack(f"{order}HHI", number, kind, count) + inline
    magic = b"II*\0" if order == "<" else b"MM\0*"
    head = magic + struct.pack(f"{order}IH", 8, len(listed))
    return head + entries + struct.pack(f"{order}I", following) + values + data


def short(number: int, *values: int) -> Tag:
    return number, 3, len(values), struct.pack(f"<{len(values)}H", *values)


def long(number: int, *values: int) -> Tag:
    return number, 4, len(values), struct.pack(f"<{len(values)}I", *values)


def grey_tiff(width: int, height: int, *more: Tag, data: bytes = b"", following: int = 0) -> bytes:
    """A grey TIFF of one strip, with tags in place of, or beside, its own."""
    tags = {
        tag[0]: tag
        for tag in (
            short(256, width),
            short(257, height),
            short(258, 8),
            short(259, 1),
            short(262, 1),
            (273, 4, 1, b""),
            short(277, 1),
            long(278, height),
            long(279, len(data)),
            *more,
        )
    }
    return tiff(tags.values(), data=data, following=following)


def bmp(
    width: int,
    height: int,
    bits: int = 24,
    compression: int = 0,
    *,
    pixels: bytes = b"",
    palette: bytes = b"",
    colours: int = 0,
) -> bytes:
    start = 14 + 40 + len(palette)
    info = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, colours, 0
    )
    head = struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start)
    return head + info + palette + pixels


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP of chunks."""
    parts = [
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) & 1)
        for kind, data in chunks
    ]
    body = b"".join([b"WEBP", *parts])
    return b"RIFF" + struct.pack("<I", len(body)) + body


def uint24(value: int) -> bytes:
    return struct.pack("<I", value)[:3]


def gif(width: int, height: int, blocks: bytes) -> bytes:
    palette = bytes(range(12))
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x81, 0, 0) + palette + blocks + b";"


def gif_frame(width: int = 1, height: int = 1, written: int | None = None) -> bytes:
    """A frame of one colour, with the pixels of all or of as many as are `written`."""
    pixels = width * height if written is None else written
    clear, end = 4, 5
    # Begun anew before codes become longer than three bits.
    codes = [clear, 1, 1] * (-(-pixels // 2)) + [end]
    bits = sum(code << 3 * i for i, code in enumerate(codes))
    data = bits.to_bytes(-(-3 * len(codes) // 8), "little")
    blocks = [data[i : i + 255] for i in range(0, len(data), 255)]
    head = struct.pack("<BHHHHBB", 0x2C, 0, 0, width, height, 0, 2)
    return head + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
