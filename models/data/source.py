"""Training batches, which depend on nothing but seed and epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.data.advice import check
from models.data.augment import (
    DEFAULT_AUGMENTATION,
    Augmentation,
    Crops,
    alternating_flips,
    check_reflection,
    crop,
    draw_crops,
    pack,
    unpack,
)
from models.data.changes import of_channels
from models.data.collection import Collection, find
from models.data.crops import trained_at
from models.data.datasets import Corrupt, Dataset, decode
from models.data.hiding import draw_hidden
from models.data.listing import Split
from models.data.loading import DEFAULT_LOADING, Loading
from models.data.order import drawn, image_seed
from models.data.seeds import mix
from models.data.splitting import split as divide
from models.data.streamed import Streamed
from models.preprocess import BY_COUNT, Channels, InputSpec, Interpolation

Batch = tuple[Tensor, Tensor]
# Larger ones are decoded faster by several processes than once by this one.
LARGEST_RESIDENT = 128


class Source(Protocol):
    """Labelled images of `classes`; `source` is the set's name.

    `applied` has the fields of a recipe that the source applies, with their values: what was done,
    whatever was asked for.

    `counts`: int64 [K], how many of its images each of its K classes has.

    `batches` yields one epoch from batch `start` on: images uint8 [n, H, W, C] and targets int64
    [n] on `device`. `batch_size` is the number of images of all ranks together, of which each
    rank gets the rows `rank::world`. An incomplete last batch is left out, unless `applied` has
    "keep" for `last_batch`; see `models.data.order.per_epoch`. Equal seeds and epochs give equal
    batches on every machine, for any `start`, ranks and number of workers.
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

    `channels`, `interpolation`: see `InputSpec`; RGB, RGBA or grey, as many as the images have, if
        not given.

    Raises:
        ValueError: the images are too small for this padding by reflection, or are not those that
            `augmentation` is for.
    """

    def __init__(
        self,
        data: Dataset,
        device: str,
        augmentation: Augmentation = DEFAULT_AUGMENTATION,
        *,
        channels: Channels | None = None,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        height, width, depth = data.images.shape[1:]
        if augmentation.crops != "padded":
            raise ValueError(
                f"{data.source}: images that are resized already cannot be cropped as "
                f"{augmentation.crops!r} asks; stream them"
            )
        if augmentation.train_size not in (0, min(height, width)):
            raise ValueError(
                f"{data.source}: its images have {height} x {width} pixels, which is not the "
                f"train_size {augmentation.train_size}"
            )
        check_reflection(height, width, augmentation.crop_padding, augmentation.padding_mode)
        self.classes, self.source = data.classes, data.source
        self._depth, self._sides = depth, (height, width)
        self._packed = pack(torch.from_numpy(data.images).to(device))
        self.counts = np.bincount(data.targets, minlength=len(data.classes)).astype(np.int64)
        self._order = torch.from_numpy(data.targets)
        self._targets = self._order.to(device)
        self._augmentation = augmentation
        self._fill = pack(augmentation.colour(depth).reshape(1, 1, 1, depth)).to(device)
        self._changes = of_channels(augmentation, channels or BY_COUNT[depth], interpolation)

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def applied(self) -> dict[str, Any]:
        """See `Source`."""
        return self._augmentation.applied()

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
        padding, mode = augmentation.crop_padding, augmentation.padding_mode
        ranks = slice(rank, None, world)
        chosen = drawn(self._order, augmentation, seed, epoch, start, batch_size)
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            for step, drawing in enumerate(chosen, start):
                count = len(drawing.indices)
                # Drawn for the whole batch and on the CPU, so that ranks and machines agree.
                generator = torch.Generator().manual_seed(mix("augment", seed, epoch, step))
                crops = draw_crops(count, padding, generator)
                if mirrored is not None:
                    crops = Crops(crops.top, crops.left, mirrored[drawing.indices])
                rows = drawing.indices[ranks].to(self._packed.device, non_blocking=True)
                batch = self._packed[rows]
                if padding or augmentation.flip:
                    batch = crop(batch, crops.part(rank, world), padding, mode)
                if self._changes is not None:
                    seeds = [
                        image_seed(seed, epoch, index, repeat)
                        for index, repeat in zip(
                            *(each[ranks].tolist() for each in drawing), strict=True
                        )
                    ]
                    images = unpack(batch, self._depth)
                    batch = pack(self._changes.of_batch(images, seeds, threads))
                hidden = draw_hidden(
                    augmentation, (count, *self._sides), generator, ranks, batch.device
                )
                if hidden is not None:
                    batch = torch.where(hidden, self._fill, batch)
                yield unpack(batch, self._depth).to(device), self._targets[rows].to(device)

    def _mirrored(self, seed: int, epoch: int) -> Tensor | None:
        """The images mirrored in an epoch, bool [N]; None if each batch draws its own."""
        if not self._augmentation.flip:
            return torch.zeros(len(self), dtype=torch.bool)
        if not self._augmentation.alternates:
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
    loading: Loading = DEFAULT_LOADING,
) -> Source:
    """The set at `path` for training at `spec`, without the images of `held_out`: `Resident` or
    `Streamed`, see `Loading.resident`.

    Raises:
        ValueError: see `datasets.read`, `Resident` and `Streamed`; or images have several labels.
    """
    collection = find(path, split)
    if hold_out:
        collection, _ = divide(collection, hold_out)
    return source_of(collection, spec, device, augmentation, loading)


def source_of(
    collection: Collection,
    spec: InputSpec,
    device: str,
    augmentation: Augmentation = DEFAULT_AUGMENTATION,
    loading: Loading = DEFAULT_LOADING,
) -> Source:
    """The images of a collection with one label each, for training at `spec`; see `open_source`.

    Raises:
        ValueError: see `open_source`.
    """
    check(collection)
    trained = trained_at(spec, augmentation.train_size)
    resident = loading.resident
    if resident is None:
        bytes_needed = len(collection) * math.prod(trained.shape)
        small = max(trained.height, trained.width) <= LARGEST_RESIDENT
        fits = small and bytes_needed <= loading.resident_bytes
        resident = fits and augmentation.crops == "padded"
    if not resident:
        return Streamed(collection, spec, augmentation, loading)
    data = decode(collection, trained, loading.progress, corrupt=loading.corrupt)
    for name in data.skipped:
        loading.report(f"{collection.path}: {name} is not a readable image; left out")
    return Resident(
        data,
        device,
        augmentation,
        channels=spec.channels,
        interpolation=spec.interpolation,
    )


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
    collection = find(path, split)
    check(collection)
    _, validation = divide(collection, count)
    data = decode(validation, spec, corrupt=corrupt)
    return replace(data, source=f"{len(data.images)} held out of {path.name}")
