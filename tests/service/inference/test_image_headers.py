"""Each limit on what a header may ask for: the most that passes, and what is one more."""

from __future__ import annotations

import io
import struct
from itertools import product

import pytest
from PIL import Image

from service.errors import TooLarge, UndecodableImage
from service.inference import image_headers
from tests.conftest import encoded
from tests.support.hostile import formats
from tests.support.hostile.formats import (
    bmp,
    grey_tiff,
    jpeg,
    long,
    png,
    riff,
    segment,
    short,
    uint24,
)
from tests.support.hostile.images import animation, many_scans, tiled_tiff

PLENTY = 10**9  # pixels
MOST = 2**32 - 1
SOI, SCAN, END = b"\xff\xd8", b"\xff\xda\0\2", b"\xff\xd9"


def refusal(data: bytes, max_pixels: int = PLENTY) -> str | None:
    """Why `data` is not opened; None: it is."""
    try:
        image_headers.check_bytes(data, max_pixels)
    except (UndecodableImage, TooLarge) as error:
        return str(error)
    return None


def refusal_opened(file: bytes, max_pixels: int = PLENTY, data: bytes | None = None) -> str | None:
    """Why the image in `file` is not decoded, of which the bytes may be other `data`."""
    with Image.open(io.BytesIO(file)) as image:
        try:
            image_headers.check_opened(image, file if data is None else data, max_pixels)
        except (UndecodableImage, TooLarge) as error:
            return str(error)
    return None


def too_many(what: str) -> str:
    return f"the image's header has too many {what}; save it again without them"


def too_large(width: int, height: int, limit: int) -> str:
    return f"the image has {width} x {height} pixels; the limit is {limit} in all"


def test_a_decoder_may_read_131_072_times() -> None:
    """What has at most half as many bytes is not counted: counting would take longer."""
    assert type(image_headers.source(bytes(65_536))) is io.BytesIO
    file = image_headers.source(bytes(65_537))
    for _ in range(131_072):
        file.read(0)
    with pytest.raises(UndecodableImage) as caught:
        file.read(0)
    assert str(caught.value) == "the image is split into too many pieces; save it again"


def test_what_is_read_is_what_is_there() -> None:
    file = image_headers.source(bytes(65_536) + b"end")
    assert file.read(65_535) == bytes(65_535)
    assert file.read() == b"\0end"
    assert image_headers.source(b"small").read() == b"small"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (SOI + 16 * b"Exif\0\0", None),
        (SOI + 17 * b"Exif\0\0", too_many("parts of EXIF")),
        (b"\x89PNG" + 10 * b"iCCP" + 11 * b"zTXt" + 11 * b"iTXt", None),
        (
            b"\x89PNG" + 11 * b"iCCP" + 11 * b"zTXt" + 11 * b"iTXt",
            too_many("compressed texts and profiles"),
        ),
        # Each format's own; of others, and of no format, the bytes mean nothing.
        (SOI + 99 * b"iCCP", None),
        (b"\x89PNG" + 99 * b"Exif\0\0", None),
        (b"GIF89a" + 99 * b"Exif\0\0" + 99 * b"iCCP", None),
        (b"XRIFF", None),
        (b"", None),
    ],
)
def test_texts_and_profiles_are_so_many(data: bytes, why: str | None) -> None:
    assert refusal(data) == why


def vp8x(width: int, height: int) -> bytes:
    return riff((b"VP8X", bytes(4) + uint24(width - 1) + uint24(height - 1)))


def vp8l(width: int, height: int) -> bytes:
    # 14 bits each, then whether there is transparency, and the version.
    bits = width - 1 | (height - 1) << 14 | 1 << 28
    return riff((b"VP8L", b"\x2f" + struct.pack("<I", bits) + bytes(5)))


def vp8(width: int, height: int) -> bytes:
    # Behind 14 bits there are two of a scale, which the decoder does not apply.
    return riff((b"VP8 ", bytes(6) + struct.pack("<HH", width | 1 << 14, height | 3 << 14)))


@pytest.mark.parametrize(
    ("data", "width", "height"),
    [
        (vp8x(100_000, 3), 100_000, 3),
        (vp8x(3, 100_000), 3, 100_000),
        (vp8l(16_384, 5), 16_384, 5),
        (vp8l(5, 16_384), 5, 16_384),
        (vp8(16_383, 7), 16_383, 7),
        (vp8(7, 16_383), 7, 16_383),
    ],
)
def test_a_webp_may_have_half_the_pixels(data: bytes, width: int, height: int) -> None:
    assert refusal(data, 2 * width * height) is None
    assert refusal(data, 2 * width * height - 1) == too_large(width, height, width * height - 1)


