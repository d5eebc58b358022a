"""Augmentation of batches of whole images, put together from its parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.data.augment import crop, draw_crops, pack, unpack
from models.data.choices import PaddingMode
from models.data.hiding import draw_centres, squares


def crop_and_flip(
    images: Tensor, padding: int, generator: torch.Generator, mode: PaddingMode = "zeros"
) -> Tensor:
    """Pads each image, crops it at random to its size, and mirrors it half the time: uint8
    [N, H, W, C]."""
    crops = draw_crops(len(images), padding, generator)
    return unpack(crop(pack(images), crops, padding, mode), images.shape[-1])


def cutout(images: Tensor, side: int, generator: torch.Generator, fill: Sequence[int]) -> Tensor:
    """Fills a square of `side` pixels in each image with the colour `fill`: uint8 [N, H, W, C]."""
    count, height, width, _ = images.shape
    inside = squares(draw_centres(count, height, width, generator), side, height, width)
    return torch.where(inside[..., None], images.new_tensor(fill), images)
