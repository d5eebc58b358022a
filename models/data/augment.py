"""Augmentation of whole batches, on the device of the images.

Random numbers come from a generator, which may be on another device: a CPU draws the same numbers
on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.data.seeds import mix
from models.preprocess import InputSpec

PaddingMode = Literal["zeros", "reflect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How images are augmented; the fields are those of a recipe.

    `crop_padding`, `padding_mode`: small images are padded by this many pixels and cropped back at
        random. Photographs have crops of their own, see `models.data.crops.RandomCrop`.
    `flip`: mirror images half the time. `alternate_flip`: mirror each at random in epoch 0, and
        then in every second epoch (Jordan 2024, arXiv:2404.00498, section 3.6).
    `cutout`: side of a square filled with `cutout_fill`; 0 for none. See the function `cutout`.

    Raises:
        ValueError: a value is invalid; the message names it.
    """

    crop_padding: int = 4
    padding_mode: PaddingMode = "zeros"
    flip: bool = True
    alternate_flip: bool = False
    cutout: int = 0
    cutout_fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        if self.crop_padding < 0 or self.cutout < 0:
            raise ValueError("crop_padding and cutout must be at least 0")
        if self.padding_mode not in get_args(PaddingMode):
            raise ValueError(f"padding_mode must be zeros or reflect, not {self.padding_mode!r}")


DEFAULT_AUGMENTATION = Augmentation()


@dataclass(frozen=True, slots=True)
class Crops:
    """For each image of a batch, the crop's `top` and `left`, int64 [N], in the padded image, and
    whether it is `mirrored`, bool [N]."""

    top: Tensor
    left: Tensor
    mirrored: Tensor

    def part(self, rank: int, world: int) -> Crops:
        """The crops of one rank's rows."""
        rows = slice(rank, None, world)
        return Crops(self.top[rows], self.left[rows], self.mirrored[rows])


def draw_crops(count: int, padding: int, generator: torch.Generator) -> Crops:
    """Random crops for a batch; all offsets and both flips are equally likely."""

    def draw(limit: int) -> Tensor:
        return torch.randint(limit, (count,), generator=generator, device=generator.device)

    return Crops(draw(2 * padding + 1), draw(2 * padding + 1), draw(2) == 1)


def crop_and_flip(
    images: Tensor, padding: int, generator: torch.Generator, mode: PaddingMode = "zeros"
) -> Tensor:
    """Pads each image, crops it at random to its size, and mirrors it half the time.

    Takes and returns uint8 [N, H, W, 3] (He 2015, section 4.2: `padding` is 4 pixels of zeros).

    Raises:
        ValueError: see `crop`.
    """
    crops = draw_crops(len(images), padding, generator)
    return unpack(crop(pack(images), crops, padding, mode))


def crop(packed: Tensor, crops: Crops, padding: int, mode: PaddingMode) -> Tensor:
    """The crops of padded images: int32 [N, H, W], see `pack`.

    Raises:
        ValueError: the images are too small for reflection.
    """
    _, height, width = packed.shape
    device = packed.device
    top, left, mirrored = (
        each.to(device, non_blocking=True)[:, None]
        for each in (crops.top, crops.left, crops.mirrored)
    )
    rows = torch.arange(height, device=device) + top
    columns = torch.arange(width, device=device)
    columns = torch.where(mirrored, columns.flip(0), columns) + left
    if mode == "reflect":
        if padding >= min(height, width):
            raise ValueError(f"{padding} pixels of {height} x {width} images cannot be reflected")
        rows, columns = _reflected(rows - padding, height), _reflected(columns - padding, width)
    elif padding:
        packed = F.pad(packed, (padding,) * 4)
    positions = rows[:, :, None] * packed.shape[2] + columns[:, None, :]
    return packed.flatten(1).gather(1, positions.flatten(1)).view(-1, height, width)


def _reflected(positions: Tensor, side: int) -> Tensor:
    return (side - 1) - ((side - 1) - positions.abs()).abs()


def pack(images: Tensor) -> Tensor:
    """Each pixel as one number, which moves faster than three: int32 [N, H, W] from uint8
    [N, H, W, 3]."""
    packed = images.new_zeros(*images.shape[:-1], 4)
    for channel in range(3):
        packed[..., channel] = images[..., channel]
    return packed.view(torch.int32).squeeze(-1)


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`."""
    channels = packed.contiguous().unsqueeze(-1).view(torch.uint8)
    images = channels.new_empty(*packed.shape, 3)
    for channel in range(3):
        images[..., channel] = channels[..., channel]
    return images


def grey(spec: InputSpec) -> tuple[int, int, int]:
    """The colour that normalisation maps closest to zero."""
    red, green, blue = (round(255 * min(max(mean, 0), 1)) for mean in spec.mean)
    return red, green, blue


def cutout(
    images: Tensor, side: int, generator: torch.Generator, fill: Sequence[int] = (0, 0, 0)
) -> Tensor:
    """Fills a square of `side` pixels in each image with the colour `fill`: uint8 [N, H, W, 3].

    The centre is anywhere in the image, so part of the square may lie outside (DeVries and Taylor,
    arXiv:1708.04552, section 3.2). They fill with zero after normalisation: the colour `grey`.
    """
    count, height, width, _ = images.shape
    centres = draw_centres(count, height, width, generator)
    inside = squares(centres.to(images.device), side, height, width)
    return torch.where(inside[..., None], images.new_tensor(fill), images)


def draw_centres(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Rows and columns of the centres of cutout's squares: int64 [N, 2]."""
    sides = ((height,), (width,))
    drawn = [
        torch.randint(*side, (count,), generator=generator, device=generator.device)
        for side in sides
    ]
    return torch.stack(drawn, dim=1)


def alternating_flips(count: int, seed: int, epoch: int) -> Tensor:
    """Which of `count` images are mirrored in an epoch, bool [N]: each at random in the first, and
    then in every second epoch (Jordan 2024, section 3.6)."""
    generator = torch.Generator().manual_seed(mix("flip", seed))
    first = torch.randint(2, (count,), generator=generator) == 1
    return first ^ bool(epoch % 2)


def squares(centres: Tensor, side: int, height: int, width: int) -> Tensor:
    """Which pixels lie in the squares: bool [N, H, W]."""
    first = centres[:, :, None] - side // 2
    rows, columns = (torch.arange(length, device=centres.device) for length in (height, width))
    in_rows = (rows >= first[:, 0]) & (rows < first[:, 0] + side)
    in_columns = (columns >= first[:, 1]) & (columns < first[:, 1] + side)
    return in_rows[:, :, None] & in_columns[:, None, :]


class Mixed(NamedTuple):
    """`images` float [N, ...]: each the sum of `weight` times one image and `1 - weight` times
    another, with targets `targets` and `others`, int64 [N]; the loss mixes in the same way."""

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
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"mixup's alpha must be above 0, not {alpha}")
    if not images.is_floating_point():
        raise ValueError(f"mixup takes normalised images, not {images.dtype}")
    device = generator.device
    # No generator of torch draws from a Beta distribution.
    seed = int(torch.randint(2**62, (), generator=generator, device=device))
    weight = float(np.random.default_rng(seed).beta(alpha, alpha))
    order = torch.randperm(len(images), generator=generator, device=device).to(images.device)
    mixed = torch.lerp(images[order], images, weight)
    return Mixed(mixed, targets, targets[order], weight)
