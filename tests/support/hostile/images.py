"""Bodies that are images, almost images or bombs: name, how to make it, the statuses allowed."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from PIL import Image

from models import image_files
from tests.support.hostile.formats import (
    PNG_DEPTHS,
    bmp,
    chunk,
    exif,
    frame,
    gif,
    gif_frame,
    grey_tiff,
    jpeg,
    long,
    noise,
    picture,
    png,
    riff,
    saved,
    segment,
    short,
    uint24,
)

GOOD, BAD, LARGE = (200,), (400,), (413,)
EITHER = (200, 400)  # What is missing or wrong may be something that no pixel needs.
Case = tuple[Callable[[], bytes], tuple[int, ...]]
MEGABYTE = 2**20


def inflating(megabytes: int) -> bytes:
    """Zlib's zeros, quickly: what stands between two full flushes may come again and again."""
    deflate = zlib.compressobj(9)
    first, again = (
        deflate.compress(bytes(MEGABYTE)) + deflate.flush(zlib.Z_FULL_FLUSH) for _ in range(2)
    )
    return first + again * (megabytes - 1) + deflate.flush()


def animation(format: str, **options: object) -> bytes:
    frames = [picture().rotate(angle) for angle in (0, 90, 180)]
    return saved(frames[0], format, save_all=True, append_images=frames[1:], **options)


def transparent(mode: str = "RGBA") -> Image.Image:
    image = picture(mode="RGBA")
    image.putalpha(picture(mode="L"))
    return image.quantize(64) if mode == "P" else image.convert(mode)


def turned(orientation: int, format: str = "JPEG") -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return saved(picture(), format, exif=tags)


def heic(image: Image.Image, **options: object) -> bytes:
    """HEIC, or where it is not decoded something else."""
    return saved(image, "HEIF", **options) if "HEIF" in image_files.formats() else jpeg()


def of_floats() -> Image.Image:
    return Image.fromarray(np.linspace(0, 1, 48 * 40, dtype=np.float32).reshape(40, 48))


def of_16_bits() -> Image.Image:
    return Image.fromarray(np.linspace(0, 65535, 48 * 40, dtype=np.uint16).reshape(40, 48))


