"""A model of a front end, whose engines run in the engine process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from models.preprocess import InputSpec
from service import runtime
from service.config.settings import MOST_MODELS, Limits, ModelSettings
from service.inference.decoding import Decoder
from service.inference.interfaces import Computed, batch_share
from service.inference.jobs import Job
from service.inference.pace import Load
from service.inference.pipeline import decode_and_queue
from service.inference.ranking import Row
from service.inference.refcount import RefCount
from service.inference.tasks import ImageInput, Pixels
from service.workers import wire
from service.workers.engine_client import EngineConnection, SlotQueue
from service.workers.heartbeat import Heartbeats
from service.workers.occupancy import Occupancy
from service.workers.shared_memory import MemoryShape, SharedMemory
from service.workers.wire import Kind

log = logging.getLogger(__name__)
RECONNECT_SECONDS = 0.1
STARTING = "the engine process is starting"
NO_RESPONSE = "the engine process does not respond"


@dataclass(frozen=True, slots=True)
class FrontEndResources:
    """Resources that the models of a front end share.

    `index`: the front end's own; `path`: the socket on which the engine process listens;
    `patience`: seconds after which a silent process counts as frozen.
    """

    index: int
    path: str
    occupancy: Occupancy
    heartbeats: Heartbeats
    patience: float
    decoder: Decoder


class RemoteModel:
    """A model whose engines run in the engine process; see `service.inference.interfaces.Model`.

    It reconnects whenever its connection breaks. `facts` come from the supervisor.
    """

    def __init__(self, facts: dict[str, Any], resources: FrontEndResources) -> None:
        settings = ModelSettings.model_validate(facts["settings"])
        self.settings = settings
        self.limits = Limits(*facts["limits"])
        self.number: int = facts["number"]
        self.name: str = facts["name"]
        self.input = InputSpec(**facts["input"])
        self.labels: Sequence[str] = facts["labels"]
        self.channels: int = facts["channels"]
        self.map_side: int = facts["map_side"]
        self.batch_share = batch_share(self.limits)
        index, occupancy = self.number % MOST_MODELS, resources.occupancy
        self._decoder = resources.decoder
        self.queue = SlotQueue(
            self.limits.max_queue,
            settings.max_queue_bytes,
            hold=partial(occupancy.hold, resources.index, index),
            total=partial(occupancy.total, index),
        )
        self.users = RefCount()
        self.entering = 0
        self.silent = False  # as the engine process is
        self.has_state = asyncio.Event()
        self._ready, self._reason = False, STARTING
        self._card: dict[str, Any] = facts["card"]
        self._batch_ms: dict[str, float] = {}
        self._path = resources.path
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = runtime.essential(self._stay_connected(), f"the connection of {self.name}")

    def close(self) -> None:
        """Disconnects; the engine process frees a retired model without connections."""
        if self._task is not None:
            self._task.cancel()

    @property
    def ready(self) -> bool:
        return self._ready and not self.silent

    @property
    def reason(self) -> str:
        """Why the model is not ready; empty if it is."""
        return NO_RESPONSE if self._ready and self.silent else self._reason

    def describe(self) -> dict[str, Any]:
        return self._card | {"reason": self.reason}

    def check(self, load: Load) -> None:
        self.queue.check(load=load)

    async def compute(
        self, image: bytes | Pixels, job: Job[ImageInput, Row], deadline: float
    ) -> Computed:
        on_device = self._card.get("decode") == "device"
        return await decode_and_queue(
            self, self._decoder, self.queue, image, job, deadline, on_device=on_device
        )

    def _on_state(self, state: dict[str, Any]) -> None:
        measured = state["card"].get("batch_ms")
        if measured and measured != self._batch_ms:
            self._batch_ms = measured
            self.queue.pace.measured({int(size): ms / 1000 for size, ms in measured.items()})
        self._ready, self._reason, self._card = state["ready"], state["reason"], state["card"]
        self.has_state.set()

    async def _stay_connected(self) -> None:
        while True:
            try:
                connection = await self._connect()
            # A model that cannot be reached says so and is tried again, whatever the reason.
            except Exception as error:  # noqa: BLE001
                self._cannot_connect(error)
            else:
                try:
                    await connection.lost.wait()
                finally:
                    connection.close()
                if self.has_state.is_set():
                    log.warning("%s: lost the connection to the engine process", self.name)
            await asyncio.sleep(RECONNECT_SECONDS)

    def _cannot_connect(self, error: Exception) -> None:
        why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        reason = f"cannot connect to the engine process: {why}"
        if reason != self._reason:  # Else it has been logged.
            self._reason = reason
            log.error("%s: %s", self.name, reason)

    def _on_lost(self) -> None:
        self._ready, self._reason = False, "the engine process ended; another is starting"
        self._card = self._card | {"engine": None, "state": "loading"}

    async def _connect(self) -> EngineConnection:
        loop = asyncio.get_running_loop()
        shape = MemoryShape(
            self.limits.max_queue,
            self.input.size,
            len(self.labels),
            self.channels,
            self.map_side**2,
        )
        with (
            os.fdopen(SharedMemory.allocate(shape), "rb") as memory,
            contextlib.ExitStack() as undo,
        ):
            region = SharedMemory(memory.fileno(), shape)
            stream = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            stream.setblocking(False)
            await loop.sock_connect(stream, self._path)
            hello = wire.message(Kind.HELLO, {"model": self.number, "shape": shape})
            socket.send_fds(stream, [hello], [memory.fileno()])
            connection = EngineConnection(self.queue, region, self._on_state, self._on_lost)
            await loop.create_unix_connection(lambda: connection, sock=stream)
            undo.pop_all()
        return connection