def test_a_webp_that_ends_within_its_size_is_the_decoders_to_refuse() -> None:
    whole = vp8x(2**24, 2**24)
    assert len(whole) == 30
    assert refusal(whole) is not None
    assert refusal(whole[:29]) is None


Entry = tuple[int, int, int, int]  # number, type, count and value of a tag


def directory(order: str, *entries: Entry) -> bytes:
    listed = b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries)
    return struct.pack(f"{order}H", len(entries)) + listed + bytes(4)


def tiff(order: str, *directories: list[Entry], first: int = 8) -> bytes:
    """Directories behind each other."""
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    parts = [directory(order, *entries) for entries in directories]
    return magic + struct.pack(f"{order}I", first) + b"".join(parts)


def chain(order: str, count: int) -> bytes:
    """Directories of which each points to the next, and the last to itself."""
    offsets = [8 + 18 * index for index in range(count)]
    following = [*offsets[1:], offsets[-1]]
    return tiff(order, *([(34665, 4, 1, offset)] for offset in following))


ORDERS = pytest.mark.parametrize("order", ["<", ">"])
SECOND = 8 + 2 + 2 * 12 + 4  # Where the second directory stands, behind a first of two tags.


def tiff_of(order: str, tag: Entry) -> bytes:
    return tiff(order, [(256, 3, 1, 1), tag])


def nested(order: str, tag: Entry) -> bytes:
    """A TIFF whose EXIF has `tag` behind another one."""
    return tiff(order, [(256, 3, 1, 1), (34665, 4, 1, SECOND)], [(271, 2, 3, 0), tag])


@ORDERS
@pytest.mark.parametrize("pointers", [(34665, 34853), (34853, 34665)])
def test_a_directory_that_was_read_does_not_hide_others(
    order: str, pointers: tuple[int, int]
) -> None:
    itself, other = pointers
    entries = sorted([(itself, 4, 1, 8), (other, 4, 1, SECOND)])
    assert refusal(tiff(order, entries, [(282, 5, 64, 0)])) is None
    assert refusal(tiff(order, entries, [(282, 5, 65, 0)])) == too_many("values of tag 282")


@ORDERS
def test_a_tiff_has_at_most_eight_directories_however_they_point(order: str) -> None:
    assert refusal(chain(order, 8)) is None
    assert refusal(chain(order, 9)) == too_many("directories")


@ORDERS
@pytest.mark.parametrize("pointer", [34665, 34853, 40965])
def test_a_pointer_to_a_directory_is_one_number_of_32_bits(order: str, pointer: int) -> None:
    for kind, count in product((3, 4, 13, 16), (0, 1, 2)):
        entries = [(256, 3, 1, 1), (pointer, kind, count, 8)]
        good = kind in {4, 13} and count == 1
        why = None if good else too_many(f"kinds of tag {pointer}")
        assert refusal(tiff(order, entries)) == why
    # Whichever it is, it is followed.
    bad = (282, 5, 65, 0)
    found = tiff(order, [(256, 3, 1, 1), (pointer, 4, 1, SECOND)], [bad])
    assert refusal(found) == too_many("values of tag 282")


@ORDERS
@pytest.mark.parametrize("kind", range(1, 14))
def test_a_tag_has_so_many_values(order: str, kind: int) -> None:
    """Python objects are made of all but bytes, of rationals costly ones."""
    size, rationals = (200_000, 4096), (64, 64)
    limits = (MOST, MOST) if kind in {1, 2, 7} else rationals if kind in {5, 10} else size
    for make, limit in zip((tiff_of, nested), limits, strict=True):
        assert refusal(make(order, (700, kind, limit, 0))) is None
        if limit < MOST:
            assert refusal(make(order, (700, kind, limit + 1, 0))) == too_many("values of tag 700")


@ORDERS
def test_a_directory_has_at_most_1024_tags(order: str) -> None:
    assert refusal(tiff(order, [(256, 3, 1, 1)] * 1024)) is None
    assert refusal(tiff(order, [(256, 3, 1, 1)] * 1025)) == too_many("tags")


