"""Training batches, which depend on nothing but seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from models.data.advice import check
from models.data.augment import (
    DEFAULT_AUGMENTATION,
    Augmentation,
    Crops,
    alternating_flips,
    crop,
    draw_centres,
    draw_crops,
    pack,
    squares,
    unpack,
)
from models.data.collection import find
from models.data.crops import RandomCrop
from models.data.datasets import Corrupt, Dataset, decode
from models.data.listing import Split
from models.data.loading import DEFAULT_LOADING, Loading
from models.data.seeds import mix
from models.data.splitting import split as divide
from models.data.streamed import Streamed, global_batches
from models.preprocess import InputSpec

Batch = tuple[Tensor, Tensor]
# Larger images are photographs, which training does not crop by shifting.
LARGEST_SHIFTED = 64


class Source(Protocol):
    """Labelled images of `classes`; `source` is the set's name.

    `applied` has the fields of a recipe that the source applies, with their values: what was done,
    whatever was asked for.

    `counts`: int64 [K], how many of its images each of its K classes has.

    `batches` yields one epoch from batch `start` on: images uint8 [n, S, S, 3] and targets int64
    [n] on `device`. `batch_size` is the number of images of all ranks together, of which each
    rank gets the rows `rank::world`; an incomplete last batch is left out. Equal seeds and epochs
    give equal batches on every machine, for any `start`, ranks and number of workers.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def source(self) -> str: ...

    @property
    def applied(self) -> dict[str, Any]: ...

    @property
    def counts(self) -> NDArray[np.int64]: ...

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
    """A whole set on `device`, augmented there batch by batch: for images of CIFAR's size.

    Raises:
        ValueError: the images are too small for this padding by reflection.
    """

    def __init__(
        self, data: Dataset, device: str, augmentation: Augmentation = DEFAULT_AUGMENTATION
    ) -> None:
        small = augmentation.crop_padding >= min(data.images.shape[1:3])
        if augmentation.padding_mode == "reflect" and small:
            raise ValueError(f"{data.source}: its images are smaller than crop_padding")
        self.classes, self.source = data.classes, data.source
        self._packed = pack(torch.from_numpy(data.images).to(device))
        self._targets = torch.from_numpy(data.targets).to(device)
        self.counts = np.bincount(data.targets, minlength=len(data.classes)).astype(np.int64)
        self._augmentation = augmentation
        fill = torch.tensor(augmentation.cutout_fill, dtype=torch.uint8).reshape(1, 1, 1, 3)
        self._fill = pack(fill).to(device)

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def applied(self) -> dict[str, Any]:
        """See `Source`."""
        names = ("crop_padding", "padding_mode", "alternate_flip", "cutout")
        return {"crops": "padded", **{name: getattr(self._augmentation, name) for name in names}}

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
        mirrored, augmentation = self._mirrored(seed, epoch), self._augmentation
        padding = augmentation.crop_padding
        _, height, width = self._packed.shape
        chosen = global_batches(len(self), seed, epoch, start, batch_size)
        for step, indices in enumerate(chosen, start):
            # Drawn for the whole batch and on the CPU, so that ranks and machines agree.
            generator = torch.Generator().manual_seed(mix("augment", seed, epoch, step))
            crops = draw_crops(batch_size, padding, generator)
            if mirrored is not None:
                crops = Crops(crops.top, crops.left, mirrored[indices])
            rows = indices[rank::world].to(self._packed.device, non_blocking=True)
            batch = self._packed[rows]
            if padding or augmentation.flip:
                batch = crop(batch, crops.part(rank, world), padding, augmentation.padding_mode)
            if augmentation.cutout:
                centres = draw_centres(batch_size, height, width, generator)[rank::world]
                inside = squares(centres.to(batch.device), augmentation.cutout, height, width)
                batch = torch.where(inside, self._fill, batch)
            yield unpack(batch).to(device), self._targets[rows].to(device)

    def _mirrored(self, seed: int, epoch: int) -> Tensor | None:
        """The images mirrored in an epoch, bool [N]; None if each batch draws its own."""
        if not self._augmentation.flip:
            return torch.zeros(len(self), dtype=torch.bool)
        if not self._augmentation.alternate_flip:
            return None
        return alternating_flips(len(self), seed, epoch)


def open_source(
    path: Path,
    spec: InputSpec,
    device: str,
    *,
    split: Split | None = "train",
    hold_out: float = 0,
    augmentation: Augmentation = DEFAULT_AUGMENTATION,
    photo_crop: RandomCrop | None = None,
    loading: Loading = DEFAULT_LOADING,
) -> Source:
    """The set at `path` for training at `spec`, without the images of `held_out`.

    `Resident` with `augmentation`; or `Streamed` with `photo_crop` and what of `augmentation` does
    not shift images; see `Loading.resident`.

    Raises:
        ValueError: see `datasets.read`, `Resident` and `Streamed`; or training does not take such
            images or targets, see `check_trainable`.
    """
    check_trainable(spec)
    collection = find(path, split)
    check(collection)
    size = spec.height
    if hold_out:
        collection, _ = divide(collection, hold_out)
    resident = loading.resident
    if resident is None:
        fits = len(collection) * 3 * size**2 <= loading.resident_bytes
        resident = fits and size <= LARGEST_SHIFTED
    if not resident:
        crop = photo_crop or RandomCrop(
            size=size, flip=augmentation.flip, interpolation=spec.interpolation
        )
        return Streamed(collection, crop, loading, augmentation)
    data = decode(collection, spec, loading.progress, corrupt=loading.corrupt)
    for name in data.skipped:
        loading.report(f"{path}: {name} is not a readable image; left out")
    return Resident(data, device, augmentation)


def held_out(
    path: Path,
    spec: InputSpec,
    count: float,
    *,
    split: Split | None = "train",
    corrupt: Corrupt = "fail",
) -> Dataset:
    """The images that `open_source` leaves out for `hold_out`: `count`, or below 1 a share of all.
    Each class has its share; they are equal for all seeds. See `splitting.split`.

    Raises:
        ValueError: see `datasets.read`; or the set has fewer.
    """
    check_trainable(spec)
    collection = find(path, split)
    check(collection)
    _, validation = divide(collection, count)
    data = decode(validation, spec, corrupt=corrupt)
    return replace(data, source=f"{len(data.images)} held out of {path.name}")


def check_trainable(spec: InputSpec) -> None:
    """Raises ValueError unless training takes such images: RGB squares without bars."""
    problem = ""
    if spec.channels != "rgb":
        problem = f"{spec.channels} ones"
    elif spec.height != spec.width:
        problem = f"ones of {spec.height} x {spec.width} pixels"
    elif spec.crop == "letterbox":
        problem = "ones with bars (crop letterbox)"
    if problem:
        raise ValueError(f"training takes square RGB images; this network's input is {problem}")
