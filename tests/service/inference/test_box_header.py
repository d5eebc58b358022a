"""What AVIF and HEIC files may ask of their decoders, found before these see them."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models import boxes, image_files
from models.preprocess import CIFAR
from service.errors import TooLarge, UndecodableImage
from service.inference import box_header
from service.inference.decoding import decode_image
from tests.support.hostile.formats import picture, saved
from tests.support.hostile.images import animation, transparent

SIZE, PIXELS = (64, 64), 64 * 64  # HEIC pads what is smaller
heic = pytest.mark.skipif("HEIF" not in image_files.formats(), reason="the extra `images`")
FORMATS = pytest.mark.parametrize("format", ["AVIF", pytest.param("HEIF", marks=heic)])


def refusal(data: bytes, max_pixels: int = 10**9) -> str | None:
    try:
        box_header.check(data, max_pixels)
    except (UndecodableImage, TooLarge) as error:
        return str(error)
    return None


def with_size(data: bytes, width: int, height: int) -> bytes:
    """`data` that says to have another size than it is coded in."""
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


@FORMATS
def test_an_image_has_as_many_pixels_as_are_allowed(format: str) -> None:
    for image in (picture(SIZE), transparent().resize(SIZE)):
        data = saved(image, format)
        assert refusal(data, PIXELS) is None
        words = f"the image has 64 x 64 pixels; the limit is {PIXELS - 1} in all"
        assert refusal(data, PIXELS - 1) == words


@FORMATS
def test_it_may_have_half_the_pixels_of_others(format: str) -> None:
    data = saved(picture(SIZE), format)
    assert decode_image(data, CIFAR, 2 * PIXELS).pixels.shape == (32, 32, 3)
    with pytest.raises(TooLarge, match="64 x 64"):
        decode_image(data, CIFAR, 2 * PIXELS - 1)


@FORMATS
def test_a_size_that_lies_does_not_hide_the_pixels_that_are_coded(format: str) -> None:
    lying = with_size(saved(Image.new("RGB", (800, 600)), format), 16, 16)
    with pytest.raises((TooLarge, UndecodableImage)):
        decode_image(lying, CIFAR, 2 * 16 * 16)
    assert refusal(with_size(saved(picture(), format), 2**31, 2**31)) is not None


@heic
def test_tiles_count_as_often_as_they_are_used() -> None:
    data = saved(picture((256, 256)), "HEIF", tile_size=64)
    assert refusal(data, 256 * 256) is None
    # All tiles are the first one: as much to decode, of fewer bytes.
    at = data.index(b"dimg") + 8
    tiles = struct.unpack_from(">16H", data, at)
    assert len(set(tiles)) == 16
    same = data[:at] + struct.pack(">16H", *[tiles[0]] * 16) + data[at + 32 :]
    items = box_header._read(same)
    assert items.used[tiles[0]] == 16
    assert box_header._coded(same, items, tiles[0]) == 16 * 64 * 64


def test_frames_of_an_item_count_each() -> None:
    data = saved(picture(SIZE), "AVIF")
    items = box_header._read(data)
    ((at, size),) = items.extents[items.primary]
    unit = data[at : at + size]
    assert box_header._pixels_of_av1(unit) == PIXELS
    assert box_header._pixels_of_av1(unit * 3) == 3 * PIXELS


def test_only_the_still_image_of_an_animation_is_decoded() -> None:
    data = animation("AVIF", speed=10)
    assert data[8:12] == b"avis"
    assert any(box.kind == boxes.FILM for box in boxes.boxes(data))
    still = boxes.still(data)
    assert len(still) == len(data)
    with image_files.opened(data) as image:
        assert getattr(image, "n_frames", 1) == 1
        expected = np.asarray(picture().convert("RGB"), np.float32)
        assert np.abs(np.asarray(image.convert("RGB"), np.float32) - expected).mean() < 8


@pytest.mark.parametrize("kind", [b"iovl", b"j2k1", b"unci"])
def test_images_that_are_coded_otherwise_are_refused(kind: bytes) -> None:
    data = saved(picture(), "AVIF").replace(b"av01", kind, 1)
    assert refusal(data) == f"an image coded as {kind.decode()!r} is not supported; save it again"


def test_a_file_without_a_still_image_is_refused() -> None:
    film = b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + struct.pack(">I4s", 8, b"mdat")
    assert refusal(film) == "the file has no still image; send one frame of it"


@pytest.mark.parametrize("end", range(24, 300, 7))
def test_a_cut_header_is_refused(end: int) -> None:
    data = saved(picture(), "AVIF")
    with pytest.raises(UndecodableImage):
        decode_image(data[:end], CIFAR, 10**6)


@FORMATS
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_an_image_is_turned_upright(format: str, orientation: int) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    with Image.open(io.BytesIO(saved(picture((64, 48)), "JPEG", exif=tags))) as camera:
        # pillow-heif writes the orientation of the image, and leaves out that of the option.
        options = {"exif": camera.getexif()} if format == "AVIF" else {}
        data = saved(camera, format, **options)
    size = (48, 64) if orientation >= 5 else (64, 48)
    assert decode_image(data, CIFAR, 10**6).size == size


@FORMATS
def test_a_transparent_image_is_on_white(format: str) -> None:
    image = Image.new("RGBA", (64, 64), (10, 20, 30, 0))
    assert decode_image(saved(image, format), CIFAR, 10**6).pixels.min() > 250


@heic
@pytest.mark.parametrize("bits", [10, 12])
def test_more_than_8_bits_are_scaled(bits: int) -> None:
    import pillow_heif

    ramp = np.linspace(0, 65535, 64 * 64 * 3).astype(np.uint16).reshape(64, 64, 3)
    pillow_heif.options.SAVE_HDR_TO_12_BIT = bits == 12
    try:
        buffer: Any = io.BytesIO()
        pillow_heif.encode("RGB;16", (64, 64), ramp.tobytes(), buffer, quality=90)
    finally:
        pillow_heif.options.SAVE_HDR_TO_12_BIT = False
    found = decode_image(buffer.getvalue(), CIFAR, 10**6).pixels
    assert found.min() < 12
    assert found.max() > 243


def cropped(width: int, height: int) -> bytes:
    """An AVIF of 200 x 100 pixels of which so many are to be shown."""
    data = saved(picture((200, 100)), "AVIF")
    # In place of the number of bits of each channel, which the coded image says too.
    at = data.index(b"pixi") - 4
    (size,) = struct.unpack_from(">I", data, at)
    crop = struct.pack(">I4s8I", 40, b"clap", width, 1, height, 1, 0, 1, 0, 1)
    changed = bytearray(data[:at] + crop + data[at + size :])
    for kind in (b"ipco", b"iprp", b"meta"):
        place = changed.index(kind) - 4
        changed[place : place + 4] = struct.pack(
            ">I", int.from_bytes(changed[place : place + 4], "big") + 40 - size
        )
    return bytes(changed)


@pytest.mark.parametrize("size", [(200, 100), (137, 37)])
def test_what_fills_up_blocks_may_be_cropped(size: tuple[int, int]) -> None:
    assert refusal(cropped(*size)) is None


@pytest.mark.parametrize("size", [(136, 100), (200, 36), (0, 0)])
def test_an_image_with_a_crop_of_its_own_is_refused(size: tuple[int, int]) -> None:
    """Pillow would show all of it."""
    words = f"the AVIF image is to be cropped to {size[0]} x {size[1]} pixels, which this service "
    assert (refusal(cropped(*size)) or "").startswith(words)


def test_only_the_file_itself_says_how_an_avif_is_turned() -> None:
    turned = b'<rdf:Description tiff:Orientation="6"/>'
    data = saved(picture((64, 48)), "AVIF", xmp=turned)
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif()[0x0112] == 6  # as Pillow reads it
    assert decode_image(data, CIFAR, 10**6).size == (64, 48)
