"""What a network is trained from: batches that depend on seed and epoch, and on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data.augment import (
    Crops,
    PaddingMode,
    crop,
    draw_centres,
    draw_crops,
    pack,
    squares,
    unpack,
)
from models.data.collection import Collection, find
from models.data.datasets import Corrupt, Dataset, decode
from models.data.listing import Split
from models.data.seeds import mix
from models.data.streamed import Streamed, global_batches
from models.preprocess import InputSpec, Interpolation

Batch = tuple[Tensor, Tensor]
# Larger images are photographs, of which training takes other crops than shifted ones.
LARGEST_SHIFTED = 64


class Source(Protocol):
    """Images of `classes`, named by `source`.

    `batches` gives one epoch from batch `start` on: images uint8 [n, S, S, 3] and targets int64
    [n] on `device`. `batch_size` counts the images of all ranks together, of which each rank gets
    its rows `rank::world`; an incomplete last batch is left out. Equal seeds and epochs give equal
    batches on every machine, whatever `start`, the ranks and the number of workers are.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def source(self) -> str: ...

    def __len__(self) -> int: ...

    def batches(
        self,
        *,
        seed: int,
        epoch: int,
        start: int,
        batch_size: int,
        rank: int,
        world: int,
        device: str,
    ) -> Iterator[Batch]: ...


class Resident:
    """A whole set on `device`, augmented there in whole batches: for images of CIFAR's size.

    Images are padded by `crop_padding` pixels, cropped back and, if `flip`, mirrored half the
    time. `alternate_flip`: an image is mirrored at random in epoch 0, and then in every epoch in
    which it was not in the one before (Jordan 2024, arXiv:2404.00498, section 3.6). `cutout`: the
    side of a square that becomes `cutout_fill`, see `augment.cutout`; 0 for none.

    Raises:
        ValueError: a value is impossible; the message names it.
    """

    def __init__(
        self,
        data: Dataset,
        device: str,
        crop_padding: int = 4,
        padding_mode: PaddingMode = "zeros",
        flip: bool = True,
        *,
        alternate_flip: bool = False,
        cutout: int = 0,
        cutout_fill: Sequence[int] = (0, 0, 0),
    ) -> None:
        if crop_padding < 0 or cutout < 0:
            raise ValueError("crop_padding and cutout must be at least 0")
        if padding_mode not in ("zeros", "reflect"):
            raise ValueError(f"padding_mode must be zeros or reflect, not {padding_mode!r}")
        if padding_mode == "reflect" and crop_padding >= min(data.images.shape[1:3]):
            raise ValueError(f"{data.source}: its images are smaller than crop_padding")
        self.classes, self.source = data.classes, data.source
        self._packed = pack(torch.from_numpy(data.images).to(device))
        self._targets = torch.from_numpy(data.targets).to(device)
        self._padding, self._mode = crop_padding, padding_mode
        self._flip, self._alternate = flip, alternate_flip
        self._cutout = cutout
        fill = torch.tensor(cutout_fill, dtype=torch.uint8).reshape(1, 1, 1, 3)
        self._fill = pack(fill).to(device)

    def __len__(self) -> int:
        return len(self._targets)

    def batches(
        self,
        *,
        seed: int,
        epoch: int,
        start: int,
        batch_size: int,
        rank: int,
        world: int,
        device: str,
    ) -> Iterator[Batch]:
        """See `Source`; `device` should be where the images are."""
        mirrored = self._mirrored(seed, epoch)
        _, height, width = self._packed.shape
        chosen = global_batches(len(self), seed, epoch, start, batch_size)
        for step, indices in enumerate(chosen, start):
            # Drawn for the whole batch on the CPU, so that ranks and machines agree.
            generator = torch.Generator().manual_seed(mix("augment", seed, epoch, step))
            crops = draw_crops(batch_size, self._padding, generator)
            if mirrored is not None:
                crops = Crops(crops.top, crops.left, mirrored[indices])
            rows = indices[rank::world].to(self._packed.device, non_blocking=True)
            batch = self._packed[rows]
            if self._padding or self._flip:
                batch = crop(batch, crops.part(rank, world), self._padding, self._mode)
            if self._cutout:
                centres = draw_centres(batch_size, height, width, generator)[rank::world]
                inside = squares(centres.to(batch.device), self._cutout, height, width)
                batch = torch.where(inside, self._fill, batch)
            yield unpack(batch).to(device), self._targets[rows].to(device)

    def _mirrored(self, seed: int, epoch: int) -> Tensor | None:
        """Which images are mirrored in an epoch, where no batch draws that: bool [N]."""
        if not self._flip:
            return torch.zeros(len(self), dtype=torch.bool)
        if not self._alternate:
            return None
        generator = torch.Generator().manual_seed(mix("flip", seed))
        first = torch.randint(2, (len(self),), generator=generator) == 1
        return first ^ bool(epoch % 2)


