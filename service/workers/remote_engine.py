"""A front end's connection to a model's engine on one device, made anew whenever it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from typing import Any

from service import runtime
from service.workers import wire
from service.workers.control import engine_socket
from service.workers.engine_client import EngineConnection, EngineState, SlotQueue
from service.workers.shared_memory import MemoryShape, SharedMemory
from service.workers.wire import Kind

log = logging.getLogger(__name__)
RECONNECT_SECONDS = 0.1


class RemoteEngine:
    """A model's engine in the engine process of one device.

    `has_state`: the process has responded since the model came; `card`: see
    `service.inference.interfaces.Model.describe`.
    """

    def __init__(self, model: str, number: int, device: str, state: EngineState) -> None:
        self.device = device
        self.state = state
        self.has_state = asyncio.Event()
        self.card: dict[str, Any] = {}
        self._reason = f"{state.process} is starting"
        self._model = model
        self._number = number
        self._batch_ms: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self, queue: SlotQueue, shape: MemoryShape, folder: str) -> None:
        """Connects for as long as the model serves; `shape` is that of each region."""
        path = engine_socket(folder, self.state.index)
        self._task = runtime.essential(
            self._stay_connected(queue, shape, path),
            f"the connection of {self._model} to {self.state.process}",
        )

    def close(self) -> None:
        """Disconnects; the engine process frees a retired model without connections."""
        if self._task is not None:
            self._task.cancel()

    @property
    def reason(self) -> str:
        """Why the engine does not serve; empty if it does."""
        if self.state.ready and self.state.silent:
            return f"{self.state.process} does not respond"
        return self._reason

    def _on_state(self, state: dict[str, Any]) -> None:
        measured = state["card"].get("batch_ms")
        if measured and measured != self._batch_ms:
            self._batch_ms = measured
            self.state.pace.measured({int(size): ms / 1000 for size, ms in measured.items()})
        self.state.ready, self._reason, self.card = state["ready"], state["reason"], state["card"]
        self.has_state.set()

    async def _stay_connected(self, queue: SlotQueue, shape: MemoryShape, path: str) -> None:
        while True:
            try:
                connection = await self._connect(queue, shape, path)
            # A model that cannot be reached says so and is tried again, whatever the reason.
            except Exception as error:  # noqa: BLE001
                self._cannot_connect(error)
            else:
                try:
                    await connection.lost.wait()
                finally:
                    connection.close()
                if self.has_state.is_set():
                    log.warning("%s: lost the connection to %s", self._model, self.state.process)
            await asyncio.sleep(RECONNECT_SECONDS)

    def _cannot_connect(self, error: Exception) -> None:
        why = getattr(error, "strerror", None) or str(error) or "it closed the connection"
        reason = f"cannot connect to {self.state.process}: {why}"
        if reason != self._reason:  # Else it has been logged.
            self._reason = reason
            log.error("%s: %s", self._model, reason)

    def _on_lost(self) -> None:
        self.state.ready = False
        self._reason = f"{self.state.process} ended; another is starting"
        self.card = self.card | {"engine": None, "state": "loading"}

    async def _connect(self, queue: SlotQueue, shape: MemoryShape, path: str) -> EngineConnection:
        loop = asyncio.get_running_loop()
        with (
            os.fdopen(SharedMemory.allocate(shape), "rb") as memory,
            contextlib.ExitStack() as undo,
        ):
            region = SharedMemory(memory.fileno(), shape)
            stream = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            stream.setblocking(False)
            await loop.sock_connect(stream, path)
            hello = wire.message(Kind.HELLO, {"model": self._number, "shape": shape})
            socket.send_fds(stream, [hello], [memory.fileno()])
            connection = EngineConnection(queue, self.state, region, self._on_state, self._on_lost)
            await loop.create_unix_connection(lambda: connection, sock=stream)
            undo.pop_all()
        return connection
