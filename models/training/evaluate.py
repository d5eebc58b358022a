"""Accuracy, through whatever forward serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.classifier import Classifier
from models.training.datasets import Dataset

Infer = Callable[[Sequence[NDArray[np.uint8]]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Fractions of `images` whose class is the first, or among the first five predictions."""

    top1: float
    top5: float
    images: int


def accuracy(
    infer: Infer,
    data: Dataset,
    *,
    batch_size: int,
    progress: Callable[[int], object] = lambda count: None,
) -> Accuracy:
    """Top-1 and top-5 accuracy of `infer`: images uint8 [H, W, 3] to probabilities [N, K].

    `progress` is called with the number of images each step has done.
    """
    first = top5 = 0
    for start in range(0, len(data.images), batch_size):
        batch = data.images[start : start + batch_size]
        ranked = np.argsort(-infer(list(batch)), axis=1, kind="stable")[:, :5]
        targets = data.targets[start : start + batch_size, None]
        first += int((ranked[:, :1] == targets).sum())
        top5 += int((ranked == targets).sum())
        progress(len(batch))
    return Accuracy(first / len(data.images), top5 / len(data.images), len(data.images))


def inference(classifier: Classifier) -> Infer:
    """`accuracy`'s forward for a classifier as it is, in the caller's precision."""
    device = classifier.normalise.scale.device

    def infer(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(images)).to(device)
            probabilities: NDArray[np.float32] = classifier(batch).cpu().numpy()
            return probabilities

    return infer
