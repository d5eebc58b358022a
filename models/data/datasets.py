"""Whole labelled data sets in memory, as uint8 arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.data.collection import Centre, Collection, decoded, find, positions
from models.data.label_list import Targets, moved
from models.data.listing import Split
from models.preprocess import InputSpec

Corrupt = Literal["fail", "skip"]


@dataclass(frozen=True)
class Dataset:
    """`images` uint8 [N, H, W, C], `targets` int64 [N] as indices into `classes` or bool [N, K]
    where images have several of them or none, and the set's name. `skipped`: the names of images
    that could not be read, if that was allowed."""

    images: NDArray[np.uint8]
    targets: Targets
    classes: tuple[str, ...]
    source: str
    skipped: tuple[str, ...] = ()

    def relabelled(self, labels: Sequence[str]) -> Dataset:
        """The same images with targets as indices into `labels`.

        Raises:
            ValueError: a class is not in `labels`.
        """
        places = positions(self.classes, labels, self.source)
        targets = moved(self.targets, places, len(labels))
        return replace(self, targets=targets, classes=tuple(labels))


def read(
    path: Path,
    spec: InputSpec,
    progress: Callable[[int], object] = lambda count: None,
    *,
    corrupt: Corrupt = "fail",
    split: Split | None = None,
) -> Dataset:
    """Every image at `path`, resized and cropped by `spec`.

    `path` is an official archive of CIFAR-10 or CIFAR-100, packed or unpacked, with classes in
    the set's order; or a folder or tar archive (plain or compressed) of `CLASS/FILE` images, with
    classes in alphabetical order; or a list, see `label_list.read`. ImageNet's 1000 synsets get
    their labels as class names.
    `split` chooses a part, see `listing.listing`; CIFAR's archives need it. `corrupt`: unreadable
    images are errors, or are left out and named in `skipped`. `progress` is called with the
    number of images read so far.

    Raises:
        ValueError: there are no images, or one cannot be read; the message names it.
    """
    return decode(find(path, split), spec, progress, corrupt=corrupt)


def decode(
    collection: Collection,
    spec: InputSpec,
    progress: Callable[[int], object] = lambda count: None,
    *,
    corrupt: Corrupt = "fail",
) -> Dataset:
    """The images of a collection, decoded as by `read`."""
    try:
        images = np.empty((len(collection), *spec.shape), dtype=np.uint8)
    except MemoryError:
        gigabytes = len(collection) * math.prod(spec.shape) / 1e9
        raise ValueError(
            f"{collection.path}: {len(collection)} images at {spec.height} x {spec.width} pixels "
            f"do not fit into memory, which would take {gigabytes:.0f} GB; stream them"
        ) from None
    transform = Centre(spec)
    kept: list[int] = []
    skipped: list[str] = []
    for index, opener in enumerate(collection.images.each()):
        name = collection.images.name(index)
        try:
            images[len(kept)] = decoded(opener, name, transform)
        except ValueError as error:
            if corrupt == "fail":
                raise ValueError(f"{collection.path}: {error}") from None
            skipped.append(name)
            continue
        kept.append(index)
        progress(len(kept))
    if not kept:
        raise ValueError(f"{collection.path}: none of its {len(skipped)} images can be read")
    return Dataset(
        images[: len(kept)],
        collection.targets[kept],
        collection.classes,
        collection.path.name,
        tuple(skipped),
    )
