"""What a device gets is a file that PIL reads as well, plain and upright, of the same size."""

from __future__ import annotations

import io
import struct
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from models.preprocess import CIFAR, IMAGENET
from service.inference import image_headers
from service.inference.decoding import decode_image
from service.inference.jpeg_header import MOST_PIXELS, MOST_SEGMENTS, of_plain_file, room
from tests.support import kinds
from tests.support.hostile import fuzz
from tests.support.hostile.formats import exif, frame, jpeg, noise, picture, saved, segment
from tests.support.hostile.images import SEEDS, turned

LIMIT = 10**6
ORIENTATION = 0x0112
XMP = b"http://ns.adobe.com/xap/1.0/\0"


def is_plain(data: bytes) -> bool:
    return of_plain_file(data, IMAGENET, LIMIT) is not None


def oriented(*tags: tuple[int, int, int, bytes], order: str = ">") -> bytes:
    return jpeg(segment(0xE1, exif(tags, order)))


def with_adobe(transform: int, **options: object) -> bytes:
    return jpeg(segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform])), **options)


def header(data: bytes) -> int:
    """Where the scan's segment begins."""
    return data.index(b"\xff\xda")


PLAIN: dict[str, Callable[[], bytes]] = {
    "4:2:0": lambda: jpeg(subsampling=2),
    "4:2:2": lambda: jpeg(subsampling=1),
    "4:4:4": lambda: jpeg(subsampling=0),
    "4:4:0": lambda: frame(jpeg(subsampling=0), 0xC0, [(7, 0x12)]),
    "grey": lambda: saved(picture(mode="L"), "JPEG"),
    "tables of its own": lambda: jpeg(optimize=True, quality=95),
    "coarse": lambda: jpeg(quality=1),
    "restart intervals": lambda: jpeg(restart_marker_blocks=2),
    "upright": lambda: turned(1),
    "upright, little-endian": lambda: oriented((ORIENTATION, 3, 1, b"\1\0"), order="<"),
    "exif without orientation": lambda: oriented((0x010F, 2, 4, b"abc\0")),
    "exif with a thumbnail": lambda: jpeg(
        segment(0xE1, exif([(ORIENTATION, 3, 1, b"\0\1")]) + jpeg())
    ),
    "upright by xmp": lambda: jpeg(segment(0xE1, XMP + b'<x tiff:Orientation="1"/>')),
    "profile": lambda: jpeg(icc_profile=noise(1000)),
    "comment": lambda: jpeg(comment=b"\xff\xd9"),
    "adobe's YCbCr": lambda: with_adobe(1),
    "segments as many as may be": lambda: jpeg(segment(0xE5, b"") * (MOST_SEGMENTS - 10)),
}  # fmt: skip
FOR_PIL: dict[str, Callable[[], bytes]] = {
    "nothing": bytes,
    "only a signature": lambda: b"\xff\xd8\xff",
    "start and end": lambda: b"\xff\xd8\xff\xd9",
    "png": SEEDS["png"],
    "progressive": lambda: jpeg(progressive=True),
    "extended": lambda: frame(jpeg(), 0xC1, []),
    "arithmetic": lambda: frame(jpeg(), 0xC9, []),
    "12 bits": lambda: frame(jpeg(), 0xC0, [(0, 12)]),
    "cmyk": SEEDS["jpeg cmyk"],
    "rgb": lambda: saved(picture(), "JPEG", keep_rgb=True),
    "adobe's rgb": lambda: with_adobe(0),
    "adobe's cut short": lambda: jpeg(segment(0xEE, b"Adobe\0\x64")),
    "several images": SEEDS["jpeg of several"],
    "an image of several": lambda: jpeg(segment(0xE2, b"MPF\0" + bytes(20))),
    "chroma finer than luma": lambda: frame(jpeg(), 0xC0, [(10, 0x22)]),
    "4:1:1": lambda: frame(jpeg(), 0xC0, [(7, 0x41)]),
    "grey of 4 blocks": lambda: frame(saved(picture(mode="L"), "JPEG"), 0xC0, [(7, 0x22)]),
    "no height": lambda: frame(jpeg(), 0xC0, [(1, 0), (2, 0)]),
    "no width": lambda: frame(jpeg(), 0xC0, [(3, 0), (4, 0)]),
    "two components": lambda: frame(jpeg(), 0xC0, [(5, 2)]),
    "other components": lambda: frame(jpeg(), 0xC0, [(6, ord("R"))]),
    "no quantisation table": lambda: frame(jpeg(), 0xC0, [(8, 3)]),
    "two frames": lambda: jpeg(segment(0xC0, b"\x08\0\x08\0\x08\1\1\x11\0")),
    "two exif": lambda: jpeg(segment(0xE1, exif([])) * 2),
    "unreadable exif": lambda: jpeg(segment(0xE1, b"Exif\0\0" + noise(100))),
    "exif cut short": lambda: jpeg(segment(0xE1, exif([(ORIENTATION, 3, 1, b"\0\1")])[:-8])),
    "orientation as a long": lambda: oriented((ORIENTATION, 4, 1, b"\0\0\0\1")),
    "two orientations": lambda: oriented((ORIENTATION, 3, 2, b"\0\1\0\6")),
    "turned by xmp": lambda: jpeg(segment(0xE1, XMP + b'<x tiff:Orientation="6"/>')),
    "turned by an xmp element": lambda: jpeg(
        segment(0xE1, XMP + b"<tiff:Orientation>8</tiff:Orientation>")
    ),
    "photoshop": lambda: jpeg(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4")),
    "short jfif": lambda: jpeg(segment(0xE0, b"JFIF\0")),
    "short profile": lambda: jpeg(segment(0xE2, b"ICC_PROFILE\0")),
    "empty quantisation": lambda: jpeg(segment(0xDB, b"")),
    "quantisation of 16 bits": lambda: jpeg(segment(0xDB, b"\x10" + bytes(range(128)))),
    "more huffman codes than fit": lambda: jpeg(segment(0xC4, b"\0\3" + bytes(15) + b"\0\1\2")),
    "a huffman table without codes": lambda: jpeg(segment(0xC4, bytes(17))),
    "huffman table 2": lambda: jpeg(segment(0xC4, b"\2\1" + bytes(16))),
    "too long differences": lambda: jpeg(segment(0xC4, b"\0\1" + bytes(15) + b"\x0c")),
    "five huffman tables": lambda: jpeg(segment(0xC4, (b"\0\1" + bytes(16)) * 5)),
    "restart interval of a byte": lambda: jpeg(segment(0xDD, b"\1")),
    "lines defined later": lambda: jpeg(segment(0xDC, b"\0\x28")),
    "unknown marker": lambda: jpeg(segment(0xF7, b"")),
    "padding before a marker": lambda: jpeg(b"\xff"),
    "a byte between segments": lambda: jpeg(b"\0"),
    "too many segments": lambda: jpeg(segment(0xE5, b"") * MOST_SEGMENTS),
    "a length that denies itself": lambda: jpeg(b"\xff\xe5\0\1"),
    "a byte behind": lambda: jpeg() + b"\0",
    "an end behind": lambda: jpeg() + b"\xff\xd9",
    "a film behind": lambda: jpeg() + noise(1000) + b"\xff\xd9",
    "no end": lambda: jpeg()[:-2],
    "half of the data": lambda: jpeg()[: len(jpeg()) // 2],
    "a marker in the data": lambda: jpeg()[:-2] + b"\xff\xfe\0\2\xff\xd9",
    "two scans": lambda: jpeg()[:-2] + jpeg()[header(jpeg()) :],
    "no tables": lambda: jpeg(streamtype=2),
    "no data": lambda: jpeg()[: header(jpeg())] + b"\xff\xd9",
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_plain_files_are_for_the_device(name: str) -> None:
    data = PLAIN[name]()
    file = of_plain_file(data, IMAGENET, LIMIT)
    assert file is not None
    assert file.data.tobytes() == data
    assert (file.width, file.height) == (48, 40)
    assert decode_image(data, IMAGENET, LIMIT).size == (48, 40)


@pytest.mark.parametrize("name", FOR_PIL)
def test_all_other_files_are_for_pil(name: str) -> None:
    assert not is_plain(FOR_PIL[name]())


@pytest.mark.parametrize("orientation", [0, *range(2, 10)])
def test_turned_images_are_for_pil(orientation: int) -> None:
    assert not is_plain(turned(orientation))


def test_a_file_fits_its_slot() -> None:
    assert (room(CIFAR), room(IMAGENET)) == (32 * 32 * 12, 224 * 224 * 12)
    assert (room(kinds.GREY), room(kinds.SQUASHED)) == (28 * 28 * 4, 48 * 32 * 12)
    short = room(CIFAR) - len(jpeg()) - 4
    assert of_plain_file(jpeg(segment(0xE5, bytes(short))), CIFAR, LIMIT) is not None
    assert of_plain_file(jpeg(segment(0xE5, bytes(short + 1))), CIFAR, LIMIT) is None


def sized(width: int, height: int) -> bytes:
    """A JPEG that says it has this size."""
    return frame(jpeg(), 0xC0, list(enumerate(struct.pack(">HH", height, width), start=1)))


@pytest.mark.parametrize(
    ("width", "height", "limit", "fits"),
    [
        (48, 40, 48 * 40, False),  # It would be larger when resized.
        (400, 300, 400 * 300, True),
        (400, 300, 400 * 300 - 1, False),
        (2048, 2048, 10**9, True),
        (2048, 2049, 10**9, False),  # PIL decodes large images at a fraction of their size.
        (1, 64, 10**9, True),
        (1, 65, 10**9, False),
        (64, 1, 10**9, True),
        (65, 1, 10**9, False),
    ],
)
def test_an_image_has_no_more_pixels_than_are_allowed(
    width: int, height: int, limit: int, fits: bool
) -> None:
    assert MOST_PIXELS == 2048 * 2048
    assert (of_plain_file(sized(width, height), IMAGENET, limit) is not None) is fits


def check_agreed(data: bytes) -> str:
    """PIL reads what a device gets as the same upright image, within all limits."""
    file = of_plain_file(data, IMAGENET, LIMIT)
    if file is None:
        return "for PIL"
    image_headers.check_bytes(data, LIMIT)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG"
        assert image.size == (file.width, file.height)
        assert image.mode in {"RGB", "L"}
        assert "progressive" not in image.info
        assert image.getexif().get(ORIENTATION, 1) == 1
        image_headers.check_opened(image, data, LIMIT)
    assert decode_image(data, IMAGENET, LIMIT).pixels.shape == (224, 224, 3)
    return "for the device"


def test_of_mutated_files_the_device_gets_only_what_pil_decodes() -> None:
    seeds = {name: make() for name, make in SEEDS.items() if name.startswith("jpeg")}
    seeds |= {name: make() for name, make in PLAIN.items()}
    mutants = fuzz.mutants(seeds, 4000, 11)
    counts = Counter(check_agreed(data) for _, data in mutants)
    assert counts["for PIL"] > 1000
    assert counts["for the device"] > 200


def test_each_byte_of_a_header_may_be_any() -> None:
    whole = turned(1)
    chance = np.random.default_rng(3)
    for at in range(header(whole) + 14):
        for value in (whole[at] ^ 1, int(chance.integers(256))):
            check_agreed(whole[:at] + bytes([value]) + whole[at + 1 :])
    for end in range(len(whole)):
        assert not is_plain(whole[:end])
        assert not is_plain(whole[:end] + b"\xff\xd9") or end >= header(whole) + 14
