"""From a ranking to predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.inference.ranking import Row


@dataclass(frozen=True, slots=True)
class Prediction:
    class_id: int
    label: str
    probability: float


def top_k(row: Row, labels: Sequence[str], k: int) -> list[Prediction]:
    """The `k` likeliest classes of one image."""
    ranked = zip(row.classes[:k].tolist(), row.probabilities[:k].tolist(), strict=True)
    return [Prediction(index, labels[index], probability) for index, probability in ranked]
