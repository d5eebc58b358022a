"""The process that a user starts when there are several: it starts the others and watches them.

    supervisor ─┬─ engine process      all models and devices
                ├─ front end 1         accepts, decodes, answers
                └─ front end N

One that dies is replaced. It never imports torch, and when it is killed the others end too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial

from service.config.reload import Reload
from service.config.settings import Settings
from service.config.sources import SECRETS
from service.errors import ConfigError
from service.http.listener import BACKLOG, NEW_CONNECTION_SECONDS, announce
from service.logs import set_log_level
from service.workers import shared_metrics
from service.workers.control import engine_socket
from service.workers.coordinator import Coordinator
from service.workers.occupancy import Occupancy
from service.workers.process import MARGIN_SECONDS, ChildProcess

log = logging.getLogger(__name__)
# Between a death and its replacement; who has lived for a while starts again at the first.
BACKOFF_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0)
LONG_LIFE_SECONDS = 30.0


def supervise(
    settings: Settings, listener: socket.socket, reload: Reload, request_seconds: float
) -> int:
    """Serves with several processes until a signal ends it; the exit status.

    `request_seconds`: CPU time that a request's HTTP takes; see `service.config.plan`.

    Raises:
        ConfigError: a model cannot be served.
    """
    with shared_metrics.new_folder(settings.workers + 1) as folder:
        supervisor = Supervisor(settings, listener, folder, reload, request_seconds)
        return asyncio.run(supervisor.run())


class Supervisor:
    """Starts, watches and ends the others.

    `folder` holds the metrics' files and the engine process's socket.
    """

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        folder: str,
        reload: Reload,
        request_seconds: float,
    ) -> None:
        self._settings = settings
        self._request_seconds = request_seconds
        self._reload = reload
        self._directory = Coordinator(settings.models, settings.load_timeout_s)
        self._listener = listener
        self._folder = folder
        # It outlives every engine process: who connects meanwhile waits for the next one.
        self._engine_listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._engine_listener.bind(engine_socket(folder))
        self._engine_listener.listen(BACKLOG)
        self._ledger_fd = Occupancy.allocate(settings.workers)
        self._ledger = Occupancy(self._ledger_fd, settings.workers)
        self._stopping = asyncio.Event()
        self._up: set[int] = set()
        self._engine: ChildProcess | None = None
        self._front_ends: set[ChildProcess] = set()  # those that have what they need to start
        self._children: set[ChildProcess] = set()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
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
        reloading = loop.create_task(self._reload_always())
        tasks = {stopping, engine, reloading, *front_ends}
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
            log.error("ended, but some front ends did not end cleanly: %s", statuses)
            return 1
        log.info("ended; every accepted request was answered")
        return 0

    def _stop(self, number: int) -> None:
        """Passes a signal on to the front ends, which know what a second one means."""
        self._stopping.set()
        self._listener.close()
        for child in self._front_ends:
            child.send(signal=number)

    async def _drained(self, front_ends: list[asyncio.Task[int]]) -> list[int]:
        """The front ends' statuses, once they have answered what they accepted."""
        if not self._directory.known.is_set():
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
        attend: Callable[[ChildProcess], Awaitable[None]],
    ) -> int:
        """Keeps a process running; the status of the one that lived when the service stopped."""
        attempt = 0
        while True:
            child = await ChildProcess.start(module, listener, self._folder, [self._ledger_fd])
            self._children.add(child)
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

    async def _hear(self, child: ChildProcess) -> None:
        """Starts an engine process and hears it until it ends.

        Raises:
            ConfigError: the first one cannot start.
        """
        self._engine = child
        directory = self._directory
        asked = list(directory.roster.members)
        settings = self._settings.model_copy(update={"models": directory.rows()})
        child.send(
            settings=settings.model_dump(mode="json", exclude=set(SECRETS)),
            request_seconds=self._request_seconds,
        )
        told = await child.receive() or {"error": "the engine process ended while starting"}
        if "error" in told and not directory.known.is_set():
            raise ConfigError(told["error"])
        if "error" in told:
            log.error("the engine process cannot start: %s", told["error"])
            return
        await directory.engine_started(child, asked, told["models"])
        while message := await child.receive():
            directory.hear_engine(message)
        directory.engine_ended()

    async def _instruct(self, index: int, child: ChildProcess) -> None:
        """Tells a new front end what it must know, until when it has only imported, and hears it
        until it ends."""
        directory = self._directory
        await directory.known.wait()
        if self._stopping.is_set():
            child.hang_up()
            return
        child.send(
            settings=self._settings.revealed(),
            models=directory.listed(),
            index=index,
            ledger=self._ledger_fd,
        )
        directory.join(child)
        self._front_ends.add(child)
        while message := await child.receive():
            if "up" in message:
                self._announce(index)
            else:
                await directory.hear_front_end(child, message)
        await directory.leave(child)
        await child.process.wait()
        self._ledger.clear(index)

    def _announce(self, index: int) -> None:
        """Says once that all front ends accept connections."""
        if index not in self._up:
            self._up.add(index)
            if len(self._up) == self._settings.workers:
                names = [each.name for each in self._directory.roster.members]
                encrypted = self._settings.tls_certificate is not None
                announce(names, self._listener, encrypted=encrypted)

    async def _reload_always(self) -> None:
        await self._directory.known.wait()
        await self._reload.attend(self._settings, self._directory.roster.reload, self._apply)

    def _apply(self, settings: Settings) -> None:
        """What can change while the processes run, other than the models."""
        self._settings = settings
        set_log_level(settings.log_level)
        for child in self._front_ends:
            child.send(apply=settings.revealed())
        for child in self._directory.engines():
            child.send(apply=settings.model_dump(mode="json", exclude=set(SECRETS)))
