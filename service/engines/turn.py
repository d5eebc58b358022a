"""One turn of an engine: the batches in flight, and the jobs of those that fail."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import NoReturn

import numpy as np

from service.engines import faults
from service.engines.cuda_graph import give_memory_back
from service.engines.device_share import DeviceShare, Permit, Tenant
from service.engines.engine import EngineEvents, Warm
from service.engines.jpeg import Image
from service.engines.status import EngineStatus
from service.engines.watchdog import SLOWER, Late, Watchdog
from service.errors import RequestError
from service.inference.batcher import Batcher
from service.inference.jobs import Job
from service.inference.ranking import Ranking, Row
from service.inference.tasks import ImageInput

Batch = list[Job[ImageInput, Row]]
log = logging.getLogger(__name__)
# Seconds. Another model has the device to itself for a capture, or for a batch that is measured: if
# it takes longer, the device hangs.
LONGEST_WAIT = 300.0
# The classes and probabilities of no image.
NOTHING = np.empty((0, 0), np.int32), np.empty((0, 0), np.float32)


@dataclass
class _Flight:
    """A batch that is being computed, and what waits for its ranking."""

    batch: Batch
    permit: Permit
    result: Callable[[], Ranking] | None = None


@dataclass
class Turn:
    """Computes batches from the queue, and answers their jobs.

    `tenant`: who needs a permit of `device` for each batch; `failed`: jobs to compute again;
    `warm`: the engine, which makes no larger batches than fit into memory.
    """

    name: str
    warm: Warm
    batcher: Batcher[ImageInput, Row]
    device: DeviceShare
    tenant: Tenant
    watchdog: Watchdog
    status: EngineStatus
    events: EngineEvents
    failed: Batch = field(default_factory=list, init=False)
    _in_flight: deque[_Flight] = field(default_factory=deque, init=False)
    _too_large: list[Batch] = field(default_factory=list, init=False)
    _largest: int = field(default=0, init=False)  # Of the batches that were answered.

    def unanswered(self) -> Iterator[Batch]:
        in_flight = (flight.batch for flight in self._in_flight)
        return chain(in_flight, self._too_large, [self.failed])

    def compute(self, interrupted: Callable[[], bool]) -> None:
        """Computes batches while they are due, until one fails or it is `interrupted`.

        As many are in flight as the engine and the device allow, so that jobs are answered while
        the next batch is computed.

        Raises:
            Late: a call hung, and all jobs were given up.
        """
        while True:
            sound = not self.failed and not self._too_large
            if sound and not interrupted() and self._launch_next():
                continue
            if not self._in_flight:
                break
            if too_large := self._collect():
                self._too_large.append(too_large)
        if self._too_large:
            self._shrink()

    def _launch_next(self) -> bool:
        """Whether one more batch was due, and is now in flight."""
        due = self.batcher.due(self.warm.buckets.largest)
        if not due or len(self._in_flight) >= self.warm.engine.in_flight:
            return False
        # Nobody waits for the device with a batch on it, for which others may wait.
        permit = self.device.try_begin(self.tenant) if self._in_flight else self._begin()
        if permit is None:
            return False
        batch = self.batcher.take(self.warm.buckets.take)
        if batch:
            self._launch(batch, permit)
        else:
            self.device.end(permit)
        return bool(batch)

    def _begin(self) -> Permit:
        begin = partial(self.device.begin, self.tenant)
        return self.watchdog.call(begin, LONGEST_WAIT / SLOWER)

    def _launch(self, batch: Batch, permit: Permit) -> None:
        """If the batch cannot even begin, its result raises why."""
        flight = _Flight(batch, permit)
        self._in_flight.append(flight)
        expected = self.warm.expected(len(batch))
        try:
            images = self.watchdog.call(partial(self._images, batch), expected)
            if not images:
                flight.result = partial(Ranking, *NOTHING)
                return
            tasks = [job.task for job in batch]
            result = self.watchdog.call(partial(self.warm.launch, images, tasks), expected)
        except Late:
            raise
        except Exception as error:  # noqa: BLE001
            flight.result = partial(_raise, error)
        else:
            flight.result = partial(self.watchdog.call, result, expected)

    def _images(self, batch: Batch) -> list[Image]:
        """The images of a batch, which jobs leave whose files are damaged."""
        images: list[Image] = []
        decoded = self.warm.decode([job.payload for job in batch if job.payload is not None])
        for job, image in zip(list(batch), decoded, strict=True):
            if isinstance(image, RequestError):
                batch.remove(job)
                self.batcher.fail([job], image)
            else:
                images.append(image)
        for job in batch:
            job.batch_size = min(job.batch_size, len(images))
        return images

    def _collect(self) -> Batch:
        """Answers the batch that was launched first, or has it computed again.

        It is returned if smaller ones may fit into memory; else nothing is.
        """
        flight = self._in_flight[0]
        assert flight.result is not None
        batch, too_large = flight.batch, False
        try:
            try:
                ranking = flight.result()
            finally:
                # An error's traceback leads back here, and to the engine: no circle must remain.
                flight.result = None
                self.device.end(flight.permit)
            self._answer(batch, ranking)
        except Late:
            raise
        except Exception as error:
            too_large = len(batch) > 1 and faults.out_of_memory(error)
            if too_large:
                why = faults.in_one_line(error)
                log.warning("%s: out of memory for a batch of %d: %s", self.name, len(batch), why)
                self.events.out_of_memory()
            else:
                log.exception("%s: a batch failed", self.name)
                self._fail(batch, error)
        self._in_flight.popleft()
        return batch if too_large else []

    def _fail(self, batch: Batch, error: Exception) -> None:
        self.status.failed("the engine failed", error)
        self.failed += batch

    def _answer(self, batch: Batch, ranking: Ranking) -> None:
        rows = ranking.rows()
        if not np.isfinite(ranking.probabilities).all():
            finite = [bool(np.isfinite(row).all()) for row in ranking.probabilities]
            log.error("%s: the network produced NaN for %d images", self.name, finite.count(False))
            failed = [job for job, sound in zip(batch, finite, strict=True) if not sound]
            self._fail(failed, ArithmeticError("the network produced NaN"))
            rows = [row for row, sound in zip(rows, finite, strict=True) if sound]
            batch = [job for job, sound in zip(batch, finite, strict=True) if sound]
        if batch:
            self._largest = max(self._largest, len(batch))
            self.events.batch(len(batch), time.perf_counter() - batch[0].started)
            self.batcher.finish(batch, rows)

    def _shrink(self) -> None:
        """Computes what did not fit in halves, and limits later batches to the largest that did."""
        self._largest = 0
        for batch in self._too_large:
            self._halve(batch)
        if self._largest:
            self.warm = self.warm.up_to(self._largest)
            largest = self.warm.buckets.largest
            log.warning("%s: batches are limited to %d images", self.name, largest)

    def _halve(self, batch: Batch) -> None:
        try:
            give_memory_back()
        except Exception as error:
            log.exception("%s: the device's memory cannot be freed", self.name)
            self._fail(batch, error)
            return
        middle = (len(batch) + 1) // 2
        for half in (batch[:middle], batch[middle:]):
            for job in half:
                job.batch_size = len(half)
            self._launch(half, self._begin())
            if too_large := self._collect():
                self._halve(too_large)


def _raise(error: Exception) -> NoReturn:
    try:
        raise error
    finally:
        del error  # Its traceback leads here.
