"""Mixup and CutMix: batches whose images are mixed of two, with both classes."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.data.hiding import draw_centres


class Mixed(NamedTuple):
    """`images` [N, ...]: each mixed of `weight` of one image and `1 - weight` of another, with
    targets `targets` and `others`, int64 [N]; the loss mixes in the same way."""

    images: Tensor
    targets: Tensor
    others: Tensor
    weight: float


def mixup(images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator) -> Mixed:
    """Normalised images float [N, ...] mixed with others of their batch.

    One weight for the batch is drawn from Beta(alpha, alpha) (Zhang 2017, arXiv:1710.09412,
    section 2).

    Raises:
        ValueError: `alpha` is not above 0, or the images are not floating-point.
    """
    if not images.is_floating_point():
        raise ValueError(f"mixup takes normalised images, not {images.dtype}")
    weight = _beta("mixup", alpha, generator)
    order = _shuffled(len(images), generator).to(images.device)
    mixed = torch.lerp(images[order], images, weight)
    return Mixed(mixed, targets, targets[order], weight)


def cutmix(images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator) -> Mixed:
    """Images [N, H, W, C] with a rectangle of another of their batch each.

    The other's share of the area is drawn from Beta(alpha, alpha), once for the batch, and so is
    the rectangle's centre, anywhere in the image. The weight is the area that remains (Yun 2019,
    arXiv:1905.04899, section 3.1).

    Raises:
        ValueError: `alpha` is not above 0.
    """
    weight = _beta("cutmix", alpha, generator)
    order = _shuffled(len(images), generator).to(images.device)
    _, height, width, _ = images.shape
    row, column = draw_centres(1, height, width, generator)[0].tolist()
    down, across = (int(side * math.sqrt(1 - weight)) for side in (height, width))
    top, left = max(row - down // 2, 0), max(column - across // 2, 0)
    bottom, right = (
        min(row - down // 2 + down, height),
        min(column - across // 2 + across, width),
    )
    mixed = images.clone()
    mixed[:, top:bottom, left:right] = images[order, top:bottom, left:right]
    remains = 1 - (bottom - top) * (right - left) / (height * width)
    return Mixed(mixed, targets, targets[order], remains)


def _beta(name: str, alpha: float, generator: torch.Generator) -> float:
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"{name}'s alpha must be above 0, not {alpha}")
    # No generator of torch draws from a Beta distribution.
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def _shuffled(count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator, device=generator.device)
