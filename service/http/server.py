"""uvicorn, with a graceful shutdown that loses no request."""

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
from typing import TYPE_CHECKING, Any, Protocol

import uvicorn

from service import runtime
from service.config.settings import Settings
from service.errors import ConfigError
from service.http import certificate, tcp, tls
from service.http.acceptor import Acceptor
from service.http.connection import ServerConnection
from service.http.gate import Gate
from service.http.limits import ConnectionLimits
from service.http.listener import (
    BACKLOG,
    NEW_CONNECTION_SECONDS,
    Listeners,
    announce,
    announce_end,
    announce_stop,
)
from service.logs import set_log_level

if TYPE_CHECKING:
    from fastapi import FastAPI

    from service.http.services import Services

log = logging.getLogger(__name__)
FILES_BESIDE_CONNECTIONS = 512
# For a client to confirm the end of an encrypted connection: one that idles in a pool never does,
# and asyncio's 30 s would hold up every shutdown.
TLS_SHUTDOWN_SECONDS = 1.0


class AttachedServer(Protocol):
    """A server that starts and stops with this one, in its process and on its event loop; see
    `service.grpc.endpoint.GrpcServer`. `cut_off`: its requests that a second signal ended."""

    cut_off: int

    async def start(self) -> None: ...
    def announce(self) -> None: ...
    def apply(self, settings: Settings) -> None: ...
    def close(self) -> None: ...
    async def wait_closed(self) -> None: ...


# Reloads the settings forever; its argument applies changed ones.
Reloading = Callable[[Callable[[Settings], None]], Coroutine[Any, Any, None]]