@ORDERS
def test_a_tiff_holds_its_directories(order: str) -> None:
    cut = "the TIFF image is truncated within its header"
    whole = tiff(order, [(256, 3, 1, 1), (257, 3, 1, 1)])
    assert refusal(whole[:34]) is None  # All but the offset of the next page, which is not read.
    for end in (4, 7, 8, 9, 10, 33):
        assert refusal(whole[:end]) == cut
    assert refusal(tiff(order, [], first=MOST)) == cut


@pytest.mark.parametrize(
    ("magic", "words"),
    [
        (b"II+\0", "this is BigTIFF; save it as classic TIFF"),
        (b"MM\0+", "this is BigTIFF; save it as classic TIFF"),
        (b"II\xbc\x01", "this is JPEG XR, which this service does not decode; "),
        (b"IIRO", "this is Olympus's raw format ORF, which this service does not decode; "),
        *((magic, "not a readable image; ") for magic in (b"II", b"MM", b"II\0*", b"MM*\0")),
    ],
)
def test_only_the_classic_tiff_is_read(magic: bytes, words: str) -> None:
    assert (refusal(magic + bytes(100)) or "").startswith(words)


def test_a_jpeg_has_an_end_behind_its_last_scan() -> None:
    whole = encoded("JPEG")
    thumbnail = jpeg(b"\xff\xe1\0\x06\xff\xd9\xff\xd9")
    for end in (b"", bytes(99), whole):
        assert image_headers.has_end(thumbnail + end)
    assert not image_headers.has_end(thumbnail[:-2])
    assert not image_headers.has_end(whole[:-2] + bytes(99))


def test_an_image_has_as_many_pixels_as_are_allowed() -> None:
    assert refusal_opened(png(48, 40), 48 * 40) is None
    assert refusal_opened(png(48, 40), 48 * 40 - 1) == too_large(48, 40, 48 * 40 - 1)


def jpeg_of(*parts: bytes) -> bytes:
    return b"".join([SOI, *parts, END])


SCANS = too_many("scans")


@pytest.mark.parametrize(
    ("most", "max_pixels", "why"),
    [
        (100, PLENTY, "a hundred"),
        (100, 5 * 48 * 40, "a hundred for all up to a fifth of the pixels allowed"),
        (99, 5 * 48 * 40 - 1, "fewer for those that are larger"),
        (20, 48 * 40, "twenty for the largest"),
    ],
)
def test_a_jpeg_has_so_many_scans(most: int, max_pixels: int, why: str) -> None:
    with Image.open(io.BytesIO(many_scans(1))) as image:
        assert image.size == (48, 40)
    others = many_scans(0).count(SCAN[:2])
    assert refusal_opened(many_scans(most - others), max_pixels) is None, why
    assert refusal_opened(many_scans(most - others + 1), max_pixels) == SCANS, why


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (jpeg_of(SCAN * 20), None),
        (jpeg_of(SCAN * 21), SCANS),
        # Behind the image may be a film, whose bytes are anything.
        (jpeg_of(SCAN * 20) + SCAN * 200, None),
        (jpeg_of(SCAN * 21) + SCAN * 200, SCANS),
        # So may be those in a segment, of a small image for instance.
        (jpeg_of(segment(0xE1, SCAN * 200), SCAN * 20), None),
        (jpeg_of(segment(0xE1, SCAN * 200), SCAN * 21), SCANS),
        (jpeg_of(SCAN * 10, segment(0xFE, b"\xff\xd9" + SCAN * 200), SCAN * 10), None),
        (jpeg_of(SCAN * 10, segment(0xFE, b"\xff\xd9" + SCAN * 200), SCAN * 11), SCANS),
        # A length counts its own two bytes, even where it denies it.
        (jpeg_of(b"\xff\xe1\0\0", SCAN * 20), None),
        (jpeg_of(b"\xff\xe1\0\0", SCAN * 21), SCANS),
        (jpeg_of(b"\xff\xe1\0\1", SCAN * 21), SCANS),
        # Pixels may have a stuffed ff, and marks to restart at, which have no length.
        (jpeg_of(SCAN, b"\xff\0\xff\xff\xd0\xff\xff\xd7\xff\xff", SCAN * 20), SCANS),
        (jpeg_of(SCAN, b"\xff\0\xff\xd0\xff\xd7\xff\xff", SCAN * 19), None),
        # It may end anywhere.
        (SOI + SCAN * 20 + b"\xff\xe1", None),
        (SOI + SCAN * 20 + b"\xff\xe1\xff\xff" + SCAN * 200, None),
        (SOI + SCAN * 21, SCANS),
    ],
)
def test_scans_are_those_of_the_image(data: bytes, why: str | None) -> None:
    file = many_scans(1)
    assert refusal_opened(file, 48 * 40, data) == why
    # Whatever the bytes, only those of a JPEG are scans.
    assert refusal_opened(png(48, 40), 48 * 40, data) is None


