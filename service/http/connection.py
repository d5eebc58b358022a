"""One HTTP connection: its limits, the order of its requests, and refusals before any of them runs.

uvicorn's protocol reads headers of any size for any time from any number of clients. This one
refuses with a problem document, as the endpoints do, and gives the client a moment to read it.

    data ──▶ held for a later turn, if this one has no time ──▶ parsed ──▶ refused by the gate,
                                                                           or run as a task
"""

from __future__ import annotations

import asyncio
import enum
import time
from functools import partial
from typing import Any

import httptools
from uvicorn._types import ASGI3Application, HTTPScope
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from service.errors import HeadersTooLarge, MalformedRequest, RequestTooSlow, ServiceError
from service.http import head, tcp
from service.http.cycle import REFUSED, Cycle, Refused
from service.http.gate import Entry
from service.http.limits import ConnectionLimits
from service.http.record import KEY, RequestRecord, record_of
from service.http.timed_connection import TimedConnection

# A socket that is closed with bytes unread is reset, and the response may be lost with it. For so
# long a client may go on sending what nobody reads.
LINGER_SECONDS = 2.0
HEALTH = (b"/health/", b"/v2/health/")
# Requests that are never held: probes must tell the truth in time.
PROBES = tuple(method + path for method in (b"GET ", b"HEAD ") for path in HEALTH)
# What the client's input can make a callback raise.
INPUT_ERRORS = (httptools.HttpParserError, UnicodeError)
# Requests of one connection that wait for responses; each costs more memory than its bytes.
MAX_PIPELINED = 100
# Of a request that is held; a client that sends more waits.
MAX_HELD_BYTES = 2**16
# More would block the event loop; other servers have similar limits.
MAX_URL_BYTES, MAX_HEADERS = 8192, 1000
NO_HTTP = "not a valid HTTP/1.1 request; the connection closes"
HTTP_2 = "HTTP/2 is not supported; send HTTP/1.1, as `curl --http1.1` does"


class Phase(enum.Enum):
    """What the client is sending; `DEAF`: nothing that it sends is read any more.

    A message is in its head from its first byte to the empty line, then in its body to its end.
    """

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    DEAF = enum.auto()


IDLE, HEAD, BODY, DEAF = Phase  # A member's name is looked up faster than its class's attribute.


