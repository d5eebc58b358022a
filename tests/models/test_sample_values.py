"""Images of any samples look as their file says, or are refused: none is black or white."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models import image_files
from models.preprocess import upright_rgb
from models.sample_values import UnclearSamples
from tests.support.hostile.formats import bmp, chunk, grey_tiff, long, png, saved, short, tiff

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
GREY = np.repeat(RAMP[:, :, None], 3, axis=2)
COLOUR = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=2)


def shown(data: bytes) -> NDArray[np.uint8]:
    with image_files.opened(data) as image:
        return np.asarray(upright_rgb(image))


def of_tiff(samples: NDArray[Any], *tags: Any) -> bytes:
    """A grey TIFF of 16 x 16 samples of any type."""
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    bits = short(258, 8 * samples.itemsize)
    return grey_tiff(16, 16, bits, short(339, kind), *tags, data=samples.tobytes())


def of_colour_tiff(samples: NDArray[Any]) -> bytes:
    channels = samples.shape[2]
    tags = [short(277, channels), short(258, *[8 * samples.itemsize] * channels), short(262, 2)]
    return grey_tiff(16, 16, *tags, data=samples.tobytes())


def of_png(samples: NDArray[Any], colour: int, depth: int, before: bytes = b"") -> bytes:
    rows = b"".join(b"\0" + row.astype(f">u{max(1, depth // 8)}").tobytes() for row in samples)
    return png(16, 16, depth, colour, pixels=zlib.compress(rows), before=before)


def encoded(mode: str, format: str, **options: Any) -> bytes:
    return saved(Image.fromarray(COLOUR).convert(mode), format, **options)


WIDE = RAMP.astype(np.uint16) * 257
LOSSLESS: dict[str, tuple[bytes, NDArray[np.uint8]]] = {
    "png grey": (saved(Image.fromarray(RAMP), "PNG"), GREY),
    "png colours": (encoded("RGB", "PNG"), COLOUR),
    "png 16-bit grey": (of_png(WIDE, 0, 16), GREY),
    "png 16-bit colours": (of_png((COLOUR.astype(np.uint16) * 257).reshape(16, -1), 2, 16), COLOUR),
    "png opaque": (encoded("RGBA", "PNG"), COLOUR),
    "webp lossless": (encoded("RGB", "WEBP", lossless=True), COLOUR),
    "webp opaque": (encoded("RGBA", "WEBP", lossless=True), COLOUR),
    "bmp": (encoded("RGB", "BMP"), COLOUR),
    "gif": (saved(Image.fromarray(RAMP), "GIF"), GREY),
    "tiff grey": (of_tiff(RAMP), GREY),
    "tiff colours": (of_colour_tiff(COLOUR), COLOUR),
    "tiff white is zero": (of_tiff(255 - RAMP, short(262, 0)), GREY),
    "tiff 16 bits": (of_tiff(WIDE), GREY),
    "tiff 16 bits, white is zero": (of_tiff(65_535 - WIDE, short(262, 0)), GREY),
    "tiff 16-bit colours": (of_colour_tiff(COLOUR.astype(np.uint16) * 257), COLOUR),
    "tiff floats": (of_tiff(RAMP.astype(np.float32) / 255), GREY),
    "tiff floats, white is zero": (
        of_tiff(1 - RAMP.astype(np.float32) / 255, short(262, 0)), GREY
    ),
    "tiff fax": (
        encoded("1", "TIFF", compression="group4"),
        np.asarray(Image.fromarray(COLOUR).convert("1").convert("RGB")),
    ),
    "tiff lzw": (encoded("RGB", "TIFF", compression="tiff_lzw"), COLOUR),
}  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), LOSSLESS.values(), ids=LOSSLESS)
def test_a_picture_without_loss_is_shown_as_it_was(
    data: bytes, expected: NDArray[np.uint8]
) -> None:
    assert np.array_equal(shown(data), expected)


@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [
        ("RGB", "JPEG", {}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("YCbCr", "JPEG", {}),
        ("RGB", "WEBP", {}),
        ("RGBA", "WEBP", {}),
        ("RGB", "AVIF", {}),
        ("RGBA", "AVIF", {}),
        ("L", "AVIF", {}),
        ("CMYK", "TIFF", {}),
        ("YCbCr", "TIFF", {}),
        ("RGB", "TIFF", {"compression": "jpeg"}),
        ("P", "PNG", {}),
        ("P", "GIF", {}),
        ("P", "BMP", {}),
        ("P", "TIFF", {}),
        ("PA", "TIFF", {}),
        ("LA", "PNG", {}),
        ("LA", "TIFF", {}),
    ],
)
def test_a_picture_with_loss_looks_like_itself(mode: str, format: str, options: Any) -> None:
    big = Image.fromarray(COLOUR).resize((64, 64), Image.Resampling.BICUBIC)
    grey = mode in ("L", "LA")
    expected = np.asarray((big.convert("L") if grey else big).convert("RGB"), np.float32)
    found = shown(saved(big.convert(mode), format, **options)).astype(np.float32)
    assert np.abs(found - expected).mean() < 20


def twelve_bits(values: NDArray[np.uint16]) -> bytes:
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = pairs[:, 0] << 12 | pairs[:, 1]
    data = b"".join(int(pair).to_bytes(3, "big") for pair in packed)
    return grey_tiff(16, 16, short(258, 12), data=data)


def test_twelve_bits_are_scaled() -> None:
    assert np.array_equal(shown(twelve_bits(RAMP.astype(np.uint16) * 16 + 15)), GREY)


@pytest.mark.parametrize("most", [255, 1023, 4095])
def test_few_bits_of_sixteen_are_refused(most: int) -> None:
    """An 8-, 10- or 12-bit camera's frame in 16 bits would be black."""
    values = (RAMP.astype(np.uint32) * most // 255).astype(np.uint16)
    for data in (of_tiff(values), of_png(values, 0, 16), of_tiff(65_535 - values, short(262, 0))):
        with pytest.raises(UnclearSamples, match=f"reach {most} of 65535, so that it would be bl"):
            shown(data)
    colours = np.repeat(values[:, :, None], 3, axis=2)
    for data in (of_colour_tiff(colours), of_png(colours.reshape(16, -1), 2, 16)):
        with pytest.raises(UnclearSamples, match="of 65535, so that it would be black; scale"):
            shown(data)
    values[0, 0] = 4096
    assert shown(of_tiff(values))[0, 0].tolist() == [16, 16, 16]


def test_a_black_image_is_black() -> None:
    assert not shown(of_tiff(np.zeros((16, 16), np.uint16))).any()
    assert not shown(of_tiff(np.zeros((16, 16), np.float32))).any()


@pytest.mark.parametrize(
    ("least", "most"),
    [(0.0, 255.0), (-0.1, 1.0), (0.0, 1.001), (0.0, np.nan), (0.0, np.inf), (-np.inf, 0.5)],
)
def test_floats_beyond_black_and_white_are_refused(least: float, most: float) -> None:
    values = np.full((16, 16), 0.5, np.float32)
    values[0, :2] = least, most
    with pytest.raises(UnclearSamples, match=r"scale them to 0 \(black\) to 1 \(white\)"):
        shown(of_tiff(values))


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint32])
def test_whole_numbers_without_a_known_white_are_refused(kind: Any) -> None:
    with pytest.raises(UnclearSamples, match="save it with 8 bits"):
        shown(of_tiff(RAMP.astype(kind)))


