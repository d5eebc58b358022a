"""From a row of probabilities to predictions."""

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


def top_k(row: NDArray[np.float32], labels: Sequence[str], k: int) -> list[Prediction]:
    """The `k` likeliest classes by falling probability, from float32 [K]; ties by class."""
    best = np.argsort(-row, kind="stable")[:k]
    return [Prediction(int(i), labels[i], float(row[i])) for i in best]
