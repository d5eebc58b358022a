"""The process that a user starts when there are several: it starts the others and watches them.

    supervisor ─┬─ engine process      all models and devices
                ├─ front end 1         accepts, decodes, answers
                └─ front end N

One that dies is replaced. It never imports torch, and when it is killed the others end too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from service import shared_metrics
from service.control import encode, engine_socket
from service.errors import ConfigError
from service.ledger import Ledger
from service.listener import NEW_CONNECTION_SECONDS, announce
from service.settings import SECRETS, Settings, environment

log = logging.getLogger(__name__)
# Between a death and its replacement; who has lived for a while starts again at the first.
BACKOFF_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0)
LONG_LIFE_SECONDS = 30.0
MARGIN_SECONDS = 5.0
MAX_MESSAGE = 2**26


def supervise(settings: Settings, listener: socket.socket) -> int:
    """Serves with several processes until a signal ends it; the exit status.

    Raises:
        ConfigError: a model cannot be served.
    """
    with shared_metrics.new_folder(settings.workers + 1) as folder:
        return asyncio.run(Supervisor(settings, listener, folder).run())


class Child:
    """A started process and this end of its line."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self.started = time.monotonic()
        self._reader = reader
        self._writer = writer

    def send(self, **message: Any) -> None:
        self._writer.write(encode(message))

    async def receive(self) -> dict[str, Any] | None:
        """Its next message; None if it ended first."""
        with contextlib.suppress(ConnectionError):
            if text := await self._reader.readline():
                received: dict[str, Any] = json.loads(text)
                return received
        return None

    def hang_up(self) -> None:
        """Tells it to end at once."""
        self._writer.close()

    async def end(self) -> None:
        """Hangs up, and sees to it that it ends."""
        self.hang_up()
        try:
            await asyncio.wait_for(self.process.wait(), MARGIN_SECONDS)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


class Supervisor:
    """Starts, watches and ends the others.

    `folder` holds the metrics' files and the engine process's socket.
    """

    def __init__(self, settings: Settings, listener: socket.socket, folder: str) -> None:
        self._settings = settings
        self._listener = listener
        self._folder = folder
        # It outlives every engine process: who connects meanwhile waits for the next one.
        self._engine_listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._engine_listener.bind(engine_socket(folder))
        self._engine_listener.listen(2 * settings.workers)
        size = (settings.workers, len(settings.models))
        self._ledger_fd = Ledger.allocate(*size)
        self._ledger = Ledger(self._ledger_fd, *size)
        self._stopping = asyncio.Event()
        self._known: asyncio.Future[list[dict[str, Any]]]  # what the engine told of its models
        self._up: set[int] = set()
        self._engine: Child | None = None
        self._front_ends: set[Child] = set()  # those that have what they need to start
        self._children: set[Child] = set()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        self._known = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        stopping = loop.create_task(self._stopping.wait())
        engine = loop.create_task(
            self._keep("the engine process", "engine_process", self._engine_listener, self._hear)
        )
        front_ends = [
            loop.create_task(
                self._keep(
                    f"front end {index + 1}",
                    "front_end",
                    self._listener,
                    partial(self._instruct, index),
                )
            )
            for index in range(self._settings.workers)
        ]
        tasks = {stopping, engine, *front_ends}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            # Where each process gets the signal, one that still starts may have died of it.
            if not self._stopping.is_set():
                for task in done:
                    task.result()  # Raises what was wrong.
            statuses = await self._drained(front_ends)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # The engine process is last, when nobody waits for its answers.
            for child in sorted(self._children, key=lambda child: child is self._engine):
                await child.end()
        if any(statuses):
            log.error("ended, but not every front end did so in order: %s", statuses)
            return 1
        log.info("ended; everything accepted was answered")
        return 0

    def _stop(self, number: int) -> None:
        """Passes a signal on to the front ends, which know what a second one means."""
        self._stopping.set()
        self._listener.close()
        for child in self._front_ends:
            child.send(signal=number)

    async def _drained(self, front_ends: list[asyncio.Task[int]]) -> list[int]:
        """The front ends' statuses, once they have answered what they accepted."""
        if not self._known.done():
            return []
        patience = (
            self._settings.shutdown_grace_s
            + NEW_CONNECTION_SECONDS
            + self._settings.shutdown_timeout_s
            + MARGIN_SECONDS
        )
        done, late = await asyncio.wait(front_ends, timeout=patience)
        return [task.result() for task in done] + [1] * len(late)

    async def _keep(
        self,
        name: str,
        module: str,
        listener: socket.socket,
        attend: Callable[[Child], Awaitable[None]],
    ) -> int:
        """Keeps a process running; the status of the one that lived when the service stopped."""
        attempt = 0
        while True:
            child = await self._start(module, listener)
            await attend(child)
            status = await child.process.wait()
            child.hang_up()
            self._children.discard(child)
            self._front_ends.discard(child)
            shared_metrics.forget(self._folder, child.process.pid)
            if self._stopping.is_set():
                return status
            attempt = 0 if time.monotonic() > child.started + LONG_LIFE_SECONDS else attempt
            delay = BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)]
            attempt += 1
            log.error(
                "%s (%d) ended with status %d; another starts in %g s",
                name,
                child.process.pid,
                status,
                delay,
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
                return 0

    async def _start(self, module: str, listener: socket.socket) -> Child:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # What lies in the working directory is none of ours.
                "-m",
                f"service.{module}",
                *(str(fd) for fd in (theirs.fileno(), listener.fileno())),
                self._folder,
                pass_fds=(theirs.fileno(), listener.fileno(), self._ledger_fd),
                env=environment(
                    PYTHONPATH=os.pathsep.join(sys.path), PROMETHEUS_MULTIPROC_DIR=self._folder
                ),
                start_new_session=True,
            )
        child = Child(process, *await asyncio.open_connection(sock=ours, limit=MAX_MESSAGE))
        self._children.add(child)
        return child

    async def _hear(self, child: Child) -> None:
        """Learns from a new engine process what the front ends must know.

        Raises:
            ConfigError: the first one cannot start, or a later one has other models.
        """
        self._engine = child
        child.send(settings=self._settings.model_dump(mode="json", exclude=set(SECRETS)))
        told = await child.receive() or {"error": "the engine process ended while it started"}
        if "error" in told and self._known.done():
            log.error("the engine process cannot start: %s", told["error"])
        elif "error" in told:
            raise ConfigError(told["error"])
        elif not self._known.done():
            self._known.set_result(told["models"])
        else:
            for before, now in zip(self._known.result(), told["models"], strict=True):
                if any(before[key] != now[key] for key in ("name", "input", "labels")):
                    raise ConfigError(f"{before['name']} has changed since the start; start again")

    async def _instruct(self, index: int, child: Child) -> None:
        """Tells a new front end what it must know; until then it has only imported."""
        models = await asyncio.shield(self._known)
        if self._stopping.is_set():
            child.hang_up()
            return
        child.send(
            settings=self._settings.revealed(), models=models, index=index, ledger=self._ledger_fd
        )
        self._front_ends.add(child)
        if await child.receive() and index not in self._up:
            self._up.add(index)
            if len(self._up) == self._settings.workers:
                names = [model["name"] for model in models]
                encrypted = self._settings.tls_certificate is not None
                announce(names, self._listener, encrypted=encrypted)
        await child.process.wait()
        self._ledger.clear(index)