def test_scans_of_several_pictures_in_one_file_are_counted_too() -> None:
    file = animation("MPO")
    with Image.open(io.BytesIO(file)) as image:
        assert image.format == "MPO"
        pixels = image.width * image.height
    assert refusal_opened(file, pixels) is None
    assert refusal_opened(file, pixels, jpeg_of(SCAN * 21)) == SCANS


@pytest.mark.parametrize(("compression", "bits"), [(1, 8), (2, 4)])
def test_a_bmp_of_runs_has_at_most_4_194_304_pixels(compression: int, bits: int) -> None:
    def file(height: int, compression: int) -> bytes:
        palette = bytes(4 << bits)
        return bmp(2048, height, bits, compression, palette=palette, pixels=bytes(10))

    assert refusal_opened(file(2048, compression)) is None
    assert refusal_opened(file(2049, compression)) == too_large(2048, 2049, 2**22)
    assert refusal_opened(file(2049, 0)) is None
    fewer = 2048 * 2048 - 1
    assert refusal_opened(file(2048, compression), fewer) == too_large(2048, 2048, fewer)


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (1, "raw"),
        (2, "tiff_ccitt"),
        (3, "group3"),
        (4, "group4"),
        (5, "tiff_lzw"),
        (7, "jpeg"),
        (8, "tiff_adobe_deflate"),
        (32773, "packbits"),
        (32946, "tiff_deflate"),
        (6, None),  # JPEG as it was once put into TIFF
        (34676, None),  # logarithms
        (34925, None),  # LZMA
        (50000, None),  # Zstandard
        (50001, None),  # WebP
    ],
)
def test_a_tiff_is_of_a_compression_whose_cost_is_known(number: int, name: str | None) -> None:
    file = grey_tiff(32, 32, short(259, number), data=bytes(1024))
    with Image.open(io.BytesIO(file)) as image:
        said = image.info["compression"]
    words = f"TIFF compression {said} is not supported; save it with LZW or Deflate"
    assert refusal_opened(file) == (None if said == name else words)
    assert name in {None, said}


def test_a_tile_of_a_tiff_has_as_many_pixels_as_are_allowed() -> None:
    """The decoder makes it whole, whatever of it is in the image."""
    for width, height in ((300, 10), (10, 300)):
        file = tiled_tiff(width, height)
        assert refusal_opened(file, 3000) is None
        assert refusal_opened(file, 2999) == too_large(width, height, 2999)


@pytest.mark.parametrize("odd", [(5, 1, struct.pack("<II", 16, 1)), (2, 2, b"a\0")])
@pytest.mark.parametrize("side", [322, 323])
def test_the_side_of_a_tile_is_a_whole_number(side: int, odd: tuple[int, int, bytes]) -> None:
    sides = {322: short(322, 16), 323: short(323, 16), side: (side, *odd)}
    file = grey_tiff(16, 16, short(259, 8), *sides.values(), (324, 4, 1, b""), data=b"x")
    assert refusal_opened(file) == "the TIFF image's tiles have no size"


@pytest.mark.parametrize(("strips", "why"), [(12, None), (13, too_many("strips"))])
def test_strips_cover_an_image_at_most_six_times(strips: int, why: str | None) -> None:
    """As often as a pixel has samples, which may be in strips of their own."""
    offsets, counts = long(273, *[8] * strips), long(279, *[512] * strips)
    file = grey_tiff(32, 32, long(278, 16), offsets, counts, data=bytes(1024))
    assert refusal_opened(file) == why


def test_an_image_of_strips_has_no_tiles_and_one_of_tiles_is_covered_once() -> None:
    assert refusal_opened(grey_tiff(1, 1, data=b"x"), 1) is None
    tags = [
        *(short(256, 128), short(257, 16), short(258, 8), short(259, 1), short(262, 1)),
        *(short(322, 16), short(323, 16), long(324, *[8] * 8), long(325, *[256] * 8)),
    ]
    file = formats.tiff(tags, data=bytes(256))
    with Image.open(io.BytesIO(file)) as image:
        assert len(image.tile) == 8
    assert refusal_opened(file) is None
