"""The limits of HTTP connections: how many, how large their headers are, how long they may take.

uvicorn's protocol reads headers of any size for any time from any number of clients. This one
refuses with a problem document, as the endpoints do, and gives the client a moment to read it.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import math
import uuid
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from service.config.settings import Settings
from service.errors import (
    RETRY_SECONDS,
    HeadersTooLarge,
    MalformedRequest,
    RequestTooSlow,
    ServiceError,
    TooManyConnections,
)
from service.http import problems
from service.logs import LogLimit, with_suppressed
from service.metrics import REASONS, Metrics

log = logging.getLogger(__name__)
# A socket that is closed with bytes unread is reset, and the response may be lost with it. For so
# long a client may go on sending what nobody reads.
LINGER_SECONDS = 2.0
# A client that reads nothing of its responses for so long is gone.
STALLED_SECONDS = 30.0
HEALTH = (b"/health/", b"/v2/health/")
# Requests of one connection that wait for responses; each costs more memory than its bytes.
MAX_PIPELINED = 100
# More would block the event loop; other servers have similar limits.
MAX_URL_BYTES, MAX_HEADERS = 8192, 1000
# Between two log lines about refusals: a line for each would add to the load.
QUIET_SECONDS = 1.0


class ConnectionLimits:
    """What the connections of one process share: the limits, and how a refusal is reported."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.max_header_bytes = settings.max_header_bytes
        self.header_timeout = settings.header_timeout_s
        self.max_connections = math.ceil(settings.max_connections / settings.workers)
        # Not among the counted connections: surplus, or refused and not yet closed.
        self.uncounted: set[ServerConnection] = set()
        self._metrics = metrics
        for reason in REASONS:  # So that each series rises from zero.
            metrics.refusals.labels("", reason)
        self._log_limit = LogLimit(QUIET_SECONDS)

    def count(self, error: ServiceError, request_id: str = "-") -> None:
        """Counts and logs a refusal that no endpoint made."""
        self._metrics.refused("", error.reason)
        suppressed = self._log_limit.suppressed(
            ""
        )  # All together: a client that sends one sends many.
        if suppressed is None:
            return
        status = problems.STATUSES[type(error)]
        log.info(
            "%s %d %s: %s%s", request_id, status, error.reason, error, with_suppressed(suppressed)
        )

    def refuse(self, error: ServiceError, path: str) -> bytes:
        """The response for a refusal that no endpoint made; counts and logs it."""
        request_id = uuid.uuid4().hex
        self.count(error, request_id)
        self._metrics.responded("other", problems.STATUSES[type(error)])
        response = problems.refusal_response(path, error)
        headers = [
            *response.raw_headers,
            (b"x-content-type-options", b"nosniff"),
            (b"x-request-id", request_id.encode()),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),
        ]
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        return b"".join([STATUS_LINE[response.status_code], *lines, b"\r\n", response.body])


class Phase(enum.Enum):
    """What the client is sending; `DEAF`: nothing that it sends is read any more.

    A message is in its head from its first byte to the empty line, then in its body to its end.
    """

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    DEAF = enum.auto()


IDLE, HEAD, BODY, DEAF = Phase  # A member's name is looked up faster than its class's attribute.


