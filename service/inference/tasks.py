"""What is computed of an image: its pixels, or the file that an engine decodes, and the tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Values from 0 to 255 [H, W, 3]; float32 if they are not integers.
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
    """The ranking and the features, which are the input of the last layer."""


@dataclass(frozen=True, slots=True)
class Explain:
    """The ranking and the activation map of a class; None: of the most likely class."""

    class_id: int | None = None


Task = Classify | Embed | Explain
CLASSIFY = Classify()


class Head(NamedTuple):
    """A network's last layer: `weight` float32 [K, C] and `bias` float32 [K]."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def embedding(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """The layer's input: the means float32 [C] of one image's maps float32 [C, h, w]."""
        means: NDArray[np.float32] = maps.mean((1, 2))
        return means

    def activation_map(self, class_id: int, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """A class's activation map, float32 [h * w + 1], from one image's maps float32 [C, h, w].

        Its last element is the class's bias (Zhou 2016, arXiv:1512.04150, section 2): the mean of
        the map and the bias add up to the logit.
        """
        grid = np.tensordot(self.weight[class_id], maps, 1)
        return np.append(grid, self.bias[class_id])

    def detail(
        self, task: Task, maps: NDArray[np.float32], likeliest: int
    ) -> NDArray[np.float32] | None:
        """The task's result besides the ranking, if any; `likeliest`: the most likely class."""
        if isinstance(task, Classify):
            return None
        if isinstance(task, Embed):
            return self.embedding(maps)
        return self.activation_map(likeliest if task.class_id is None else task.class_id, maps)
