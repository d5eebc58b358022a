"""A model's queue as a front end sees it: its engines run in the engine process.

A place in a model's queue is a slot in shared memory. It is taken when an image is admitted and
given back when the engine process has answered, even if the caller has left meanwhile: so nobody
ever writes what another may still read.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from itertools import count
from typing import Any, cast

import numpy as np

from service.errors import RETRY_SECONDS, NotReady, QueueFull, ServiceError, error_of
from service.inference.batcher import Job
from service.inference.ranking import Row
from service.inference.tasks import Pixels
from service.workers import wire
from service.workers.shared_memory import SharedMemory
from service.workers.wire import Finished, Frames, Kind, Submit, number_of


class SlotQueue:
    """A model's queue, in which all front ends together have `max_jobs` places.

    A job holds its place until it is answered, so those being computed count too. `hold` writes
    what this front end holds, `total` reads what all do: places and bytes.
    """

    def __init__(
        self,
        max_jobs: int,
        max_bytes: int,
        *,
        hold: Callable[[int, int], None],
        total: Callable[[], tuple[int, int]],
    ) -> None:
        self.max_jobs = max_jobs
        self.max_bytes = max_bytes
        self._hold = hold
        self._total = total
        self._seconds_per_job = 0.0
        self._connection: EngineConnection | None = None
        self._free: list[int] = []
        self._admitted: dict[Job[Pixels, Row], int] = {}  # and the slot of each
        self._numbers: dict[Job[Pixels, Row], int] = {}  # of those that were submitted
        self._bytes = 0

    @property
    def depth(self) -> int:
        """Images admitted and not yet submitted; the engine process counts the others."""
        return len(self._admitted) - len(self._numbers)

    def check(self, cost: int = 0, within: float = math.inf) -> None:
        """Raises `QueueFull` if a job of `cost` bytes would not be admitted now, or not begin
        `within` seconds."""
        places, size = self._total()
        wait = places * self._seconds_per_job
        retry_after = max(RETRY_SECONDS, math.ceil(wait))
        if places >= self.max_jobs or size + cost > self.max_bytes:
            raise QueueFull.of(places, retry_after)
        if wait > within:
            raise QueueFull.too_late(wait, within, retry_after)

    def admit(self, job: Job[Pixels, Row], cost: int) -> None:
        """Gives a job a slot until it is answered, or has left before it is submitted.

        Raises:
            QueueFull: there is none.
            NotReady: the engine process is gone.
        """
        self.check(cost)
        if self._connection is None:
            raise NotReady("the engine process is starting; retry", RETRY_SECONDS)
        job.cost, job.admitted = cost, time.perf_counter()
        self._admitted[job] = self._free.pop()
        self._occupy(cost)
        job.future.add_done_callback(lambda _: self._leave(job))

    def submit(self, job: Job[Pixels, Row], payload: Pixels, cost: int) -> None:
        """Copies an admitted job's pixels into its slot; the decoding thread never sees slots."""
        if job.future.done() or self._connection is None:
            return
        slot = self._admitted[job]
        whole = payload.dtype == np.uint8
        self._connection.region.pixels(slot, whole=whole)[...] = payload
        self._occupy(cost - job.cost)
        job.cost = cost
        self._numbers[job] = self._connection.submit(job, slot, whole=whole)

    def _leave(self, job: Job[Pixels, Row]) -> None:
        """The job's future is done: answered, or its caller has left."""
        if job in self._numbers and self._connection is not None:
            self._connection.withdraw(self._numbers[job])
        elif job in self._admitted:
            self._release(job)

    def _release(self, job: Job[Pixels, Row]) -> None:
        self._free.append(self._admitted.pop(job))
        self._numbers.pop(job, None)
        self._occupy(-job.cost)

    def _occupy(self, more_bytes: int) -> None:
        self._bytes += more_bytes
        self._hold(len(self._admitted), self._bytes)

    def deliver(self, job: Job[Pixels, Row], answer: Finished, region: SharedMemory) -> None:
        """The engine process has no more use for the job's slot."""
        self._seconds_per_job = answer.seconds_per_job
        if answer.batch_size and not job.future.done():
            job.started, job.finished = answer.started, answer.finished
            job.batch_size = answer.batch_size
            job.future.set_result(region.read_row(self._admitted[job], job.task))
        self._release(job)

    def fail(self, job: Job[Pixels, Row], error: ServiceError) -> None:
        self._release(job)
        _set_exception(job, error)

    def connect(self, connection: EngineConnection) -> None:
        self._connection = connection
        # The last given back is the first to be taken: memory is touched as needed, not all of it.
        self._free = list(reversed(range(self.max_jobs)))

    def disconnect(self, error: ServiceError) -> None:
        """Fails every job at once; their slots went with the connection."""
        self._connection = None
        jobs = list(self._admitted)
        self._admitted.clear()
        self._numbers.clear()
        self._occupy(-self._bytes)
        for job in jobs:
            _set_exception(job, error)


def _set_exception(job: Job[Pixels, Row], error: ServiceError) -> None:
    if not job.future.done():
        job.future.set_exception(error)
        job.future.exception()  # Who still decodes may fail first, and never ask.


class EngineConnection(asyncio.Protocol):
    """A model's connection to one engine process, with memory of its own.

    `update` is given what the engine process tells of the model; `lose` is called and `lost` set
    when it is gone.
    """

    def __init__(
        self,
        queue: SlotQueue,
        region: SharedMemory,
        update: Callable[[dict[str, Any]], None],
        lose: Callable[[], None],
    ) -> None:
        self.region = region
        self.lost = asyncio.Event()
        self._queue = queue
        self._update = update
        self._lose = lose
        self._frames = Frames()
        self._numbers = count()
        self._jobs: dict[int, Job[Pixels, Row]] = {}
        self._submits, self._withdrawals = bytearray(), bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's are no subclasses
        self._queue.connect(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._lose()
        self._queue.disconnect(
            NotReady("the engine process ended; another is starting; retry", RETRY_SECONDS)
        )
        self._jobs.clear()
        self.lost.set()

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        for kind, body in self._frames.feed(data):
            if kind is Kind.ANSWER:
                for answer in wire.answers(body):
                    self._queue.deliver(self._jobs.pop(answer.job), answer, self.region)
            elif kind is Kind.REFUSAL:
                number, refusal = wire.content(body)
                self._queue.fail(self._jobs.pop(number), error_of(refusal))
            elif kind is Kind.STATE:
                self._update(wire.content(body))

    def submit(self, job: Job[Pixels, Row], slot: int, *, whole: bool) -> int:
        """The number under which the engine process will answer."""
        number = next(self._numbers)
        self._jobs[number] = job
        self._schedule()
        self._submits += wire.SUBMIT.pack(
            *Submit(number, slot, job.admitted, number_of(job.task), job.priority, whole)
        )
        return number

    def withdraw(self, number: int) -> None:
        self._schedule()
        self._withdrawals += wire.WITHDRAW.pack(number)

    def _schedule(self) -> None:
        """Sends what this turn of the loop brings in one go."""
        if not self._submits and not self._withdrawals:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        if not self._transport.is_closing():
            if self._submits:
                self._transport.write(wire.frame(Kind.SUBMIT, bytes(self._submits)))
            if self._withdrawals:
                self._transport.write(wire.frame(Kind.WITHDRAW, bytes(self._withdrawals)))
        self._submits.clear()
        self._withdrawals.clear()
