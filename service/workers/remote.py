"""The models of a front end, whose engines run in the engine process."""

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
from service.inference.pace import Load
from service.inference.pipeline import decode_and_queue
from service.inference.ranking import Row
from service.inference.refcount import RefCount
from service.inference.tasks import Pixels
from service.metrics import Metrics
from service.workers import wire
from service.workers.control import Message
from service.workers.engine_client import EngineConnection, SlotQueue
from service.workers.occupancy import Occupancy
from service.workers.shared_memory import MemoryShape, SharedMemory
from service.workers.wire import Kind

log = logging.getLogger(__name__)
RECONNECT_SECONDS = 0.1
# For the engine process to send a new model's state; it may be dying.
STATE_SECONDS = 5.0
STARTING = "the engine process is starting"


@dataclass(frozen=True, slots=True)
class FrontEndResources:
    """Resources that the models of a front end share: `index` is the front end's own, `path` the
    socket on which the engine process listens."""

    index: int
    path: str
    occupancy: Occupancy
    decoder: Decoder


class RemoteModel:
    """A model whose engines run in the engine process; see `service.inference.interfaces.Model`.

    It reconnects whenever its connection breaks. `facts` come from the supervisor.
    """

    def __init__(self, facts: dict[str, Any], resources: FrontEndResources) -> None:
        settings = ModelSettings.model_validate(facts["settings"])
        self.settings = settings
        self.number: int = facts["number"]
        self.name: str = facts["name"]
        self.input = InputSpec(**facts["input"])
        self.labels: Sequence[str] = facts["labels"]
        self.channels: int = facts["channels"]
        self.map_side: int = facts["map_side"]
        self.batch_share = batch_share(settings)
        index, occupancy = self.number % MOST_MODELS, resources.occupancy
        self._decoder = resources.decoder
        self.queue = SlotQueue(
            settings.max_queue,
            settings.max_queue_bytes,
            hold=partial(occupancy.hold, resources.index, index),
            total=partial(occupancy.total, index),
        )
        self.users = RefCount()
        self.entering = 0
        self.ready, self.reason = False, STARTING
        self.has_state = asyncio.Event()
        self._card: dict[str, Any] = facts["card"]
        self._batch_ms: dict[str, float] = {}
        self._path = resources.path
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._stay_connected())

    def close(self) -> None:
        """Disconnects; the engine process frees a retired model without connections."""
        if self._task is not None:
            self._task.cancel()

    def describe(self) -> dict[str, Any]:
        return self._card | {"reason": self.reason}

    def check(self, load: Load) -> None:
        self.queue.check(load=load)

    async def compute(
        self, image: bytes | Pixels, job: Job[Pixels, Row], deadline: float
    ) -> Computed:
        return await decode_and_queue(self, self._decoder, self.queue, image, job, deadline)

    def _on_state(self, state: dict[str, Any]) -> None:
        measured = state["card"].get("batch_ms")
        if measured and measured != self._batch_ms:
            self._batch_ms = measured
            self.queue.pace.measured({int(size): ms / 1000 for size, ms in measured.items()})
        self.ready, self.reason, self._card = state["ready"], state["reason"], state["card"]
        self.has_state.set()

    async def _stay_connected(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                connection = await self._connect()
                try:
                    await connection.lost.wait()
                finally:
                    connection.close()
                if self.has_state.is_set():
                    log.warning("%s: lost the connection to the engine process", self.name)
            await asyncio.sleep(RECONNECT_SECONDS)

    def _on_lost(self) -> None:
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
                self.queue, SharedMemory(fd, shape), self._on_state, self._on_lost
            )
            await loop.create_unix_connection(lambda: connection, sock=stream)
        except BaseException:
            stream.close()
            raise
        finally:
            os.close(fd)
        return connection


class RemoteRepository:
    """All models; the supervisor makes the changes that clients request.

    `facts`: those of the models at the start; `send`: sends a message to the supervisor.
    """

    def __init__(
        self,
        facts: Sequence[dict[str, Any]],
        resources: FrontEndResources,
        metrics: Metrics,
        send: Callable[..., None],
    ) -> None:
        self._resources = resources
        self._metrics = metrics
        self._send = send
        self._responses: dict[int, asyncio.Future[bool]] = {}
        self._numbers = count()
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.models: dict[str, RemoteModel] = {}
        self._serve([RemoteModel(model_facts, resources) for model_facts in facts])

    def start(self) -> None:
        for model in self.models.values():
            model.start()

    def dead(self) -> dict[str, str]:
        """Empty: an engine process with a lost engine exits, and the supervisor replaces it."""
        return {}

    def close(self, timeout: float) -> bool:
        """True: no engine runs in this process."""
        self._resources.decoder.close()
        return True

    async def put(self, settings: ModelSettings) -> bool:
        return await self._request(put=settings.model_dump(mode="json"))

    async def delete(self, name: str) -> None:
        await self._request(delete=name)

    async def _request(self, **change: Any) -> bool:
        number = next(self._numbers)
        self._responses[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(request=number, **change)
            return await self._responses[number]
        finally:
            del self._responses[number]

    def on_message(self, message: Message) -> None:
        """Handles a message of the supervisor: a response, or other models."""
        if "models" in message:
            task = asyncio.get_running_loop().create_task(self._replace(**message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        response = self._responses.get(message["response"])
        if response is None or response.done():
            return  # The request has been cancelled.
        if "refusal" in message:
            response.set_exception(error_of(message["refusal"]))
        else:
            response.set_result(message["created"])

    async def _replace(self, models: list[dict[str, Any]], version: int) -> None:
        async with self._lock:
            present = {model.number: model for model in self.models.values()}
            replacement = [
                present.get(facts["number"]) or RemoteModel(facts, self._resources)
                for facts in models
            ]
            new = [model for model in replacement if model.number not in present]
            for model in new:
                model.start()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATE_SECONDS):
                    for model in new:
                        await model.has_state.wait()
            self._serve(replacement)
        self._send(version=version)

    def _serve(self, models: Sequence[RemoteModel]) -> None:
        """Serves these models from now on; each of the others ends with its last request."""
        previous, self.models = self.models, {model.name: model for model in models}
        for name in previous.keys() - self.models.keys():
            self._metrics.unwatch_model(name)
        for name, model in self.models.items():
            if previous.get(name) is not model:
                self._watch(model)
        for name, model in previous.items():
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
