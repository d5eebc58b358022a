"""Engines on the CPU: one batch at a time, from a slab that is never allocated again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from service.engines.blueprint import Blueprint
from service.ranking import Ranking, rank
from service.task import Pixels

# Pixels 0 to 255, float32 [N, H, W, 3], to probabilities [N, K] and the maps that they came from
# [N, C, h, w], which are fetched before the next call if they are wanted.
Forward = Callable[
    [NDArray[np.float32]], tuple[NDArray[np.float32], Callable[[], NDArray[np.float32]]]
]


class HostEngine:
    """See `service.engines.Engine`."""

    in_flight = 1

    def __init__(self, name: str, blueprint: Blueprint, forward: Forward) -> None:
        self.name = name
        self.device = blueprint.device
        self.precision = blueprint.precision
        self._forward = forward
        side = blueprint.bundle.input.size
        self._slab = np.zeros((blueprint.max_batch, side, side, 3), dtype=np.float32)

    def launch(
        self, images: Sequence[Pixels], size: int, *, maps: bool = False
    ) -> Callable[[], Ranking]:
        count = len(images)
        np.stack(images, out=self._slab[:count])
        probabilities, fetch = self._forward(self._slab[:size])
        ranking = rank(probabilities[:count], fetch()[:count] if maps else None)
        return lambda: ranking