class ServerConnection(TimedConnection):
    """One connection: the phase of the request that it receives, and the phase's deadline."""

    def __init__(
        self,
        stream: tcp.Socket,
        limits: ConnectionLimits,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(stream, limits.turns, config, server_state, app_state, _loop)
        self.timeout_keep_alive = limits.keep_alive  # type: ignore[assignment]
        self.url = b""  # of the latest request, as far as it has arrived
        self._limits = limits
        self._phase = IDLE
        # Over the limit; health is still answered, so that probes tell the truth, and another
        # request only if others make room for it.
        self._surplus = False
        # Bytes since the parser last reported a whole head or a part of a body: they bound heads,
        # and the trailers and extensions of chunked bodies.
        self._unreported = 0
        self._held: bytes | None = None
        self._held_since = 0.0
        self._running: RequestResponseCycle | None = None  # `cycle` is the newest

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limits = self._limits
        if len(self.connections) > limits.max_connections:
            self.connections.discard(self)
            if len(limits.uncounted) >= limits.max_connections:
                self._phase = DEAF
                limits.count(limits.too_many())
                transport.abort()
                return
            self._surplus = True
            limits.uncounted.add(self)
        self._set_deadline(limits.header_timeout, self._head_timed_out)

    def data_received(self, data: bytes) -> None:
        if self._phase is DEAF:
            return
        now = time.perf_counter()
        in_time = self._turns.read(now)
        if self._held is not None:
            self._held += data
            if len(self._held) > MAX_HELD_BYTES:
                self.flow.pause_reading()
        elif in_time or self._phase is not IDLE or self._responding or self._is_probe(data):
            self._was_read(0.0)
            self._parse(data)
        else:
            self._held, self._held_since = data, now
            self._turns.hold(self)

    def _is_probe(self, data: bytes) -> bool:
        return data.startswith(PROBES) or data.startswith(self._limits.probes)

    def release(self) -> None:
        """Goes on with what was held."""
        data, self._held = self._held, None
        if data is None or self.transport.is_closing():
            return
        self._was_read(self._held_since)
        self.flow.resume_reading()
        try:
            self._parse(data)
        except Exception:
            self.transport.abort()  # As the event loop does where data is received.
            raise

    def _parse(self, data: bytes) -> None:
        gate = self._limits.gate
        alone = self._phase is IDLE and not (self._unreported or self._responding or self._surplus)
        if alone and gate is not None:
            age = time.perf_counter() - self._read_at if self._read_at else 0.0
            if (refusal := gate.again(data, age)) is not None:
                self._clear_deadline()
                self._refuse_early(refusal, keep_alive=True)
                return
        self._unreported += len(data)
        if not self._feed(data):
            return
        if self._unreported > self._limits.max_header_bytes:
            self._refuse(self._limits.too_large())
        elif self._deadline is not None:
            return
        elif self._phase is HEAD or (self._unreported and not self._responding):
            # Between requests, something was sent that begins none.
            self._set_deadline(self._limits.header_timeout, self._head_timed_out)
        elif self.cycle is REFUSED and self._phase is BODY:
            self._set_deadline(LINGER_SECONDS, self.transport.close)
        elif self.cycle is REFUSED and alone:
            assert gate is not None
            gate.remember(data)

    def _feed(self, data: bytes | memoryview) -> bool:
        """Parses data; whether the connection goes on."""
        behind: memoryview | None = None  # the head that is parsed again
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                behind = memoryview(data)[upgrade.args[0] :]
                data = self._head_without_upgrade()
            except httptools.HttpParserError as error:
                cause = error.__context__  # what a callback raised
                if isinstance(cause, Refused):
                    self._end(cause.response)
                elif isinstance(cause, ServiceError):
                    self._refuse(cause)
                elif cause is None or isinstance(cause, INPUT_ERRORS):
                    preface = self.parser.get_method() == b"PRI"
                    self._refuse(MalformedRequest(HTTP_2 if preface else NO_HTTP))
                else:
                    raise  # A bug: the event loop logs it, and closes the connection.
                return False
            else:
                if not behind:
                    return True
                data, behind = behind, None

    def _head_without_upgrade(self) -> bytes:
        """Begins a request anew that asks to go on in another protocol, for a parser that is not
        told so: the old one takes all that follows the head, even a body, for that protocol.

        Everything that follows from the head is done in this second pass.
        """
        parser, self.parser = self.parser, httptools.HttpRequestParser(self)
        # As uvicorn does: a pipelined request is answered before the connection closes.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return head.without_upgrade(
            parser.get_method(), self.url, parser.get_http_version(), self.headers
        )

    @property
    def _busy(self) -> bool:
        return self._responding or self._phase is not IDLE or self._held is not None

    @property
    def _responding(self) -> bool:
        """Whether a request of this connection has not had its whole response."""
        return self.cycle is not None and not self.cycle.response_complete

    def give_way(self) -> bool:
        """See `service.http.idle.IdleConnection`."""
        # For the rest of a record one waits as long as for the rest of a head.
        if tcp.has_data(self._socket) or self._has_part_of_record(self._limits.header_timeout):
            return False
        self._phase = DEAF
        self.connections.discard(self)
        self._limits.uncounted.add(self)
        self._close_idle()
        return True

    def on_message_begin(self) -> None:
        self._phase = HEAD
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        limits, parser = self._limits, self.parser
        if self._unreported > limits.max_header_bytes:
            # It may have come with a body, or behind another request: now its size is known.
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > limits.max_header_bytes:
                raise limits.too_large()
        if len(self.url) > MAX_URL_BYTES or len(self.headers) > MAX_HEADERS:
            raise HeadersTooLarge(
                f"the URL has more than {MAX_URL_BYTES} bytes, or there are more than "
                f"{MAX_HEADERS} headers"
            )
        method = parser.get_method()
        if parser.should_upgrade():
            if method == b"CONNECT":
                raise MalformedRequest("CONNECT is for proxies, and this is none")
            return  # Its head is parsed again; see `_feed`.
        if len(self.pipeline) >= MAX_PIPELINED:
            raise MalformedRequest(
                f"{MAX_PIPELINED} requests are pending on this connection; read their responses"
            )
        version = parser.get_http_version()
        if version == "1.0" and head.is_rtsp(method, self.headers):
            raise MalformedRequest(NO_HTTP)
        head.check(version, self.headers)
        if self._surplus and not (self.url.startswith(HEALTH) or self.url in limits.health):
            counted: Any = self.connections  # All are of this class.
            if not limits.has_room(counted, self.loop.time()):
                raise limits.too_many()
            self._surplus = False
            limits.uncounted.discard(self)
            self.connections.add(self)
        keep_alive = version != "1.0" and parser.should_keep_alive() and not self._surplus
        self._unreported = 0
        self._clear_deadline()
        entry = None
        predicts = method == b"POST" or method == b"PUT"  # noqa: PLR1714 - faster
        if predicts and limits.gate is not None and not self._responding:
            verdict = limits.gate.check(method, self.url, self.headers, self._arrival, keep_alive)
            if isinstance(verdict, bytes):
                self._phase = BODY
                self._refuse_early(verdict, keep_alive)
                return
            entry = verdict
        self._begin(method.decode("ascii"), version, keep_alive, entry)

    def _begin(self, method: str, version: str, keep_alive: bool, entry: Entry | None) -> None:
        """Starts a request's task, or queues it behind those before it."""
        record = RequestRecord(self._arrival(), entry=entry, watched=True)
        # The keys in the order in which ASGI's specification has them.
        scope: HTTPScope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "method": method,
            "scheme": self.scheme or "http",
            **head.target_of(self.url, self.root_path),  # type: ignore[typeddict-item]
            "root_path": self.root_path,
            "headers": self.headers,
            "client": self.client,
            "server": self.server,
            "state": self.app_state.copy(),
        }
        self._phase = BODY  # Before, what is wrong with the target is still the head's affair.
        self.headers = []  # Trailers must not pass for headers (RFC 9110, section 6.5.1).
        scope[KEY] = record  # type: ignore[literal-required]
        cycle = Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )
        if entry is not None:
            cycle.entry, cycle.took = entry, self._turns.timed()
        responding, self.cycle = self._responding, cycle
        if responding:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))
        elif entry is None:
            self._start_asgi_task(cycle, self.app)
        else:
            self._turns.start(partial(self._start_let_in, cycle, entry))

    def _start_let_in(self, cycle: Cycle, entry: Entry) -> None:
        if cycle.disconnected or self.transport.is_closing():
            entry.ended()
        elif (late := entry.late(cycle.keep_alive)) is not None:
            entry.ended()
            cycle.send_whole(late)
        else:
            self._start_asgi_task(cycle, self.app)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _refuse_early(self, response: bytes, keep_alive: bool) -> None:
        """Sends the gate's refusal; the connection goes on with the next request."""
        self.server_state.total_requests += 1
        if not keep_alive:
            raise Refused(response)
        self.cycle = REFUSED
        self.transport.write(response)
        if self.flow.write_paused:  # The client does not read its refusals.
            self.flow.pause_reading()
        self._begin_idle()

    def on_body(self, body: bytes) -> None:
        self._unreported = 0
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self._phase is HEAD:
            return  # The parser stops to upgrade; see `_feed`.
        self._unreported = 0
        self._phase = IDLE
        self._clear_deadline()
        cycle = self.cycle
        if cycle is REFUSED:
            return
        record = record_of(cycle.scope)  # type: ignore[arg-type]
        record.received = self._arrival()
        if record.entry is not None:
            record.entry.complete(later=record.received != record.started)
        if not cycle.response_complete:
            cycle.more_body = False
            cycle.message_event.set()
            if not self.pipeline:
                # A large last part has stopped reading, and whoever leaves now must be noticed.
                self.flow.resume_reading()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._begin_idle()
        if self._phase is BODY:  # The response came early.
            # A client that soon ends its body can keep the connection.
            self._set_deadline(LINGER_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._limits.uncounted.discard(self)
        self._held = None
        running = self._running  # The base class tells only the newest.
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
            record = record_of(running.scope)  # type: ignore[arg-type]
            record.left = True
            if record.on_left is not None:
                record.on_left()
        super().connection_lost(exc)

    def _head_timed_out(self) -> None:
        self._deadline = None
        seconds = self._limits.header_timeout
        if self.flow.read_paused or self._held is not None:
            # We do not read while earlier requests are answered, or while the loop has no time.
            self._set_deadline(seconds, self._head_timed_out)
        elif self._phase is HEAD or self._unreported:
            self._refuse(RequestTooSlow(f"the headers took longer than {seconds:g} s"))
        else:
            self.transport.close()  # Nothing was requested, so nothing is answered.

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
        self._end(response)

    def _end(self, response: bytes) -> None:
        """Sends a last response, and closes the connection when the client has had time to read."""
        self._phase = DEAF
        self._clear_deadline()
        self.connections.discard(self)
        self._limits.uncounted.add(self)
        self.transport.write(response)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._set_deadline(LINGER_SECONDS, self.transport.abort)
