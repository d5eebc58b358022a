"""Answers what the front ends submit: one connection for each front end and model."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import cast

from service.errors import QueueFull, refusal_of
from service.inference.batcher import Job, Priority
from service.inference.ranking import Row
from service.inference.tasks import Pixels
from service.repository.model import LocalModel, state_of
from service.workers import wire
from service.workers.shared_memory import MemoryShape, SharedMemory
from service.workers.wire import Finished, Frames, Kind, Submit, task_of

log = logging.getLogger(__name__)
WATCH_SECONDS = 0.1


class FrontEndConnection(asyncio.Protocol):
    """The connection of one front end to one model.

    Results are written by the event loop, and only while the connection lives, to memory that is
    this connection's alone.
    """

    def __init__(
        self,
        model: LocalModel,
        region: SharedMemory,
        *,
        greet: Callable[[FrontEndConnection], None],
        forget: Callable[[FrontEndConnection], None],
    ) -> None:
        self._greet = greet
        self._forget = forget
        self._model = model
        self._region = region
        self._frames = Frames()
        self._jobs: dict[int, Job[Pixels, Row]] = {}
        self._answers = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's are no subclasses
        self._greet(self)

    def connection_lost(self, error: Exception | None) -> None:
        for job in list(self._jobs.values()):
            job.future.cancel()
        self._forget(self)

    def hang_up(self) -> None:
        self._transport.close()

    def tell(self, state: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(state)

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
        pixels = self._region.pixels(submitted.slot, whole=submitted.whole)
        job: Job[Pixels, Row] = Job(task_of(submitted.task), Priority(submitted.priority))
        try:
            batcher.admit(job, pixels.nbytes)
        except QueueFull as error:
            self._refuse(submitted.job, error)
            return
        job.admitted = submitted.admitted
        self._jobs[submitted.job] = job
        job.future.add_done_callback(lambda future: self._finish(submitted, future))
        batcher.submit(job, pixels, pixels.nbytes)

    def _withdraw(self, number: int) -> None:
        job = self._jobs.get(number)
        # An engine may be reading the slot of a job that computes: it is answered as all others.
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
            self._region.write_row(submitted.slot, future.result())
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._flush)
        size = 0 if future.cancelled() else job.batch_size
        pace = self._model.batcher.seconds_per_job
        self._answers += wire.ANSWER.pack(
            *Finished(submitted.job, job.started, job.finished, size, pace)
        )

    def _refuse(self, number: int, error: BaseException) -> None:
        self.tell(wire.message(Kind.REFUSAL, [number, refusal_of(error)]))

    def _flush(self) -> None:
        self.tell(wire.frame(Kind.ANSWER, bytes(self._answers)))
        self._answers.clear()


class EngineServer:
    """The models by their numbers, the front ends connected to each, and what those are told."""

    def __init__(self) -> None:
        self._models: dict[int, LocalModel] = {}
        self._callers: dict[int, set[FrontEndConnection]] = {}
        self._states: dict[int, bytes] = {}
        self._retired: set[int] = set()
        self._greetings: set[asyncio.Task[None]] = set()

    @property
    def models(self) -> dict[int, LocalModel]:
        """Those that serve, not those whose last answers are awaited."""
        return {n: model for n, model in self._models.items() if n not in self._retired}

    def add(self, number: int, model: LocalModel) -> None:
        self._models[number] = model
        self._callers[number] = set()
        self._states[number] = wire.message(Kind.STATE, state_of(model))

    def retire(self, number: int) -> None:
        """Ends a model when the last front end has left it."""
        self._retired.add(number)
        self._free(number)

    def _free(self, number: int) -> None:
        if number in self._retired and not self._callers[number]:
            self._retired.discard(number)
            del self._callers[number], self._states[number]
            self._models.pop(number).close()

    async def accept(self, listener: socket.socket) -> None:
        """Takes connections for ever."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            stream, _ = await loop.sock_accept(listener)
            greeting = loop.create_task(self._greet(stream))
            self._greetings.add(greeting)
            greeting.add_done_callback(self._greetings.discard)

    async def _greet(self, stream: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(stream, readable.set)
        await readable.wait()
        loop.remove_reader(stream)
        data, fds, _, _ = socket.recv_fds(stream, 2**16, 1)
        if not data or not fds:
            stream.close()  # It ended before it could greet.
            return
        ((_, body),) = Frames().feed(data)
        hello = wire.content(body)
        shape, number = MemoryShape(*hello["shape"]), hello["model"]
        model = self.models.get(number)
        try:
            if model is None:
                stream.close()  # The front end will hear of other models.
                return
            caller = FrontEndConnection(
                model,
                SharedMemory(fds[0], shape),
                greet=partial(self._add, number),
                forget=partial(self._leave, number),
            )
        finally:
            os.close(fds[0])
        await loop.connect_accepted_socket(lambda: caller, stream)

    def _add(self, number: int, caller: FrontEndConnection) -> None:
        if number not in self.models:
            caller.hang_up()  # It was retired this moment.
            return
        caller.tell(self._states[number])
        self._callers[number].add(caller)

    def _leave(self, number: int, caller: FrontEndConnection) -> None:
        if number in self._callers:
            self._callers[number].discard(caller)
            self._free(number)

    async def watch(self) -> None:
        """Tells every change of a model's state, which engines make in threads of their own."""
        while True:
            for number, model in self._models.items():
                state = wire.message(Kind.STATE, state_of(model))
                if state != self._states[number]:
                    self._states[number] = state
                    for caller in self._callers[number]:
                        caller.tell(state)
            await asyncio.sleep(WATCH_SECONDS)
