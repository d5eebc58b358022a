"""uvicorn, with a shutdown that loses nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from service import runtime
from service.config.settings import Settings
from service.http import tls
from service.http.connection import ConnectionLimits, ServerConnection
from service.http.listener import (
    BACKLOG,
    NEW_CONNECTION_SECONDS,
    announce,
    ignore_new_connections,
)
from service.logs import set_log_level

if TYPE_CHECKING:
    from fastapi import FastAPI

    from service.http.access import Keys
    from service.inference.pipeline import Pipeline

log = logging.getLogger(__name__)
FILES_BESIDE_CONNECTIONS = 512
# Reloads for ever; it is given what to do with settings that change.
Reloading = Callable[[Callable[[Settings], None]], Coroutine[Any, Any, None]]


class Server(uvicorn.Server):
    """On SIGTERM readiness turns false at once, requests are served for the grace period, then
    new ones are refused, accepted ones answered, and the process exits with status 0.

    SIGINT skips the grace; a second signal gives up on what is still being computed. `reloading`
    runs beside it.
    """

    def __init__(
        self, app: FastAPI, settings: Settings, reloading: Reloading | None = None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=ServerConnection,
                loop="uvloop",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                headers=[("X-Content-Type-Options", "nosniff")],
                backlog=BACKLOG,
                proxy_headers=False,  # nothing here asks who or where the caller is
                timeout_keep_alive=75,  # longer than the usual load balancer's idle time
                timeout_graceful_shutdown=int(settings.shutdown_timeout_s) or 1,
            )
        )
        self._pipeline: Pipeline = app.state.services.pipeline
        self._keys: Keys = app.state.services.keys
        self._limits = ConnectionLimits(settings, app.state.services.metrics)
        self._tls = tls.context(settings)
        # asyncio takes the second only with the first.
        self._encryption: dict[str, Any] = (
            {"ssl": self._tls, "ssl_handshake_timeout": settings.header_timeout_s}
            if self._tls
            else {}
        )
        self._grace = settings.shutdown_grace_s
        self._exit_at: float | None = None
        self._refusing_since = 0.0
        self._listeners: list[socket.socket] = []
        self._reloading = reloading
        self._reload_task: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # The base class raises the signal again after the shutdown, which would make an orderly
        # end look like a death by signal.
        if self._pipeline.draining:
            self.force_exit = self.should_exit = True
            return
        self._pipeline.draining = True
        self._exit_at = time.monotonic() + (self._grace if sig == signal.SIGTERM else 0.0)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        runtime.tune_interpreter()
        runtime.allow_files(self._limits.max_connections + FILES_BESIDE_CONNECTIONS)
        await super().startup([])  # The listeners are ours, for they need our protocol.
        self._listeners = sockets or []
        for listener in self._listeners:
            server = await asyncio.get_running_loop().create_server(
                self.protocol(), sock=listener, backlog=BACKLOG, **self._encryption
            )
            self.servers.append(server)
        self.announce()

    def protocol(self) -> Callable[[], ServerConnection]:
        """Makes what reads a new connection."""
        return partial(
            ServerConnection,
            self._limits,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )

    def announce(self) -> None:
        """Tells that connections are accepted."""
        for listener in self._listeners:
            announce(self._pipeline.models, listener, encrypted=self._tls is not None)
        if self._reloading is not None:
            loop = asyncio.get_running_loop()
            self._reload_task = loop.create_task(self._reloading(self.apply))

    def apply(self, settings: Settings) -> None:
        """Has what can change while the process runs, other than the models, count from now on.

        Raises:
            ConfigError: the certificate cannot be used; then nothing has changed.
        """
        if self._tls is not None:
            tls.reload(self._tls, settings)
        self._keys.update(settings)
        set_log_level(settings.log_level)

    async def on_tick(self, counter: int) -> bool:
        now = time.monotonic()
        if self._pipeline.refusing:
            # Who has connected may be about to send; the base class would close such connections.
            new = [c for c in self.server_state.connections if getattr(c, "cycle", 0) is None]
            self.should_exit |= not new or now >= self._refusing_since + NEW_CONNECTION_SECONDS
        elif self._exit_at is not None and now >= self._exit_at:
            # The backlog is accepted and read before the next tick, a tenth of a second from now.
            for listener in self._listeners:
                ignore_new_connections(listener)
            self._pipeline.refusing, self._refusing_since = True, now
        return await super().on_tick(counter)


def serve(
    app: FastAPI, settings: Settings, listener: socket.socket, reloading: Reloading | None = None
) -> None:
    """Serves until a signal ends it."""
    Server(app, settings, reloading).run(sockets=[listener])
    log.info("stopped; every accepted request was answered")
    if not app.state.services.ended:
        # An engine is still inside native code; unloading the interpreter under it would abort.
        logging.shutdown()
        os._exit(0)
