"""Weights of classes in the loss, to make up for rare ones."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def class_weights(counts: NDArray[np.int64]) -> Tensor:
    """Float32 [K] from the numbers of training images of K classes, int64 [K].

    A class weighs in inverse proportion to its images, N / (K n): of N images in K classes that
    have any (scikit-learn's "balanced", after King and Zeng 2001, "Logistic Regression in Rare
    Events Data"). The mean over all images is 1. Classes without images weigh 0.
    """
    present = counts > 0
    weights = counts.sum() / (present.sum() * np.maximum(counts, 1)) * present
    return torch.from_numpy(weights.astype(np.float32))


def weighted_targets(targets: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Targets float32 [N, K] whose cross-entropy is the weighted loss.

    `targets` are int64 [N] or probabilities float32 [N, K]; `weights` float32 [K]. What an image
    has of a class weighs as much as the class, with all that label `smoothing` spreads of it: a
    mixed image has the losses of its two images, each with its own weight.
    """
    if targets.ndim == 1:
        targets = F.one_hot(targets, len(weights))
    shares = targets * weights
    spread = smoothing / len(weights) * shares.sum(1, keepdim=True)
    return (1 - smoothing) * shares + spread
