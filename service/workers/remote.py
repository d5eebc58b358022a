"""The models as a front end sees them; the supervisor says which there are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

from models.preprocess import InputSpec
from service.config.settings import MOST_MODELS, ModelSettings
from service.errors import error_of
from service.inference.refcount import Lease
from service.metrics import Metrics
from service.workers import wire
from service.workers.engine_client import Connection, RemoteQueue
from service.workers.occupancy import Ledger
from service.workers.shared_memory import Region, Shape
from service.workers.wire import Kind

log = logging.getLogger(__name__)
RECONNECT_SECONDS = 0.1
# For the engine process to tell of a model that is new; it may just be dying.
GREETING_SECONDS = 5.0
STARTING = "the engine process is starting"


class RemoteModel:
    """What the engine process has told of a model; see `service.inference.pipeline.Model`.

    It stays connected: the connection is made again whenever it breaks. `told` is its entry in
    the supervisor's list, `index` which of the front ends this is, `path` the socket where the
    engine process listens.
    """

    def __init__(self, told: dict[str, Any], index: int, path: str, ledger: Ledger) -> None:
        settings = ModelSettings.model_validate(told["settings"])
        self.row = settings
        self.number: int = told["number"]
        self.name: str = told["name"]
        self.spec = InputSpec(**told["input"])
        self.labels: Sequence[str] = told["labels"]
        self.channels: int = told["channels"]
        self.map_side: int = told["map_side"]
        self.limit = settings.max_queue
        self.batch_share = max(1, min(settings.max_batch, settings.max_queue // 2))
        row = self.number % MOST_MODELS
        self.batcher = RemoteQueue(
            settings.max_queue,
            settings.max_queue_bytes,
            hold=partial(ledger.hold, index, row),
            total=partial(ledger.total, row),
        )
        self.lease = Lease()
        self.ready, self.reason = False, STARTING
        self.greeted = asyncio.Event()
        self._card: dict[str, Any] = told["card"]
        self._path = path
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._stay_connected())

    def close(self) -> None:
        """Leaves the engine process, which frees the model when every front end has."""
        if self._task is not None:
            self._task.cancel()

    def describe(self) -> dict[str, Any]:
        return self._card | {"reason": self.reason}

    def _update(self, state: dict[str, Any]) -> None:
        self.ready, self.reason, self._card = state["ready"], state["reason"], state["card"]
        self.greeted.set()

    async def _stay_connected(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                connection = await self._connect()
                try:
                    await connection.lost.wait()
                finally:
                    connection.close()
                if self.greeted.is_set():
                    log.warning("%s: the connection to the engine process broke", self.name)
            await asyncio.sleep(RECONNECT_SECONDS)

    def _lose(self) -> None:
        self.ready, self.reason = False, "the engine process ended; another is starting"
        self._card = self._card | {"engine": None, "state": "loading"}

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        shape = Shape(self.limit, self.spec.size, len(self.labels), self.channels, self.map_side**2)
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.setblocking(False)
        fd = Region.allocate(shape)
        try:
            await loop.sock_connect(stream, self._path)
            hello = {"model": self.number, "shape": shape}
            socket.send_fds(stream, [wire.message(Kind.HELLO, hello)], [fd])
            connection = Connection(self.batcher, Region(fd, shape), self._update, self._lose)
            await loop.create_unix_connection(lambda: connection, sock=stream)
        except BaseException:
            stream.close()
            raise
        finally:
            os.close(fd)
        return connection


class RemoteFleet:
    """All models, and the way of their changes: they are the supervisor's to make.

    `listed`: the supervisor's list of models; `send`: to the supervisor. For the rest, see
    `RemoteModel`.
    """

    def __init__(
        self,
        listed: Sequence[dict[str, Any]],
        index: int,
        path: str,
        ledger: Ledger,
        metrics: Metrics,
        send: Callable[..., None],
    ) -> None:
        self._make = partial(RemoteModel, index=index, path=path, ledger=ledger)
        self._metrics = metrics
        self._send = send
        self._asked: dict[int, asyncio.Future[bool]] = {}
        self._questions = count()
        self._turn = asyncio.Lock()
        self._adopting: set[asyncio.Task[None]] = set()
        self.models: dict[str, RemoteModel] = {}
        self._serve([self._make(told) for told in listed])

    def start(self) -> None:
        for model in self.models.values():
            model.start()

    def dead(self) -> dict[str, str]:
        """Nothing: an engine process that is lost ends, and another takes its place."""
        return {}

    def close(self, timeout: float) -> bool:
        """Nothing computes in this process."""
        return True

    async def put(self, row: ModelSettings) -> bool:
        return await self._ask(put=row.model_dump(mode="json"))

    async def delete(self, name: str) -> None:
        await self._ask(delete=name)

    async def _ask(self, **change: Any) -> bool:
        number = next(self._questions)
        self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(question=number, **change)
            return await self._asked[number]
        finally:
            del self._asked[number]

    def hear(self, message: dict[str, Any]) -> None:
        """What the supervisor says: the answer to a question, or a list of other models."""
        if "models" in message:
            adopting = asyncio.get_running_loop().create_task(self._adopt(**message))
            self._adopting.add(adopting)
            adopting.add_done_callback(self._adopting.discard)
            return
        asked = self._asked.get(message["answer"])
        if asked is None or asked.done():
            return  # Who asked has been cancelled.
        if "refusal" in message:
            asked.set_exception(error_of(message["refusal"]))
        else:
            asked.set_result(message["created"])

    async def _adopt(self, models: list[dict[str, Any]], version: int) -> None:
        async with self._turn:
            present = {model.number: model for model in self.models.values()}
            listed = [present.get(told["number"]) or self._make(told) for told in models]
            fresh = [model for model in listed if model.number not in present]
            for model in fresh:
                model.start()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GREETING_SECONDS):
                    for model in fresh:
                        await model.greeted.wait()
            self._serve(listed)
        self._send(version=version)

    def _serve(self, listed: Sequence[RemoteModel]) -> None:
        """From now on requests find these models; others end with their last request."""
        before, self.models = self.models, {model.name: model for model in listed}
        for name in before.keys() - self.models.keys():
            self._metrics.unwatch_model(name)
        for name, model in self.models.items():
            if before.get(name) is not model:
                self._watch(model)
        for name, model in before.items():
            if self.models.get(name) is not model:
                model.lease.retire(model.close)

    def _watch(self, model: RemoteModel) -> None:
        self._metrics.watch_model(
            model.name,
            (),
            model.limit,
            depth=lambda: model.batcher.depth,
            ready=lambda: model.ready,
        )
