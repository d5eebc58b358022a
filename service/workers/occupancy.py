"""What front ends know of each other: their shares of the queues and devices, their connections."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import numpy as np

from service.config.choices import MOST_DEVICES
from service.config.settings import MOST_MODELS

ABSENT = -1


class Occupancy:
    """Shared memory of int64; each front end writes its own entries and reads all.

    `held`, [MOST_MODELS, N front ends, 2]: slots of the queue, and their bytes. Two front ends that
    take the last slot at the same moment both get one; the engine process, which counts exactly,
    then refuses the second, if it is the model's only one. `submitted`, [MOST_MODELS, N,
    MOST_DEVICES]: images that each device has not responded to. `connections`, [N]: open ones, or
    ABSENT.
    """

    def __init__(self, fd: int, front_ends: int) -> None:
        memory = mmap.mmap(fd, _entries(front_ends) * 8)
        entries = np.frombuffer(memory, np.int64)
        held, rest = np.split(entries, [MOST_MODELS * front_ends * 2])
        submitted, self._connections = np.split(rest, [len(rest) - front_ends])
        self._held = held.reshape(MOST_MODELS, front_ends, 2)
        self._submitted = submitted.reshape(MOST_MODELS, front_ends, MOST_DEVICES)

    @staticmethod
    def allocate(front_ends: int) -> int:
        """The file descriptor of new memory, in which all front ends are absent."""
        fd = os.memfd_create("resnet-serve-occupancy", os.MFD_CLOEXEC)
        os.ftruncate(fd, _entries(front_ends) * 8)
        occupancy = Occupancy(fd, front_ends)
        for index in range(front_ends):
            occupancy.leave(index)
        return fd

    def total(self, model: int) -> tuple[int, int]:
        """Slots and bytes of a model's queue that all front ends hold."""
        slots, size = self._held[model].sum(axis=0)
        return int(slots), int(size)

    def hold(self, front_end: int, model: int, slots: int, size: int) -> None:
        """Records what one front end holds."""
        self._held[model, front_end] = slots, size

    def in_flight(self, model: int) -> list[int]:
        """By device, the images that all front ends have submitted to it."""
        counts: list[int] = self._submitted[model].sum(axis=0).tolist()
        return counts

    def submit(self, front_end: int, model: int, device: int, images: int) -> None:
        """Records how many images one front end has submitted to a device."""
        self._submitted[model, front_end, device] = images

    def lead(self, front_end: int, connections: int, most: int) -> int:
        """Records a front end's connections; returns how many more it has than the fewest.

        One that has `most` would refuse what another still has room for: its lead counts double.
        """
        self._connections[front_end] = connections
        present = self._connections[self._connections != ABSENT]
        lead = connections - int(present.min(initial=connections))
        return lead if connections < most else 2 * lead

    def leave(self, front_end: int) -> None:
        """Marks a front end that accepts no more connections."""
        self._connections[front_end] = ABSENT

    def clear(self, front_end: int) -> None:
        """Removes a dead front end, which holds nothing."""
        self._held[:, front_end] = 0
        self._submitted[:, front_end] = 0
        self.leave(front_end)


def _entries(front_ends: int) -> int:
    return front_ends * (MOST_MODELS * (2 + MOST_DEVICES) + 1)


@dataclass(frozen=True, slots=True)
class ModelOccupancy:
    """The entries of one model, as one front end reads and writes them."""

    occupancy: Occupancy
    front_end: int
    model: int

    def total(self) -> tuple[int, int]:
        return self.occupancy.total(self.model)

    def hold(self, slots: int, size: int) -> None:
        self.occupancy.hold(self.front_end, self.model, slots, size)

    def in_flight(self) -> list[int]:
        return self.occupancy.in_flight(self.model)

    def submit(self, device: int, images: int) -> None:
        self.occupancy.submit(self.front_end, self.model, device, images)