def open_source(
    path: Path,
    spec: InputSpec,
    device: str,
    *,
    split: Split | None = "train",
    corrupt: Corrupt = "fail",
    hold_out: int = 0,
    resident: bool | None = None,
    resident_bytes: int = 2**31,
    crop_padding: int = 4,
    padding_mode: PaddingMode = "zeros",
    flip: bool = True,
    alternate_flip: bool = False,
    cutout: int = 0,
    cutout_fill: Sequence[int] = (0, 0, 0),
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    shorter_side: tuple[int, int] | None = None,
    interpolation: Interpolation = "bilinear",
    workers: int = 0,
    report: Callable[[str], object] = lambda line: None,
    progress: Callable[[int], object] = lambda count: None,
) -> Source:
    """The set at `path` for training at `spec`, without the images that `held_out` gives.

    `Resident`, with its options, where images are at most 64 pixels a side and all together at
    most `resident_bytes`; else `Streamed`, with its own. `resident` decides it instead. `report`
    is called with a line for each image that could not be read, `progress` with the number read.

    Raises:
        ValueError: see `datasets.read`, `Resident` and `Streamed`.
    """
    found = find(path, split)
    if hold_out:
        found = found.part(_drawn(found, hold_out)[1])
    if resident is None:
        fits = len(found) * 3 * spec.size**2 <= resident_bytes
        resident = fits and spec.size <= LARGEST_SHIFTED
    if resident:
        data = decode(found, spec, progress, corrupt=corrupt)
        for name in data.skipped:
            report(f"{path}: {name} is no readable image; left out")
        return Resident(
            data,
            device,
            crop_padding,
            padding_mode,
            flip,
            alternate_flip=alternate_flip,
            cutout=cutout,
            cutout_fill=cutout_fill,
        )
    return Streamed(
        found.images,
        found.targets,
        found.classes,
        path.name,
        spec.size,
        workers,
        scale=scale,
        ratio=ratio,
        shorter_side=shorter_side,
        interpolation=interpolation,
        flip=flip,
        corrupt=corrupt,
        report=report,
    )


def held_out(
    path: Path,
    spec: InputSpec,
    count: int,
    *,
    split: Split | None = "train",
    corrupt: Corrupt = "fail",
) -> Dataset:
    """The `count` images that `open_source` leaves out for `hold_out`, the same for all seeds.

    Raises:
        ValueError: see `datasets.read`; or there are not so many.
    """
    found = find(path, split)
    data = decode(found.part(_drawn(found, count)[0]), spec, corrupt=corrupt)
    return replace(data, source=f"{count} held out of {path.name}")


def _drawn(found: Collection, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of `count` images, and those of the others."""
    if count >= len(found):
        raise ValueError(f"{found.path}: of {len(found)} images {count} cannot be held out")
    generator = torch.Generator().manual_seed(mix("hold out"))
    order = torch.randperm(len(found), generator=generator).numpy()
    return np.sort(order[:count]), np.sort(order[count:])
