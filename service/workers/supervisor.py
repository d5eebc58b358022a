"""The parent process of `--workers N`: it starts and watches the others.

    supervisor ─┬─ engine process      all models and devices
                ├─ front end 1         accepts, decodes, responds
                └─ front end N

It replaces a process that dies. It never imports torch, and if it is killed the others exit too.
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
from service.runtime import essential
from service.workers import shared_metrics
from service.workers.control import engine_socket
from service.workers.coordinator import Coordinator
from service.workers.heartbeat import (
    BEAT_SECONDS,
    ENGINE,
    FRONT_ENDS,
    SUPERVISOR,
    Heartbeats,
    patience,
)
from service.workers.occupancy import Occupancy
from service.workers.process import MARGIN_SECONDS, ChildProcess, Role

log = logging.getLogger(__name__)
# Delays before restarts; a process that has lived long starts again at the first.
BACKOFF_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0)
LONG_LIFE_SECONDS = 30.0


def supervise(
    settings: Settings, listener: socket.socket, reload: Reload, request_seconds: float
) -> int:
    """Serves with several processes until a signal; returns the exit status.

    `request_seconds`: CPU time that a request's HTTP takes; see `service.config.plan`.

    Raises:
        ConfigError: a model cannot be served, or there is no space for the shared files.
    """
    return asyncio.run(Supervisor(settings, listener, reload, request_seconds).run())


class Supervisor:
    """Starts, watches and ends the other processes."""

    def __init__(
        self, settings: Settings, listener: socket.socket, reload: Reload, request_seconds: float
    ) -> None:
        self._settings = settings
        self._request_seconds = request_seconds
        self._reload = reload
        self._coordinator = Coordinator(settings.models, settings.load_timeout_s)
        self._listener = listener
        self._folder = ""  # It holds the metrics' files and the engine process's socket.
        self._occupancy_fd = Occupancy.allocate(settings.workers)
        self._occupancy = Occupancy(self._occupancy_fd, settings.workers)
        self._heartbeats_fd = Heartbeats.allocate(settings.workers)
        self._heartbeats = Heartbeats(self._heartbeats_fd, settings.workers)
        self._stopping = asyncio.Event()
        self._up: set[int] = set()
        self._engine: ChildProcess | None = None
        self._front_ends: set[ChildProcess] = set()  # those that were sent their settings
        self._children: set[ChildProcess] = set()

    async def run(self) -> int:
        # First, so that a signal leaves no folder behind.
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop, number)
        with shared_metrics.new_folder(self._settings.workers + 1) as folder:
            self._folder = str(folder)
            return await self._supervise()

    async def _supervise(self) -> int:
        loop = asyncio.get_running_loop()
        # It outlives every engine process: connections in between wait for the next one.
        engine_listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        engine_listener.bind(engine_socket(self._folder))
        engine_listener.listen(BACKLOG)
        engine = Role(
            "the engine process",
            shared_metrics.ENGINE_ROLE,
            "engine_process",
            engine_listener,
            ENGINE,
        )
        stopping = loop.create_task(self._stopping.wait())
        front_ends = [
            loop.create_task(
                self._keep_running(
                    Role(
                        f"front end {index + 1}",
                        shared_metrics.front_end_role(index),
                        "front_end",
                        self._listener,
                        FRONT_ENDS + index,
                    ),
                    partial(self._run_front_end, index),
                )
            )
            for index in range(self._settings.workers)
        ]
        tasks = {
            stopping,
            loop.create_task(self._keep_running(engine, self._run_engine)),
            loop.create_task(self._follow_reloads()),
            loop.create_task(self._heartbeats.beat(SUPERVISOR)),
            *front_ends,
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            # If every process got the signal, one that was starting may have died of it.
            if not self._stopping.is_set():
                for task in done:
                    task.result()  # Raises its exception.
            statuses = await self._drained(front_ends)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # The engine process is last: the front ends need it until they have ended.
            for child in sorted(self._children, key=lambda child: child is self._engine):
                await child.end()
        if any(statuses):
            log.error("stopped, but some front ends failed; their exit statuses: %s", statuses)
            return 1
        log.info("stopped; every accepted request got a response")
        return 0

    def _stop(self, number: int) -> None:
        """Forwards a signal to the front ends, which know what a second one means."""
        self._stopping.set()
        self._listener.close()
        for child in self._front_ends:
            child.send(signal=number)

    async def _drained(self, front_ends: list[asyncio.Task[int]]) -> list[int]:
        """The front ends' exit statuses, once they have answered all accepted requests."""
        if not self._coordinator.started.is_set():
            return []
        timeout = (
            self._settings.shutdown_grace_s
            + NEW_CONNECTION_SECONDS
            + self._settings.shutdown_timeout_s
            + MARGIN_SECONDS
        )
        done, late = await asyncio.wait(front_ends, timeout=timeout)
        return [task.result() for task in done] + [1] * len(late)

    async def _keep_running(
        self, role: Role, run: Callable[[ChildProcess], Awaitable[None]]
    ) -> int:
        """Restarts a process until the service stops; the exit status of the last one.

        `run` starts a child's service and handles its messages until it ends.
        """
        attempt = 0
        while True:
            started = time.monotonic()
            status, end = await self._run_child(role, run)
            if self._stopping.is_set():
                return status
            attempt = 0 if time.monotonic() > started + LONG_LIFE_SECONDS else attempt
            delay = BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)]
            attempt += 1
            log.error("%s %s; restarting it in %g s", role.name, end, delay)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
                return 0

    async def _run_child(
        self, role: Role, run: Callable[[ChildProcess], Awaitable[None]]
    ) -> tuple[int, str]:
        """Runs a child until it ends; its exit status, and how it ended."""
        inherited = [self._occupancy_fd, self._heartbeats_fd]
        try:
            child = await ChildProcess.start(role, self._folder, inherited)
        except OSError as error:
            return 1, f"cannot start: {error.strerror}"
        self._children.add(child)
        watching = essential(self._kill_when_silent(role, child), f"the watch of {role.name}")
        try:
            await run(child)
            status = await child.process.wait()
        finally:
            watching.cancel()
        child.disconnect()
        self._children.discard(child)
        self._front_ends.discard(child)
        self._heartbeats.clear(role.number)
        shared_metrics.remove_gauges(self._folder, role.key)
        return status, f"({child.process.pid}) ended with status {status}"

    async def _kill_when_silent(self, role: Role, child: ChildProcess) -> None:
        """Kills a child whose event loop has stopped, which it cannot notice itself."""
        silence = self._heartbeats.watch(role.number)
        limit = patience(self._settings.engine_timeout_s)
        while (seconds := silence.look()) < limit:  # noqa: ASYNC110 - another process's memory
            await asyncio.sleep(BEAT_SECONDS)
        # At shutdown a front end's loop ends first, and has time to exit.
        if not self._stopping.is_set():
            log.error(
                "%s (%d) has not responded for %.0f s; killing it",
                role.name,
                child.process.pid,
                seconds,
            )
            child.kill()

    async def _run_engine(self, child: ChildProcess) -> None:
        """Starts an engine process and handles its messages until it ends.

        Raises:
            ConfigError: the first one cannot start.
        """
        self._engine = child
        coordinator = self._coordinator
        models = list(coordinator.registry.models)
        settings = self._settings.model_copy(update={"models": coordinator.settings()})
        child.send(
            settings=settings.model_dump(mode="json", exclude=set(SECRETS)),
            request_seconds=self._request_seconds,
            heartbeats=self._heartbeats_fd,
        )
        report = await child.receive() or {"error": "the engine process ended while starting"}
        if "error" in report and not coordinator.started.is_set():
            raise ConfigError(report["error"])
        if "error" in report:
            log.error("the engine process cannot start: %s", report["error"])
            return
        await coordinator.engine_started(child, models, report["models"])
        while message := await child.receive():
            coordinator.on_engine_message(message)
        coordinator.engine_ended()

    async def _run_front_end(self, index: int, child: ChildProcess) -> None:
        """Starts a front end, which has only imported so far, once the models are known, and
        handles its messages until it ends."""
        coordinator = self._coordinator
        await coordinator.started.wait()
        if self._stopping.is_set():
            child.disconnect()
            return
        child.send(
            settings=self._settings.revealed(),
            models=coordinator.facts(),
            index=index,
            occupancy=self._occupancy_fd,
            heartbeats=self._heartbeats_fd,
        )
        coordinator.join(child)
        self._front_ends.add(child)
        while message := await child.receive():
            if "up" in message:
                self._announce(index)
            else:
                await coordinator.on_front_end_message(child, message)
        await coordinator.leave(child)
        await child.process.wait()
        self._occupancy.clear(index)

    def _announce(self, index: int) -> None:
        """Logs once that all front ends accept connections."""
        if index not in self._up and not self._stopping.is_set():
            self._up.add(index)
            if len(self._up) == self._settings.workers:
                names = [model.name for model in self._coordinator.registry.models]
                encrypted = self._settings.tls_certificate is not None
                announce(names, self._listener, encrypted=encrypted)

    async def _follow_reloads(self) -> None:
        await self._coordinator.started.wait()
        await self._reload.attend(self._settings, self._coordinator.registry.reload, self._apply)

    def _apply(self, settings: Settings) -> None:
        """Applies the settings that can change at runtime, other than the models."""
        self._settings = settings
        set_log_level(settings.log_level)
        for child in self._front_ends:
            child.send(apply=settings.revealed())
        for child in self._coordinator.engines():
            child.send(apply=settings.model_dump(mode="json", exclude=set(SECRETS)))
