"""One turn on a device: the batches in flight, and the jobs of those that fail."""

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
from service.engines.engine import EngineEvents, Warm
from service.engines.jpeg import Image
from service.engines.status import EngineStatus
from service.engines.watchdog import Late, Watchdog
from service.errors import RequestError
from service.inference.batcher import Batcher
from service.inference.jobs import Job
from service.inference.ranking import Ranking, Row
from service.inference.tasks import ImageInput

Batch = list[Job[ImageInput, Row]]
log = logging.getLogger(__name__)
# The classes and probabilities of no image.
NOTHING = np.empty((0, 0), np.int32), np.empty((0, 0), np.float32)


@dataclass
class Turn:
    """Computes batches from the queue, and answers their jobs.

    `failed`: jobs to compute again; `warm`: the engine, which makes no larger batches than fit
    into memory.
    """

    name: str
    warm: Warm
    batcher: Batcher[ImageInput, Row]
    watchdog: Watchdog
    status: EngineStatus
    events: EngineEvents
    failed: Batch = field(default_factory=list, init=False)
    _in_flight: deque[Batch] = field(default_factory=deque, init=False)
    _too_large: list[Batch] = field(default_factory=list, init=False)
    _largest: int = field(default=0, init=False)  # Of the batches that were answered.

    def unanswered(self) -> Iterator[Batch]:
        return chain(self._in_flight, self._too_large, [self.failed])

    def compute(self, interrupted: Callable[[], bool]) -> None:
        """Computes while work waits; only one batch if the engine has one in flight, or if it is
        `interrupted`.

        Raises:
            Late: a call hung, and all jobs were given up.
        """
        results: deque[Callable[[], Ranking]] = deque()
        depth, going_on = self.warm.engine.in_flight, True
        while going_on or self._in_flight:
            batch = self.batcher.take(self.warm.buckets.take) if going_on else []
            if batch:
                self._in_flight.append(batch)
                results.append(self._launch(batch))
            going_on = bool(batch) and depth > 1 and not interrupted()
            if self._in_flight and (not going_on or len(self._in_flight) == depth):
                if not self._collect(self._in_flight[0], results.popleft()):
                    self._too_large.append(self._in_flight[0])
                self._in_flight.popleft()
                going_on = going_on and not self._too_large and not self.failed
        if self._too_large:
            self._shrink()

    def _launch(self, batch: Batch) -> Callable[[], Ranking]:
        """The batch's result; if it cannot even begin, the result raises why."""
        expected = self.warm.expected(len(batch))
        try:
            images = self.watchdog.call(partial(self._images, batch), expected)
            if not images:
                return partial(Ranking, *NOTHING)
            tasks = [job.task for job in batch]
            result = self.watchdog.call(partial(self.warm.launch, images, tasks), expected)
        except Late:
            raise
        except Exception as error:  # noqa: BLE001
            return partial(_raise, error)
        return partial(self.watchdog.call, result, expected)

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

    def _collect(self, batch: Batch, result: Callable[[], Ranking]) -> bool:
        """Answers a batch, or has it computed again; False if smaller ones may fit into memory."""
        try:
            self._answer(batch, result())
        except Late:
            raise
        except Exception as error:
            if len(batch) > 1 and faults.out_of_memory(error):
                why = faults.in_one_line(error)
                log.warning("%s: out of memory for a batch of %d: %s", self.name, len(batch), why)
                self.events.out_of_memory()
                return False
            log.exception("%s: a batch failed", self.name)
            self.status.failed("the engine failed", error)
            self.failed += batch
        return True

    def _answer(self, batch: Batch, ranking: Ranking) -> None:
        rows = ranking.rows()
        if not np.isfinite(ranking.probabilities).all():
            finite = [bool(np.isfinite(row).all()) for row in ranking.probabilities]
            log.error("%s: the network produced NaN for %d images", self.name, finite.count(False))
            self.status.failed("the engine failed", ArithmeticError("the network produced NaN"))
            self.failed += [job for job, sound in zip(batch, finite, strict=True) if not sound]
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
        faults.give_memory_back()
        middle = (len(batch) + 1) // 2
        for half in (batch[:middle], batch[middle:]):
            for job in half:
                job.batch_size = len(half)
            if not self._collect(half, self._launch(half)):
                self._halve(half)


def _raise(error: Exception) -> NoReturn:
    raise error