class ServerConnection(HttpToolsProtocol):
    """One connection: the phase of the request that it receives, and the phase's deadline."""

    def __init__(
        self,
        limits: ConnectionLimits,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.url = b""  # of the latest request, as far as it has arrived
        self._limits = limits
        self._phase = IDLE
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None
        # Over the limit; health is still answered, so that probes tell the truth.
        self._surplus = False
        # Bytes since the parser last reported a whole head or a part of a body: they bound heads,
        # and the trailers and extensions of chunked bodies.
        self._unreported = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limits = self._limits
        if len(self.connections) > limits.max_connections:
            self.connections.discard(self)
            if len(limits.uncounted) >= limits.max_connections:
                self._phase = DEAF
                limits.count(self._too_many())
                transport.abort()
                return
            self._surplus = True
            limits.uncounted.add(self)
        self._set_deadline(limits.header_timeout, self._head_timed_out)

    def data_received(self, data: bytes) -> None:
        if self._phase is DEAF:
            return
        self._unset_keepalive_if_required()
        self._unreported += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The parser has taken what follows for another protocol, even where it is a body.
            self._phase = DEAF
            self.cycle.keep_alive = False
            return
        except httptools.HttpParserError as error:
            cause = error.__context__  # what a callback raised
            self._refuse(
                cause
                if isinstance(cause, ServiceError)
                else MalformedRequest("not a valid HTTP/1.1 request; the connection closes")
            )
            return
        if self._unreported > self._limits.max_header_bytes:
            self._refuse(self._too_large())
        elif self._deadline is None and (
            self._phase is HEAD
            # After an early response, or before a request, something was sent that begins none.
            or (self._phase is IDLE and (self.cycle is None or self.cycle.response_complete))
        ):
            self._set_deadline(self._limits.header_timeout, self._head_timed_out)

    def on_message_begin(self) -> None:
        self._phase = HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._unreported > self._limits.max_header_bytes:
            # It may have come with a body, or behind another request: now its size is known.
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._limits.max_header_bytes:
                raise self._too_large()
        if len(self.url) > MAX_URL_BYTES or len(self.headers) > MAX_HEADERS:
            raise HeadersTooLarge(
                f"the URL has more than {MAX_URL_BYTES} bytes, or there are more than "
                f"{MAX_HEADERS} headers"
            )
        if len(self.pipeline) >= MAX_PIPELINED:
            raise MalformedRequest(
                f"{MAX_PIPELINED} requests are pending on this connection; read their responses"
            )
        if self._surplus and not self.url.startswith(HEALTH):
            raise self._too_many()
        super().on_headers_complete()
        if self._surplus:
            self.cycle.keep_alive = False
        self._unreported = 0
        self._phase = BODY
        self._clear_deadline()

    def on_body(self, body: bytes) -> None:
        self._unreported = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unreported = 0
        self._phase = IDLE
        self._clear_deadline()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        early = self._phase is BODY and self.cycle.response_complete
        if early and not self.transport.is_closing():
            # A client that soon ends its body can keep the connection.
            self._set_deadline(LINGER_SECONDS, self.transport.close)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_deadline = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # Closing would wait for a client that does not read.
        else:
            super().timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        self._limits.uncounted.discard(self)
        self._clear_deadline()
        if self._write_deadline is not None:
            self._write_deadline.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def _set_deadline(self, seconds: float, then: Callable[[], None]) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(seconds, then)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _head_timed_out(self) -> None:
        self._deadline = None
        seconds = self._limits.header_timeout
        if self.flow.read_paused:  # We do not read while earlier requests are answered.
            self._set_deadline(seconds, self._head_timed_out)
        elif self._phase is HEAD or self._unreported:
            self._refuse(RequestTooSlow(f"the headers took longer than {seconds:g} s"))
        else:
            self.transport.close()  # Nothing was requested, so nothing is answered.

    def _too_many(self) -> TooManyConnections:
        limit = self._limits.max_connections
        return TooManyConnections(
            f"the limit of {limit} open connections is reached; retry after the given time",
            RETRY_SECONDS,
        )

    def _too_large(self) -> HeadersTooLarge:
        limit = self._limits.max_header_bytes
        return HeadersTooLarge(f"the request line and the headers are larger than {limit} bytes")

    def _refuse(self, error: ServiceError) -> None:
        """Ends the connection; the error is the response where one can still be sent."""
        in_body, self._phase = self._phase is BODY, DEAF
        self._clear_deadline()
        path = self.url.partition(b"?")[0].decode("latin-1")
        response = self._limits.refuse(error, path)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not in_body or self.pipeline or cycle.response_started:
                cycle.keep_alive = False  # Earlier requests are answered first.
                return
            cycle.disconnected = True  # Its endpoint waits for the rest of the body.
            cycle.message_event.set()
        elif in_body:
            self.transport.close()  # This request has had its response.
            return
        self.connections.discard(self)
        self._limits.uncounted.add(self)
        self.transport.write(response)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._set_deadline(LINGER_SECONDS, self.transport.abort)
