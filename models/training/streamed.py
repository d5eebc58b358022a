"""Sets too large for memory: each image is opened when its batch comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.preprocess import InputSpec
from models.training.datasets import Corrupt, decoded, labelled, names


class Stream:
    """Every image of a set once, in order, as evaluation wants them; one batch in memory.

    `skipped`: after a whole pass, why each unreadable image was left out.
    """

    def __init__(
        self,
        path: Path,
        spec: InputSpec,
        *,
        batch_size: int,
        corrupt: Corrupt = "fail",
        labels: Sequence[str] | None = None,
    ) -> None:
        self.source = path.name
        self.skipped: list[str] = []
        self._path, self._spec, self._batch_size = path, spec, batch_size
        self._corrupt: Corrupt = corrupt
        found = names(path)
        if not found:
            raise ValueError(f"{path}: no images in folders named by class")
        self._count = len(found)
        self.classes = tuple(labels or sorted({Path(name).parent.name for name in found}))

    def __len__(self) -> int:
        """Images, the unreadable ones among them."""
        return self._count

    def relabelled(self, labels: Sequence[str]) -> Stream:
        """The same images with targets that index `labels`.

        Raises:
            ValueError: a class is none of `labels`.
        """
        nothing = np.zeros((len(self.classes), 1, 1, 3), np.uint8)
        labelled(list(zip(self.classes, nothing, strict=True)), self.source).relabelled(labels)
        return Stream(
            self._path,
            self._spec,
            batch_size=self._batch_size,
            corrupt=self._corrupt,
            labels=labels,
        )

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Batches of images uint8 [n, S, S, 3] and targets int64 [n]; the last may be smaller.

        Raises:
            ValueError: an image cannot be read; the message names it.
        """
        self.skipped = []
        images = decoded(self._path, self._spec, self._corrupt, self.skipped.append)
        while part := list(islice(images, self._batch_size)):
            batch = labelled(part, self.source).relabelled(self.classes)
            yield batch.images, batch.targets


def stream(path: Path, spec: InputSpec, *, batch_size: int, corrupt: Corrupt = "fail") -> Stream:
    """The images that `datasets.read` would give, batch by batch.

    Raises:
        ValueError: see `datasets.read`.
    """
    return Stream(path, spec, batch_size=batch_size, corrupt=corrupt)
