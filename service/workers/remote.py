"""The models as a front end sees them; the supervisor says which there are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from models.preprocess import InputSpec
from service.config.settings import MOST_MODELS, ModelSettings
from service.errors import error_of
from service.inference.batcher import Job
from service.inference.decoding import Decoder
from service.inference.interfaces import Computed, batch_share
from service.inference.pipeline import decode_and_queue
from service.inference.ranking import Row
from service.inference.refcount import RefCount
from service.inference.tasks import Pixels
from service.metrics import Metrics
from service.workers import wire
from service.workers.engine_client import EngineConnection, SlotQueue
from service.workers.occupancy import Occupancy
from service.workers.shared_memory import MemoryShape, SharedMemory
from service.workers.wire import Kind

log = logging.getLogger(__name__)
RECONNECT_SECONDS = 0.1
# For the engine process to tell of a model that is new; it may just be dying.
GREETING_SECONDS = 5.0
STARTING = "the engine process is starting"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the models of a front end share: `index` says which of the front ends it is, `path` is
    the socket where the engine process listens."""

    index: int
    path: str
    occupancy: Occupancy
    decoder: Decoder


class RemoteModel:
    """A model whose engines run in the engine process; see `service.inference.interfaces.Model`.

    It stays connected: the connection is made again whenever it breaks. `told` is its entry in
    the supervisor's list.
    """

    def __init__(self, told: dict[str, Any], shared: Surroundings) -> None:
        settings = ModelSettings.model_validate(told["settings"])
        self.settings = settings
        self.number: int = told["number"]
        self.name: str = told["name"]
        self.input = InputSpec(**told["input"])
        self.labels: Sequence[str] = told["labels"]
        self.channels: int = told["channels"]
        self.map_side: int = told["map_side"]
        self.batch_share = batch_share(settings)
        row = self.number % MOST_MODELS
        self._decoder = shared.decoder
        self.queue = SlotQueue(
            settings.max_queue,
            settings.max_queue_bytes,
            hold=partial(shared.occupancy.hold, shared.index, row),
            total=partial(shared.occupancy.total, row),
        )
        self.users = RefCount()
        self.ready, self.reason = False, STARTING
        self.greeted = asyncio.Event()
        self._card: dict[str, Any] = told["card"]
        self._path = shared.path
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._stay_connected())

    def close(self) -> None:
        """Leaves the engine process, which frees the model when every front end has."""
        if self._task is not None:
            self._task.cancel()

    def describe(self) -> dict[str, Any]:
        return self._card | {"reason": self.reason}

    def check(self, within: float) -> None:
        self.queue.check(within=within)

    async def compute(
        self, image: bytes | Pixels, job: Job[Pixels, Row], deadline: float
    ) -> Computed:
        return await decode_and_queue(self, self._decoder, self.queue, image, job, deadline)

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

    async def _connect(self) -> EngineConnection:
        loop = asyncio.get_running_loop()
        shape = MemoryShape(
            self.settings.max_queue,
            self.input.size,
            len(self.labels),
            self.channels,
            self.map_side**2,
        )
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.setblocking(False)
        fd = SharedMemory.allocate(shape)
        try:
            await loop.sock_connect(stream, self._path)
            hello = {"model": self.number, "shape": shape}
            socket.send_fds(stream, [wire.message(Kind.HELLO, hello)], [fd])
            connection = EngineConnection(
                self.queue, SharedMemory(fd, shape), self._update, self._lose
            )
            await loop.create_unix_connection(lambda: connection, sock=stream)
        except BaseException:
            stream.close()
            raise
        finally:
            os.close(fd)
        return connection


class RemoteRepository:
    """All models, and the way of their changes: they are the supervisor's to make.

    `listed`: the supervisor's list of models; `send`: to the supervisor.
    """

    def __init__(
        self,
        listed: Sequence[dict[str, Any]],
        shared: Surroundings,
        metrics: Metrics,
        send: Callable[..., None],
    ) -> None:
        self._shared = shared
        self._metrics = metrics
        self._send = send
        self._asked: dict[int, asyncio.Future[bool]] = {}
        self._questions = count()
        self._turn = asyncio.Lock()
        self._adopting: set[asyncio.Task[None]] = set()
        self.models: dict[str, RemoteModel] = {}
        self._serve([RemoteModel(told, shared) for told in listed])

    def start(self) -> None:
        for model in self.models.values():
            model.start()

    def dead(self) -> dict[str, str]:
        """Nothing: an engine process that is lost ends, and another takes its place."""
        return {}

    def close(self, timeout: float) -> bool:
        """No engine computes in this process."""
        self._shared.decoder.close()
        return True

    async def put(self, settings: ModelSettings) -> bool:
        return await self._ask(put=settings.model_dump(mode="json"))

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
            listed = [
                present.get(told["number"]) or RemoteModel(told, self._shared) for told in models
            ]
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
                model.users.retire(model.close)

    def _watch(self, model: RemoteModel) -> None:
        self._metrics.watch_model(
            model.name,
            (),
            model.settings.max_queue,
            depth=lambda: model.queue.depth,
            ready=lambda: model.ready,
        )
