"""What an engine is given of an image, and what is wanted besides its ranking: a number."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Values 0 to 255 [H, W, 3]; float32 where they are no whole numbers.
Pixels = NDArray[np.uint8] | NDArray[np.float32]

CLASSIFY, EMBED = -3, -2
# The activation map of the likeliest class; a task of 0 or more is a class whose map is wanted.
EXPLAIN = -1


class Head(NamedTuple):
    """A network's last layer: `weight` float32 [K, C] and `bias` float32 [K]."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def detail(self, task: int, maps: NDArray[np.float32], likeliest: int) -> NDArray[np.float32]:
        """What a task other than CLASSIFY asks of one image's maps float32 [C, h, w].

        EMBED: their means [C], which the head is given. Else the class's activation map
        [h * w + 1] and, last, its bias (Zhou 2016, arXiv:1512.04150, section 2): the mean of the
        map and the bias add up to the logit.
        """
        if task == EMBED:
            means: NDArray[np.float32] = maps.mean((1, 2))
            return means
        chosen = likeliest if task == EXPLAIN else task
        grid = np.tensordot(self.weight[chosen], maps, 1)
        return np.append(grid, self.bias[chosen])
