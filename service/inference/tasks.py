"""What an engine is given of an image, and what is wanted besides its ranking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Values 0 to 255 [H, W, 3]; float32 where they are no whole numbers.
Pixels = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Classify:
    """The ranking alone."""


@dataclass(frozen=True, slots=True)
class Embed:
    """The features that the network's last layer is given, too."""


@dataclass(frozen=True, slots=True)
class Explain:
    """The activation map of a class, too; None: of the most likely class."""

    class_id: int | None = None


Task = Classify | Embed | Explain
CLASSIFY = Classify()


class Head(NamedTuple):
    """A network's last layer: `weight` float32 [K, C] and `bias` float32 [K]."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def embedding(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the layer is given: the means float32 [C] of one image's maps float32 [C, h, w]."""
        means: NDArray[np.float32] = maps.mean((1, 2))
        return means

    def activation_map(self, class_id: int, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """A class's activation map of one image's maps float32 [C, h, w], float32 [h * w + 1].

        Its last number is the class's bias (Zhou 2016, arXiv:1512.04150, section 2): the mean of
        the map and the bias add up to the logit.
        """
        grid = np.tensordot(self.weight[class_id], maps, 1)
        return np.append(grid, self.bias[class_id])

    def detail(
        self, task: Embed | Explain, maps: NDArray[np.float32], likeliest: int
    ) -> NDArray[np.float32]:
        """What a task asks for besides the ranking; `likeliest`: the most likely class."""
        if isinstance(task, Embed):
            return self.embedding(maps)
        return self.activation_map(likeliest if task.class_id is None else task.class_id, maps)