# One of each kind of file, from which broken ones are made.
SEEDS: dict[str, Callable[[], bytes]] = {
    "jpeg": jpeg,
    "jpeg progressive": lambda: jpeg(progressive=True),
    "jpeg grey": lambda: saved(picture(mode="L"), "JPEG"),
    "jpeg cmyk": lambda: saved(picture(mode="CMYK"), "JPEG"),
    "jpeg with exif": lambda: turned(6),
    "jpeg of several": lambda: animation("MPO"),
    "png": lambda: saved(picture(), "PNG"),
    "png palette": lambda: saved(transparent("P"), "PNG"),
    "png interlaced": lambda: png(interlaced=True),
    "png 16 bit": lambda: png(depth=16, colour=6),
    "apng": lambda: animation("PNG"),
    "webp lossy": lambda: saved(picture(), "WEBP", exif=b"Exif\0\0MM\0*" + bytes(8)),
    "webp lossless": lambda: saved(transparent(), "WEBP", lossless=True),
    "webp animated": lambda: animation("WEBP"),
    "gif": lambda: saved(transparent("P"), "GIF"),
    "gif animated": lambda: animation("GIF"),
    "bmp": lambda: saved(picture(), "BMP"),
    "bmp palette": lambda: saved(picture().quantize(16), "BMP"),
    "bmp rle": lambda: run_length_bmp(1),
    "avif": lambda: saved(picture(), "AVIF", speed=10),
    "avif transparent": lambda: saved(transparent(), "AVIF", speed=10),
    "avif animated": lambda: animation("AVIF", speed=10),
    "heic": lambda: heic(picture()),
    "heic transparent": lambda: heic(transparent()),
    "heic tiled": lambda: heic(picture((200, 150)), tile_size=64),
    "tiff": lambda: saved(picture(), "TIFF"),
    "tiff lzw": lambda: saved(picture(), "TIFF", compression="tiff_lzw"),
    "tiff jpeg": lambda: saved(picture(), "TIFF", compression="jpeg"),
    "tiff deflate": lambda: saved(picture(), "TIFF", compression="tiff_adobe_deflate"),
    "tiff fax": lambda: saved(picture(mode="1"), "TIFF", compression="group4"),
    "tiff pages": lambda: animation("TIFF"),
    "tiff tiled": lambda: tiled_tiff(16, 16),
}
LIKE_OTHERS: dict[str, Callable[[], bytes]] = {
    "1 x 1": lambda: png(1, 1),
    "1 x 2,000": lambda: png(1, 2000),
    "2,000 x 1": lambda: png(2000, 1),
    "png of 49 megapixels": lambda: png(
        7000, 7000, 1, 0, pixels=zlib.compress(bytes(7000 * 876), 1)
    ),
    "png with much behind its pixels": lambda: png(pixels=inflating(200)),
    "png with a damaged profile": lambda: png(before=chunk(b"iCCP", b"x\0\0broken")),
    "png with unreadable exif": lambda: png(before=chunk(b"eXIf", noise(200))),
    "png with a cut exif": lambda: png(before=chunk(b"eXIf", b"MM")),
    "webp with unreadable exif": lambda: saved(picture(), "WEBP", exif=noise(200)),
    "jpeg with adobe's inverted cmyk": lambda: jpeg(
        segment(0xEE, b"Adobe\0\x64\0\0\0\0\2"), keep_rgb=False
    ),
    "jpeg with a profile of 15 MB": lambda: jpeg(
        b"".join(
            segment(0xE2, b"ICC_PROFILE\0" + bytes([i, 250]) + noise(60_000)) for i in range(1, 251)
        )
    ),
    "jpeg with a film behind it": lambda: jpeg() + b"\xff\xda" * 50_000 + noise(MEGABYTE),
    "jpeg with exif that points to itself": lambda: jpeg(
        segment(0xE1, exif([(0x8769, 4, 1, b"\0\0\0\x08"), (0x8825, 4, 1, b"\0\0\0\x08")]))
    ),
    "jpeg with exif whose offsets lie": lambda: jpeg(
        segment(0xE1, exif([(0x010F, 2, 2**31, b"\xff\xff\xff\xf0"), (0x0112, 3, 0, b"\0\1")]))
    ),
    "jpeg turned with exif of odd types": lambda: jpeg(
        segment(0xE1, exif([(0x0112, 3, 1, b"\0\6"), (0x8769, 2, 4, b"abc\0")]))
    ),
    "gif with a frame beyond its screen": lambda: gif(8, 8, gif_frame(64, 48)),
    "gif with 10,000 frames": lambda: gif(32, 32, gif_frame(32, 32) + gif_frame() * 9_999),
    "apng with 10,000 frames": lambda: many_frames_apng(10_000),
    "webp with 10,000 frames": lambda: many_frames_webp(10_000),
    "bmp upside down": lambda: bmp(8, -8, pixels=noise(192)),
    "bmp rle 4": lambda: run_length_bmp(2),
    "tiff whose pages go in circles": lambda: grey_tiff(32, 32, data=noise(1024), following=8),
    "tiff of floats": lambda: saved(of_floats(), "TIFF"),
    "tiff ycbcr": lambda: saved(picture(mode="YCbCr"), "TIFF"),
    "tiff cmyk": lambda: saved(picture(mode="CMYK"), "TIFF"),
    "tiff 16 bit": lambda: saved(of_16_bits(), "TIFF"),
    "tiff with exif that points to itself": lambda: grey_tiff(
        32, 32, long(34665, 8), long(34853, 8), data=noise(1024)
    ),
    "gif and script": lambda: saved(picture().quantize(16), "GIF") + b"/*<script>alert(1)</script>",
    "jpeg and zip": lambda: jpeg() + zipped(b"x"),
    "png and pdf": lambda: png() + b"%PDF-1.7 %%EOF",
}
NO_IMAGES: dict[str, Callable[[], bytes]] = {
    "nothing": bytes,
    "zeros": lambda: bytes(1000),
    "noise": lambda: noise(10_000),
    "text": lambda: b"hello\n" * 100,
    "svg": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "svg of entities": lambda: (
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><svg>&b;</svg>'
    ),
    "html": lambda: b"<!doctype html><img src=x onerror=alert(1)>",
    "pdf and png": lambda: b"%PDF-1.7\n" + png(),
    "gzip": lambda: gzip.compress(png()),
    "gzip in gzip of zeros": lambda: gzip.compress(gzip.compress(bytes(4 * MEGABYTE))),
    "zip": lambda: zipped(zipped(bytes(MEGABYTE))),
    "ico": lambda: saved(picture((32, 32)), "ICO"),
    "ppm": lambda: saved(picture(), "PPM"),
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "heic without an image": lambda: b"\0\0\0\x18ftypheic" + bytes(200),
    "jpeg xl": lambda: b"\xff\x0a" + noise(200),
    "avif of 5,000 boxes": lambda: saved(picture(), "AVIF")[:32] + b"\0\0\0\x08free" * 5_000,
    "only a signature of jpeg": lambda: b"\xff\xd8\xff",
    "only a signature of png": lambda: b"\x89PNG\r\n\x1a\n",
    "only a signature of gif": lambda: b"GIF89a",
    "only a signature of webp": lambda: b"RIFF\x10\0\0\0WEBPVP8X",
    "only a signature of tiff": lambda: b"II*\0",
    "png with jpeg's signature": lambda: b"\xff\xd8\xff" + png()[3:],
    "png whose line ends were changed": lambda: png().replace(b"\r\n", b"\n", 1),
    "png of no width": lambda: png(0, 32, pixels=zlib.compress(b"")),
    "png with a profile of 200 MB": lambda: png(before=chunk(b"iCCP", b"x\0\0" + inflating(200))),
    "png with 500 profiles": lambda: png(
        before=chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(MEGABYTE - 1))) * 500
    ),
    "png with a text of 200 MB": lambda: png(before=chunk(b"zTXt", b"x\0\0" + inflating(200))),
    "png with a text of 200 MB behind": lambda: png(
        after=chunk(b"iTXt", b"x\0\1\0\0\0" + inflating(200))
    ),
    "png with 300,000 chunks": lambda: png(before=chunk(b"tIME", b"") * 300_000),
    "png with 300,000 empty parts": lambda: png(before=chunk(b"IDAT", b"") * 300_000),
    "png with a chunk that lies": lambda: png(before=b"\xff\xff\xff\xf0tEXtx"),
    "jpeg of no height": lambda: frame(jpeg(), 0xC0, [(1, 0), (2, 0)]),
    "jpeg of 12 bits": lambda: frame(jpeg(), 0xC1, [(0, 12)]),
    "jpeg with absurd sampling": lambda: frame(jpeg(), 0xC0, [(7, 0xFF), (10, 0x1F)]),
    "jpeg of a lossless kind": lambda: frame(jpeg(), 0xC3, []),
    "jpeg with 1,000 scans": lambda: many_scans(1000),
    "jpeg with 50,000 parts of exif": lambda: jpeg(segment(0xE1, b"Exif\0\0x") * 50_000),
    "jpeg with 300,000 bytes between": lambda: jpeg(segment(0xFE, b"x") + bytes(300_000)),
    "gif of 1,000,000 pieces": lambda: gif(
        32, 32, b"!\xfe" + b"\x01a" * MEGABYTE + b"\0" + gif_frame(32, 32)
    ),
    "gif of 1,000,000 bytes between": lambda: gif(32, 32, b"a" * MEGABYTE + gif_frame()),
    "gif without a frame": lambda: gif(32, 32, b""),
    "webp whose canvas is too small": lambda: riff(
        (b"VP8X", bytes(4) + uint24(3) + uint24(3)),
        (b"VP8L", saved(picture(), "WEBP", lossless=True)[20:]),
    ),
    "bmp of 7 bits": lambda: bmp(8, 8, 7, pixels=noise(64)),
    "bmp with 4,294,967,295 colours": lambda: bmp(8, 8, 8, colours=2**32 - 1, pixels=noise(64)),
    "bmp of an unknown compression": lambda: bmp(8, 8, 8, 99, pixels=noise(64)),
    "bmp that ends early": lambda: bmp(512, 512, pixels=noise(64)),
    "tiff without tags": lambda: b"II*\0\x08\0\0\0\0\0\0\0\0\0",
    "tiff with 65,535 tags": lambda: b"II*\0\x08\0\0\0\xff\xff" + bytes(2 * MEGABYTE),
    "tiff beyond 4 GB": lambda: b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + bytes(100),
    "tiff with 4,294,967,295 values": lambda: grey_tiff(
        32, 32, (258, 3, 2**32 - 1, b"\x08\0\0\0"), data=noise(1024)
    ),
    "tiff with 100,000 rationals": lambda: grey_tiff(
        32, 32, (282, 5, 100_000, noise(800_000)), data=noise(1024)
    ),
    "tiff with 100,000 rationals in its exif": lambda: nested_rationals(100_000),
    "tiff whose strips begin anew 40,000 times": lambda: grey_tiff(
        1000, 1000, long(278, 999), long(273, *[600_000] * 40_000), data=noise(2_000_000)
    ),
    "tiff of an old jpeg": lambda: grey_tiff(32, 32, short(259, 6), data=jpeg()),
    "tiff of lzma": lambda: grey_tiff(32, 32, short(259, 34925), data=noise(1024)),
}
TOO_LARGE: dict[str, Callable[[], bytes]] = {
    "1 x 60,000": lambda: png(1, 60_000),
    "60,000 x 1": lambda: png(60_000, 1),
    "png of 50,000 x 50,000": lambda: png(50_000, 50_000, pixels=inflating(10)),
    "jpeg of 65,500 x 65,500": lambda: frame(
        jpeg(), 0xC0, [(1, 0xFF), (2, 0xDC), (3, 0xFF), (4, 0xDC)]
    ),
    "webp with a canvas of 16,777,216 x 255": lambda: riff(
        (b"VP8X", bytes(4) + b"\xff\xff\xff" + uint24(254)),
        (b"VP8L", saved(picture(), "WEBP", lossless=True)[20:]),
    ),
    "webp of 16,383 x 16,383": lambda: riff(
        (b"VP8 ", b"\x30\x01\0\x9d\x01\x2a\xff\x3f\xff\x3f" + noise(100))
    ),
    "webp lossless of 16,384 x 16,384": lambda: riff(
        (b"VP8L", b"\x2f\xff\xff\xff\x0f" + noise(100))
    ),
    "gif of 65,535 x 65,535": lambda: gif(65_535, 65_535, gif_frame()),
    "gif with a frame of 65,535 x 65,535": lambda: gif(8, 8, gif_frame(65_535, 65_535, 9)),
    "bmp of 1,048,576 x 1,048,576": lambda: bmp(2**20, 2**20, pixels=noise(64)),
    "bmp rle of 40 megapixels": lambda: bmp(
        8000, 5000, 8, 1, palette=noise(1024), pixels=bytes(10_000)
    ),
    "tiff of 4,294,967,295 x 65,535": lambda: grey_tiff(1, 65_535, long(256, 2**32 - 1)),
    "tiff with tiles of 65,535 x 65,535": lambda: tiled_tiff(65_535, 65_535),
}


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    whole = saved(picture(), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * count + whole[-2:]


def many_frames_apng(count: int) -> bytes:
    pixels = zlib.compress(bytes(32 * 97))

    def control(number: int) -> bytes:
        return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, 32, 32, 0, 0, 1, 10, 0, 0))

    frames = [
        control(number) + chunk(b"fdAT", struct.pack(">I", number + 1) + pixels)
        for number in range(1, 2 * count - 1, 2)
    ]
    head = chunk(b"acTL", struct.pack(">II", count, 0)) + control(0)
    return png(pixels=pixels, before=head, after=b"".join(frames))


