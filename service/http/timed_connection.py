"""The clocks of a connection: when its data arrived, and for how long it may do nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.http import tcp
from service.http.turns import LoopTurns

# A client that reads nothing of its responses for so long is gone.
STALLED_SECONDS = 30.0
# The kernel's clock is coarse, and the loop's is read once in a turn.
CLOCKS_DIFFER_SECONDS = 0.1


class TimedConnection(HttpToolsProtocol):
    """uvicorn's protocol with timers, of which one serves for many requests.

    `_deadline`: of what is received, if any; `_busy`: a request is received, held or served.
    """

    def __init__(
        self,
        stream: tcp.Socket,
        turns: LoopTurns,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._socket = stream
        self._turns = turns
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None
        self._idle_since = 0.0
        self._fresh = True  # Its first data may have waited before it was accepted.
        # When the data being parsed was read, and when it arrived; 0 until somebody asks.
        self._read_at = self._arrived = 0.0

    @property
    def _busy(self) -> bool:
        raise NotImplementedError

    def _was_read(self, at: float) -> None:
        """The data to be parsed now was read then, by `time.perf_counter`; 0: just now."""
        self._arrived, self._read_at = 0.0, at

    def _arrival(self, *, exact: bool = True) -> float:
        """When the data being parsed arrived, by `time.perf_counter`; if not `exact`, it may have
        arrived before, which only the kernel knows."""
        if not self._read_at:
            self._read_at = time.perf_counter()
        if exact and not self._arrived:
            now = time.perf_counter()
            # What the loop has not polled for so long, the kernel could not tell apart from now.
            since = min(self._read_at, self._turns.polled)
            late = self._fresh or now - since > tcp.TICK
            self._fresh = False
            waited = tcp.waited(self._socket) if late else 0.0
            self._arrived = min(self._read_at, now - waited)
        return self._arrived or self._read_at

    def _set_deadline(self, seconds: float, then: Callable[[], None]) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(seconds, then)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_deadline = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._busy:
            self.flow.resume_reading()
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    @property
    def idle_since(self) -> float | None:
        """See `service.http.idle.IdleConnection`."""
        return None if self._busy or self.transport.is_closing() else self._idle_since or None

    def _has_part_of_record(self, seconds: float) -> bool:
        """Whether part of a TLS record seems to have been read in the last seconds, of a request
        that is on its way. The event loop does not tell, but data came after the last response.
        """
        if self.scheme != "https":
            return False
        idle = self.loop.time() - self._idle_since - CLOCKS_DIFFER_SECONDS
        return tcp.arrived_within(self._socket, min(idle, seconds))

    def _begin_idle(self) -> None:
        """Closes the connection if no request comes; one timer serves for many requests."""
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._set_idle_timer(self.timeout_keep_alive)

    def _set_idle_timer(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self._busy:
            return  # The next response sets it again.
        remaining = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if remaining > 0:
            self._set_idle_timer(remaining)
        else:
            self._close_idle()

    def _close_idle(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # Closing would wait for a client that does not read.
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        if self._write_deadline is not None:
            self._write_deadline.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
