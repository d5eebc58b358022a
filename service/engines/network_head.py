"""A network's head: the features of an image to the detail of its task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.inference.tasks import Classify, Embed, Task


class Linear(NamedTuple):
    """`weight` float32 [O, I] and `bias` float32 [O]."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Head:
    """The linear layers between features and logits, with a ReLU between any two of them; a
    network without classes, or with a head of its own, has none."""

    layers: tuple[Linear, ...]

    @property
    def explains(self) -> bool:
        """Whether a logit is a weighted mean of the maps, as it is with one layer alone."""
        return len(self.layers) == 1

    def embedding(self, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """The head's input: the means float32 [C] of one image's maps float32 [C, h, w]."""
        means: NDArray[np.float32] = maps.mean((1, 2))
        return means

    def activation_map(self, class_id: int, maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """A class's activation map, float32 [h * w + 1], from one image's maps float32 [C, h, w].

        Its last element is the class's bias (Zhou 2016, arXiv:1512.04150, section 2): the mean of
        the map and the bias add up to the logit.
        """
        (layer,) = self.layers
        grid = np.tensordot(layer.weight[class_id], maps, 1)
        return np.append(grid, layer.bias[class_id])

    def detail(
        self, task: Task, maps: NDArray[np.float32], likeliest: int | None
    ) -> NDArray[np.float32] | None:
        """The task's result besides the ranking; None: there is none, as of an explanation that
        the head cannot give. `likeliest`: the most likely class, None without classes."""
        if isinstance(task, Classify):
            return None
        if isinstance(task, Embed):
            return self.embedding(maps)
        class_id = likeliest if task.class_id is None else task.class_id
        if class_id is None or not self.explains:
            return None
        return self.activation_map(class_id, maps)
