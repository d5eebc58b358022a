"""Engines on the CPU: one batch at a time, from a slab that is allocated once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from service.engines.blueprint import Blueprint
from service.engines.jpeg import Image
from service.engines.tuning import Forward, Tuning
from service.inference.ranking import Ranking, rank
from service.inference.tasks import Classify, Task


class HostEngine:
    """See `service.engines.engine.Engine`; `tuning` says which threads compute `forward`."""

    in_flight = 1
    graphs = 0

    def __init__(self, name: str, blueprint: Blueprint, forward: Forward, tuning: Tuning) -> None:
        self.name = name
        self.device = blueprint.device
        self.precision = blueprint.precision
        self.tuning = tuning
        self._forward = forward
        self._head = blueprint.head()
        shape = (blueprint.max_batch, *blueprint.bundle.input.shape)
        self._slab = np.zeros(shape, dtype=np.float32)

    def prepare(self, size: int) -> None:
        """Nothing: the libraries allocate as they compute."""

    def launch(
        self, images: Sequence[Image], size: int, tasks: Sequence[Task] = ()
    ) -> Callable[[], Ranking]:
        count = len(images)
        np.stack([np.asarray(image) for image in images], out=self._slab[:count])
        probabilities, fetch = self._forward(self._slab[:size])
        ranking = rank(probabilities[:count])
        if any(not isinstance(task, Classify) for task in tasks):
            found = zip(tasks, fetch(), ranking.classes.tolist(), strict=False)
            details = [
                self._head.detail(task, maps, next(iter(classes), None))
                for task, maps, classes in found
            ]
            ranking = ranking._replace(details=details)
        return lambda: ranking
