"""Whether a device's decoder gives what PIL gives, before it decodes for clients."""

from __future__ import annotations

import io
import logging

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures

from models.preprocess import InputSpec, resize_and_crop, upright
from service.engines import faults
from service.engines.blueprint import Blueprint
from service.engines.engine import Warm
from service.engines.jpeg import JpegDecoder, of_torchvision
from service.engines.parity import TOLERANCES, ParityError
from service.inference.tasks import JpegFile

log = logging.getLogger(__name__)
# Limits of the difference from PIL's pixels, of 256 levels: its mean, and what 999 of 1000 values
# keep. On these samples, resizing alone differs by 0.2 and 1, and a decoder that repeats the
# colours of 4:2:0 instead of interpolating them, as nvJPEG does, by 1.0 and 6; one that is a pixel
# off, by 2.3 and 9 at least, and one that takes full range for studio range, by 4.9 and 15.
MEAN, MOST = 2.0, 12.0
SHARE = 0.999
WIDE, HIGH = (500, 375), (375, 501)
# The pictures' details: some ten pixels each, so that a shift shows.
CELLS = (32, 24)


def decoder_for(blueprint: Blueprint, warm: Warm, tolerance: float | None) -> JpegDecoder:
    """The engine's decoder: on its device if the blueprint says so and all agrees with PIL.

    `tolerance`: as of `service.engines.start.start_engine`.
    """
    spec, device = blueprint.bundle.input, blueprint.device
    if blueprint.decode == "host":
        return JpegDecoder(spec, device)
    limit = TOLERANCES[warm.engine.precision] if tolerance is None else tolerance
    try:
        decoder = JpegDecoder(spec, device, of_torchvision(device), warm.engine.in_flight)
        with blueprint.turn():
            check(decoder, warm, spec, limit)
    # Decoders fail in ways of their own; PIL decodes everything.
    except Exception as error:
        if faults.poisons(error):
            raise
        why = faults.in_one_line(error)
        log.warning("%s: JPEGs are decoded on the host: %s", blueprint.bundle.name, why)
        return JpegDecoder(spec, device)
    log.info("%s: plain JPEGs are decoded on %s", blueprint.bundle.name, device)
    return decoder


def check(decoder: JpegDecoder, warm: Warm, spec: InputSpec, tolerance: float) -> None:
    """Compares pixels and results of a full batch with those of PIL's pixels.

    Raises:
        ParityError: they differ too much; `tolerance` is that of the results.
        RuntimeError: the device does not decode the samples; libraries may raise other exceptions.
    """
    files = samples()
    expected = [by_pil(file, spec) for file in files]
    rows = np.arange(max(len(files), warm.buckets.largest)) % len(files)
    images = decoder.attempt([files[row] for row in rows])
    for row, found in zip(rows, images.cpu().numpy(), strict=True):
        if reason := deviation(found, expected[row]):
            raise ParityError(reason)
    found, wanted = warm.infer(list(images[: len(files)])), warm.infer(expected)
    largest = warm.comparison.difference(found, wanted)
    # Written so that NaN is refused.
    if not largest <= tolerance:
        raise ParityError(
            f"{warm.comparison.name} of images that the device decoded differ by up to "
            f"{largest:.3g}, more than parity_tolerance {tolerance:g}"
        )


def deviation(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> str:
    """Why a device's pixels are not PIL's; empty if they are, as far as decoders agree."""
    difference = np.abs(found.astype(np.int16) - expected)
    mean, most = float(difference.mean()), float(np.quantile(difference, SHARE))
    if mean <= MEAN and most <= MOST:
        return ""
    return (
        f"the device's pixels differ from the host's by {mean:.2g} in the mean and {most:.3g} at "
        f"the most; {MEAN:g} and {MOST:g} are allowed"
    )


def by_pil(file: JpegFile, spec: InputSpec) -> NDArray[np.uint8]:
    """What PIL makes of a file at its full size, as devices decode; uint8 [H, W, C]."""
    with Pictures.open(io.BytesIO(file.data.tobytes())) as image:
        return resize_and_crop(upright(image, spec.channels), spec)


def samples() -> list[JpegFile]:
    """A file of each kind that a device gets: the same colourful pictures on every machine."""
    random = np.random.default_rng(0)

    def saved(size: tuple[int, int], mode: str = "RGB", **options: int) -> JpegFile:
        cells = random.integers(0, 256, (*CELLS[::-1], 3), dtype=np.uint8)
        picture = Pictures.fromarray(cells).resize(size, Pictures.Resampling.BICUBIC).convert(mode)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", **options)
        return JpegFile(np.frombuffer(buffer.getvalue(), np.uint8), *size)

    return [
        saved(WIDE, subsampling=0),  # 4:4:4
        saved(WIDE, subsampling=1),  # 4:2:2
        saved(WIDE, subsampling=2),  # 4:2:0
        saved(HIGH, subsampling=2, restart_marker_rows=1),
        saved(WIDE, mode="L"),
    ]