def many_frames_webp(count: int) -> bytes:
    still = saved(picture((16, 16)), "WEBP", lossless=True)
    frame = uint24(0) * 2 + uint24(15) * 2 + uint24(10) + b"\0" + still[12:]
    return riff(
        (b"VP8X", b"\x02\0\0\0" + uint24(15) * 2),
        (b"ANIM", bytes(6)),
        *[(b"ANMF", frame)] * count,
    )


def run_length_bmp(compression: int) -> bytes:
    """8 x 8 pixels in runs; `compression` 1 has 8 bits a pixel, 2 has 4."""
    rows = b"\x08\x01\0\0" * 8 + b"\0\x01"
    bits = 8 if compression == 1 else 4
    return bmp(8, 8, bits, compression, palette=noise(4 << bits), pixels=rows)


def tiled_tiff(width: int, height: int) -> bytes:
    """16 x 16 pixels in a compressed tile that says to be of another size."""
    pixels = zlib.compress(noise(256))
    return grey_tiff(
        16,
        16,
        short(259, 8),
        short(322, width),
        short(323, height),
        (324, 4, 1, b""),
        long(325, len(pixels)),
        data=pixels,
    )


def nested_rationals(count: int) -> bytes:
    """A TIFF whose EXIF stands in its pixels and has a tag of many values."""
    nested = struct.pack("<HHHIII", 1, 0x9201, 5, count, 0, 0) + noise(8 * count)
    plain = grey_tiff(32, 32, long(34665, 0), data=nested)
    at = plain.index(nested)
    return grey_tiff(32, 32, long(34665, at), data=nested)


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", data)
    return buffer.getvalue()


