"""Images made here, the same on every machine; nothing is downloaded."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COUNT = 64
PHOTO_SIZE = (500, 375)  # width and height of a typical photograph in ImageNet
PHOTO_BYTES = 35_000


def small(size: int, count: int = COUNT) -> list[bytes]:
    """Distinct smooth PNGs of `size` x `size`: noise would make decoding look slower than it is."""
    random = np.random.default_rng(0)
    return [
        _encoded(
            Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(
                (size, size), Image.Resampling.BICUBIC
            ),
            "PNG",
        )
        for _ in range(count)
    ]


def photos(count: int = COUNT) -> list[bytes]:
    """Distinct JPEGs with the spectrum, the size and the bytes of photographs."""
    random = np.random.default_rng(0)
    return [_compressed(_scene(random)) for _ in range(count)]


def read(folder: Path) -> list[bytes]:
    """The files in `folder`, by name.

    Raises:
        SystemExit: there are none.
    """
    found = [path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()]
    if not found:
        raise SystemExit(f"{folder}: has no files")
    return found


def _scene(random: np.random.Generator) -> Image.Image:
    """Natural images have amplitudes of about 1 / frequency (Field 1987); colour varies less."""
    width, height = PHOTO_SIZE
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequencies[0, 0] = np.inf

    def field(steepness: float) -> NDArray[np.float64]:
        noise = np.fft.rfft2(random.standard_normal((height, width)))
        shaped = np.fft.irfft2(noise / frequencies**steepness, (height, width))
        scaled: NDArray[np.float64] = shaped / shaped.std()
        return scaled

    channels = (128 + 50 * field(1.2), 128 + 15 * field(1.6), 128 + 15 * field(1.6))
    pixels = np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels, "YCbCr")


def _compressed(image: Image.Image) -> bytes:
    """As a JPEG of the quality whose size comes nearest to PHOTO_BYTES from below."""
    low, high = 10, 95
    while low < high:
        middle = (low + high + 1) // 2
        if len(_encoded(image, "JPEG", quality=middle)) <= PHOTO_BYTES:
            low = middle
        else:
            high = middle - 1
    return _encoded(image, "JPEG", quality=low)


def _encoded(image: Image.Image, format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
