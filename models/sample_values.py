"""Images of other samples than 8-bit ones become 8-bit ones, where it is certain what is white.

Pillow clips or truncates such samples when it converts them, so that a photograph becomes black or
white without an error. The rules, in the terms of the file:

- Unsigned 16 bits: the upper 8 are kept, as in browsers and OpenCV. TIFF's 12 bits are scaled.
- An image of more than 8 bits that uses less than a sixteenth of its range is refused: it would be
  black, and is usually the frame of a camera with 8, 10 or 12 bits in a container of 16.
- Floating point: values in [0, 1] are multiplied by 255 and rounded; others are refused.
- Signed and 32-bit integers have no agreed white, CIE L*a*b* no agreed conversion; they are
  refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIXTEEN_BIT = {"I;16", "I;16L", "I;16B", "I;16N"}
FULL_16, FULL_12 = 2**16 - 1, 2**12 - 1
DARK = 16  # Refused below this part of the range.
BITS_PER_SAMPLE, PHOTOMETRIC, PLANAR, COLOUR_MAP, SAMPLE_FORMAT = 258, 262, 284, 320, 339
WHITE_IS_ZERO, SIGNED, SEPARATE = 0, 2, 2
# PNG's greys of fewer bits, by Pillow's name of them, and what it multiplies them by.
FEW_BITS = {"L;2": 85, "L;4": 17}
# Pixels converted at a time: a large image would take several times its memory.
BAND_PIXELS = 2**20

Samples = NDArray[Any]


class UnclearSamples(ValueError):
    """No rule says what the image looks like; the message says how to save it."""


@dataclass(frozen=True, slots=True)
class FileSamples:
    """What the file says of its samples, read before the pixels: afterwards Pillow has forgotten.

    `raw`: Pillow's name of their layout.
    """

    raw: str
    format: str | None
    bits: tuple[int, ...]
    inverted: bool
    signed: bool
    colours: tuple[int, ...]

    @classmethod
    def of(cls, image: Image.Image) -> FileSamples:
        """Of an image that is not loaded yet.

        Raises:
            UnclearSamples: Pillow would put its planes together wrongly.
        """
        args = [tile.args for tile in getattr(image, "tile", ())[:1]]
        raw = next(iter(args), "")
        raw = str(raw if isinstance(raw, str) or not raw else raw[0])
        tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
        if tags.get(PLANAR) == SEPARATE:
            _check_planes(image, tags.get(BITS_PER_SAMPLE, ()))
        return cls(
            raw,
            image.format,
            tuple(tags.get(BITS_PER_SAMPLE, ())),
            tags.get(PHOTOMETRIC) == WHITE_IS_ZERO,
            SIGNED in tags.get(SAMPLE_FORMAT, ()),
            tuple(tags.get(COLOUR_MAP, ())) if image.mode in ("P", "PA") else (),
        )


def _check_planes(image: Image.Image, bits: tuple[int, ...]) -> None:
    """Pillow reads uncompressed planes as if they were of 8 bits, and of two planes only one."""
    tiles = getattr(image, "tile", ())
    raw = [str(tile.args[0]) for tile in tiles if tile.codec_name == "raw"]
    mixed = raw and ("".join(dict.fromkeys(raw)) != image.mode or set(bits) != {8})
    if mixed or len(image.getbands()) == 2:
        raise UnclearSamples(
            "the TIFF image has its samples in separate planes, which are read with 8 bits and as "
            "RGB, RGBA or CMYK only; save it with the samples of each pixel together"
        )


def read_native_floats(image: Image.Image) -> None:
    """libtiff exchanges the bytes of big-endian floats, and Pillow would do it once more."""
    tiles = getattr(image, "tile", ())
    if image.mode == "F" and tiles and tiles[0].codec_name == "libtiff":
        native = tiles[0]._replace(args=("F;32NF", *tiles[0].args[1:]))
        image.tile = [native]  # type: ignore[attr-defined]


def in_8_bits(image: Image.Image, samples: FileSamples) -> Image.Image:
    """The loaded image in a mode of 8 bits that converts to RGB; the same one if it is.

    Raises:
        UnclearSamples: see above.
    """
    if image.mode in SIXTEEN_BIT:
        return _of_16_bits(image, samples)
    if image.mode == "F":
        return _of_floats(image, samples)
    if image.mode == "I":
        raise UnclearSamples(
            "the image has 32-bit or signed integers, of which none is known to be white; save it "
            "with 8 bits, or with unsigned 16 bits from 0 to 65535"
        )
    if samples.signed:
        raise UnclearSamples("the image has signed samples; save it with unsigned ones")
    if image.mode == "LAB":
        raise UnclearSamples("the image has L*a*b* colours; save it as RGB")
    if ";16" in samples.raw:
        _check_upper_bytes(image)
    return _of_8_bits(image, samples)


def _of_8_bits(image: Image.Image, samples: FileSamples) -> Image.Image:
    """What Pillow reads otherwise than other programs do."""
    if image.mode == "La":
        return image.convert("LA")
    transparent = image.info.get("transparency")
    if samples.raw in FEW_BITS and isinstance(transparent, int):
        # Pillow has scaled the pixels only.
        image.info["transparency"] = transparent * FEW_BITS[samples.raw]
    if image.mode == "RGBA" and samples.format == "BMP" and _most(image, 3) == 0:
        return image.convert("RGB")  # Windows often leaves the fourth byte at 0.
    if samples.colours and 0 < max(samples.colours) < 256:
        # TIFF's palettes have 16 bits, but some programs write 8, which libtiff accepts.
        palette = np.array(samples.colours, np.uint8).reshape(3, -1).T
        image.putpalette(palette.tobytes())
    return image


def _of_16_bits(image: Image.Image, samples: FileSamples) -> Image.Image:
    full = FULL_12 if samples.bits == (12,) else FULL_16
    least, most = _extrema(image)
    if most:
        _check_range(int(least) if samples.inverted else int(most), full, samples.inverted)
    shift = 4 if full == FULL_12 else 8
    transparent = image.info.get("transparency")

    def grey(values: Samples) -> Samples:
        upper = (values >> shift).astype(np.uint8)
        return 255 - upper if samples.inverted else upper

    if not isinstance(transparent, int):
        return _in_bands(image, "L", grey)

    def grey_and_alpha(values: Samples) -> Samples:
        alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
        return np.stack([grey(values), alpha], axis=2)

    return _in_bands(image, "LA", grey_and_alpha)


def _of_floats(image: Image.Image, samples: FileSamples) -> Image.Image:
    least, most = _extrema(image)
    # In this form, the condition also refuses NaN.
    if not (least >= 0 and most <= 1):
        among = "that are no numbers (NaN)" if np.isnan(most) else f"from {least:g} to {most:g}"
        raise UnclearSamples(
            f"the image has floating-point values {among}; scale them to 0 (black) to 1 (white), "
            "or save it with 8 bits"
        )

    def grey(values: Samples) -> Samples:
        levels = (values * 255 + 0.5).astype(np.uint8)
        return 255 - levels if samples.inverted else levels

    return _in_bands(image, "L", grey)


def _check_range(most: int, full: int, inverted: bool) -> None:
    brightest = full - most if inverted else most
    if brightest <= full // DARK:
        raise UnclearSamples(
            f"the image's values reach {brightest} of {full}, so that it would be black; scale "
            "them to the whole range, or save it with 8 bits"
        )


def _check_upper_bytes(image: Image.Image) -> None:
    """Of colours in 16 bits Pillow keeps the upper ones."""
    if "transparency" in image.info:
        raise UnclearSamples(
            "the image has 16-bit colours of which one is transparent; save it with 8 bits"
        )
    most = max(_most(image, band) for band in range(4 if image.mode == "CMYK" else 3))
    if most < 256 // DARK:
        _check_range(most << 8 | 0xFF, FULL_16, inverted=False)


def _most(image: Image.Image, band: int) -> int:
    return int(np.asarray(image.getchannel(band)).max())


def _extrema(image: Image.Image) -> tuple[Any, Any]:
    """The least and the greatest value; NaN if there is one."""
    parts = [(band.min(), band.max()) for band in map(np.asarray, _bands(image))]
    return np.min([low for low, _ in parts]), np.max([high for _, high in parts])


def _bands(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, BAND_PIXELS // image.width)
    tops = range(0, image.height, rows)
    for top in tops:
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _in_bands(image: Image.Image, mode: str, convert: Callable[[Samples], Samples]) -> Image.Image:
    whole, top = Image.new(mode, image.size), 0
    for band in _bands(image):
        whole.paste(Image.fromarray(convert(np.asarray(band)), mode), (0, top))
        top += band.height
    return whole
