"""How long a queue will take: what batches were measured to take, and how they go now.

Only the engine's own time counts. The time between two results would not do: an engine that waits
for requests looks slow by it, so fewer are let in, so that it waits longer.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

# The share that the latest batch has in `slowdown`, and how far it may be off.
LATEST = 0.2
FASTEST, SLOWEST = 0.05, 10.0
# What is predicted may be so much, as a share, of what it takes in the end.
CERTAIN = 0.7
# Refused clients are remembered for about so many seconds, and told to wait no longer than MOST.
REMEMBERED, MOST = 10.0, 30.0


class Estimate(Protocol):
    """See `Pace`."""

    def seconds(self, images: int) -> float: ...
    def until_done(self, ahead: int) -> float: ...


class Pace:
    """Seconds that an engine needs for a queue.

    `slowdown`: by which factor batches take longer now than they were measured to take, as the
    device is shared; less than 1 with several devices. Until `measured`, nothing is known.
    """

    def __init__(self) -> None:
        self.slowdown = 1.0
        self._seconds: dict[int, float] = {}
        self._largest = self._per_image = 0.0

    @property
    def known(self) -> bool:
        """Whether anything has been measured."""
        return bool(self._seconds)

    def measured(self, seconds: Mapping[int, float]) -> None:
        """Takes the seconds of each batch size from the engine that serves from now on."""
        self._seconds = dict(sorted(seconds.items()))
        self._largest = list(self._seconds.values())[-1]
        self._per_image = min(took / size for size, took in self._seconds.items())
        self.slowdown = 1.0

    def computed(self, size: int, seconds: float) -> None:
        """A batch of `size` images took the engine so many seconds."""
        expected = self._batch(size)
        if expected:
            factor = min(SLOWEST, max(FASTEST, seconds / expected))
            self.slowdown += LATEST * (factor - self.slowdown)

    def seconds(self, images: int) -> float:
        """Until the engine has computed so many images."""
        return images * self._per_image * self.slowdown

    def until_done(self, ahead: int) -> float:
        """Seconds until an image has been computed that has so many before it.

        Those that come later may share its batch, but were let in only if that is in time for them.
        """
        return self.seconds(ahead) + self._batch(1) * self.slowdown

    def _batch(self, images: int) -> float:
        """Seconds of the batch that so many images make."""
        fitting = (took for size, took in self._seconds.items() if size >= images)
        return next(fitting, self._largest)


class Paces:
    """Of several engines that share a queue, each of which takes what it can: an `Estimate`."""

    def __init__(self, paces: Sequence[Pace]) -> None:
        self._paces = [pace for pace in paces if pace.known]

    def seconds(self, images: int) -> float:
        rate = sum(1 / pace.seconds(1) for pace in self._paces)
        return images / rate if rate else 0.0

    def until_done(self, ahead: int) -> float:
        alone = min((pace.until_done(0) for pace in self._paces), default=0.0)
        return self.seconds(ahead) + alone


class Load(NamedTuple):
    """A new request and what it meets besides the queue; times in seconds.

    `within`: what the client allows; `spent`: what will be spent of it on other things than
    waiting and computing; `entering`: requests that were let in before it and have no slot in the
    queue yet; `on_loop`: how long the event loop has to work for those before it.
    """

    within: float = math.inf
    spent: float = 0.0
    entering: int = 0
    on_loop: float = 0.0

    def too_late(self, pace: Estimate, ahead: int) -> float:
        """The seconds that it may take, if that is too late; else 0.

        With nobody ahead, how long it takes is what the client wants to find out.
        """
        if not ahead:
            return 0.0
        wait = (self.spent + max(self.on_loop, pace.until_done(ahead))) / CERTAIN
        return wait if wait > self.within else 0.0


IDLE = Load()


class Excess:
    """When refused clients should come back: spread over the time that all of them need.

    Told the same second, all would come back in it, and most be refused again.
    """

    def __init__(self) -> None:
        self._refused = 0.0  # recently
        self._latest = time.perf_counter()

    def spread(self, per_image: float) -> float:
        """Seconds that one more refused client should wait besides, if each image takes so many."""
        now = time.perf_counter()
        self._refused *= math.exp((self._latest - now) / REMEMBERED)
        self._latest = now
        needed = min(MOST, self._refused * per_image)
        self._refused += 1
        return needed * random.random()  # noqa: S311
