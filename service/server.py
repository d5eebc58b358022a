"""uvicorn, with a shutdown that loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Coroutine, Iterable
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from service import interpreter
from service.control import set_log_level
from service.errors import ConfigError
from service.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from service.pipeline import Pipeline

log = logging.getLogger(__name__)
# Reloads for ever; it is given what to do with settings that change.
Reloading = Callable[[Callable[[Settings], None]], Coroutine[Any, Any, None]]
BACKLOG = 2048
NEW_CONNECTION_SECONDS = 1.0
SO_ATTACH_FILTER, BPF_RETURN = 26, 0x06  # linux/socket.h, linux/bpf_common.h


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
                http="httptools",
                loop="uvloop",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                proxy_headers=False,  # nothing here asks who or where the caller is
                timeout_keep_alive=75,  # longer than the usual load balancer's idle time
                timeout_graceful_shutdown=int(settings.shutdown_timeout_s) or 1,
            )
        )
        self._pipeline: Pipeline = app.state.pipeline
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
        interpreter.tune()
        await super().startup(sockets)
        self._listeners = sockets or []
        self.announce()

    def announce(self) -> None:
        """Tells that connections are accepted."""
        for listener in self._listeners:
            announce(self._pipeline.models, listener)
        if self._reloading is not None:
            loop = asyncio.get_running_loop()
            self._reload_task = loop.create_task(self._reloading(self.apply))

    def apply(self, settings: Settings) -> None:
        """What can change while the process runs, other than the models."""
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


def announce(names: Iterable[str], listener: socket.socket) -> None:
    host, port, *_ = listener.getsockname()
    shown = f"[{host}]" if ":" in host else host
    what = ", ".join(names)
    log.info("serving %s on http://%s:%d (page at /, API at /docs)", what, shown, port)


def ignore_new_connections(listener: socket.socket) -> None:
    """Makes the kernel drop packets for `listener`; connections it has accepted are not affected.

    Closing a listener resets the connections in its backlog, and with them requests that their
    callers have already sent. Where the kernel has no socket filters, that is what will happen.
    """
    program = ctypes.create_string_buffer(struct.pack("HBBI", BPF_RETURN, 0, 0, 0))
    with contextlib.suppress(OSError):
        listener.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program))
        )


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is found before models are loaded.

    Raises:
        ConfigError: the address cannot be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    return listener


def serve(
    app: FastAPI, settings: Settings, listener: socket.socket, reloading: Reloading | None = None
) -> None:
    """Serves until a signal ends it."""
    Server(app, settings, reloading).run(sockets=[listener])
    log.info("ended; everything accepted was answered")
    if not app.state.ended:
        # An engine is still inside native code; unloading the interpreter under it would abort.
        logging.shutdown()
        os._exit(0)
