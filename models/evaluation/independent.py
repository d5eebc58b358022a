"""Accuracy and calibration of independent labels, of which an image may have any number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.label_list import Targets
from models.evaluation.confidence import Reliability, independent_reliability
from models.evaluation.evaluate import Batch, Infer, Observe

# An image is said to have a label from this probability on.
THRESHOLD = 0.5
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Labelling:
    """The results of one pass over images with K independent labels.

    `present`: int64 [K], the images that have each label.
    `accuracy`: float64 [K], the fraction of images for which the answer about each label is right.
    `precision`: float64 [K], the average precision of each label; NaN for one without images.
    `exact`: the fraction of images with every label right.
    `nll`: the mean binary cross-entropy of an image and a label, in nats.
    `top1`: the fraction of images whose label is the most probable, or None unless each has one.
    `reliability`: all pairs of an image and a label by probability.
    """

    images: int
    present: NDArray[np.int64]
    accuracy: Floats
    precision: Floats
    exact: float
    nll: float
    top1: float | None
    reliability: Reliability

    @property
    def mean_accuracy(self) -> float:
        return float(self.accuracy.mean())

    @property
    def mean_precision(self) -> float | None:
        """The mean average precision (mAP) over the labels that some image has."""
        known = self.precision[~np.isnan(self.precision)]
        return float(known.mean()) if len(known) else None

    @property
    def ece(self) -> float:
        """The expected calibration error over all pairs of an image and a label."""
        return self.reliability.ece


def evaluate(
    infer: Infer,
    batches: Iterable[Batch],
    *,
    progress: Callable[[int], object] = lambda count: None,
    observe: Observe = lambda rows, targets: None,
) -> Labelling:
    """Evaluates `infer`, from images uint8 [H, W, C] to independent probabilities [N, K].

    An image with a class, int64, has this label alone. The probabilities are kept, the images are
    not. `progress` and `observe` as for `models.evaluation.evaluate.evaluate`.

    Raises:
        ValueError: there are no images, or labels other than the network's K.
    """
    answers: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.bool_]] = []
    single = True
    for images, targets in batches:
        rows = infer(list(images))
        answers.append(rows)
        labels.append(spread(targets, rows.shape[1]))
        single = single and targets.ndim == 1
        observe(rows, targets)
        progress(len(rows))
    if not answers:
        raise ValueError("there are no images to evaluate on")
    return measured(np.concatenate(answers), np.concatenate(labels), single=single)


def measured(
    probabilities: NDArray[np.float32], present: NDArray[np.bool_], *, single: bool = False
) -> Labelling:
    """The figures of probabilities [N, K] for images that have the labels `present` [N, K];
    `single`: each has exactly one."""
    right = (probabilities >= THRESHOLD) == present
    precisions = [
        average_precision(probabilities[:, label], present[:, label])
        for label in range(probabilities.shape[1])
    ]
    top1 = present[np.arange(len(present)), probabilities.argmax(axis=1)].mean() if single else None
    return Labelling(
        images=len(probabilities),
        present=present.sum(axis=0),
        accuracy=right.mean(axis=0),
        precision=np.array(precisions),
        exact=float(right.all(axis=1).mean()),
        nll=cross_entropy(probabilities, present),
        top1=None if top1 is None else float(top1),
        reliability=independent_reliability(probabilities, present),
    )


def spread(targets: Targets, count: int) -> NDArray[np.bool_]:
    """Which of `count` labels each image has, bool [N, count].

    Raises:
        ValueError: a class is not one of them.
    """
    if targets.ndim == 2 and targets.shape[1] == count:
        return targets.astype(np.bool_, copy=False)
    if targets.ndim == 1 and ((targets >= 0) & (targets < count)).all():
        return np.equal.outer(targets, np.arange(count))
    raise ValueError(f"the labels are not the network's {count}")


def average_precision(scores: NDArray[np.float32], present: NDArray[np.bool_]) -> float:
    """The precision at each image that has the label, averaged: the area below the steps of
    precision by recall, without interpolation. NaN if no image has it.

    Images with equal scores are answered together, so their order does not matter.
    """
    total = int(present.sum())
    if not total:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    ends = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    hits = np.cumsum(present[order])[ends]
    gained = np.diff(hits, prepend=0)
    return float((gained * hits / (ends + 1)).sum() / total)


def cross_entropy(probabilities: NDArray[np.float32], present: NDArray[np.bool_]) -> float:
    """The mean binary cross-entropy of probabilities [N, K], in nats."""
    stated = np.where(present, probabilities, np.float32(1) - probabilities).astype(np.float64)
    return float(-np.log(np.maximum(stated, LEAST)).mean())


# A probability may round to 0 or 1, and then be wrong: it counts as half a step of float32 below 1.
LEAST = 2.0**-25
