"""Shared memory between a front end and the engine process: pixels in, rankings out."""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.inference.ranking import Row
from service.inference.tasks import Classify, Embed, Pixels, Task

LINE = 64  # bytes of a cache line


class MemoryShape(NamedTuple):
    """What a region holds: slots for images of `size` pixels a side and of `classes`, and for
    details: `channels` that the head is given, `cells` in each of the last maps.
    """

    slots: int
    size: int
    classes: int
    channels: int
    cells: int

    @property
    def values(self) -> int:
        """Those of an image."""
        return self.size * self.size * 3

    @property
    def pixel_bytes(self) -> int:
        """Up to the next whole line of a cache, where the rankings begin."""
        return -(-self.slots * self.values * 4 // LINE) * LINE

    @property
    def row(self) -> int:
        """Numbers of a slot's row: classes, probabilities, the longest detail."""
        return 2 * self.classes + max(self.channels, self.cells + 1)

    def detail(self, task: Task) -> int:
        """How many numbers the detail of a task has (see `service.inference.tasks`)."""
        if isinstance(task, Classify):
            return 0
        return self.channels if isinstance(task, Embed) else self.cells + 1

    @property
    def nbytes(self) -> int:
        return self.pixel_bytes + self.slots * self.row * 4


class SharedMemory:
    """Shared memory of one connection: S slots of pixels and of rankings.

    `whole`: uint8 [S, H, W, 3], or `fractional`: float32, in the same memory, of which a page
    exists once it is written; `rows`: int32 [S, R], classes and the bits of their probabilities
    and of the detail. The memory has no name, and lives as long as an array of it does in any
    process. It belongs to one connection: a front end that starts or an engine that is restarted
    never meets another's slots.

    Raises:
        ValueError: the file is smaller than the shape needs.
    """

    def __init__(self, fd: int, shape: MemoryShape) -> None:
        slots, size = shape.slots, shape.size
        if os.fstat(fd).st_size < shape.nbytes:
            raise ValueError(f"the region needs {shape.nbytes} bytes")
        memory = mmap.mmap(fd, shape.nbytes)
        values = np.frombuffer(memory, np.float32, slots * shape.values)
        self.fractional: NDArray[np.float32] = values.reshape(slots, size, size, 3)
        each = values.view(np.uint8).reshape(slots, shape.values * 4)
        self.whole: NDArray[np.uint8] = each[:, : shape.values].reshape(slots, size, size, 3)
        rows = np.frombuffer(memory, np.int32, slots * shape.row, shape.pixel_bytes)
        self.rows: NDArray[np.int32] = rows.reshape(slots, shape.row)
        self._shape = shape

    @staticmethod
    def allocate(shape: MemoryShape) -> int:
        """The file descriptor of new memory for `shape`; pages exist once they are written."""
        fd = os.memfd_create("resnet-serve", os.MFD_CLOEXEC)
        os.ftruncate(fd, shape.nbytes)
        return fd

    def pixels(self, slot: int, *, whole: bool) -> Pixels:
        """The slot's pixels [H, W, 3], in place."""
        found: Pixels = self.whole[slot] if whole else self.fractional[slot]
        return found

    def write_row(self, slot: int, found: Row) -> None:
        """Puts one image's result into its slot."""
        row, classes = self.rows[slot], self._shape.classes
        row[:classes] = found.classes
        row[classes : 2 * classes] = found.probabilities.view(np.int32)
        if found.detail is not None:
            row[2 * classes :][: len(found.detail)] = found.detail.view(np.int32)

    def read_row(self, slot: int, task: Task) -> Row:
        """A copy of what `write_row` has put there."""
        classes, length = self._shape.classes, self._shape.detail(task)
        row = self.rows[slot, : 2 * classes + length].copy()
        numbers = row.view(np.float32)
        detail = numbers[2 * classes :] if length else None
        return Row(row[:classes], numbers[classes : 2 * classes], detail)
