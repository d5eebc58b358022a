"""From bytes to pixels: PIL behind limits, in threads of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, _imaging

from models.preprocess import InputSpec, decode_at_scale, resize_and_crop, upright_rgb
from service.errors import RequestError, TooLarge, UndecodableImage
from service.inference import image_headers
from service.inference.tasks import Pixels

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Small images of these formats are decoded where they are: handing one to a thread takes longer,
# and what a header of theirs can demand is bounded by the bytes that follow it.
TINY_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
TINY_BYTES, TINY_SIDE = 16_384, 64
ADVICE = "send a whole JPEG, PNG, WebP, GIF, BMP or TIFF image"
# Of the pixels allowed: larger images are decoded one at a time, so that several do not take
# several times the memory.
LARGE_SHARE = 4
REASON_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Decoded:
    """`pixels` [H, W, 3] of the spec's size, made from `began` until `ended`, in seconds of
    `time.perf_counter`; and width and height of the upright image as it was decoded, perhaps at a
    fraction of its size."""

    pixels: Pixels
    began: float
    ended: float
    size: tuple[int, int]


def prepare() -> None:
    """Sets PIL up for a service: for the whole process, once."""
    # Our own limit is checked before decoding; PIL's would only warn, and at another size.
    Image.MAX_IMAGE_PIXELS = None
    # What PIL finds odd in a caller's file is no news for the log, and Python would keep every
    # new wording of it.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    # libtiff writes what it finds odd to stderr, up to a line for each row of pixels.
    with contextlib.suppress(AttributeError):  # Where it is linked in another way, or not at all.
        silence = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        silence.argtypes, silence.restype = [ctypes.c_void_p], ctypes.c_void_p
        silence(None)
    # Blocks of PIL's 16 MB stay with the process; those of more than 32 MB malloc gives back.
    _imaging.set_block_size(2**26)
    Image.init()  # Loads the formats now, not with the first request.


class Decoder:
    """Decodes in `threads` threads, so that neither the event loop nor an engine waits for it.

    What waits for a thread waits here, not in the pool, which would keep the bytes of callers
    who have left until a thread comes to them.
    """

    def __init__(self, threads: int, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._free = asyncio.Semaphore(threads)
        self._alone = threading.Lock()
        prepare()

    async def decode(self, data: bytes, spec: InputSpec) -> Decoded:
        """Raises as the function `decode` does.

        Cancelling gives up a place not yet decoding; what is decoding ends by itself.
        """
        if len(data) <= TINY_BYTES and data.startswith(TINY_MAGIC) and spec.resize <= TINY_SIDE:
            with contextlib.suppress(TooLarge):
                return _timed(data, spec, min(TINY_SIDE**2, self.max_pixels))
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        decoding = loop.run_in_executor(
            self._pool, _timed, data, spec, self.max_pixels, self._alone
        )
        decoding.add_done_callback(self._ended)
        return await asyncio.shield(decoding)

    def _ended(self, decoding: asyncio.Future[Decoded]) -> None:
        self._free.release()
        if not decoding.cancelled():
            decoding.exception()  # Whoever left will not ask, which asyncio would log.

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _timed(data: bytes, spec: InputSpec, max_pixels: int, *alone: threading.Lock) -> Decoded:
    began = time.perf_counter()
    pixels, size = _decode(data, spec, max_pixels, *alone)
    return Decoded(pixels, began, time.perf_counter(), size)


def decode(data: bytes, spec: InputSpec, max_pixels: int) -> NDArray[np.uint8]:
    """Uint8 [H, W, 3] of the spec's size, upright by EXIF; transparency on white.

    Raises:
        UndecodableImage: no decoder reads `data`, or it ends early, or its header asks for more
            than an image needs.
        TooLarge: more than `max_pixels` pixels; found before decoding.
    """
    return _decode(data, spec, max_pixels)[0]


def _decode(
    data: bytes, spec: InputSpec, max_pixels: int, alone: threading.Lock | None = None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """As `decode`, with the upright image's size.

    Large images hold `alone` while they are decoded, in about 12 bytes a pixel at the most.
    """
    if not data:
        raise UndecodableImage(f"the image is empty; {ADVICE}")
    try:
        image_headers.check_bytes(data, max_pixels)
        with Image.open(image_headers.source(data), formats=FORMATS) as image:
            image_headers.check_opened(image, data, max_pixels)
            _check_sides(*image.size, spec, max_pixels)
            large = image.width * image.height > max_pixels // LARGE_SHARE
            with alone if alone and large else contextlib.nullcontext():
                decode_at_scale(image, spec)
                upright = upright_rgb(image)
                return resize_and_crop(upright, spec), upright.size
    except RequestError:
        raise
    except Image.DecompressionBombError:  # Where no `Decoder` has lifted Pillow's own limit.
        raise TooLarge(f"the image has more than {max_pixels} pixels") from None
    except MemoryError:
        raise TooLarge("not enough memory to decode the image") from None
    except UnidentifiedImageError:
        raise UndecodableImage(f"not a readable image; {ADVICE}") from None
    # PIL's decoders raise whatever broken data makes them raise, IndexError and struct.error
    # included. Whatever it is, the data is what is wrong.
    except Exception as error:
        reason = " ".join(str(error).split())[:REASON_CHARACTERS]
        raise UndecodableImage(f"the image is damaged or truncated ({reason}); {ADVICE}") from error


def _check_sides(width: int, height: int, spec: InputSpec, max_pixels: int) -> None:
    # A sliver one pixel wide would grow as it is resized.
    longer = spec.resize * max(width, height) // min(width, height)
    if spec.resize * longer > max_pixels:
        raise TooLarge(f"the image's sides ({width} x {height} pixels) differ too much; crop it")
