"""A model's queue in a front end, whose engines run in the engine processes of its devices.

A slot of the queue is a slot in the shared memory of each connection. It is taken when an image is
admitted, and free again once the engine process that got the image has responded, even if the
client has disconnected meanwhile: so no process writes memory that another may still read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from service.errors import RETRY_SECONDS, Busy, NotReady, QueueFull, ServiceError, error_of
from service.inference.jobs import Job
from service.inference.pace import IDLE, Estimate, Excess, Load, Pace, Paces
from service.inference.ranking import Row
from service.inference.tasks import ImageInput
from service.workers import wire
from service.workers.occupancy import ModelOccupancy
from service.workers.shared_memory import WHOLE, Content, SharedMemory
from service.workers.wire import Frames, JobResult, Kind, Submit, number_of

EMPTY = Content(WHOLE)


@dataclass(eq=False, slots=True)
class EngineState:
    """A model's engine on one device, as a front end knows it.

    `index`: the device's in the occupancy; `process`: what its process is called; `ready`: as the
    process said last; `silent`: the process does not respond.
    """

    index: int
    process: str
    pace: Pace = field(default_factory=Pace)
    ready: bool = False
    silent: bool = False

    @property
    def serves(self) -> bool:
        return self.ready and not self.silent


@dataclass(eq=False, slots=True)
class Slot:
    """A job's slot; once the job is submitted, `content` is what the slot holds, and `number` the
    job's on that connection."""

    index: int
    connection: EngineConnection | None = None
    number: int = 0
    content: Content = EMPTY


