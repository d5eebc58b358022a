"""What a connection may send before anything answers it: how large, how long, how many of them.

uvicorn's protocol reads headers of any size for any time from any number of callers. This one
refuses with a problem document, as the endpoints do, and leaves the caller a moment to read it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from service.config.settings import Settings
from service.errors import (
    HeadersTooLarge,
    MalformedRequest,
    RequestTooSlow,
    ServiceError,
    TooManyConnections,
)
from service.http import problems
from service.logs import Quiet, and_more
from service.metrics import REASONS, Metrics

log = logging.getLogger(__name__)
# A socket that is closed with bytes unread is reset, and the answer may be lost with it. So long a
# caller may go on sending what nobody wants.
LINGER_SECONDS = 2.0
# Whoever reads nothing of the answers so long has left without saying so.
STALLED_SECONDS = 30.0
RETRY_SECONDS = 1.0
HEALTH = (b"/health/", b"/v2/health/")
# Requests of one connection that wait for answers; each costs more memory than its bytes.
MAX_PIPELINED = 100
# Between two lines that say what was refused: a line for each would add to the load.
QUIET_SECONDS = 1.0


class Door:
    """What the connections of one process have in common: the limits, and who was refused."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.max_header_bytes = settings.max_header_bytes
        self.header_timeout = settings.header_timeout_s
        self.max_connections = math.ceil(settings.max_connections / settings.workers)
        # Those without a place among the connections: surplus, or refused and not yet closed.
        self.outside: set[Guarded] = set()
        self._metrics = metrics
        for reason in REASONS:  # So that each is seen to rise from nothing.
            metrics.refusals.labels("", reason)
        self._quiet = Quiet(QUIET_SECONDS)

    def count(self, error: ServiceError, request_id: str = "-") -> None:
        """Counts what is refused without an endpoint, and logs it."""
        self._metrics.refused("", error.reason)
        unlogged = self._quiet.unlogged("")  # All of them together: whoever sends one sends many.
        if unlogged < 0:
            return
        status = problems.STATUSES[type(error)]
        log.info("%s %d %s: %s%s", request_id, status, error.reason, error, and_more(unlogged))

    def refuse(self, error: ServiceError, path: str) -> bytes:
        """The answer to what is refused without an endpoint; counts and logs it."""
        request_id = uuid.uuid4().hex
        self.count(error, request_id)
        self._metrics.answered("other", problems.STATUSES[type(error)])
        answer = problems.answer(path, error)
        head = [
            *answer.raw_headers,
            (b"x-content-type-options", b"nosniff"),
            (b"x-request-id", request_id.encode()),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),
        ]
        lines = [name + b": " + value + b"\r\n" for name, value in head]
        return b"".join([STATUS_LINE[answer.status_code], *lines, b"\r\n", answer.body])


class Guarded(HttpToolsProtocol):
    """One connection; `door` has its limits.

    A message is in its head from its first byte to the empty line, then in its body to its end.
    """

    def __init__(
        self,
        door: Door,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.url = b""  # of the latest request, as far as it has come
        self._door = door
        self._in_head = self._in_body = False
        self._surplus = False  # answered where it asks for health, so that probes tell the truth
        self._deaf = False  # to all that is still sent
        # Received since the last that was told to somebody: a whole head, or a part of a body.
        # It bounds heads, and the trailers and extensions of chunked bodies.
        self._untold = 0
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._door.max_connections:
            self.connections.discard(self)
            if len(self._door.outside) >= self._door.max_connections:
                self._deaf = True
                self._door.count(self._too_many())
                transport.abort()
                return
            self._surplus = True
            self._door.outside.add(self)
        self._wait(self._door.header_timeout, self._no_head)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        self._untold += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The parser has taken what follows for another protocol, even where it is a body.
            self._deaf = True
            self.cycle.keep_alive = False
            return
        except httptools.HttpParserError as error:
            cause = error.__context__  # what a callback raised
            self._refuse(
                cause
                if isinstance(cause, ServiceError)
                else MalformedRequest("this is no HTTP/1.1 request; the connection closes")
            )
            return
        if self._untold > self._door.max_header_bytes:
            self._refuse(self._too_large())
        elif self._timer is None and (
            self._in_head
            # After an early answer, or before a request, something was sent that begins none.
            or (not self._in_body and (self.cycle is None or self.cycle.response_complete))
        ):
            self._wait(self._door.header_timeout, self._no_head)

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._untold > self._door.max_header_bytes:
            # It may have come with a body, or behind another request: now its size is known.
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._door.max_header_bytes:
                raise self._too_large()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise MalformedRequest(
                f"{MAX_PIPELINED} requests wait for answers on this connection; read some first"
            )
        if self._surplus and not self.url.startswith(HEALTH):
            raise self._too_many()
        super().on_headers_complete()
        if self._surplus:
            self.cycle.keep_alive = False
        self._untold = 0
        self._in_head, self._in_body = False, True
        self._stop_waiting()

    def on_body(self, body: bytes) -> None:
        self._untold = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._untold = 0
        self._in_body = False
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and self.cycle.response_complete and not self.transport.is_closing():
            # Answered early: a caller who soon ends the body can keep the connection.
            self._wait(LINGER_SECONDS, self.transport.close)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # Closing would wait for a caller who does not read.
        else:
            super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.outside.discard(self)
        self._stop_waiting()
        if self._stalled is not None:
            self._stalled.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def _wait(self, seconds: float, then: Any) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _no_head(self) -> None:
        self._timer = None
        if self.flow.read_paused:  # It is us who do not read, while what came before is answered.
            self._wait(self._door.header_timeout, self._no_head)
        elif self._in_head or self._untold:
            seconds = self._door.header_timeout
            self._refuse(RequestTooSlow(f"the headers took longer than {seconds:g} s"))
        else:
            self.transport.close()  # Nothing was asked, nothing is answered.

    def _too_many(self) -> TooManyConnections:
        limit = self._door.max_connections
        return TooManyConnections(
            f"{limit} connections are open, the limit; retry after the given time", RETRY_SECONDS
        )

    def _too_large(self) -> HeadersTooLarge:
        limit = self._door.max_header_bytes
        return HeadersTooLarge(f"the request line and the headers have more than {limit} bytes")

    def _refuse(self, error: ServiceError) -> None:
        """Ends the connection, with the error as an answer where one can still be given."""
        self._deaf = True
        self._stop_waiting()
        path = self.url.partition(b"?")[0].decode("latin-1")
        message = self._door.refuse(error, path)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not self._in_body or self.pipeline or cycle.response_started:
                cycle.keep_alive = False  # What was asked before is answered first.
                return
            cycle.disconnected = True  # Its endpoint waits for the rest of the body.
            cycle.message_event.set()
        elif self._in_body:
            self.transport.close()  # This request has had its answer.
            return
        self._say_and_leave(message)

    def _say_and_leave(self, message: bytes) -> None:
        self._deaf = True
        self.connections.discard(self)
        self._door.outside.add(self)
        self.transport.write(message)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._wait(LINGER_SECONDS, self.transport.abort)
