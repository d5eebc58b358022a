"""Signs of life: each process's event loop counts in shared memory, and others see when it stops.

A process cannot notice that it hangs itself: what would notice is stopped too, or waits for the GIL
that native code holds.
"""

from __future__ import annotations

import asyncio
import mmap
import os

import numpy as np
from numpy.typing import NDArray

from service.config.choices import MOST_DEVICES
from service.runtime import AwakeClock

BEAT_SECONDS = 0.25
# A device is not ready while its engine process has been silent for this long. A busy loop, or
# one that waits for the GIL, is silent for less than a second.
UNREADY_SECONDS = 2.0
# The least time after which a silent process is replaced; `engine_timeout_s` may be longer.
LEAST_PATIENCE_SECONDS = 10.0
# The entries of the processes: engine processes follow each other, and so do front ends.
SUPERVISOR, ENGINES, FRONT_ENDS = 0, 1, 1 + MOST_DEVICES


def patience(engine_timeout: float) -> float:
    """Seconds of silence after which a process counts as frozen."""
    return max(engine_timeout, LEAST_PATIENCE_SECONDS)


class Heartbeats:
    """Shared memory of int64, [processes]: each process counts in its own entry.

    0: it has not begun, and may take as long as loading takes.
    """

    def __init__(self, fd: int, front_ends: int) -> None:
        self._beats = np.frombuffer(mmap.mmap(fd, (FRONT_ENDS + front_ends) * 8), np.int64)

    @staticmethod
    def allocate(front_ends: int) -> int:
        """The file descriptor of new memory."""
        fd = os.memfd_create("resnet-serve-heartbeats", os.MFD_CLOEXEC)
        os.ftruncate(fd, (FRONT_ENDS + front_ends) * 8)
        return fd

    async def beat(self, process: int) -> None:
        """Beats forever, as long as the event loop turns."""
        while True:
            self._beats[process] += 1
            await asyncio.sleep(BEAT_SECONDS)

    def clear(self, process: int) -> None:
        """Forgets a process that has ended."""
        self._beats[process] = 0

    def watch(self, process: int) -> Silence:
        return Silence(self._beats[process : process + 1])


class Silence:
    """How long a process has been silent, for a watcher that looks each `BEAT_SECONDS`.

    `beats`, [1]: the entry of the process.
    """

    def __init__(self, beats: NDArray[np.int64]) -> None:
        self._beats = beats
        self._clock = AwakeClock(BEAT_SECONDS)
        self._latest = 0
        self._since = 0.0

    def look(self) -> float:
        """Seconds without a beat; 0 if there was none yet."""
        now, beats = self._clock.look(), int(self._beats[0])
        if beats == 0 or beats != self._latest:
            self._latest, self._since = beats, now
        return now - self._since
