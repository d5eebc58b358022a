"""What front ends know of each other: their shares of the queues, and their connections."""

from __future__ import annotations

import mmap
import os

import numpy as np

from service.config.settings import MOST_MODELS

ABSENT = -1


class Occupancy:
    """Shared memory of int64; each front end writes its own entries and reads all.

    `held`, [MOST_MODELS, N front ends, 2]: slots of the queue, and their bytes. Two front ends that
    take the last slot at the same moment both get one; the engine process, which counts exactly,
    then refuses the second. `connections`, [N]: open ones, or ABSENT.
    """

    def __init__(self, fd: int, front_ends: int) -> None:
        count = MOST_MODELS * front_ends * 2
        memory = mmap.mmap(fd, (count + front_ends) * 8)
        self._held = np.frombuffer(memory, np.int64, count).reshape(MOST_MODELS, front_ends, 2)
        self._connections = np.frombuffer(memory, np.int64, front_ends, count * 8)

    @staticmethod
    def allocate(front_ends: int) -> int:
        """The file descriptor of new memory, in which all front ends are absent."""
        fd = os.memfd_create("resnet-serve-occupancy", os.MFD_CLOEXEC)
        os.ftruncate(fd, (MOST_MODELS * front_ends * 2 + front_ends) * 8)
        occupancy = Occupancy(fd, front_ends)
        for index in range(front_ends):
            occupancy.clear(index)
        return fd

    def total(self, model: int) -> tuple[int, int]:
        """Slots and bytes of a model's queue that all front ends hold."""
        slots, size = self._held[model].sum(axis=0)
        return int(slots), int(size)

    def hold(self, front_end: int, model: int, slots: int, size: int) -> None:
        """Records what one front end holds."""
        self._held[model, front_end] = slots, size

    def lead(self, front_end: int, connections: int) -> int:
        """Records a front end's connections; returns how many more it has than the fewest."""
        self._connections[front_end] = connections
        present = self._connections[self._connections != ABSENT]
        return connections - int(present.min(initial=connections))

    def leave(self, front_end: int) -> None:
        """Marks a front end that accepts no more connections."""
        self._connections[front_end] = ABSENT

    def clear(self, front_end: int) -> None:
        """Removes a dead front end, which holds nothing."""
        self._held[:, front_end] = 0
        self.leave(front_end)
