"""The process that has all models and devices, and answers what the front ends submit.

`python -m service.engine_process LINE LISTENER FOLDER`, started by `service.supervisor`: numbers
of inherited file descriptors, and the folder that all processes share.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, cast

import uvloop

from service import exchange, interpreter
from service.batcher import Job
from service.control import Line
from service.errors import Busy, QueueFull, ServiceError
from service.exchange import Answer, Frames, Kind, Region, Shape, Submit
from service.fleet import Fleet, Model
from service.logs import log_to_stderr
from service.pipeline import RETRY_SECONDS, Pixels
from service.ranking import Row
from service.settings import Settings
from service.shared_metrics import SharedMetrics

log = logging.getLogger(__name__)
WATCH_SECONDS = 0.1
LOST_STATUS = 70  # sysexits.h: EX_SOFTWARE


class Caller(asyncio.Protocol):
    """The connection of one front end.

    Results are written by the event loop, and only while the connection lives, to memory that is
    this connection's alone.
    """

    def __init__(
        self,
        models: Sequence[Model],
        region: Region,
        *,
        greet: Callable[[Caller], None],
        forget: Callable[[Caller], None],
    ) -> None:
        self._greet = greet
        self._forget = forget
        self._models = models
        self._region = region
        self._frames = Frames()
        self._jobs: dict[int, tuple[Model, Job[Pixels, Row]]] = {}
        self._answers = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's are no subclasses
        self._greet(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._forget(self)
        for _, job in list(self._jobs.values()):
            job.future.cancel()

    def tell(self, state: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(state)

    def data_received(self, data: bytes) -> None:
        for kind, body in self._frames.feed(data):
            if kind is Kind.SUBMIT:
                for submitted in exchange.submits(body):
                    self._submit(submitted)
            elif kind is Kind.WITHDRAW:
                for number in exchange.withdrawals(body):
                    self._withdraw(number)

    def _submit(self, submitted: Submit) -> None:
        model = self._models[submitted.model]
        pixels = self._region.pixels[submitted.model][submitted.slot]
        try:
            job = model.batcher.admit(pixels.nbytes)
        except QueueFull as error:
            self._refuse(submitted.job, error)
            return
        job.admitted = submitted.admitted
        self._jobs[submitted.job] = (model, job)
        job.future.add_done_callback(lambda future: self._finish(submitted, future))
        model.batcher.submit(job, pixels, pixels.nbytes)

    def _withdraw(self, number: int) -> None:
        model, job = self._jobs.get(number, (None, None))
        # An engine may be reading the slot of a job that computes: it is answered as all others.
        if model is not None and job is not None and model.batcher.withdraw(job):
            job.future.cancel()

    def _finish(self, submitted: Submit, future: asyncio.Future[Row]) -> None:
        model, job = self._jobs.pop(submitted.job)
        if self._transport.is_closing():
            return
        if not future.cancelled() and (error := future.exception()) is not None:
            self._refuse(submitted.job, error)
            return
        if not future.cancelled():
            row = self._region.rows[submitted.model][submitted.slot]
            exchange.write_row(row, future.result())
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._flush)
        size = 0 if future.cancelled() else job.batch_size
        self._answers += exchange.ANSWER.pack(
            *Answer(submitted.job, job.started, job.finished, size, model.batcher.seconds_per_job)
        )

    def _refuse(self, number: int, error: BaseException) -> None:
        reason = error.reason if isinstance(error, ServiceError) else ServiceError.reason
        wait = error.retry_after if isinstance(error, Busy) else RETRY_SECONDS
        self.tell(exchange.message(Kind.REFUSAL, [number, reason, str(error), wait]))

    def _flush(self) -> None:
        self.tell(exchange.frame(Kind.ANSWER, bytes(self._answers)))
        self._answers.clear()


class Exchange:
    """All front ends, and what they are told of the models."""

    def __init__(self, models: Sequence[Model]) -> None:
        self._models = models
        self._callers: set[Caller] = set()
        self._greetings: set[asyncio.Task[None]] = set()
        self._state = b""

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
        slots = exchange.content(body)["slots"]
        shapes = [
            Shape(count, model.spec.size, len(model.labels))
            for count, model in zip(slots, self._models, strict=True)
        ]
        caller = Caller(
            self._models,
            Region(fds[0], shapes),
            greet=self._add,
            forget=self._callers.discard,
        )
        os.close(fds[0])
        await loop.connect_accepted_socket(lambda: caller, stream)

    def _add(self, caller: Caller) -> None:
        caller.tell(self._state)
        self._callers.add(caller)

    async def watch(self) -> None:
        """Tells every change of a model's state, which engines make in threads of their own."""
        while True:
            state = exchange.message(Kind.STATE, {"models": [state_of(m) for m in self._models]})
            if state != self._state:
                self._state = state
                for caller in self._callers:
                    caller.tell(state)
            await asyncio.sleep(WATCH_SECONDS)


def state_of(model: Model) -> dict[str, Any]:
    return {"ready": model.ready, "reason": model.reason, "card": model.describe()}


def facts_of(model: Model) -> dict[str, Any]:
    """What a front end must know of a model to decode for it, as JSON can hold it."""
    return {
        "name": model.name,
        "input": asdict(model.spec),
        "labels": list(model.labels),
        "card": model.describe(),
    }


async def leave_when_lost(fleet: Fleet) -> None:
    """Ends the process, for another to take its place, when an engine cannot recover in it."""
    while not (reasons := fleet.dead()):  # noqa: ASYNC110 - engines are no coroutines
        await asyncio.sleep(WATCH_SECONDS)
    for name, reason in reasons.items():
        log.critical("%s: %s; this process ends", name, reason)
    await asyncio.sleep(WATCH_SECONDS)  # Who waits is told first.
    logging.shutdown()
    # A thread that hangs inside native code would keep it from ending in order.
    os._exit(LOST_STATUS)


async def serve(fleet: Fleet, listener: socket.socket, metrics: SharedMetrics) -> None:
    interpreter.tune()
    fleet.start()
    exchanging = Exchange(list(fleet.models.values()))
    await asyncio.gather(
        exchanging.accept(listener),
        exchanging.watch(),
        metrics.keep_fresh(),
        leave_when_lost(fleet),
    )


def main(line_fd: int, listener_fd: int, folder: str) -> None:
    line = Line(line_fd, folder)
    settings = Settings.model_validate(line.receive()["settings"])
    log_to_stderr(settings.log_level, settings.log_format)
    try:
        metrics = SharedMetrics(folder, with_parent=True)
        fleet = Fleet(settings, metrics)
    except (ValueError, OSError, ArithmeticError) as error:  # What `serve` says in one line.
        line.send(error=str(error))
        return
    line.send(models=[facts_of(model) for model in fleet.models.values()])
    line.follow(lambda _: None)
    uvloop.run(serve(fleet, socket.socket(fileno=listener_fd), metrics))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
