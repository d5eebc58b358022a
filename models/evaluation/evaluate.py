"""Accuracy and calibration of a network, with the forward that serves.

For exclusive classes; `models.evaluation.independent` has the figures of independent ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.classifier import Classifier
from models.data.datasets import Dataset
from models.data.label_list import Targets
from models.evaluation.confidence import Reliability, reliability

Infer = Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float32]]
# Images uint8 [N, H, W, C], and their classes int64 [N] or labels bool [N, K].
Batch = tuple[NDArray[np.uint8], Targets]
Observe = Callable[[NDArray[np.float32], Targets], object]
# A probability may underflow to zero, whose logarithm would outweigh all other images.
LEAST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The results of one pass over labelled images.

    `top1`, `top5`: fractions of `images` with their class first, or among the first five.
    `nll`: the mean negative log-likelihood of the images' classes, in nats.
    `confusion`: int64 [K, K], images of the row's class classified as the column's.
    `reliability`: the images by the confidence of their prediction.
    """

    top1: float
    top5: float
    images: int
    nll: float
    confusion: NDArray[np.int64]
    reliability: Reliability

    @property
    def ece(self) -> float:
        """The expected calibration error; see `Reliability`."""
        return self.reliability.ece

    @property
    def per_class(self) -> NDArray[np.float64]:
        """The accuracy for each class, float64 [K]; NaN for a class without images."""
        counts = self.confusion.sum(axis=1)
        unknown = np.full(len(counts), np.nan)
        right = self.confusion.diagonal()
        shares: NDArray[np.float64] = np.divide(right, counts, out=unknown, where=counts > 0)
        return shares


def evaluate(
    infer: Infer,
    batches: Iterable[Batch],
    *,
    progress: Callable[[int], object] = lambda count: None,
    observe: Observe = lambda rows, targets: None,
) -> Evaluation:
    """Evaluates `infer`, from images uint8 [H, W, C] to probabilities [N, K].

    Only one of `batches` is held at a time. For each batch, `progress` is called with its number
    of images, and `observe` with the probabilities [N, K] and the classes [N]. Equal
    probabilities rank in the order of the classes.

    Raises:
        ValueError: there are no images, a class is not one of the network's K, or images have
            other than one class each.
    """
    first = fifth = total = 0
    nll = 0.0
    confusion: NDArray[np.int64] | None = None
    bins: Reliability | None = None
    for images, labels in batches:
        targets = single(labels)
        probabilities = infer(list(images))
        count, classes = probabilities.shape
        strange = targets[(targets < 0) | (targets >= classes)]
        if strange.size:
            raise ValueError(f"class {strange[0]} is not one of the network's {classes} classes")
        ranked = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
        right = ranked == targets[:, None]
        first += int(right[:, 0].sum())
        fifth += int(right.sum())
        likelihoods = probabilities[np.arange(count), targets].astype(np.float64)
        nll -= float(np.log(np.maximum(likelihoods, LEAST)).sum())
        if confusion is None:
            confusion = np.zeros((classes, classes), np.int64)
        np.add.at(confusion, (targets, ranked[:, 0]), 1)
        binned = reliability(probabilities, targets)
        bins = binned if bins is None else bins + binned
        total += count
        observe(probabilities, targets)
        progress(count)
    if confusion is None or bins is None:
        raise ValueError("there are no images to evaluate on")
    return Evaluation(first / total, fifth / total, total, nll / total, confusion, bins)


def single(targets: Targets) -> NDArray[np.int64]:
    """The targets as classes int64 [N].

    Raises:
        ValueError: images have several labels or none.
    """
    if targets.ndim != 1:
        raise ValueError("some images have several labels or none, and the classes are exclusive")
    return targets.astype(np.int64, copy=False)


def batches(data: Dataset, batch_size: int) -> Iterator[Batch]:
    """The images of `data` in order; the last batch may be smaller."""
    for start in range(0, len(data.images), batch_size):
        part = slice(start, start + batch_size)
        yield data.images[part], data.targets[part]


def inference(classifier: Classifier) -> Infer:
    """The forward of a classifier for `evaluate`, in the caller's precision."""
    device = classifier.normalise.scale.device

    def infer(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(images)).to(device)
            probabilities: NDArray[np.float32] = classifier(batch).cpu().numpy()
            return probabilities

    return infer
