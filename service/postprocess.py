"""From a ranking to predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Prediction:
    class_id: int
    label: str
    probability: float


def top_k(
    classes: NDArray[np.int32], probabilities: NDArray[np.float32], labels: Sequence[str], k: int
) -> list[Prediction]:
    """The first `k` of one image's ranking, both [K] and by falling probability."""
    ranked = zip(classes[:k].tolist(), probabilities[:k].tolist(), strict=True)
    return [Prediction(index, labels[index], probability) for index, probability in ranked]
