"""Which classes a network confuses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Mistake(NamedTuple):
    """`images` of class `target` were classified as `answer`."""

    target: int
    answer: int
    images: int


def worst(per_class: NDArray[np.float64], count: int = 3) -> list[int]:
    """The classes with the lowest accuracies [K], lowest first; NaNs are left out.

    Ties are in the order of the classes.
    """
    order = np.argsort(per_class, kind="stable")  # NaN last.
    return [int(index) for index in order[:count] if not np.isnan(per_class[index])]


def commonest(confusion: NDArray[np.int64], count: int = 3) -> list[Mistake]:
    """The most frequent mistakes, from the confusion matrix int64 [K, K].

    Ties are in the order of the classes.
    """
    mistakes = confusion.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    targets, answers = np.unravel_index(order, mistakes.shape)
    ranked = [
        Mistake(int(target), int(answer), int(mistakes[target, answer]))
        for target, answer in zip(targets, answers, strict=True)
    ]
    return [mistake for mistake in ranked if mistake.images]
