"""The parent process of `--workers N`: it starts and watches the others.

    supervisor ─┬─ engine process      the models of one device
                ├─ engine process      those of another
                ├─ front end 1         accepts, decodes, responds
                └─ front end N

It replaces a process that dies, alone. It never imports torch, and if it is killed the others exit
too.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from service.config.choices import most_devices
from service.config.reload import Reload
from service.config.settings import Settings
from service.config.sources import SECRETS
from service.errors import ConfigError
from service.http.listener import (
    BACKLOG,
    NEW_CONNECTION_SECONDS,
    Listeners,
    announce,
    announce_end,
    announce_grpc,
    announce_stop,
)
from service.logs import set_log_level
from service.workers import shared_metrics
from service.workers.control import Message, engine_socket
from service.workers.coordinator import Coordinator
from service.workers.device_engine import DeviceEngine
from service.workers.heartbeat import ENGINES, FRONT_ENDS, SUPERVISOR, Heartbeats, patience
from service.workers.keeper import Keeper
from service.workers.occupancy import Occupancy
from service.workers.process import MARGIN_SECONDS, ChildProcess, Role

log = logging.getLogger(__name__)


def supervise(
    settings: Settings,
    listeners: Listeners,
    reload: Reload,
    request_seconds: float,
    grpc_addresses: Sequence[str] = (),
) -> int:
    """Serves with several processes until a signal; returns the exit status.

    `request_seconds`: CPU time that a request's HTTP takes; see `service.config.plan`.
    `grpc_addresses`: reserved ones, which the front ends share; none: no gRPC.

    Raises:
        ConfigError: a model cannot be served, or there is no space for the shared files.
    """
    supervisor = Supervisor(settings, listeners, reload, request_seconds, grpc_addresses)
    return asyncio.run(supervisor.run())


class Supervisor:
    """Starts, watches and ends the other processes."""

    def __init__(
        self,
        settings: Settings,
        listeners: Listeners,
        reload: Reload,
        request_seconds: float,
        grpc_addresses: Sequence[str] = (),
    ) -> None:
        self._grpc_addresses = [*grpc_addresses]
        self._settings = settings
        self._request_seconds = request_seconds
        self._reload = reload
        self._coordinator = Coordinator(
            settings.models, settings.load_timeout_s, self._start_engine
        )
        self._listeners = listeners
        self._folder = ""  # It holds the metrics' files and the engine processes' sockets.
        self._occupancy_fd = Occupancy.allocate(settings.workers)
        self._occupancy = Occupancy(self._occupancy_fd, settings.workers)
        self._heartbeats_fd = Heartbeats.allocate(settings.workers)
        self._heartbeats = Heartbeats(self._heartbeats_fd, settings.workers)
        self._stopping = asyncio.Event()
        self._stopping_since = 0.0  # by `time.monotonic`
        self._hurried = False  # by a second signal
        self._up: set[int] = set()
        self._keeper: Keeper
        self._engine_tasks: set[asyncio.Task[int]] = set()
        self._cannot_start: asyncio.Future[None]
        self._front_ends: set[ChildProcess] = set()  # those that were sent their settings

    async def run(self) -> int:
        # First, so that a signal leaves no folder behind.
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop, number)
        devices = most_devices(model.device for model in self._settings.models)
        with shared_metrics.new_folder(self._settings.workers + devices) as folder:
            self._folder = str(folder)
            self._keeper = Keeper(
                self._folder,
                [self._occupancy_fd, self._heartbeats_fd],
                self._heartbeats,
                patience(self._settings.engine_timeout_s),
                self._stopping,
            )
            return await self._supervise()

    async def _supervise(self) -> int:
        loop = asyncio.get_running_loop()
        self._cannot_start = loop.create_future()
        self._coordinator.engines.start_first()
        stopping = loop.create_task(self._stopping.wait())
        front_ends = [
            loop.create_task(self._keep_front_end(index)) for index in range(self._settings.workers)
        ]
        tasks: set[asyncio.Future[Any]] = {
            stopping,
            self._cannot_start,
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
            tasks |= self._engine_tasks
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._keeper.end()
        if any(statuses) and not self._hurried:
            log.error("stopped, but some front ends failed; their exit statuses: %s", statuses)
        else:
            seconds = time.monotonic() - self._stopping_since
            announce_end(seconds, complete=not any(statuses))
        return 1 if any(statuses) else 0

    def _stop(self, number: int) -> None:
        """Forwards a signal to the front ends, which know what a second one means."""
        if self._stopping.is_set():
            self._hurried = True
        else:
            self._stopping_since = time.monotonic()
            announce_stop(signal.Signals(number).name, self._settings)
        self._stopping.set()
        self._listeners.tell("STOPPING=1")
        self._listeners.hand_over()
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

    def _start_engine(self, index: int, device: str) -> DeviceEngine:
        """Starts an engine process, and restarts it for ever.

        Raises:
            OSError: there is no memory, or there are too many files.
        """
        # It outlives every engine process: connections in between wait for the next one.
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(engine_socket(self._folder, index))
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        role = Role(
            "the engine process",
            shared_metrics.engine_role(index),
            "engine_process",
            [listener],
            ENGINES + index,
        )
        engine = DeviceEngine(role, index, device)
        running = self._keeper.keep_running(
            role,
            partial(self._run_engine, engine),
            partial(self._coordinator.engine_breaks, engine),
        )
        task = asyncio.get_running_loop().create_task(running)
        self._engine_tasks.add(task)
        task.add_done_callback(self._engine_ended)
        return engine

    def _engine_ended(self, task: asyncio.Task[int]) -> None:
        """What the first engine processes cannot serve ends the service."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._cannot_start.done():
            self._cannot_start.set_exception(error)

    async def _run_engine(self, engine: DeviceEngine, child: ChildProcess) -> None:
        """Starts an engine process and handles its messages until it ends.

        Raises:
            ConfigError: a first one cannot start.
        """
        coordinator = self._coordinator
        if not engine.device:
            report = await self._reported(engine, child)
            coordinator.resolved(report["devices"])
        models = coordinator.models_on(engine.device)
        report = await self._reported(engine, child, device=engine.device)
        if "error" in report:
            log.error("%s cannot start: %s", engine.role.name, report["error"])
            engine.role.reason = report["error"]
            return
        await coordinator.engine_started(engine, child, models, report["models"])
        while message := await child.receive():
            if "ready" in message:
                coordinator.engine_serves(engine)
            elif "error" in message:
                engine.role.reason = message["error"]
            else:
                engine.on_message(message)
        coordinator.engine_ended(engine)

    async def _reported(self, engine: DeviceEngine, child: ChildProcess, **device: str) -> Message:
        """What an engine process responds to its settings: devices, models or an error.

        Raises:
            ConfigError: an error of a first one.
        """
        settings = self._settings.model_copy(update={"models": self._coordinator.settings()})
        child.send(
            settings=settings.model_dump(mode="json", exclude=set(SECRETS)),
            request_seconds=self._request_seconds,
            heartbeats=self._heartbeats_fd,
            index=engine.index,
            **device,
        )
        ended = {"error": f"{engine.role.name} ended while starting"}
        report = await child.receive() or ended
        if "error" in report and not self._coordinator.started.is_set():
            raise ConfigError(report["error"])
        return report

    async def _keep_front_end(self, index: int) -> int:
        """Restarts a front end until the service stops; its last exit status."""
        role = Role(
            f"front end {index + 1}",
            shared_metrics.front_end_role(index),
            "front_end",
            self._listeners.sockets,
            FRONT_ENDS + index,
        )
        run = partial(self._run_front_end, index, role)
        return await self._keeper.keep_running(role, run)

    async def _run_front_end(self, index: int, role: Role, child: ChildProcess) -> None:
        """Starts a front end, which has only imported so far, once the models are known, and
        handles its messages until it ends.

        Raises:
            ConfigError: a first one cannot start.
        """
        coordinator = self._coordinator
        await coordinator.started.wait()
        if self._stopping.is_set():
            child.disconnect()
            return
        child.send(
            settings=self._settings.revealed(),
            models=coordinator.facts(),
            index=index,
            listeners=self._listeners.described(),
            occupancy=self._occupancy_fd,
            heartbeats=self._heartbeats_fd,
            broken=coordinator.engines.broken(),
            grpc=self._grpc_addresses,
        )
        coordinator.join(child)
        self._front_ends.add(child)
        while message := await child.receive():
            if "up" in message:
                role.serves()
                self._announce(index)
            elif "error" in message:
                if index not in self._up:
                    raise ConfigError(message["error"])
                log.error("%s cannot start: %s", role.name, message["error"])
            else:
                await coordinator.on_front_end_message(child, message)
        self._front_ends.discard(child)
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
                announce(names, self._listeners, encrypted=encrypted)
                if self._grpc_addresses:
                    announce_grpc(self._grpc_addresses)

    async def _follow_reloads(self) -> None:
        await self._coordinator.started.wait()
        await self._reload.attend(self._settings, self._coordinator.registry.reload, self._apply)

    def _apply(self, settings: Settings) -> None:
        """Applies the settings that can change at runtime, other than the models."""
        self._settings = settings
        set_log_level(settings.log_level)
        for child in self._front_ends:
            child.send(apply=settings.revealed())
        for engine in self._coordinator.engines:
            if engine.child is not None:
                engine.child.send(apply=settings.model_dump(mode="json", exclude=set(SECRETS)))
