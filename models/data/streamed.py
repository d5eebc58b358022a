"""Sets too large for memory: each image is opened for its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.data.augment import (
    DEFAULT_AUGMENTATION,
    Augmentation,
    alternating_flips,
    draw_centres,
    squares,
)
from models.data.collection import Centre, Collection, Images, find
from models.data.crops import RandomCrop
from models.data.datasets import Corrupt
from models.data.label_list import Targets
from models.data.listing import Split
from models.data.loading import DEFAULT_LOADING, Loader, Loading, Reader, Request
from models.data.seeds import mix
from models.preprocess import InputSpec


def global_batches(
    count: int, seed: int, epoch: int, start: int, batch_size: int
) -> Iterator[Tensor]:
    """Indices int64 [batch_size] of each whole batch of an epoch, from batch `start` on."""
    # A CPU's order is the same on every machine.
    generator = torch.Generator().manual_seed(mix("order", seed, epoch))
    order = torch.randperm(count, generator=generator)
    for at in range(start * batch_size, count - batch_size + 1, batch_size):
        yield order[at : at + batch_size]


class Streamed:
    """A `Source` that opens each image for its batch: for sets like ImageNet.

    The random crop of an image depends only on seed, epoch and its index. Of `augmentation`,
    `alternate_flip` and `cutout` apply; the size and flips are those of `crop`. With "skip", the
    next readable image of the batch replaces an unreadable one. Only one epoch at a time.

    Raises:
        ValueError: a value is invalid, or the set is in a compressed archive.
    """

    def __init__(
        self,
        collection: Collection,
        crop: RandomCrop,
        loading: Loading = DEFAULT_LOADING,
        augmentation: Augmentation = DEFAULT_AUGMENTATION,
    ) -> None:
        self.classes, self.source = collection.classes, collection.path.name
        if collection.images.compressed:
            raise ValueError(
                f"{self.source}: images in a compressed archive can only be read in order; "
                "decompress it"
            )
        self._count = len(collection)
        self.counts = np.bincount(collection.targets, minlength=len(self.classes)).astype(np.int64)
        self._cutout, self._fill = augmentation.cutout, augmentation.cutout_fill
        self._alternates = crop.flip and augmentation.alternate_flip
        if self._alternates:
            crop = replace(crop, flip=False)
        shape = (crop.size, crop.size, 3)
        reader = Reader(collection.images, collection.targets, shape, crop, loading.corrupt)
        self._loader = Loader(reader, self.source, loading.workers, loading.report)

    def __len__(self) -> int:
        return self._count

    @property
    def applied(self) -> dict[str, Any]:
        """See `Source`."""
        return {
            "crops": "resized",
            "alternate_flip": self._alternates,
            "cutout": self._cutout,
        }

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
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Source`.

        Raises:
            ValueError: an image cannot be read, or with "skip" no image of its batch can.
        """
        chosen = list(global_batches(self._count, seed, epoch, start, batch_size))
        requests = (
            Request(indices.numpy(), rank, world, seed, epoch, replaced=True) for indices in chosen
        )
        mirrored = alternating_flips(self._count, seed, epoch) if self._alternates else None
        pinned = torch.device(device).type == "cuda"
        answers = self._loader.answers(requests, pinned=pinned)
        for step, (answer, indices) in enumerate(zip(answers, chosen, strict=True), start):
            images = answer.images.to(device, non_blocking=True)
            if mirrored is not None:
                flipped = mirrored[indices][rank::world].to(device)
                images = torch.where(flipped[:, None, None, None], images.flip(2), images)
            if self._cutout:
                generator = torch.Generator().manual_seed(mix("augment", seed, epoch, step))
                _, height, width, _ = images.shape
                # Drawn for the whole batch, so that ranks agree.
                centres = draw_centres(batch_size, height, width, generator)[rank::world]
                inside = squares(centres.to(device), self._cutout, height, width)
                images = torch.where(inside[..., None], images.new_tensor(self._fill), images)
            yield images, answer.targets.to(device, non_blocking=True)


class Stream:
    """Every image of a set once and in order, for evaluation; one batch in memory.

    `skipped`: after a whole pass, the reason for each image left out.
    """

    def __init__(
        self,
        collection: Collection,
        spec: InputSpec,
        *,
        batch_size: int,
        corrupt: Corrupt = "fail",
        workers: int = 0,
        exact: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.classes, self.source = collection.classes, collection.path.name
        self.skipped: list[str] = []
        self._collection, self._spec, self._batch_size = collection, spec, batch_size
        self._corrupt: Corrupt = corrupt
        self._exact = exact
        self._workers = 0 if collection.images.compressed else workers
        self._reader = Reader(
            collection.images, collection.targets, spec.shape, Centre(spec, exact), corrupt
        )
        self._loader = Loader(self._reader, str(collection.path), self._workers, lambda line: None)

    def __len__(self) -> int:
        """The number of images, including unreadable ones."""
        return len(self._collection)

    @property
    def exclusive(self) -> bool:
        """Whether each image has exactly one of the classes."""
        return self._collection.exclusive

    def relabelled(self, labels: Sequence[str]) -> Stream:
        """The same images with targets as indices into `labels`.

        Raises:
            ValueError: a class is not in `labels`.
        """
        return Stream(
            self._collection.relabelled(labels),
            self._spec,
            batch_size=self._batch_size,
            corrupt=self._corrupt,
            workers=self._workers,
            exact=self._exact,
        )

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], Targets]]:
        """Batches of images uint8 [n, H, W, C] and targets int64 [n], or bool [n, K]; the last may
        be smaller.

        Raises:
            ValueError: an image cannot be read; the message names it.
        """
        self.skipped = []
        if self._collection.images.compressed:
            self._reader.images = _InOrder(self._collection.images)
        count = len(self)
        requests = (
            Request(np.arange(at, min(at + self._batch_size, count)))
            for at in range(0, count, self._batch_size)
        )
        for answer in self._loader.answers(requests):
            self.skipped += answer.unreadable
            if len(answer.targets):
                yield answer.images.numpy(), answer.targets.numpy()


class _InOrder:
    """Images of a compressed archive, each opened once and in order."""

    compressed = True

    def __init__(self, images: Images) -> None:
        self._images, self._openers = images, images.each()

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return self._images.name(index)

    def open(self, index: int) -> Image.Image:
        return next(self._openers)()

    def each(self) -> Iterator[Callable[[], Image.Image]]:
        return self._openers

    def part(self, rows: NDArray[np.int64]) -> Images:
        return self._images.part(rows)


def stream(
    path: Path,
    spec: InputSpec,
    *,
    batch_size: int,
    split: Split | None = None,
    corrupt: Corrupt = "fail",
    workers: int = 0,
    exact: bool = False,
) -> Stream:
    """The images of `datasets.read`, batch by batch; `exact`: see `Centre`.

    `workers` processes read ahead; this process reads compressed archives itself.

    Raises:
        ValueError: see `datasets.read`.
    """
    collection = find(path, split)
    return Stream(
        collection, spec, batch_size=batch_size, corrupt=corrupt, workers=workers, exact=exact
    )
