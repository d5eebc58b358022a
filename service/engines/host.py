"""Engines on the CPU: one batch at a time, from a slab that is never allocated again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from service.engines.blueprint import Blueprint
from service.ranking import Ranking, rank

Forward = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class HostEngine:
    """See `service.engines.Engine`. `forward`: uint8 [N, H, W, 3] to probabilities [N, K]."""

    in_flight = 1

    def __init__(self, name: str, blueprint: Blueprint, forward: Forward) -> None:
        self.name = name
        self.device = blueprint.device
        self.precision = blueprint.precision
        self._forward = forward
        side = blueprint.bundle.input.size
        self._slab = np.zeros((blueprint.max_batch, side, side, 3), dtype=np.uint8)

    def launch(self, images: Sequence[NDArray[np.uint8]], size: int) -> Callable[[], Ranking]:
        count = len(images)
        np.stack(images, out=self._slab[:count])
        ranking = rank(self._forward(self._slab[:size])[:count])
        return lambda: ranking
