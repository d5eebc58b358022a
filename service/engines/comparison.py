"""What an engine is timed and compared by: probabilities, or the features of a network without
classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.inference.ranking import Ranking
from service.inference.tasks import CLASSIFY, Embed, Task


@dataclass(frozen=True, slots=True)
class Comparison:
    """`name`: of the values; `task`: computes them; `relative`: they have no scale of their own, so
    differences are parts of the largest value."""

    name: str
    task: Task
    relative: bool

    def values(self, ranking: Ranking) -> NDArray[np.float32]:
        """Float32 [N, K] in the order of the classes, or [N, C], of images with `task`."""
        if self.task == CLASSIFY:
            return ranking.by_class()
        return np.stack([detail for detail in ranking.details if detail is not None])

    def difference(self, found: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
        """The largest, NaN if any value is."""
        largest = float(np.abs(found - exact).max())
        return largest / max(float(np.abs(exact).max()), 1e-12) if self.relative else largest


PROBABILITIES = Comparison("probabilities", CLASSIFY, relative=False)
FEATURES = Comparison("features", Embed(), relative=True)


def comparison_of(classes: int) -> Comparison:
    """That of a network with so many classes."""
    return PROBABILITIES if classes else FEATURES
