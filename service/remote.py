"""The models as a front end sees them: their engines run in the engine process.

A place in a model's queue is a slot in shared memory. It is taken when an image is admitted and
given back when the engine process has answered, even if the caller has left meanwhile: so nobody
ever writes what another may still read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any, cast

from models.preprocess import InputSpec
from service import exchange
from service.batcher import Job
from service.errors import REFUSALS, Busy, NotReady, QueueFull, ServiceError
from service.exchange import Answer, Frames, Kind, Region, Shape
from service.ledger import Ledger
from service.metrics import Metrics
from service.pipeline import RETRY_SECONDS, Pixels
from service.ranking import Row
from service.settings import ModelSettings, Settings

log = logging.getLogger(__name__)
KINDS = {kind.reason: kind for kind in REFUSALS}
RECONNECT_SECONDS = 0.1


class RemoteQueue:
    """A model's queue, in which all front ends together have `max_jobs` places.

    A job holds its place until it is answered, so those being computed count too. `hold` writes
    what this front end holds, `total` reads what all do: places and bytes.
    """

    def __init__(
        self,
        model: int,
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
        self._model = model
        self._connection: Connection | None = None
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

    def admit(self, cost: int) -> Job[Pixels, Row]:
        """A place, which the job holds until it is answered, or has left before it is submitted.

        Raises:
            QueueFull: there is none.
            NotReady: the engine process is gone.
        """
        self.check(cost)
        if self._connection is None:
            raise NotReady("the engine process is starting; retry", RETRY_SECONDS)
        job: Job[Pixels, Row] = Job(asyncio.get_running_loop().create_future(), cost)
        self._admitted[job] = self._free.pop()
        self._occupy(cost)
        job.future.add_done_callback(lambda _: self._leave(job))
        return job

    def submit(self, job: Job[Pixels, Row], payload: Pixels, cost: int) -> None:
        """Copies an admitted job's pixels into its slot; the decoding thread never sees slots."""
        if job.future.done() or self._connection is None:
            return
        slot = self._admitted[job]
        self._connection.region.pixels[self._model][slot] = payload
        self._occupy(cost - job.cost)
        job.cost = cost
        self._numbers[job] = self._connection.submit(self, job, slot, self._model)

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

    def deliver(self, job: Job[Pixels, Row], answer: Answer, region: Region) -> None:
        """The engine process has no more use for the job's slot."""
        self._seconds_per_job = answer.seconds_per_job
        if answer.batch_size and not job.future.done():
            job.started, job.finished = answer.started, answer.finished
            job.batch_size = answer.batch_size
            row = region.rows[self._model][self._admitted[job]]
            job.future.set_result(exchange.read_row(row))
        self._release(job)

    def fail(self, job: Job[Pixels, Row], error: ServiceError) -> None:
        self._release(job)
        _set_exception(job, error)

    def connect(self, connection: Connection) -> None:
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


