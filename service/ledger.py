"""What the front ends together hold of each model's queue, so that its bound is one for all."""

from __future__ import annotations

import mmap
import os

import numpy as np


class Ledger:
    """Shared memory, int64 [N front ends, M models, 2]: places held, and their bytes.

    Each front end writes its own row and reads all. Two that take the last place at the same
    moment both get one; the engine process, which counts exactly, then refuses the second.
    """

    def __init__(self, fd: int, front_ends: int, models: int) -> None:
        count = front_ends * models * 2
        held = np.frombuffer(mmap.mmap(fd, count * 8), np.int64, count)
        self._held = held.reshape(front_ends, models, 2)

    @staticmethod
    def allocate(front_ends: int, models: int) -> int:
        """The file descriptor of a ledger in which nobody holds anything."""
        fd = os.memfd_create("resnet-serve-ledger", os.MFD_CLOEXEC)
        os.ftruncate(fd, front_ends * models * 2 * 8)
        return fd

    def total(self, model: int) -> tuple[int, int]:
        """Places and bytes that all front ends hold of a model's queue."""
        places, size = self._held[:, model].sum(axis=0)
        return int(places), int(size)

    def hold(self, front_end: int, model: int, places: int, size: int) -> None:
        """What one front end holds from now on."""
        self._held[front_end, model] = places, size

    def clear(self, front_end: int) -> None:
        """A dead front end holds nothing."""
        self._held[front_end] = 0
