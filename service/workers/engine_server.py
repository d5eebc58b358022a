"""The engine process's server: one connection for each front end and model."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from service.errors import RETRY_SECONDS, EngineFailed, QueueFull, refusal_of
from service.inference.jobs import Job, Priority
from service.inference.ranking import Row
from service.inference.tasks import ImageInput
from service.logs import LogLimit, with_suppressed
from service.repository.model import LocalModel, state_of
from service.workers import wire
from service.workers.shared_memory import MemoryShape, SharedMemory
from service.workers.wire import Frames, JobResult, Kind, Submit, task_of

log = logging.getLogger(__name__)
WATCH_SECONDS = 0.1
OUT_OF_FILES_SECONDS = 1.0
LOG_SECONDS = 10.0  # between two lines of the same reason


class FrontEndConnection(asyncio.Protocol):
    """The connection of one front end to one model.

    The event loop writes results, only while the connection lives, to memory that belongs to this
    connection alone.
    """

    def __init__(
        self,
        model: LocalModel,
        region: SharedMemory,
        *,
        on_made: Callable[[FrontEndConnection], None],
        on_lost: Callable[[FrontEndConnection], None],
    ) -> None:
        self._on_made = on_made
        self._on_lost = on_lost
        self._model = model
        self._region = region
        self._frames = Frames()
        self._jobs: dict[int, Job[ImageInput, Row]] = {}
        self._results = bytearray()

    # asyncio declares a BaseTransport, which cannot write; that of a stream always can.
    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]
        self._transport = transport
        self._on_made(self)

    def connection_lost(self, error: Exception | None) -> None:
        for job in list(self._jobs.values()):
            job.future.cancel()
        self._on_lost(self)

    def close(self) -> None:
        self._transport.close()

    def send(self, frame: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(frame)

    def data_received(self, data: bytes) -> None:
        for kind, body in self._frames.feed(data):
            if kind is Kind.SUBMIT:
                for submitted in wire.submits(body):
                    self._submit(submitted)
            elif kind is Kind.WITHDRAW:
                for number in wire.withdrawals(body):
                    self._withdraw(number)

    def _submit(self, submitted: Submit) -> None:
        batcher = self._model.batcher
        image = self._region.read_image(submitted.slot, submitted.content)
        job: Job[ImageInput, Row] = Job(
            task_of(submitted.task), Priority(submitted.priority), submitted.deadline
        )
        try:
            batcher.admit(job, image.nbytes)
        except QueueFull as error:
            self._refuse(submitted.job, error)
            return
        job.admitted = submitted.admitted
        self._jobs[submitted.job] = job
        job.future.add_done_callback(lambda future: self._finish(submitted, future))
        batcher.submit(job, image, image.nbytes)

    def _withdraw(self, number: int) -> None:
        job = self._jobs.get(number)
        # An engine may be reading the slot of a job that is being computed, which gets a result.
        if job is not None and self._model.batcher.withdraw(job):
            job.future.cancel()

    def _finish(self, submitted: Submit, future: asyncio.Future[Row]) -> None:
        job = self._jobs.pop(submitted.job)
        if self._transport.is_closing():
            return
        if not future.cancelled() and (error := future.exception()) is not None:
            self._refuse(submitted.job, error)
            return
        if not future.cancelled():
            try:
                self._region.write_row(submitted.slot, future.result())
            except Exception:  # Every job gets a result or a refusal, whatever goes wrong.
                log.exception("%s: a result does not fit its slot", self._model.name)
                misfit = "the result does not fit this model any more; retry"
                self._refuse(submitted.job, EngineFailed(misfit, RETRY_SECONDS))
                return
        if not self._results:
            asyncio.get_running_loop().call_soon(self._flush)
        size = 0 if future.cancelled() else job.batch_size
        slowdown = self._model.batcher.pace.slowdown
        self._results += wire.RESULT.pack(
            *JobResult(submitted.job, job.started, job.finished, size, slowdown)
        )

    def _refuse(self, number: int, error: BaseException) -> None:
        self.send(wire.message(Kind.REFUSAL, [number, refusal_of(error)]))

    def _flush(self) -> None:
        self.send(wire.frame(Kind.RESULT, bytes(self._results)))
        self._results.clear()


class EngineServer:
    """The models by number, the front ends connected to each, and the state last sent to those."""

    def __init__(self) -> None:
        self._models: dict[int, LocalModel] = {}
        self._connections: dict[int, set[FrontEndConnection]] = {}
        self._states: dict[int, dict[str, Any]] = {}
        self._retired: set[int] = set()
        self._accepting: set[asyncio.Task[None]] = set()
        self._log_limit = LogLimit(LOG_SECONDS)

    @property
    def models(self) -> dict[int, LocalModel]:
        """The models that serve, without the retired ones that still finish requests."""
        return {n: model for n, model in self._models.items() if n not in self._retired}

    def add(self, number: int, model: LocalModel) -> None:
        self._models[number] = model
        self._connections[number] = set()
        self._states[number] = state_of(model)

    def retire(self, number: int) -> None:
        """Ends a model once the last front end has disconnected from it."""
        self._retired.add(number)
        self._free(number)

    def _free(self, number: int) -> None:
        if number in self._retired and not self._connections[number]:
            self._retired.discard(number)
            del self._connections[number], self._states[number]
            self._models.pop(number).close()

    async def accept(self, listener: socket.socket) -> None:
        """Accepts connections forever."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                stream, _ = await loop.sock_accept(listener)
            except OSError as error:  # Too many open files, for instance.
                log.error("cannot accept front ends: %s", error.strerror)  # noqa: TRY400
                await asyncio.sleep(OUT_OF_FILES_SECONDS)
                continue
            accepting = loop.create_task(self._accept(stream))
            self._accepting.add(accepting)
            accepting.add_done_callback(self._accepting.discard)

    async def _accept(self, stream: socket.socket) -> None:
        """Makes a connection of a stream on which HELLO arrives, or closes it."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(stream, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(stream)
        try:
            connection = self._connection(stream)
        except Exception as error:  # noqa: BLE001 - the front end connects again
            if (unlogged := self._log_limit.suppressed("connection")) is not None:
                more = with_suppressed(unlogged)
                log.error("a front end cannot connect: %s%s", error, more)  # noqa: TRY400
            connection = None
        if connection is None:
            stream.close()
        else:
            await loop.connect_accepted_socket(lambda: connection, stream)

    def _connection(self, stream: socket.socket) -> FrontEndConnection | None:
        """The connection that HELLO asks for; None: the model is gone, or the front end.

        Raises:
            OSError, ValueError: the front end's memory cannot be mapped, or HELLO is malformed.
        """
        data, fds, _, _ = socket.recv_fds(stream, 2**16, 1)
        if not data or not fds:
            return None
        try:
            ((_, body),) = Frames().feed(data)
            hello = wire.content(body)
            shape, number = MemoryShape(*hello["shape"]), hello["model"]
            model = self.models.get(number)
            if model is None:
                return None  # The supervisor will send the front end other models.
            return FrontEndConnection(
                model,
                SharedMemory(fds[0], shape),
                on_made=partial(self._add, number),
                on_lost=partial(self._remove, number),
            )
        finally:
            os.close(fds[0])

    def _add(self, number: int, connection: FrontEndConnection) -> None:
        if number not in self.models:
            connection.close()  # The model has just been retired.
            return
        connection.send(wire.message(Kind.STATE, self._states[number]))
        self._connections[number].add(connection)

    def _remove(self, number: int, connection: FrontEndConnection) -> None:
        if number in self._connections:
            self._connections[number].discard(connection)
            self._free(number)

    async def watch(self) -> None:
        """Polls for changes of the models' states, which engine threads make, and sends them."""
        while True:
            for number, model in self._models.items():
                # Compared before it is encoded: a card may hold the metrics of a thousand classes.
                state = state_of(model)
                if state != self._states[number]:
                    self._states[number] = state
                    message = wire.message(Kind.STATE, state)
                    for connection in self._connections[number]:
                        connection.send(message)
            await asyncio.sleep(WATCH_SECONDS)