def cases() -> Iterator[tuple[str, Case]]:
    for table, statuses in (
        (SEEDS, GOOD),
        (LIKE_OTHERS, GOOD),
        (NO_IMAGES, BAD),
        (TOO_LARGE, LARGE),
    ):
        for name, make in table.items():
            yield name, (make, statuses)
    for colour, depths in PNG_DEPTHS.items():
        for depth in depths:
            for interlaced in (False, True):
                name = f"png colour {colour} of {depth} bits{' interlaced' * interlaced}"
                yield name, (partial(png, 32, 32, depth, colour, interlaced=interlaced), GOOD)
    for orientation in range(10):
        for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
            name = f"{kind.lower()} with orientation {orientation}"
            yield name, (partial(turned, orientation, kind), GOOD)
    # Its data are Huffman's, so any pixels may come out: nothing here writes the true kind.
    yield "jpeg arithmetic", (lambda: frame(jpeg(), 0xC9, []), EITHER)


CASES: dict[str, Case] = dict(cases())


def broken(name: str) -> list[bytes]:
    """A seed cut off at many places, and with single bits turned."""
    whole = SEEDS[name]()
    step = max(1, len(whole) // 12)
    cut = [whole[:end] for end in range(1, len(whole), step)]
    flipped = []
    for at in range(0, len(whole), step):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        flipped.append(bytes(changed))
    return cut + flipped
