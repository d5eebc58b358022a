"""Shared memory between a front end and the engine process: images in, rankings out."""

from __future__ import annotations

import math
import mmap
import os
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.inference.ranking import Row
from service.inference.tasks import Classify, Embed, ImageInput, JpegFile, Pixels, Task

CACHE_LINE = 64  # bytes
# What a slot may hold: pixels as float32 or as uint8, or a file.
FRACTIONAL, WHOLE, FILE = range(3)


class Content(NamedTuple):
    """What a slot holds; of a file its `length` in bytes, and the image's size in pixels."""

    form: int
    length: int = 0
    width: int = 0
    height: int = 0


class MemoryShape(NamedTuple):
    """The dimensions of a region: its slots, the shape [H, W, C] of an `image` and its `classes`;
    for details, the `channels` of the head's input and the `cells` of each of the last maps.
    """

    slots: int
    image: tuple[int, int, int]
    classes: int
    channels: int
    cells: int

    @property
    def values(self) -> int:
        """Values of an image."""
        return math.prod(self.image)

    @property
    def pixel_bytes(self) -> int:
        """The pixels' size, rounded up to a cache line, where the rankings begin."""
        return -(-self.slots * self.values * 4 // CACHE_LINE) * CACHE_LINE

    @property
    def row_length(self) -> int:
        """Values of a slot's row: classes, probabilities, the longest detail."""
        return 2 * self.classes + max(self.channels, self.cells + 1)

    def detail_length(self, task: Task) -> int:
        """Values of a task's detail (see `service.inference.tasks`)."""
        if isinstance(task, Classify):
            return 0
        return self.channels if isinstance(task, Embed) else self.cells + 1

    @property
    def nbytes(self) -> int:
        return self.pixel_bytes + self.slots * self.row_length * 4


class SharedMemory:
    """Shared memory of one connection: S slots of images and of rankings.

    `whole`: pixels uint8 [S, H, W, C], or `fractional`: float32, or `files`: uint8 [S, B], in the
    same memory, whose pages are allocated when written; `rows`: int32 [S, R], classes and the bits
    of their probabilities and of the detail. The memory has no name, and lives as long as an array
    of it does in any process. It belongs to one connection: a new front end or engine process never
    sees another's slots.

    Raises:
        ValueError: the file is smaller than the shape needs.
    """

    def __init__(self, fd: int, shape: MemoryShape) -> None:
        slots, image = shape.slots, shape.image
        if os.fstat(fd).st_size < shape.nbytes:
            raise ValueError(f"the region needs {shape.nbytes} bytes")
        memory = mmap.mmap(fd, shape.nbytes)
        values = np.frombuffer(memory, np.float32, slots * shape.values)
        self.fractional: NDArray[np.float32] = values.reshape(slots, *image)
        self.files: NDArray[np.uint8] = values.view(np.uint8).reshape(slots, shape.values * 4)
        whole = self.files[:, : shape.values]
        self.whole: NDArray[np.uint8] = whole.reshape(slots, *image)
        rows = np.frombuffer(memory, np.int32, slots * shape.row_length, shape.pixel_bytes)
        self.rows: NDArray[np.int32] = rows.reshape(slots, shape.row_length)
        self._shape = shape

    @staticmethod
    def allocate(shape: MemoryShape) -> int:
        """The file descriptor of new memory for `shape`; pages are allocated when written."""
        fd = os.memfd_create("resnet-serve", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, shape.nbytes)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def write_image(self, slot: int, image: ImageInput) -> Content:
        """Copies an image into its slot; what the slot then holds."""
        if isinstance(image, JpegFile):
            length = len(image.data)
            self.files[slot, :length] = image.data
            return Content(FILE, length, image.width, image.height)
        if image.dtype == np.uint8:
            self.whole[slot] = image
            return Content(WHOLE)
        self.fractional[slot] = image
        return Content(FRACTIONAL)

    def read_image(self, slot: int, content: Content) -> ImageInput:
        """The image in a slot, in place."""
        if content.form == FILE:
            data = self.files[slot, : content.length]
            return JpegFile(data, content.width, content.height)
        pixels: Pixels = self.whole[slot] if content.form == WHOLE else self.fractional[slot]
        return pixels

    def write_row(self, slot: int, row: Row) -> None:
        """Writes one image's result to its slot."""
        target, classes = self.rows[slot], self._shape.classes
        target[:classes] = row.classes
        target[classes : 2 * classes] = row.probabilities.view(np.int32)
        if row.detail is not None:
            target[2 * classes :][: len(row.detail)] = row.detail.view(np.int32)

    def read_row(self, slot: int, task: Task) -> Row:
        """A copy of the result in a slot."""
        classes, length = self._shape.classes, self._shape.detail_length(task)
        row = self.rows[slot, : 2 * classes + length].copy()
        numbers = row.view(np.float32)
        detail = numbers[2 * classes :] if length else None
        return Row(row[:classes], numbers[classes : 2 * classes], detail)
