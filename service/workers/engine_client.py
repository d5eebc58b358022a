"""A model's queue in a front end, whose engines run in the engine process.

A slot of the queue is a slot in shared memory. It is taken when an image is admitted, and free
again once the engine process has responded, even if the client has disconnected meanwhile: so no
process writes memory that another may still read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from service.errors import RETRY_SECONDS, NotReady, QueueFull, ServiceError, error_of
from service.inference.jobs import Job
from service.inference.pace import IDLE, Excess, Load, Pace
from service.inference.ranking import Row
from service.inference.tasks import ImageInput
from service.workers import wire
from service.workers.shared_memory import Content, SharedMemory
from service.workers.wire import Frames, JobResult, Kind, Submit, number_of


class SlotQueue:
    """A model's queue, whose `max_jobs` slots all front ends share.

    A job holds its slot until its result arrives, so jobs being computed count too. `hold` records
    the slots and bytes that this front end holds, `total` returns those of all front ends.
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
        self._excess = Excess()
        self.pace = Pace()
        self._connection: EngineConnection | None = None
        self._free: list[int] = []
        self._admitted: dict[Job[ImageInput, Row], int] = {}  # and the slot of each
        self._numbers: dict[Job[ImageInput, Row], int] = {}  # of submitted jobs
        self._bytes = 0

    @property
    def depth(self) -> int:
        """Images admitted and not yet submitted; the engine process counts the others."""
        return len(self._admitted) - len(self._numbers)

    def check(self, cost: int = 0, load: Load = IDLE) -> None:
        """Checks that a job of `cost` bytes would be admitted now, and be done in time.

        Raises:
            QueueFull: it would not.
        """
        slots, size = self._total()
        ahead = slots + load.entering
        if slots >= self.max_jobs or size + cost > self.max_bytes:
            raise QueueFull.of(slots, *self._retry(ahead))
        if wait := load.too_late(self.pace, ahead):
            raise QueueFull.too_late(wait, load.within, *self._retry(ahead))

    def _retry(self, ahead: int) -> tuple[float, Callable[[], float]]:
        """When a refused client should come back: see `service.errors.Busy`."""
        return self.pace.seconds(ahead), partial(self._excess.spread, self.pace.seconds(1))

    def admit(self, job: Job[ImageInput, Row], cost: int) -> None:
        """Gives a job a slot, until its result arrives or it is cancelled before it is submitted.

        Raises:
            QueueFull: no slot is free.
            NotReady: there is no engine process.
        """
        self.check(cost)
        if self._connection is None:
            raise NotReady("the engine process is starting; retry", RETRY_SECONDS)
        job.cost, job.admitted = cost, time.perf_counter()
        self._admitted[job] = self._free.pop()
        self._occupy(cost)
        job.future.add_done_callback(lambda _: self._leave(job))

    def submit(self, job: Job[ImageInput, Row], payload: ImageInput, cost: int) -> None:
        """Copies an admitted job's image into its slot, which decoding threads never access."""
        if job.future.done() or self._connection is None:
            return
        slot = self._admitted[job]
        content = self._connection.region.write_image(slot, payload)
        self._occupy(cost - job.cost)
        job.cost = cost
        self._numbers[job] = self._connection.submit(job, slot, content)

    def _leave(self, job: Job[ImageInput, Row]) -> None:
        """The job's future is done: it has a result, or was cancelled."""
        if job in self._numbers and self._connection is not None:
            self._connection.withdraw(self._numbers[job])
        elif job in self._admitted:
            self._release(job)

    def _release(self, job: Job[ImageInput, Row]) -> None:
        self._free.append(self._admitted.pop(job))
        self._numbers.pop(job, None)
        self._occupy(-job.cost)

    def _occupy(self, more_bytes: int) -> None:
        self._bytes += more_bytes
        self._hold(len(self._admitted), self._bytes)

    def deliver(self, job: Job[ImageInput, Row], result: JobResult, region: SharedMemory) -> None:
        """Sets a job's result; the engine process is done with its slot."""
        self.pace.slowdown = result.slowdown
        if result.batch_size and not job.future.done():
            job.started, job.finished = result.started, result.finished
            job.batch_size = result.batch_size
            job.future.set_result(region.read_row(self._admitted[job], job.task))
        self._release(job)

    def fail(self, job: Job[ImageInput, Row], error: ServiceError) -> None:
        self._release(job)
        _set_exception(job, error)

    def connect(self, connection: EngineConnection) -> None:
        self._connection = connection
        # Last in, first out: memory is touched as needed, not all of it.
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


def _set_exception(job: Job[ImageInput, Row], error: ServiceError) -> None:
    if not job.future.done():
        job.future.set_exception(error)
        job.future.exception()  # Else asyncio logs it if decoding fails first.


class EngineConnection(asyncio.Protocol):
    """A model's connection to an engine process, with memory of its own.

    `on_state` gets each state of the model. When the connection is lost, `on_lost` is called and
    `lost` is set.
    """

    def __init__(
        self,
        queue: SlotQueue,
        region: SharedMemory,
        on_state: Callable[[dict[str, Any]], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.region = region
        self.lost = asyncio.Event()
        self._queue = queue
        self._on_state = on_state
        self._on_lost = on_lost
        self._frames = Frames()
        self._numbers = count()
        self._jobs: dict[int, Job[ImageInput, Row]] = {}
        self._submits, self._withdrawals = bytearray(), bytearray()

    # asyncio declares a BaseTransport, which cannot write; that of a stream always can.
    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]
        self._transport = transport
        self._queue.connect(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._on_lost()
        self._queue.disconnect(
            NotReady("the engine process ended; another is starting; retry", RETRY_SECONDS)
        )
        self._jobs.clear()
        self.lost.set()

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        for kind, body in self._frames.feed(data):
            if kind is Kind.RESULT:
                for result in wire.results(body):
                    self._queue.deliver(self._jobs.pop(result.job), result, self.region)
            elif kind is Kind.REFUSAL:
                number, refusal = wire.content(body)
                self._queue.fail(self._jobs.pop(number), error_of(refusal))
            elif kind is Kind.STATE:
                self._on_state(wire.content(body))

    def submit(self, job: Job[ImageInput, Row], slot: int, content: Content) -> int:
        """Submits a job; returns its number on this connection."""
        number = next(self._numbers)
        self._jobs[number] = job
        self._schedule()
        task = number_of(job.task)
        submitted = Submit(number, slot, job.admitted, job.deadline, task, job.priority, *content)
        self._submits += wire.SUBMIT.pack(*submitted)
        return number

    def withdraw(self, number: int) -> None:
        self._schedule()
        self._withdrawals += wire.WITHDRAW.pack(number)

    def _schedule(self) -> None:
        """Sends the records of one iteration of the event loop together."""
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
