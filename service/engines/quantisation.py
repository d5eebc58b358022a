"""The ranges of a network's activations, for engines that compute in 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.bundle import Bundle

BATCH = 16


def ranges(
    bundle: Bundle,
    images: Sequence[NDArray[np.uint8]],
    progress: Callable[[int], object] = lambda count: None,
) -> dict[str, tuple[float, float]]:
    """The smallest and largest input of each convolution and of the head, by module.

    Extremes are averaged over batches of the `images` (uint8 [H, W, 3], as preprocessed): one
    outlier would otherwise coarsen every other activation's steps (Krishnamoorthi 2018,
    arXiv:1806.08342, section 3). `progress` is called with the number of images of each step.
    """
    classifier = bundle.classifier()
    extremes: dict[str, list[tuple[float, float]]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            x: Tensor = inputs[0]
            extremes.setdefault(name, []).append((x.min().item(), x.max().item()))

        return note

    for name, module in classifier.network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_pre_hook(watch(name))
    for start in range(0, len(images), BATCH):
        batch = np.stack(images[start : start + BATCH])
        with torch.inference_mode():
            classifier(torch.from_numpy(batch))
        progress(len(batch))
    return {name: _range(batches) for name, batches in extremes.items()}


def _range(extremes: list[tuple[float, float]]) -> tuple[float, float]:
    low, high = np.mean(extremes, axis=0)
    # Padding adds zeros, which must be exact; a range needs a width.
    return min(0.0, float(low)), max(float(high), float(low) + 1e-6, 1e-6)
