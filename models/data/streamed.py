"""Sets too large for memory: each image is opened for its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
)
from models.data.changes import Changed, changes_for
from models.data.collection import Centre, Collection, Images, find
from models.data.crops import crop_for, trained_at
from models.data.datasets import Corrupt
from models.data.hiding import draw_hidden
from models.data.label_list import Targets
from models.data.listing import Split
from models.data.loading import DEFAULT_LOADING, Loader, Loading, Reader, Request
from models.data.order import drawn
from models.data.seeds import mix
from models.preprocess import InputSpec


class Streamed:
    """A `Source` that opens each image for its batch: for sets like ImageNet.

    What is random in an image depends only on seed, epoch and its index; cutout and erasing on
    its place in the epoch. With "skip", the next readable image of the batch replaces an
    unreadable one. Only one epoch at a time.

    Raises:
        ValueError: a value is invalid, or the set is in a compressed archive; see `crop_for` and
            `changes_for` too.
    """

    def __init__(
        self,
        collection: Collection,
        spec: InputSpec,
        augmentation: Augmentation = DEFAULT_AUGMENTATION,
        loading: Loading = DEFAULT_LOADING,
    ) -> None:
        self.classes, self.source = collection.classes, collection.path.name
        if collection.images.compressed:
            raise ValueError(
                f"{self.source}: images in a compressed archive can only be read in order; "
                "decompress it"
            )
        self.counts = np.bincount(collection.targets, minlength=len(self.classes)).astype(np.int64)
        self._augmentation = augmentation
        spec = trained_at(spec, augmentation.train_size)
        self._fill = augmentation.colour(spec.shape[2])
        self._targets = torch.from_numpy(collection.targets)
        crop, changes = crop_for(augmentation, spec), changes_for(augmentation, spec)
        transform = Changed(crop, changes) if changes else crop
        reader = Reader(
            collection.images, collection.targets, spec.shape, transform, loading.corrupt
        )
        self._loader = Loader(reader, self.source, loading.workers, loading.report)

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
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Source`.

        Raises:
            ValueError: an image cannot be read, or with "skip" no image of its batch can.
        """
        augmentation, count = self._augmentation, len(self)
        chosen = list(drawn(self._targets, augmentation, seed, epoch, start, batch_size))
        requests = (
            Request(batch.indices.numpy(), rank, world, seed, epoch, True, batch.repeats.numpy())
            for batch in chosen
        )
        mirrored = alternating_flips(count, seed, epoch) if augmentation.alternates else None
        place, rows = torch.device(device), slice(rank, None, world)
        answers = self._loader.answers(requests, pinned=place.type == "cuda")
        fill = self._fill.to(device)
        for step, (answer, batch) in enumerate(zip(answers, chosen, strict=True), start):
            images = answer.images.to(device, non_blocking=True)
            if mirrored is not None:
                flipped = mirrored[batch.indices][rows].to(device)
                images = torch.where(flipped[:, None, None, None], images.flip(2), images)
            generator = torch.Generator().manual_seed(mix("augment", seed, epoch, step))
            shape = (len(batch.indices), *images.shape[1:3])
            hidden = draw_hidden(augmentation, shape, generator, rows, place)
            if hidden is not None:
                images = torch.where(hidden[..., None], fill, images)
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
