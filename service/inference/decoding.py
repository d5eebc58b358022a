"""Decoding images to pixels: PIL behind limits, in threads of its own."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import time
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError, _imaging

from models import image_files
from models.preprocess import JPEGS, InputSpec, decode_at_scale, resize_and_crop, upright
from models.sample_values import UnclearSamples
from service.errors import RETRY_SECONDS, QueueFull, RequestError, TooLarge, UndecodableImage
from service.inference import image_headers
from service.inference.lane import Lane
from service.inference.tasks import Pixels
from service.inference.unreadable import LEAST_BYTES, advice, why_unreadable

# Small images of these formats are decoded on the event loop: handing one to a thread takes longer.
# `image_headers.is_quick` keeps out what inflates to more than its pixels.
TINY_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
TINY_BYTES, TINY_SIDE = 16_384, 64
# Images above this share of the pixel limit are decoded one at a time, in a thread of their own:
# several would take several times the memory, and all threads for seconds.
LARGE_SHARE = 4
# Video codecs take several times as long for a pixel as the others.
SLOW_FORMATS, SLOW_SHARE = ("AVIF", "HEIF"), 2
# A JPEG without its end is decoded several times.
UNENDED_SHARE = 4
# Each has a slot of its model's queue while it waits, which others would lack.
LARGE_WAITING = 32
REASON_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """`pixels` [H, W, C] of the spec's shape, decoded from `began` to `ended`, in seconds of
    `time.perf_counter`; `size` is the upright image's width and height as decoded, perhaps at a
    fraction of its size. Where an engine decodes the file, `pixels` is empty."""

    pixels: Pixels
    began: float
    ended: float
    size: tuple[int, int]


def prepare() -> None:
    """Configures PIL for the whole process."""
    # We check our own limit before decoding; PIL would only warn, and at another size.
    Image.MAX_IMAGE_PIXELS = None
    # PIL's complaints about a client's file do not belong in the log, and Python would remember
    # each distinct warning.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    # libtiff writes warnings to stderr, up to a line for each row of pixels.
    with contextlib.suppress(AttributeError):  # libtiff is linked differently, or not at all.
        silence = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        silence.argtypes, silence.restype = [ctypes.c_void_p], ctypes.c_void_p
        silence(None)
    # PIL's own blocks of 16 MB stay with the process; malloc returns those above 32 MB.
    _imaging.set_block_size(2**26)
    # Loads the formats now, not at the first request.
    Image.init()
    image_files.formats()


class Decoder:
    """Decodes in `threads` threads, so that neither the event loop nor an engine waits for it, and
    large images in one more, so that no other image waits for them.
    """

    def __init__(self, threads: int, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self._lane = Lane(threads, "decode")
        self._large = Lane(1, "decode-large")
        self._large_waiting, self._large_seconds = 0, 0.0
        prepare()

    def decode_tiny(self, data: bytes, spec: InputSpec, exact: bool = False) -> DecodedImage | None:
        """`decode_image` for what takes less time than a thread's turn; None: it takes more."""
        tiny = len(data) <= TINY_BYTES and data.startswith(TINY_MAGIC)
        if tiny and max(*spec.box, *spec.shape[:2]) <= TINY_SIDE and image_headers.is_quick(data):
            with contextlib.suppress(TooLarge):
                return decode_image(data, spec, min(TINY_SIDE**2, self.max_pixels), exact=exact)
        return None

    async def decode(self, data: bytes, spec: InputSpec, exact: bool = False) -> DecodedImage:
        """`decode_image`, in a thread.

        Cancelling stops the wait for a thread; an image being decoded is finished.

        Raises:
            UndecodableImage, TooLarge: as `decode_image` does.
            QueueFull: it is large, and too many large images are waiting.
        """
        usual = self.max_pixels // LARGE_SHARE
        with contextlib.suppress(_LargeImage):
            return await self._lane.run(decode_image, data, spec, self.max_pixels, usual, exact)
        return await self._decode_large(data, spec, exact)

    async def _decode_large(self, data: bytes, spec: InputSpec, exact: bool) -> DecodedImage:
        if self._large_waiting >= LARGE_WAITING:
            raise QueueFull(
                f"{self._large_waiting} images of more than {self.max_pixels // LARGE_SHARE} "
                "pixels are waiting to be decoded; retry after the given time, or scale it down",
                max(RETRY_SECONDS, math.ceil(self._large_waiting * self._large_seconds)),
            )
        self._large_waiting += 1
        try:
            decoded = await self._large.run(decode_image, data, spec, self.max_pixels, None, exact)
        finally:
            self._large_waiting -= 1
        self._large_seconds = decoded.ended - decoded.began
        return decoded

    def close(self) -> None:
        self._lane.close()
        self._large.close()


class _LargeImage(Exception):
    """The image has more pixels than usual; nothing was decoded."""


def decode_image(
    data: bytes,
    spec: InputSpec,
    max_pixels: int,
    usual: int | None = None,
    exact: bool = False,
) -> DecodedImage:
    """Pixels uint8 [H, W, C] of the spec's shape, upright by EXIF; transparency is on white, or the
    fourth channel of "rgba". `exact`: JPEGs are decoded in full, not at a fraction of their size.

    Decoding takes up to about 12 bytes a pixel.

    Raises:
        _LargeImage: more than `usual` pixels; raised before decoding.
        UndecodableImage: `data` is undecodable or truncated, or its header demands more than an
            image needs.
        TooLarge: more than `max_pixels` pixels; raised before decoding.
    """
    began = time.perf_counter()
    if not data:
        raise UndecodableImage(f"the image is empty; {advice()}")
    if len(data) < LEAST_BYTES:
        raise UndecodableImage(why_unreadable(data))
    try:
        image_headers.check_bytes(data, max_pixels)
        with image_files.opened(image_headers.source(data)) as image:
            image_headers.check_opened(image, data, max_pixels)
            _check_sides(*image.size, spec, max_pixels)
            _check_usual(image, data, usual)
            if not exact:
                decode_at_scale(image, spec)
            turned = upright(image, spec.channels)
            pixels = resize_and_crop(turned, spec)
    except (RequestError, _LargeImage):
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, unless `prepare` has lifted it.
        raise TooLarge(f"the image has more than {max_pixels} pixels") from None
    except MemoryError:
        raise TooLarge("not enough memory to decode the image") from None
    except UnidentifiedImageError:
        raise UndecodableImage(why_unreadable(data)) from None
    except UnclearSamples as error:
        raise UndecodableImage(str(error)) from None
    # On broken data, PIL's decoders raise anything, even IndexError and struct.error. Whatever it
    # is, the data is at fault.
    except Exception as error:
        reason = " ".join(str(error).split())[:REASON_CHARACTERS]
        raise UndecodableImage(
            f"the image is damaged or truncated ({reason}); {advice()}"
        ) from error
    return DecodedImage(pixels, began, time.perf_counter(), turned.size)


def _check_usual(image: Image.Image, data: bytes, usual: int | None) -> None:
    cost = SLOW_SHARE if image.format in SLOW_FORMATS else 1
    if image.format in JPEGS and not image_headers.has_end(data):
        cost = UNENDED_SHARE
    if usual is not None and image.width * image.height * cost > usual:
        raise _LargeImage


def _check_sides(width: int, height: int, spec: InputSpec, max_pixels: int) -> None:
    # An image one pixel wide would grow enormously when resized. The box itself is the model's.
    if image_headers.resized_pixels(width, height, spec) > max(max_pixels, math.prod(spec.box)):
        raise TooLarge(f"the image's sides ({width} x {height} pixels) differ too much; crop it")
