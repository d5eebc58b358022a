"""What is computed of an image: its pixels, or the file that an engine decodes, and the tasks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Values from 0 to 255 [H, W, C]; float32 if they are not integers.
Pixels = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class JpegFile:
    """A JPEG file that an engine decodes: its bytes uint8 [B], and the image's size in pixels.

    It has passed `service.inference.jpeg_header.of_plain_file`.
    """

    data: NDArray[np.uint8]
    width: int
    height: int

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


ImageInput = Pixels | JpegFile


@dataclass(frozen=True, slots=True)
class Classify:
    """The ranking alone."""


@dataclass(frozen=True, slots=True)
class Embed:
    """The ranking and the features, which are the input of the head."""


@dataclass(frozen=True, slots=True)
class Explain:
    """The ranking and the activation map of a class; None: of the most likely class. Only for
    models that explain."""

    class_id: int | None = None


Task = Classify | Embed | Explain
CLASSIFY = Classify()
