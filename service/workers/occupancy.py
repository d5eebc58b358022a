"""What front ends know of each other: what they hold of the queues, and how many callers."""

from __future__ import annotations

import mmap
import os

import numpy as np

from service.config.settings import MOST_MODELS

ABSENT = -1


class Occupancy:
    """Shared memory of int64; each front end writes its own rows and reads all.

    `held`, [MOST_MODELS, N front ends, 2]: places in the queue, and their bytes. Two front ends
    that take the last place at the same moment both get one; the engine process, which counts
    exactly, then refuses the second. `callers`, [N]: connections, or ABSENT.
    """

    def __init__(self, fd: int, front_ends: int) -> None:
        count = MOST_MODELS * front_ends * 2
        memory = mmap.mmap(fd, (count + front_ends) * 8)
        self._held = np.frombuffer(memory, np.int64, count).reshape(MOST_MODELS, front_ends, 2)
        self._callers = np.frombuffer(memory, np.int64, front_ends, count * 8)

    @staticmethod
    def allocate(front_ends: int) -> int:
        """The file descriptor of a ledger in which nobody holds anything."""
        fd = os.memfd_create("resnet-serve-ledger", os.MFD_CLOEXEC)
        os.ftruncate(fd, (MOST_MODELS * front_ends * 2 + front_ends) * 8)
        ledger = Occupancy(fd, front_ends)
        for index in range(front_ends):
            ledger.clear(index)
        return fd

    def total(self, model: int) -> tuple[int, int]:
        """Places and bytes that all front ends hold of a model's queue."""
        places, size = self._held[model].sum(axis=0)
        return int(places), int(size)

    def hold(self, front_end: int, model: int, places: int, size: int) -> None:
        """What one front end holds from now on."""
        self._held[model, front_end] = places, size

    def lead(self, front_end: int, callers: int) -> int:
        """How many more connections it has, now `callers`, than the front end with the fewest."""
        self._callers[front_end] = callers
        present = self._callers[self._callers != ABSENT]
        return callers - int(present.min(initial=callers))

    def leave(self, front_end: int) -> None:
        """It takes no more connections."""
        self._callers[front_end] = ABSENT

    def clear(self, front_end: int) -> None:
        """It is dead, and holds nothing."""
        self._held[:, front_end] = 0
        self.leave(front_end)
