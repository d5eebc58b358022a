"""One host: what is asked of it, what waits, what computes.

It follows the service's batcher, engine thread and pipeline; the rule that says how many images
make a batch is the service's own.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from heapq import heapreplace
from random import Random

from benchmarks.scale.simulation.events import Events
from service.engines.buckets import HANDOVER, Buckets

OK, REFUSED, BROKEN, LATE = 200, 429, 503, 504
# As the service's batcher smooths what it measures, and the least that it asks clients to wait.
SMOOTHING = 0.2
LEAST_RETRY_AFTER = 1.0

# A request's number, its status, when it was answered, and how long to wait before the next try.
Answer = Callable[["Node", int, int, float, float], None]


@dataclass(frozen=True, slots=True)
class Host:
    """What a host can do. Times in seconds.

    `batch_seconds` by batch size, as GET /v1/models has them in ms; `in_flight` batches may be
    given to a device at a time, which computes one after the other (2 on CUDA). `decode_slots`
    threads take `decode` for an image; with none of them, decoding is part of `loop`, which one
    event loop takes for each accepted request, and `refusal` for each other.

    Where decoding and computing share CPUs, each image decoded meanwhile delays a batch by
    `slowdown`. `spread` is the sigma of the lognormal that a batch's time is multiplied with.
    """

    batch_seconds: Mapping[int, float]
    devices: int = 1
    in_flight: int = 1
    decode_slots: int = 4
    decode: float = 0.0
    loop: float = 0.0
    refusal: float = 0.0
    slowdown: float = 0.0
    spread: float = 0.0
    handover: float = HANDOVER
    max_queue: int = 256
    timeout: float = 10.0
    usd_per_hour: float = 0.0

    @property
    def capacity(self) -> float:
        """Images a second that it can answer at the most, whatever comes first to its limit."""
        rates = [
            self.devices
            * max(
                n / (seconds + self.handover + n * self.slowdown)
                for n, seconds in self.batch_seconds.items()
            )
        ]
        if self.decode_slots and self.decode:
            rates.append(self.decode_slots / self.decode)
        if self.loop:
            rates.append(1 / self.loop)
        return min(rates)

    def slower(self, times: float) -> Host:
        """The same host with batches that take `times` as long."""
        slow = {size: seconds * times for size, seconds in self.batch_seconds.items()}
        return replace(self, batch_seconds=slow)

    def in_grains(self, grain: int) -> Host:
        """The same host for requests that are `grain` images each, which all threads decode.

        Raises:
            ValueError: no batch is large enough.
        """
        sizes = {
            size // grain: seconds
            for size, seconds in self.batch_seconds.items()
            if size % grain == 0
        }
        if not sizes:
            raise ValueError(f"no batch size is a multiple of a grain of {grain}")
        return replace(
            self,
            batch_seconds=sizes,
            decode_slots=min(1, self.decode_slots),
            decode=self.decode * grain / max(1, self.decode_slots),
            loop=self.loop * grain,
            slowdown=self.slowdown * grain,
            max_queue=max(1, self.max_queue // grain),
        )


class Device:
    """`flying` batches of it are under way, the last of them until `free_at`.

    `collecting`: it found nothing more to launch, and looks again when all of them are done.
    """

    __slots__ = ("collecting", "flying", "free_at")

    def __init__(self) -> None:
        self.flying = 0
        self.free_at = 0.0
        self.collecting = False


class Node:
    """A host that runs. A request is a number; `came` has when it came here, by that number."""

    def __init__(
        self,
        host: Host,
        events: Events,
        came: array[float],
        answer: Answer,
        random: Random,
    ) -> None:
        self.since = events.now
        self.dead = False
        self.inside: set[int] = set()
        self.busy = 0.0  # seconds of all devices together
        self.batches = self.computed = self.deepest = 0
        self._host, self._events, self._came = host, events, came
        self._answer_with, self._random = answer, random
        buckets = self._buckets = Buckets(host.batch_seconds)
        counts = range(1, buckets.largest + 1)
        self._seconds = [0.0] + [buckets.seconds[buckets.fit(count)] for count in counts]
        self._idle = [Device() for _ in range(host.devices)]
        self._slots = [0.0] * host.decode_slots
        self._reading = False
        self._inbox: deque[int] = deque()
        self._waiting: deque[int] = deque()
        self._depth = self._unanswered = 0
        self._debt = 0.0
        self._seconds_per_image = self._batch_seconds = self._last_finish = 0.0

    def arrive(self, request: int) -> None:
        self.inside.add(request)
        if self._host.loop and self._reading:
            self._inbox.append(request)
        else:
            self._read(request)

    def _read(self, request: int) -> None:
        """The event loop takes it up; what it takes is over before the next one's turn."""
        now, host = self._events.now, self._host
        self._came[request] = now
        admitted = self._admits()
        if admitted:
            self._depth += 1
            self._unanswered += 1
            self.deepest = max(self.deepest, self._depth)
        if not host.loop:
            if admitted:
                self._decode(request)
            else:
                self._refuse(request)
            return
        self._reading = True
        self._events.at(
            now + (host.loop if admitted else host.refusal),
            self._was_admitted if admitted else self._was_refused,
            request,
        )

    def _admits(self) -> bool:
        self._expire()
        if self._depth >= self._host.max_queue:
            return False
        wait = self._unanswered * self._seconds_per_image + self._batch_seconds
        return not self._unanswered or wait <= self._host.timeout

    def _was_admitted(self, request: int) -> None:
        if not self.dead:
            self._decode(request)
            self._next()

    def _was_refused(self, request: int) -> None:
        if not self.dead:
            self._refuse(request)
            self._next()

    def _next(self) -> None:
        self._reading = False
        if self._inbox:
            self._read(self._inbox.popleft())

    def _refuse(self, request: int) -> None:
        wait = max(LEAST_RETRY_AFTER, float(math.ceil(self._depth * self._seconds_per_image)))
        self._answer(request, REFUSED, self._events.now, wait)

    def _answer(self, request: int, status: int, time: float, retry_after: float = 0.0) -> None:
        self.inside.remove(request)
        self._answer_with(self, request, status, time, retry_after)

    def _decode(self, request: int) -> None:
        now, host = self._events.now, self._host
        if not self._slots:
            self._decoded(request)
            return
        deadline = self._came[request] + host.timeout
        start = max(now, self._slots[0])
        if start < deadline:
            heapreplace(self._slots, start + host.decode)
        if start + host.decode < deadline:
            self._events.at(start + host.decode, self._decoded, request)
        else:
            self._events.at(deadline, self._was_late, request)

    def _was_late(self, request: int) -> None:
        if not self.dead:
            self._late(request)

    def _late(self, request: int) -> None:
        """Its deadline passed before it was computed; nobody computes it."""
        self._depth -= 1
        self._unanswered -= 1
        self._answer(request, LATE, self._came[request] + self._host.timeout)

    def _decoded(self, request: int) -> None:
        if self.dead:
            return
        self._waiting.append(request)
        if self._idle:
            self._fill(self._idle.pop())
        elif self._host.slowdown:
            self._debt += self._host.slowdown

    def _expire(self) -> None:
        """Whose deadline has passed leaves the queue; all have the same time, so the first do."""
        waiting, before = self._waiting, self._events.now - self._host.timeout
        while waiting and self._came[waiting[0]] <= before:
            self._late(waiting.popleft())

    def _fill(self, device: Device) -> None:
        """Gives the device as many batches as may be in flight, if that many wait."""
        now, host = self._events.now, self._host
        while device.flying < host.in_flight:
            batch = self._take()
            if not batch:
                device.collecting = device.flying > 0
                break
            took = self._seconds[len(batch)] + host.handover
            if host.spread:
                took *= self._random.lognormvariate(0.0, host.spread)
            device.free_at = max(now, device.free_at) + took
            device.flying += 1
            self.busy += took
            self._events.at(device.free_at, self._computed, (device, batch, now))
        if not device.flying:
            self._idle.append(device)

    def _take(self) -> list[int]:
        self._expire()
        waiting = self._waiting
        count = self._buckets.take(len(waiting)) if waiting else 0
        self._depth -= count
        return [waiting.popleft() for _ in range(count)]

    def _computed(self, entry: tuple[Device, list[int], float]) -> None:
        if self.dead:
            return
        now = self._events.now
        device, batch, taken = entry
        if self._debt:
            late, self._debt = self._debt, 0.0
            self.busy += late
            device.free_at += late
            self._events.at(now + late, self._computed, entry)
            return
        device.flying -= 1
        self._finish(batch, taken)
        if not (device.collecting and device.flying):
            device.collecting = False
            self._fill(device)

    def _finish(self, batch: list[int], taken: float) -> None:
        now, came, timeout = self._events.now, self._came, self._host.timeout
        self.batches += 1
        self.computed += len(batch)
        measured = (now - max(self._last_finish, min(came[batch[0]], taken))) / len(batch)
        self._seconds_per_image += SMOOTHING * (measured - (self._seconds_per_image or measured))
        self._seconds_per_image = self._seconds_per_image or measured
        self._batch_seconds, self._last_finish = now - taken, now
        self._unanswered -= len(batch)
        for request in batch:
            deadline = came[request] + timeout
            self._answer(request, OK if now < deadline else LATE, min(now, deadline))

    def fail(self) -> list[int]:
        """Ends at once; the numbers of the requests that it did not answer."""
        self.dead = True
        lost, self.inside = sorted(self.inside), set()
        return lost