def test_signed_bytes_are_refused() -> None:
    with pytest.raises(UnclearSamples, match="signed samples"):
        shown(of_tiff(RAMP.astype(np.int8)))


def test_lab_colours_are_refused() -> None:
    with pytest.raises(UnclearSamples, match="RGB"):
        shown(saved(Image.new("LAB", (16, 16)), "TIFF"))


@pytest.mark.parametrize(("depth", "levels"), [(2, [0, 85, 170, 255]), (4, [0, 17, 34, 255])])
def test_a_transparent_grey_of_few_bits_is_white(depth: int, levels: list[int]) -> None:
    packed = {2: bytes([0b00011011]), 4: bytes([0x01, 0x2F])}[depth]
    data = png(4, 1, depth, 0, pixels=zlib.compress(b"\0" + packed),
               before=chunk(b"tRNS", b"\0\1"))  # fmt: skip
    expected = [levels[0], 255, *levels[2:]]
    assert shown(data)[0, :, 0].tolist() == expected


def test_a_transparent_grey_of_16_bits_is_white() -> None:
    data = of_png(WIDE, 0, 16, before=chunk(b"tRNS", struct.pack(">H", 257 * 9)))
    expected = GREY.copy()
    expected[0, 9] = 255
    assert np.array_equal(shown(data), expected)


def test_a_transparent_colour_of_16_bits_is_refused() -> None:
    wide = (COLOUR.astype(np.uint16) * 257).reshape(16, -1)
    with pytest.raises(UnclearSamples, match="transparent"):
        shown(of_png(wide, 2, 16, before=chunk(b"tRNS", bytes(6))))