class RemoteModel:
    """What the engine process has told of a model; see `service.pipeline.Model`."""

    def __init__(
        self, facts: dict[str, Any], settings: ModelSettings, batcher: RemoteQueue, metrics: Metrics
    ) -> None:
        self.name: str = facts["name"]
        self.spec = InputSpec(**facts["input"])
        self.labels: Sequence[str] = facts["labels"]
        self.batcher = batcher
        self.batch_share = max(1, min(settings.max_batch, settings.max_queue // 2))
        self.ready = False
        self.reason = "the engine process is starting"
        self._card: dict[str, Any] = facts["card"]
        metrics.watch_model(
            self.name,
            (),
            settings.max_queue,
            depth=lambda: self.batcher.depth,
            ready=lambda: self.ready,
        )

    def update(self, state: dict[str, Any]) -> None:
        self.ready, self.reason, self._card = state["ready"], state["reason"], state["card"]

    def lose(self, reason: str) -> None:
        self.ready, self.reason = False, reason
        self._card = self._card | {"engine": None, "state": "loading"}

    def describe(self) -> dict[str, Any]:
        return self._card | {"reason": self.reason}


class RemoteFleet:
    """All models, through one connection to the engine process, made again whenever it breaks.

    `facts`: what the engine process told of each model; `index`: which of the front ends this
    is; `path`: the socket where the engine process listens; `ledger`: what all front ends hold.
    """

    def __init__(
        self,
        settings: Settings,
        facts: Sequence[dict[str, Any]],
        index: int,
        path: str,
        ledger: Ledger,
        metrics: Metrics,
    ) -> None:
        self._path = path
        self.models: dict[str, RemoteModel] = {}
        for number, (fact, row) in enumerate(zip(facts, settings.models, strict=True)):
            queue = RemoteQueue(
                number,
                row.max_queue,
                row.max_queue_bytes,
                hold=partial(ledger.hold, index, number),
                total=partial(ledger.total, number),
            )
            self.models[fact["name"]] = RemoteModel(fact, row, queue, metrics)
        self._shapes = [
            Shape(model.batcher.max_jobs, model.spec.size, len(model.labels))
            for model in self.models.values()
        ]
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._stay_connected())

    def dead(self) -> dict[str, str]:
        """Nothing: an engine process that is lost ends, and another takes its place."""
        return {}

    def close(self, timeout: float) -> bool:
        """Nothing computes in this process."""
        return True

    async def _stay_connected(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                connection = await self._connect()
                await connection.lost
                log.warning("the connection to the engine process broke")
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.setblocking(False)
        fd = Region.allocate(self._shapes)
        try:
            await loop.sock_connect(stream, self._path)
            hello = exchange.message(Kind.HELLO, {"slots": [shape.slots for shape in self._shapes]})
            socket.send_fds(stream, [hello], [fd])
            connection = Connection(list(self.models.values()), Region(fd, self._shapes))
        except BaseException:
            stream.close()
            raise
        finally:
            os.close(fd)
        await loop.create_unix_connection(lambda: connection, sock=stream)
        return connection


class Connection(asyncio.Protocol):
    """One connection to one engine process, with memory of its own."""

    def __init__(self, models: Sequence[RemoteModel], region: Region) -> None:
        self.region = region
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._models = models
        self._frames = Frames()
        self._numbers = count()
        self._jobs: dict[int, tuple[RemoteQueue, Job[Pixels, Row]]] = {}
        self._submits, self._withdrawals = bytearray(), bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's are no subclasses
        for model in self._models:
            model.batcher.connect(self)

    def connection_lost(self, error: Exception | None) -> None:
        failure = NotReady("the engine process ended; another is starting; retry", RETRY_SECONDS)
        for model in self._models:
            model.lose("the engine process ended; another is starting")
            model.batcher.disconnect(failure)
        self._jobs.clear()
        self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        for kind, body in self._frames.feed(data):
            if kind is Kind.ANSWER:
                for answer in exchange.answers(body):
                    queue, job = self._jobs.pop(answer.job)
                    queue.deliver(job, answer, self.region)
            elif kind is Kind.REFUSAL:
                number, reason, detail, retry_after = exchange.content(body)
                refusal = KINDS[reason]
                busy = issubclass(refusal, Busy)
                queue, job = self._jobs.pop(number)
                queue.fail(job, refusal(detail, retry_after) if busy else refusal(detail))
            elif kind is Kind.STATE:
                states = exchange.content(body)["models"]
                for model, state in zip(self._models, states, strict=True):
                    model.update(state)

    def submit(self, queue: RemoteQueue, job: Job[Pixels, Row], slot: int, model: int) -> int:
        """The number under which the engine process will answer."""
        number = next(self._numbers)
        self._jobs[number] = (queue, job)
        self._schedule()
        self._submits += exchange.SUBMIT.pack(number, slot, model, job.admitted)
        return number

    def withdraw(self, number: int) -> None:
        self._schedule()
        self._withdrawals += exchange.WITHDRAW.pack(number)

    def _schedule(self) -> None:
        """Sends what this turn of the loop brings in one go."""
        if not self._submits and not self._withdrawals:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        if not self._transport.is_closing():
            if self._submits:
                self._transport.write(exchange.frame(Kind.SUBMIT, bytes(self._submits)))
            if self._withdrawals:
                self._transport.write(exchange.frame(Kind.WITHDRAW, bytes(self._withdrawals)))
        self._submits.clear()
        self._withdrawals.clear()
