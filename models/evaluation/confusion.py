"""Which classes a network takes for which others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Mistake(NamedTuple):
    """`images` of class `target` were taken for class `answer`."""

    target: int
    answer: int
    images: int


def worst(per_class: NDArray[np.float64], count: int = 3) -> list[int]:
    """The classes of the lowest accuracies [K], the lowest first; NaN has none.

    Equal ones are in the order of the classes.
    """
    order = np.argsort(per_class, kind="stable")  # NaN last.
    return [int(index) for index in order[:count] if not np.isnan(per_class[index])]


def commonest(confusion: NDArray[np.int64], count: int = 3) -> list[Mistake]:
    """The mistakes made most often, by int64 [K, K] of images by class and answer.

    Equal ones are in the order of the classes.
    """
    mistakes = confusion.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    targets, answers = np.unravel_index(order, mistakes.shape)
    found = [
        Mistake(int(target), int(answer), int(mistakes[target, answer]))
        for target, answer in zip(targets, answers, strict=True)
    ]
    return [mistake for mistake in found if mistake.images]