def test_a_bitmap_whose_fourth_byte_is_unused_is_opaque() -> None:
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    pixels = np.concatenate([COLOUR[::-1, :, ::-1], np.zeros((16, 16, 1), np.uint8)], axis=2)
    info = struct.pack("<IiiHHIIiiII", 108, 16, 16, 1, 32, 3, 1024, 0, 0, 0, 0)
    info += masks + bytes(108 - 40 - 16)
    start = 14 + len(info)
    head = struct.pack("<2sIHHI", b"BM", start + 1024, 0, 0, start)
    assert np.array_equal(shown(head + info + pixels.tobytes()), COLOUR)
    assert shown(bmp(8, 8, pixels=bytes(192))).max() == 0


@pytest.mark.parametrize("scale", [1, 257], ids=["8 bits", "16 bits"])
def test_a_palette_of_8_bits_in_16_has_its_colours(scale: int) -> None:
    colours = np.stack([RAMP.ravel(), RAMP.ravel()[::-1], RAMP.T.ravel()])
    tags = [short(256, 16), short(257, 16), short(258, 8), short(259, 1), short(262, 3),
            (273, 4, 1, b""), short(277, 1), short(278, 16), short(279, 256),
            short(320, *(colours.astype(int) * scale).ravel().tolist())]  # fmt: skip
    found = shown(tiff(tags, data=RAMP.tobytes()))
    assert np.array_equal(found, colours.T.reshape(16, 16, 3))


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "RGBX", "HSV"])
def test_other_modes_of_pillow_are_converted(mode: str) -> None:
    through = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, "RGB")
    image = Image.fromarray(COLOUR).convert(through).convert(mode)
    found = np.asarray(upright_rgb(image), np.float32)
    expected = GREY if mode == "La" else COLOUR
    assert np.ptp(found) > 100
    assert mode == "La" or np.abs(found - expected).mean() < 20


def planes(samples: NDArray[Any], *tags: Any) -> bytes:
    """An uncompressed TIFF of 16 x 16 samples in separate planes [C, H, W]."""
    count, size = len(samples), samples[0].nbytes
    unknown = 0xEEEEEEEE
    strips = [long(273, *[unknown] * count), long(279, *[size] * count)]
    kind = [short(258, *[8 * samples.itemsize] * count), short(262, 2), short(277, count)]
    data = samples.tobytes()
    file = grey_tiff(16, 16, *strips, *kind, short(284, 2), *tags, data=data)
    start = len(file) - len(data)
    places = struct.pack(f"<{count}I", *(start + at * size for at in range(count)))
    return file.replace(struct.pack("<I", unknown) * count, places, 1)


def test_planes_of_8_bits_are_put_together() -> None:
    assert np.array_equal(shown(planes(COLOUR.transpose(2, 0, 1))), COLOUR)


def test_planes_that_would_be_garbled_are_refused() -> None:
    wide = COLOUR.astype(np.uint16).transpose(2, 0, 1) * 257
    premultiplied = np.concatenate([COLOUR, COLOUR[:, :, :1]], axis=2).transpose(2, 0, 1)
    grey_and_alpha = np.stack([RAMP, RAMP])
    for data in (
        planes(wide),
        planes(premultiplied, short(338, 1)),
        planes(grey_and_alpha, short(262, 1), short(338, 2)),
    ):
        with pytest.raises(UnclearSamples, match="save it with the samples of each pixel together"):
            shown(data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 8])
def test_floats_of_either_order_of_bytes_are_read(order: str, compression: int) -> None:
    values = (RAMP.astype(np.float32) / 255).astype(f"{order}f4").tobytes()
    data = values if compression == 1 else zlib.compress(values)

    def numbers(tag: int, *values: int) -> Any:
        return tag, 3, len(values), struct.pack(f"{order}{len(values)}H", *values)

    tags = [numbers(256, 16), numbers(257, 16), numbers(258, 32), numbers(259, compression),
            numbers(262, 1), (273, 4, 1, b""), numbers(277, 1), numbers(278, 16),
            numbers(279, len(data)), numbers(339, 3)]  # fmt: skip
    assert np.array_equal(shown(tiff(tags, order=order, data=data)), GREY)


def test_floats_that_are_no_numbers_are_called_so() -> None:
    values = np.full((16, 16), np.nan, np.float32)
    with pytest.raises(UnclearSamples, match=r"values that are no numbers \(NaN\)"):
        shown(of_tiff(values))
