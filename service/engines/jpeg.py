"""JPEG files of a batch, decoded on the engine's device: by nvJPEG, if it is CUDA."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from models.preprocess import InputSpec, steps
from service.engines import faults
from service.errors import RequestError
from service.inference.decoding import decode_image
from service.inference.jpeg_header import MOST_PIXELS
from service.inference.tasks import JpegFile, Pixels
from service.logs import LogLimit, with_suppressed

log = logging.getLogger(__name__)
# An engine's input: pixels [H, W, C] on the host, or a tensor uint8 [H, W, C] on its device.
Image = Pixels | Tensor
# Decodes files, uint8 [B] on the host, to RGB, uint8 [3, H, W] on the device.
DecodeFiles = Callable[[list[Tensor]], list[Tensor]]
# PIL's filters in torch, which has no Lanczos. Their results differ by 1 at most.
MODES = {"nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic"}
# Of the images that are decoded at once: they take 3 bytes a pixel.
PIXELS_AT_ONCE = 2**26
LOG_SECONDS = 10.0  # between two lines on files that the device did not decode
# The device of this process's decoder: torchvision has one, and leaks it when the device changes.
_devices: set[str] = set()
_lock = threading.Lock()


class JpegDecoder:
    """Decodes the files of one engine, whose thread alone calls it.

    `decode_files` decodes on `device`; None: PIL decodes. `in_flight`: as the engine's.

    torchvision's decoder, and the hardware behind it, writes to memory that the current stream has
    freed without waiting for what that stream still has to do. So this decoder has a stream of its
    own, which is idle whenever files are decoded, and when `decode` returns. The images of the
    latest `in_flight` calls are kept, as engines copy them later, in streams of theirs.

    Raises:
        ValueError: the device cannot make the images of `spec`.
    """

    def __init__(
        self,
        spec: InputSpec,
        device: str,
        decode_files: DecodeFiles | None = None,
        in_flight: int = 1,
    ) -> None:
        if decode_files is not None:
            _check(spec)
        self._spec = spec
        self._device = torch.device(device)
        self._decode_files = decode_files
        self._stream = (
            torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            if decode_files is not None and self._device.type == "cuda"
            else None
        )
        self._log_limit = LogLimit(LOG_SECONDS)
        self._kept: deque[list[Image | RequestError]] = deque(maxlen=in_flight)

    @property
    def on_device(self) -> bool:
        return self._decode_files is not None

    def decode(self, files: Sequence[JpegFile]) -> list[Image | RequestError]:
        """Each file's image of the spec's size, or why it cannot be decoded.

        What the device does not decode, PIL decodes or refuses.

        Raises:
            RuntimeError: no call to the device can succeed any more.
        """
        images = [image for part in _parts(files) for image in self._decode(part)]
        self._kept.append(images)
        return images

    def _decode(self, files: Sequence[JpegFile]) -> list[Image | RequestError]:
        if self._decode_files is None:
            return [self._by_pil(file) for file in files]
        try:
            return list(self.attempt(files))
        # A decoder fails for a whole batch, in ways of its own.
        except Exception as error:
            if faults.poisons(error):
                raise
            if len(files) == 1:
                image = self._by_pil(files[0])
                if not isinstance(image, RequestError):
                    self._log_refused(error)
                return [image]
        # Halves find the damaged files in fewer calls than one by one.
        middle = len(files) // 2
        return self._decode(files[:middle]) + self._decode(files[middle:])

    def attempt(self, files: Sequence[JpegFile]) -> Tensor:
        """The files' images, uint8 [N, H, W, C] on the device, by it alone.

        Raises:
            RuntimeError: it does not decode all of them; it may raise other exceptions.
        """
        assert self._decode_files is not None
        height, width, channels = self._spec.shape
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            try:
                # Copies: the decoder wants memory that may be written.
                planes = self._decode_files([torch.from_numpy(file.data.copy()) for file in files])
                batch = torch.empty((len(files), channels, height, width), device=self._device)
                for image, file, plane in zip(batch, files, planes, strict=True):
                    if plane.shape != (3, file.height, file.width):
                        raise ValueError(f"decoded to {list(plane.shape)}")
                    image.copy_(self._resized(plane))
                # Rounded as PIL does; bicubic exceeds the range.
                whole = batch.add_(0.5).clamp_(0, 255).to(torch.uint8)
                return whole.permute(0, 2, 3, 1).contiguous()
            finally:
                if self._stream is not None:
                    self._stream.synchronize()

    def _resized(self, plane: Tensor) -> Tensor:
        """[C, H, W] of the spec's size and channels, of uint8 [3, H, W] of any size."""
        spec = self._spec
        if spec.channels == "grey":
            plane = _grey(plane)
        (left, top, right, lower), (width, height), corner = steps(
            plane.shape[2], plane.shape[1], spec
        )
        plane = plane[:, top:lower, left:right]
        if plane.shape[1:] != (height, width):
            plane = F.interpolate(
                plane[None].float(),
                (height, width),
                mode=MODES[spec.interpolation],
                antialias=spec.interpolation != "nearest",
            )[0]
        left, top = corner
        plane = plane[:, top : top + spec.height, left : left + spec.width]
        return plane.flip(0) if spec.channels == "bgr" else plane

    def _log_refused(self, error: Exception) -> None:
        """A plain file that PIL decodes is the device's to decode."""
        if (unlogged := self._log_limit.suppressed("file")) is not None:
            more = with_suppressed(unlogged)
            log.warning("the device did not decode a file: %s%s", faults.in_one_line(error), more)

    def _by_pil(self, file: JpegFile) -> Image | RequestError:
        try:
            return decode_image(file.data.tobytes(), self._spec, MOST_PIXELS).pixels
        except RequestError as error:
            return error


def _check(spec: InputSpec) -> None:
    if spec.interpolation not in MODES:
        raise ValueError(f"a device cannot resize with interpolation {spec.interpolation}")
    if spec.crop == "letterbox":
        raise ValueError("a device cannot crop with letterbox")
    if spec.channels == "rgba":
        raise ValueError("a device does not decode to channels rgba")


def _grey(plane: Tensor) -> Tensor:
    """uint8 [1, H, W] of uint8 [3, H, W], rounded as PIL does: the weights of ITU-R 601-2 are in
    parts of 2^16."""
    red, green, blue = plane.int()
    luma: Tensor = red * 19595 + green * 38470 + blue * 7471 + 2**15
    return (luma >> 16).to(torch.uint8)[None]


def _parts(files: Sequence[JpegFile]) -> Iterator[Sequence[JpegFile]]:
    """Runs of files that are decoded at once."""
    start, pixels = 0, 0
    for end, file in enumerate(files):
        pixels += file.width * file.height
        if pixels > PIXELS_AT_ONCE and end > start:
            yield files[start:end]
            start, pixels = end, file.width * file.height
    yield files[start:]


def of_torchvision(device: str) -> DecodeFiles:
    """torchvision's decoder, nvJPEG on CUDA.

    Raises:
        ImportError: torchvision is not installed; if it was built for another torch, importing it
            may raise other exceptions.
        RuntimeError: this process decodes on another device.
    """
    from torchvision.io import decode_jpeg  # noqa: PLC0415 - an extra

    with _lock:
        if others := _devices - {device}:
            raise RuntimeError(f"this process decodes on {others.pop()} already")
        _devices.add(device)
    return cast("DecodeFiles", partial(decode_jpeg, mode="RGB", device=device))
