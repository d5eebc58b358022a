"""How images are augmented, and random crops and flips of whole batches on their device.

Random numbers come from a generator, which may be on another device: a CPU draws the same numbers
on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from models.data.choices import AutoAugment, Balance, CropKind, LastBatch, PaddingMode
from models.data.seeds import mix
from models.preprocess import InputSpec

# Each kind of crop has fields of its own.
CROP_FIELDS = {
    "padded": ("crop_padding", "padding_mode"),
    "resized": ("scale",),
    "scaled": ("shorter_side",),
}
OTHER_FIELDS = ("jitter", "lighting", "auto_augment", "cutout", "erasing", "train_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How images are augmented and batches are drawn; the fields are those of a recipe.

    In this order: crop, flip, `auto_augment`, `jitter`, `lighting`, then `cutout` and `erasing`.

    `crops`: "padded" shifts the image as it is served behind `crop_padding` pixels of
        `padding_mode`; "resized" and "scaled" are those of `models.data.crops.RandomCrop`, with
        `scale` or `shorter_side`.
    `flip`: mirror images half the time. `alternate_flip`: mirror each at random in epoch 0, and
        then in every second epoch (Jordan 2024, arXiv:2404.00498, section 3.6).
    `train_size`: the shorter side of training images in pixels; 0: that of the network's input.
    `jitter`, `lighting`, `auto_augment`: see `models.data.changes.Changes`.
    `cutout`: side of a square filled with `fill`; 0 for none. See
        `models.data.hiding.draw_centres`.
    `erasing`: probability of a rectangle filled with `fill`. See
        `models.data.hiding.draw_erased`.
    `fill`: the colour of both, from 0 to 255 for each channel of the images; () is 0.
    `last_batch`: "keep" yields an epoch's incomplete last batch too.
    `balance`: "sampling" draws images with replacement, each class equally often.

    Raises:
        ValueError: a value is invalid; the message names it.
    """

    crops: CropKind = "padded"
    crop_padding: int = 4
    padding_mode: PaddingMode = "zeros"
    scale: tuple[float, float] = (0.08, 1.0)
    shorter_side: tuple[int, int] = (256, 480)
    flip: bool = True
    alternate_flip: bool = False
    train_size: int = 0
    jitter: float = 0.0
    lighting: float = 0.0
    auto_augment: AutoAugment = "none"
    cutout: int = 0
    erasing: float = 0.0
    fill: tuple[int, ...] = ()
    last_batch: LastBatch = "drop"
    balance: Balance = "none"

    def __post_init__(self) -> None:
        if self.crop_padding < 0 or self.cutout < 0:
            raise ValueError("crop_padding and cutout must be at least 0")
        for name, choices in (
            ("crops", get_args(CropKind)),
            ("padding_mode", get_args(PaddingMode)),
            ("auto_augment", get_args(AutoAugment)),
            ("last_batch", get_args(LastBatch)),
            ("balance", get_args(Balance)),
        ):
            if getattr(self, name) not in choices:
                allowed = " or ".join(choices)
                raise ValueError(f"{name} must be {allowed}, not {getattr(self, name)!r}")
        for name in ("jitter", "lighting", "train_size"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if not 0 <= self.erasing <= 1:
            raise ValueError(f"erasing must be a probability, not {self.erasing}")

    @property
    def alternates(self) -> bool:
        return self.flip and self.alternate_flip

    @property
    def keeps_last(self) -> bool:
        return self.last_batch == "keep"

    def applied(self) -> dict[str, Any]:
        """The fields of a recipe that have an effect on these crops, with their values."""
        flips = ("flip", "alternate_flip") if self.flip else ("flip",)
        names = ("crops", *CROP_FIELDS[self.crops], *flips, *OTHER_FIELDS, "last_batch")
        # To balance the loss is not the source's.
        balance = "sampling" if self.balance == "sampling" else "none"
        return {name: getattr(self, name) for name in names} | {"balance": balance}

    def colour(self, channels: int) -> Tensor:
        """`fill` for each channel: uint8 [C].

        Raises:
            ValueError: `fill` has another number of channels.
        """
        fill = self.fill or (0,) * channels
        if len(fill) != channels:
            raise ValueError(f"fill must have {channels} values, not {len(fill)}")
        return torch.tensor(fill, dtype=torch.uint8)


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
    """Random crops for a batch; all offsets and both flips are equally likely (He 2015, section
    4.2, where `padding` is 4 pixels of zeros)."""

    def draw(limit: int) -> Tensor:
        return torch.randint(limit, (count,), generator=generator, device=generator.device)

    return Crops(draw(2 * padding + 1), draw(2 * padding + 1), draw(2) == 1)


def check_reflection(height: int, width: int, padding: int, mode: PaddingMode) -> None:
    """Raises ValueError if such images cannot be padded by their own reflection."""
    if mode == "reflect" and padding >= min(height, width):
        raise ValueError(f"crop_padding must be less than the images' {min(height, width)} pixels")


def crop(packed: Tensor, crops: Crops, padding: int, mode: PaddingMode) -> Tensor:
    """The crops of padded images: [N, H, W], see `pack`.

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
        check_reflection(height, width, padding, mode)
        rows, columns = _reflected(rows - padding, height), _reflected(columns - padding, width)
    elif padding:
        packed = F.pad(packed, (padding,) * 4)
    positions = rows[:, :, None] * packed.shape[2] + columns[:, None, :]
    return packed.flatten(1).gather(1, positions.flatten(1)).view(-1, height, width)


def _reflected(positions: Tensor, side: int) -> Tensor:
    return (side - 1) - ((side - 1) - positions.abs()).abs()


def pack(images: Tensor) -> Tensor:
    """Each pixel as one number, which moves faster than several: int32 [N, H, W] from uint8
    [N, H, W, C] of 3 or 4 channels; uint8 [N, H, W] of 1 channel."""
    channels = images.shape[-1]
    if channels == 1:
        return images.squeeze(-1)
    if channels == 4:
        return images.contiguous().view(torch.int32).squeeze(-1)
    packed = images.new_zeros(*images.shape[:-1], 4)
    for channel in range(channels):
        packed[..., channel] = images[..., channel]
    return packed.view(torch.int32).squeeze(-1)


def unpack(packed: Tensor, channels: int = 3) -> Tensor:
    """The inverse of `pack`: uint8 [N, H, W, C] in memory of its own."""
    if channels == 1:
        return packed.unsqueeze(-1).clone(memory_format=torch.contiguous_format)
    whole = packed.contiguous().unsqueeze(-1).view(torch.uint8)
    images = whole.new_empty(*packed.shape, channels)
    for channel in range(channels):
        images[..., channel] = whole[..., channel]
    return images


def grey(spec: InputSpec) -> tuple[int, ...]:
    """The colour that normalisation maps closest to zero, in the order of the input's channels."""
    return tuple(round(255 * min(max(mean, 0), 1)) for mean in spec.mean)


def alternating_flips(count: int, seed: int, epoch: int) -> Tensor:
    """Which of `count` images are mirrored in an epoch, bool [N]: each at random in the first, and
    then in every second epoch (Jordan 2024, section 3.6)."""
    generator = torch.Generator().manual_seed(mix("flip", seed))
    first = torch.randint(2, (count,), generator=generator) == 1
    return first ^ bool(epoch % 2)
