"""Which classes a network confuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# The most classes whose whole confusion matrix a bundle's metrics hold; of more, the most frequent
# mistakes, this many: with 1000 classes, the matrix would be a million numbers in each answer of
# `GET /v1/models`.
MOST_CLASSES = 50
MOST_MISTAKES = 100


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


def without_tables(figures: Any) -> Any:
    """What was measured on a data set, in a bundle's metrics, without its lists and tables, such as
    those of `summary`."""
    if not isinstance(figures, dict):
        return figures
    return {name: value for name, value in figures.items() if not isinstance(value, dict | list)}


def summary(confusion: NDArray[np.int64], labels: Sequence[str]) -> dict[str, Any]:
    """A confusion matrix int64 [K, K] as JSON values, for a bundle's metrics.

    `per_class`: for each class, its `label`, the `images` of it and the fraction of them that is
    right as `accuracy`, None if there are no images. Then, of at most `MOST_CLASSES`, `confusion`:
    K rows of K numbers, images of the row's class classified as the column's; of more, `mistakes`:
    the `MOST_MISTAKES` most frequent, the commonest first, each with the `label` of its images,
    what they were classified `as`, and how many `images`.

    Raises:
        ValueError: there are not as many labels as classes.
    """
    if confusion.shape != (len(labels), len(labels)):
        raise ValueError(f"{len(labels)} labels do not fit a confusion matrix {confusion.shape}")
    counts, right = confusion.sum(axis=1).tolist(), confusion.diagonal().tolist()
    per_class = [
        {"label": label, "accuracy": hits / images if images else None, "images": images}
        for label, hits, images in zip(labels, right, counts, strict=True)
    ]
    if len(labels) <= MOST_CLASSES:
        return {"per_class": per_class, "confusion": confusion.tolist()}
    mistakes = [
        {"label": labels[target], "as": labels[answer], "images": images}
        for target, answer, images in commonest(confusion, MOST_MISTAKES)
    ]
    return {"per_class": per_class, "mistakes": mistakes}
