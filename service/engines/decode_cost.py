"""How long one thread takes to decode a typical file."""

from __future__ import annotations

import io
import time

import numpy as np
from PIL import Image

from models.preprocess import InputSpec
from service.inference.decoding import decode_image

# Networks with inputs of up to this many pixels a side are sent PNG, the others photographs.
SMALL_SIDE = 64
PHOTO = (500, 375)
# A limit that no typical file reaches.
MAX_PIXELS = 2**30
REPEATS = 6


def decode_seconds(spec: InputSpec) -> float:
    """Seconds that one thread takes to decode a typical file."""
    file = typical_file(spec)

    def took() -> float:
        started = time.perf_counter()
        decode_image(file, spec, MAX_PIXELS)
        return time.perf_counter() - started

    return min(took() for _ in range(REPEATS))


def typical_file(spec: InputSpec) -> bytes:
    """A JPEG of about 45 kB and 500 x 375 pixels; for small networks a PNG of their input's size.

    Noise makes decoding as slow as that of a photograph; a smooth picture is faster.
    """
    small = max(spec.width, spec.height) <= SMALL_SIDE
    width, height = (spec.width, spec.height) if small else PHOTO
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + random.normal(0, 10, (height, width, 1))
    buffer = io.BytesIO()
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    image.save(buffer, "PNG" if small else "JPEG")
    return buffer.getvalue()
