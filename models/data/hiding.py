"""Cutout and random erasing: parts of images filled with a colour, a whole batch at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.data.augment import Augmentation

ERASED_AREA, ERASED_RATIO, ERASING_TRIES = (0.02, 1 / 3), (0.3, 1 / 0.3), 10


def draw_centres(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Rows and columns of the centres of cutout's squares: int64 [N, 2].

    They are anywhere in the image, so part of a square may lie outside (DeVries and Taylor,
    arXiv:1708.04552, section 3.2).
    """
    sides = ((height,), (width,))
    drawn = [
        torch.randint(*side, (count,), generator=generator, device=generator.device)
        for side in sides
    ]
    return torch.stack(drawn, dim=1)


def squares(centres: Tensor, side: int, height: int, width: int) -> Tensor:
    """Which pixels lie in the squares: bool [N, H, W]."""
    first = centres[:, :, None] - side // 2
    rows, columns = (torch.arange(length, device=centres.device) for length in (height, width))
    in_rows = (rows >= first[:, 0]) & (rows < first[:, 0] + side)
    in_columns = (columns >= first[:, 1]) & (columns < first[:, 1] + side)
    return in_rows[:, :, None] & in_columns[:, None, :]


def draw_erased(
    count: int, height: int, width: int, probability: float, generator: torch.Generator
) -> Tensor:
    """Rectangles of random erasing: top, left, bottom and right, int64 [N, 4]; empty where an
    image is left alone.

    Area and ratio are drawn as in Zhong 2017, arXiv:1708.04896, section 3, with an area of at most
    a third; the ratio's logarithm is uniform, so that high and wide ones are equally likely.
    """

    def draw(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=generator.device)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * draw(ERASING_TRIES)

    area = height * width * between(*ERASED_AREA)
    ratio = between(*map(math.log, ERASED_RATIO)).exp()
    down, across = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (down < height) & (across < width) & (down > 0) & (across > 0)
    first = fits.int().argmax(1, keepdim=True)
    erased = (draw() < probability) & fits.any(1)
    sides = [side.gather(1, first).squeeze(1).long() * erased for side in (down, across)]
    corner = [
        (draw() * (whole - side + 1)).long()
        for whole, side in zip((height, width), sides, strict=True)
    ]
    return torch.stack([*corner, corner[0] + sides[0], corner[1] + sides[1]], dim=1)


def rectangles(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels lie in boxes of top, left, bottom and right: bool [N, H, W]."""
    rows, columns = (torch.arange(length, device=boxes.device) for length in (height, width))
    in_rows = (rows >= boxes[:, :1]) & (rows < boxes[:, 2:3])
    in_columns = (columns >= boxes[:, 1:2]) & (columns < boxes[:, 3:])
    return in_rows[:, :, None] & in_columns[:, None, :]


def draw_hidden(
    augmentation: Augmentation,
    shape: tuple[int, int, int],
    generator: torch.Generator,
    rows: slice,
    device: torch.device,
) -> Tensor | None:
    """Which pixels cutout and erasing fill in the `rows` of a batch of N images of H x W pixels:
    bool [n, H, W] on `device`; None if neither is asked for.

    Both are drawn for the whole batch, so that ranks agree.
    """
    count, height, width = shape
    hidden = None
    if augmentation.cutout:
        centres = draw_centres(count, height, width, generator)[rows].to(device)
        hidden = squares(centres, augmentation.cutout, height, width)
    if augmentation.erasing:
        boxes = draw_erased(count, height, width, augmentation.erasing, generator)[rows]
        erased = rectangles(boxes.to(device), height, width)
        hidden = erased if hidden is None else hidden | erased
    return hidden
