"""From bytes to pixels: PIL behind limits, in threads of its own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from models.preprocess import InputSpec, decode_at_scale, resize_and_crop, upright_rgb
from service.errors import TooLarge, UndecodableImage

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Small images of these formats are decoded where they are: handing one to a thread takes longer,
# and what a header of theirs can demand is bounded by the bytes that follow it.
TINY_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
TINY_BYTES, TINY_SIDE = 16_384, 64
ADVICE = "send a whole JPEG, PNG, WebP, GIF, BMP or TIFF image"


@dataclass(frozen=True, slots=True)
class Decoded:
    """`pixels` uint8 [H, W, 3] of the spec's size, and the `seconds` decoding took."""

    pixels: NDArray[np.uint8]
    seconds: float


class Decoder:
    """Decodes in `threads` threads, so that neither the event loop nor an engine waits for it.

    What waits for a thread is bounded by the places in the models' queues: a request takes one
    before it is decoded.
    """

    def __init__(self, threads: int, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        # Our own limit is checked before decoding; PIL's would only warn, and at another size.
        Image.MAX_IMAGE_PIXELS = None
        Image.init()  # Loads the formats now, not with the first request.

    async def decode(self, data: bytes, spec: InputSpec) -> Decoded:
        """Raises as the function `decode` does. Cancelling gives up a place not yet decoding."""
        if len(data) <= TINY_BYTES and data.startswith(TINY_MAGIC) and spec.resize <= TINY_SIDE:
            with contextlib.suppress(TooLarge):
                return _timed(data, spec, min(TINY_SIDE**2, self.max_pixels))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, _timed, data, spec, self.max_pixels)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _timed(data: bytes, spec: InputSpec, max_pixels: int) -> Decoded:
    started = time.perf_counter()
    pixels = decode(data, spec, max_pixels)
    return Decoded(pixels, time.perf_counter() - started)


def decode(data: bytes, spec: InputSpec, max_pixels: int) -> NDArray[np.uint8]:
    """Uint8 [H, W, 3] of the spec's size, upright by EXIF; transparency on white.

    Raises:
        UndecodableImage: no decoder reads `data`, or it ends early.
        TooLarge: more than `max_pixels` pixels; found before decoding.
    """
    if not data:
        raise UndecodableImage(f"the image is empty; {ADVICE}")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size, spec, max_pixels)
            decode_at_scale(image, spec)
            return resize_and_crop(upright_rgb(image), spec)
    except TooLarge:
        raise
    except Image.DecompressionBombError:  # Where no `Decoder` has lifted Pillow's own limit.
        raise TooLarge(f"the image has more than {max_pixels} pixels") from None
    except UnidentifiedImageError:
        raise UndecodableImage(f"the bytes are no image that can be read; {ADVICE}") from None
    # PIL's decoders raise whatever broken data makes them raise, IndexError and struct.error
    # included. Whatever it is, the data is what is wrong.
    except Exception as error:
        raise UndecodableImage(f"the image is damaged or truncated ({error}); {ADVICE}") from error


def _check_size(width: int, height: int, spec: InputSpec, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooLarge(f"the image has {width} x {height} pixels; the limit is {max_pixels} in all")
    # A sliver one pixel wide would grow as it is resized.
    longer = spec.resize * max(width, height) // max(1, min(width, height))
    if spec.resize * longer > max_pixels:
        raise TooLarge(f"the image's sides ({width} x {height} pixels) are too unequal; crop it")