class Server(uvicorn.Server):
    """On SIGTERM, reports not ready at once and serves for the grace period; then it refuses new
    requests, completes accepted ones and exits with status 0.

    SIGINT skips the grace period; a second signal abandons requests in flight. `reloading` runs
    alongside.
    """

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        listeners: Listeners,
        reloading: Reloading | None = None,
        grpc_server: AttachedServer | None = None,
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
                proxy_headers=False,  # the client's address is not used
                timeout_graceful_shutdown=int(settings.shutdown_timeout_s) or 1,
            )
        )
        self._services: Services = app.state.services
        self._pipeline = self._services.pipeline
        self._keys = self._services.keys
        self._limits = ConnectionLimits(settings, self._services.metrics)
        self._tls = tls.create_context(settings)
        self._show_expiry(settings)
        # asyncio accepts the others only with the first.
        self._encryption: dict[str, Any] = (
            {
                "ssl": self._tls,
                "ssl_handshake_timeout": settings.header_timeout_s,
                "ssl_shutdown_timeout": TLS_SHUTDOWN_SECONDS,
            }
            if self._tls
            else {}
        )
        self._settings = settings
        self._exit_at: float | None = None
        self._refusing_since = 0.0
        self._listeners = listeners
        self._acceptor: Acceptor
        self._reloading = reloading
        self._grpc_server = grpc_server
        self._reload_task: asyncio.Task[None] | None = None
        self.stopping_since = 0.0  # by `time.monotonic`
        self.cut_off = 0  # requests, by a second signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # The base class raises the signal again after the shutdown, which would make a clean exit
        # look like a death by signal.
        if self._pipeline.draining:
            self.force_exit = self.should_exit = True
            self._services.patience = 0.0
            return
        self._listeners.tell("STOPPING=1")
        self._pipeline.draining = True
        self.stopping_since = time.monotonic()
        grace = self._settings.shutdown_grace_s if sig == signal.SIGTERM else 0.0
        self._exit_at = self.stopping_since + grace
        self.announce_stop(signal.Signals(sig).name)

    def announce_stop(self, name: str) -> None:
        announce_stop(name, self._settings)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        runtime.tune_interpreter()
        wanted = self._limits.max_connections
        # Twice, as those over the limit are told so; see `ConnectionLimits.admits`.
        files = runtime.allow_files(2 * wanted + FILES_BESIDE_CONNECTIONS)
        possible = max(1, (files - FILES_BESIDE_CONNECTIONS) // 2)
        if possible < wanted:
            self._limits.max_connections = possible
            log.warning(
                "only %d files may be open (ulimit -n), so that this process serves %d connections "
                "at a time, not %d",
                files,
                possible,
                wanted,
            )
        await super().startup([])  # uvicorn's own servers accept one connection in a turn.
        self._limits.gate = Gate(
            self._services,
            self._limits.turns,
            lambda: self.server_state.default_headers,
            self._limits.refused,
        )
        watching = self._limits.turns.watch()
        self._watching = runtime.essential(watching, "measuring the event loop")
        protocol = partial(
            ServerConnection,
            limits=self._limits,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        tcp.log_if_silent(self._listeners.sockets[0])
        self._acceptor = Acceptor(self._listeners.sockets, protocol, self, self._encryption)
        self._acceptor.start(BACKLOG)
        self.servers.append(self._acceptor)  # type: ignore[arg-type]
        if self._grpc_server is not None:
            try:
                await self._grpc_server.start()
            except ConfigError:  # The base class would leave the application in the middle.
                await self.lifespan.shutdown()
                raise
            self.servers.append(self._grpc_server)  # type: ignore[arg-type]
        self.announce()

    def lead(self, pending: int) -> int:
        """See `service.http.acceptor.Door`: nobody else accepts."""
        return 0

    def admits(self, pending: int) -> bool:
        return self._limits.admits(len(self.server_state.connections) + pending)

    def accepted(self, waited: float) -> None:
        self._limits.turns.accepted()
        self._services.metrics.backlog.observe(waited)

    def announce(self) -> None:
        """Logs that connections are accepted, and starts reloading."""
        announce(self._pipeline.models, self._listeners, encrypted=self._tls is not None)
        if self._grpc_server is not None:
            self._grpc_server.announce()
        if self._reloading is not None:
            reloading = self._reloading(self.apply)
            self._reload_task = runtime.essential(reloading, "reloading the configuration")

    def apply(self, settings: Settings) -> None:
        """Applies the settings, other than the models, that can change at runtime.

        A certificate that cannot be used leaves the old one in place, and must not keep a key that
        was revoked: keys come first.
        """
        self._keys.update(settings)
        set_log_level(settings.log_level)
        if self._tls is not None:
            try:
                tls.reload(self._tls, settings)
                self._show_expiry(settings)
                if self._grpc_server is not None:
                    self._grpc_server.apply(settings)
            except ConfigError as error:
                log.error("the certificate stays as it was: %s", error)  # noqa: TRY400

    def _show_expiry(self, settings: Settings) -> None:
        if settings.tls_certificate is None:
            return
        try:
            expiry = certificate.expiry(settings.tls_certificate)
        except (OSError, ValueError) as error:  # OpenSSL reads more forms.
            log.warning("the metrics do not show when the certificate expires: %s", error)
            expiry = 0.0
        self._services.metrics.certificate_expiry.set(expiry)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._listeners.remove_files()
        await super().shutdown(sockets)
        grpc_server = self._grpc_server
        if grpc_server is not None and self.force_exit:
            await grpc_server.wait_closed()
        self.cut_off = len(self.server_state.tasks) + (grpc_server.cut_off if grpc_server else 0)
        if self.cut_off:
            log.warning("a second signal ends this at once; requests cut off: %d", self.cut_off)
        if self.force_exit:  # The base class would leave the application in the middle.
            await self.lifespan.shutdown()

    async def on_tick(self, counter: int) -> bool:
        now = time.monotonic()
        if self._pipeline.refusing:
            # New connections may be about to send a request; the base class would close them.
            fresh = [c for c in self.server_state.connections if getattr(c, "cycle", 0) is None]
            self.should_exit |= not fresh or now >= self._refusing_since + NEW_CONNECTION_SECONDS
        elif self._exit_at is not None and now >= self._exit_at:
            # The backlog is accepted and read before the next tick, 0.1 s from now.
            self._listeners.turn_away()
            if self._listeners.kept:
                self._acceptor.close()  # What is pending waits for the next service.
            else:
                self._acceptor.hurry()
            self._pipeline.refusing, self._refusing_since = True, now
        return await super().on_tick(counter)


def serve(
    app: FastAPI,
    settings: Settings,
    listeners: Listeners,
    reloading: Reloading | None = None,
    grpc_server: AttachedServer | None = None,
) -> None:
    """Serves until a signal stops it."""
    server = Server(app, settings, listeners, reloading, grpc_server)
    server.run(sockets=[])
    announce_end(time.monotonic() - server.stopping_since, complete=not server.cut_off)
    status = 1 if server.cut_off else 0
    if not app.state.services.ended:
        # An engine is still in native code; finalizing the interpreter under it would abort.
        listeners.close()
        logging.shutdown()
        os._exit(status)
    if status:
        raise SystemExit(status)
