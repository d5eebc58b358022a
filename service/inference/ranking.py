"""Probabilities in descending order, so that the top classes are a slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Row(NamedTuple):
    """One image's `classes` int32 [K], their `probabilities` float32 [K], and the `detail` of its
    task (see `service.inference.tasks`)."""

    classes: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    detail: NDArray[np.float32] | None = None


class Ranking(NamedTuple):
    """`classes` int32 [N, K] and their `probabilities` float32 [N, K], descending in each row;
    and the `details` of the N images' tasks, empty if all are to be classified only."""

    classes: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    details: Sequence[NDArray[np.float32] | None] = ()

    def rows(self) -> list[Row]:
        """One row per image."""
        details = self.details or [None] * len(self.classes)
        return list(map(Row, self.classes, self.probabilities, details))

    def by_class(self) -> NDArray[np.float32]:
        """Probabilities [N, K] in the order of the classes."""
        ordered = np.empty_like(self.probabilities)
        np.put_along_axis(ordered, self.classes.astype(np.intp), self.probabilities, axis=1)
        return ordered


def rank(probabilities: NDArray[np.float32]) -> Ranking:
    """The ranking of float32 [N, K]; ties are ordered by class."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    return Ranking(order.astype(np.int32), np.take_along_axis(probabilities, order, axis=1))


@dataclass(frozen=True, slots=True)
class Prediction:
    """A class of one image; `probability` is from 0 to 1."""

    class_id: int
    label: str
    probability: float


def top_k(row: Row, labels: Sequence[str], k: int) -> list[Prediction]:
    """The top `k` classes of one image, in descending order of probability."""
    ranked = zip(row.classes[:k].tolist(), row.probabilities[:k].tolist(), strict=True)
    return [Prediction(index, labels[index], probability) for index, probability in ranked]