class SlotQueue:
    """A model's queue, whose `max_jobs` slots all front ends and all devices share.

    A job holds its slot until its result arrives, so jobs being computed count too. An image goes
    to the device that will be done with it first, by what all front ends have submitted to each.
    If that device fails, the image is submitted to another one, once.
    """

    def __init__(
        self,
        max_jobs: int,
        max_bytes: int,
        occupancy: ModelOccupancy,
        engines: Sequence[EngineState],
    ) -> None:
        self.max_jobs = max_jobs
        self.max_bytes = max_bytes
        self.occupancy = occupancy
        self._engines = engines
        self._excess = Excess()
        self._connections: list[EngineConnection] = []
        # Last in, first out: memory is touched as needed, not all of it.
        self._free = list(reversed(range(max_jobs)))
        self._slots: dict[Job[ImageInput, Row], Slot] = {}
        self._bytes = 0

    @property
    def depth(self) -> int:
        """Images admitted and not yet submitted; the engine processes count the others."""
        return len(self._slots) - sum(connection.in_flight for connection in self._connections)

    @property
    def pace(self) -> Estimate:
        """That of the engines that serve; if none does, of all."""
        paces = [engine.pace for engine in self._engines if engine.serves]
        paces = paces or [engine.pace for engine in self._engines]
        return paces[0] if len(paces) == 1 else Paces(paces)

    def check(self, cost: int = 0, load: Load = IDLE) -> None:
        """Checks that a job of `cost` bytes would be admitted now, and be done in time.

        Raises:
            QueueFull: it would not.
        """
        slots, size = self.occupancy.total()
        ahead = slots + load.entering
        if slots >= self.max_jobs or size + cost > self.max_bytes:
            raise QueueFull.of(slots, *self._retry(ahead))
        if wait := load.too_late(self.pace, ahead):
            raise QueueFull.too_late(wait, load.within, *self._retry(ahead))

    def _retry(self, ahead: int) -> tuple[float, Callable[[], float]]:
        """When a refused client should come back: see `service.errors.Busy`."""
        pace = self.pace
        return pace.seconds(ahead), partial(self._excess.spread, pace.seconds(1))

    def admit(self, job: Job[ImageInput, Row], cost: int) -> None:
        """Gives a job a slot, until its result arrives or it is cancelled before it is submitted.

        Raises:
            QueueFull: no slot is free.
            NotReady: there is no engine process.
        """
        self.check(cost)
        if not self._connections:
            raise NotReady("the engine process is starting; retry", RETRY_SECONDS)
        job.cost, job.admitted = cost, time.perf_counter()
        self._slots[job] = Slot(self._free.pop())
        self._occupy(cost)
        job.future.add_done_callback(lambda _: self._leave(job))

    def submit(self, job: Job[ImageInput, Row], payload: ImageInput, cost: int) -> None:
        """Copies an admitted job's image into its slot, which decoding threads never access."""
        if job.future.done() or not self._connections:
            return
        self._occupy(cost - job.cost)
        job.cost = cost
        serving = [connection for connection in self._connections if connection.engine.serves]
        self._submit(job, payload, self._soonest(serving or self._connections))

    def _submit(
        self, job: Job[ImageInput, Row], image: ImageInput, connection: EngineConnection
    ) -> None:
        slot = self._slots[job]
        slot.connection = connection
        slot.content = connection.region.write_image(slot.index, image)
        slot.number = connection.submit(job, slot)

    def _soonest(self, connections: Sequence[EngineConnection]) -> EngineConnection:
        """The one whose device will be done with another image first."""
        if len(connections) == 1:
            return connections[0]
        in_flight = self.occupancy.in_flight()
        measured = all(connection.engine.pace.known for connection in connections)

        def wait(connection: EngineConnection) -> tuple[float, int]:
            ahead, pace = in_flight[connection.engine.index], connection.engine.pace
            return pace.until_done(ahead) if measured else 0.0, ahead

        return min(connections, key=wait)

    def _submit_elsewhere(self, job: Job[ImageInput, Row]) -> bool:
        """Submits a job whose device has failed to another one; False if that is not possible, or
        has been done. Its image is still in its slot."""
        slot = self._slots[job]
        failed = slot.connection
        others = [c for c in self._connections if c is not failed and c.engine.serves]
        if failed is None or job.final or job.future.done() or not others:
            return False
        job.final = True
        image = failed.region.read_image(slot.index, slot.content)
        self._submit(job, image, self._soonest(others))
        return True

    def _leave(self, job: Job[ImageInput, Row]) -> None:
        """The job's future is done: it has a result, or was cancelled."""
        slot = self._slots.get(job)
        if slot is None:
            return
        if slot.connection is not None:
            slot.connection.withdraw(slot.number)
        else:
            self._release(job)

    def _release(self, job: Job[ImageInput, Row]) -> Slot:
        slot = self._slots.pop(job)
        self._free.append(slot.index)
        self._occupy(-job.cost)
        return slot

    def _occupy(self, more_bytes: int) -> None:
        self._bytes += more_bytes
        self.occupancy.hold(len(self._slots), self._bytes)

    def deliver(self, job: Job[ImageInput, Row], result: JobResult, region: SharedMemory) -> None:
        """Sets a job's result; the engine process is done with its slot."""
        slot = self._release(job)
        if result.batch_size and not job.future.done():
            job.started, job.finished = result.started, result.finished
            job.batch_size = result.batch_size
            job.future.set_result(region.read_row(slot.index, job.task))

    def fail(self, job: Job[ImageInput, Row], error: ServiceError) -> None:
        """Fails a job, unless another device takes what its own could not compute."""
        if isinstance(error, Busy) and self._submit_elsewhere(job):
            return
        self._release(job)
        _set_exception(job, error)

    def connect(self, connection: EngineConnection) -> None:
        self._connections.append(connection)

    def disconnect(
        self,
        connection: EngineConnection,
        jobs: Sequence[Job[ImageInput, Row]],
        error: ServiceError,
    ) -> None:
        """Fails the jobs that were submitted on a lost connection, at once; and if there is no
        other, all jobs."""
        self._connections.remove(connection)
        for job in jobs if self._connections else [*self._slots]:
            self.fail(job, error)


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
        engine: EngineState,
        region: SharedMemory,
        on_state: Callable[[dict[str, Any]], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.engine = engine
        self.region = region
        self.lost = asyncio.Event()
        self._queue = queue
        self._on_state = on_state
        self._on_lost = on_lost
        self._frames = Frames()
        self._numbers = count()
        self._jobs: dict[int, Job[ImageInput, Row]] = {}
        self._submits, self._withdrawals = bytearray(), bytearray()

    @property
    def in_flight(self) -> int:
        """Jobs submitted, and without a response so far."""
        return len(self._jobs)

    # asyncio declares a BaseTransport, which cannot write; that of a stream always can.
    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]
        self._transport = transport
        self._queue.connect(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._on_lost()
        jobs = list(self._jobs.values())
        self._jobs.clear()
        self._record()
        lost = f"{self.engine.process} ended; another is starting; retry"
        self._queue.disconnect(self, jobs, NotReady(lost, RETRY_SECONDS))
        self.lost.set()

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        for kind, body in self._frames.feed(data):
            if kind is Kind.RESULT:
                for result in wire.results(body):
                    self.engine.pace.slowdown = result.slowdown
                    self._queue.deliver(self._jobs.pop(result.job), result, self.region)
                self._record()
            elif kind is Kind.REFUSAL:
                number, refusal = wire.content(body)
                job = self._jobs.pop(number)
                self._record()
                self._queue.fail(job, error_of(refusal))
            elif kind is Kind.STATE:
                self._on_state(wire.content(body))

    def _record(self) -> None:
        """For the other front ends."""
        self._queue.occupancy.submit(self.engine.index, len(self._jobs))

    def submit(self, job: Job[ImageInput, Row], slot: Slot) -> int:
        """Submits a job; returns its number on this connection."""
        number = next(self._numbers)
        self._jobs[number] = job
        self._record()
        self._schedule()
        task = number_of(job.task)
        self._submits += wire.SUBMIT.pack(
            *Submit(
                number,
                slot.index,
                job.admitted,
                job.deadline,
                task,
                job.priority,
                *slot.content,
            )
        )
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
