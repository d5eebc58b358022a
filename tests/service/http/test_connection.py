"""The limits on connections and headers, on a real socket, around an application of a few lines."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from service.config.settings import Settings
from service.http import connection as protocol
from service.http import idle, limits, timed_connection
from service.http.acceptor import Acceptor
from service.http.connection import MAX_HEADERS, MAX_PIPELINED, MAX_URL_BYTES, ServerConnection
from service.http.limits import ConnectionLimits
from service.metrics import Metrics

GET = b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
LIMIT = 2000
LARGE = 2**25


class Open:
    """A running service and one connection to it."""

    def __init__(
        self,
        limits: ConnectionLimits,
        metrics: Metrics,
        connections: set[Any],
        left: list[str],
        host: tuple[str, int] | str,
    ) -> None:
        self.limits = limits
        self.metrics = metrics
        self.connections = connections
        self.left = left  # paths whose clients left, as the application sees it
        self.host = host
        self.echoed: list[list[bytes]] = []  # what the application saw of X-Echo, by request
        self.opened: list[asyncio.StreamWriter] = []
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def connect(self) -> Open:
        other = Open(self.limits, self.metrics, self.connections, self.left, self.host)
        connecting = (
            asyncio.open_unix_connection(self.host)
            if isinstance(self.host, str)
            else asyncio.open_connection(*self.host)
        )
        other.reader, other.writer = await connecting
        self.opened.append(other.writer)
        other.opened, other.echoed = self.opened, self.echoed
        return other

    async def answer(self) -> tuple[int, bytes]:
        """The next answer's status and body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", head)
        body = await self.reader.readexactly(int(length[1])) if length else b""
        return int(head.split()[1]), body

    async def refusal(self, status: int) -> str:
        """The detail of the problem that comes next, after which the connection closes."""
        got, body = await self.answer()
        assert got == status, body
        assert await self.reader.read() == b""
        problem = json.loads(body)
        assert problem["status"] == status
        return str(problem["detail"])

    def refusals(self, reason: str) -> float:
        sample = f'resnet_serve_refusals_total{{model="",reason="{reason}"}} '
        (line,) = [
            line for line in self.metrics.render().decode().splitlines() if line.startswith(sample)
        ]
        return float(line.removeprefix(sample))


class Doorway:
    """See `service.http.acceptor.Door`."""

    def __init__(self, connections: set[Any], limits: ConnectionLimits) -> None:
        self._connections = connections
        self._limits = limits

    def lead(self, pending: int) -> int:
        return 0

    def admits(self, pending: int) -> bool:
        return self._limits.admits(len(self._connections) + pending)

    def accepted(self, waited: float) -> None:
        pass


@asynccontextmanager
async def serving(*, path: str = "", **overrides: Any) -> AsyncIterator[Open]:
    """`path`: of a Unix socket."""
    left: list[str] = []
    echoed: list[list[bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        size = 0
        while scope["path"] != "/early":
            message = await receive()
            if message["type"] == "http.disconnect":
                left.append(scope["path"])
                return
            size += len(message["body"])
            if not message["more_body"]:
                break
        while scope["path"] == "/slow":
            if (await receive())["type"] == "http.disconnect":
                left.append(scope["path"])
                return
        echoed.append([value for name, value in scope["headers"] if name == b"x-echo"])
        body = b"x" * LARGE if scope["path"] == "/large" else str(size).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    settings = Settings(**{"max_header_bytes": LIMIT, "header_timeout_s": 60, **overrides})
    metrics = Metrics()
    shared = ConnectionLimits(settings, metrics)
    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    make = partial(ServerConnection, limits=shared, config=config, server_state=state, app_state={})
    listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
    listener.bind(path or ("127.0.0.1", 0))
    server = Acceptor([listener], make, Doorway(state.connections, shared))
    server.start(100)
    first = Open(shared, metrics, state.connections, left, listener.getsockname())
    first.echoed = echoed
    try:
        async with asyncio.timeout(60):
            yield await first.connect()
    finally:
        server.close()
        for writer in first.opened:
            writer.close()
        for connection in [*state.connections, *shared.uncounted]:
            assert isinstance(connection, ServerConnection)
            connection.transport.abort()
        await asyncio.sleep(0)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def head_of(size: int) -> bytes:
    """A request whose first line and headers are about so long."""
    start = b"GET /echo HTTP/1.1\r\nHost: a\r\n"
    return start + b"X: " + b"x" * (size - len(start) - 40) + b"\r\n\r\n"


@pytest.mark.parametrize("piece", [10_000, 7])
def test_headers_may_be_as_long_as_the_limit_and_no_longer(piece: int) -> None:
    async def test() -> None:
        async with serving() as client:
            fits = head_of(LIMIT)
            for start in range(0, len(fits), piece):
                client.writer.write(fits[start : start + piece])
                await asyncio.sleep(0)
            assert await client.answer() == (200, b"0")
            large = head_of(LIMIT + 200)
            for start in range(0, len(large), piece):
                client.writer.write(large[start : start + piece])
                await asyncio.sleep(0)
            assert str(LIMIT) in await client.refusal(431)
            assert client.refusals("headers_too_large") == 1

    run(test)


@pytest.mark.parametrize(
    ("start", "more", "status"),
    [
        (b"GET /" + b"a" * 10, b"a" * 999, 431),
        (b"GET / HTTP/1.1\r\nX: ", b"x" * 999, 431),
        (b"GET / HTTP/1.1\r\nX: 1\r\n", b"X: 1\r\n" * 99, 431),
        (b"", b"\r\n" * 99, 431),
        (CHUNKED + b"1\r\nx\r\n0\r\n", b"Trailer: 1\r\n" * 99, 431),
        (CHUNKED + b"1;", b"extension;" * 99, 431),
    ],
)
def test_what_never_ends_is_refused(start: bytes, more: bytes, status: int) -> None:
    async def test() -> None:
        async with serving() as client:
            client.writer.write(start)
            sent = 0
            while not client.limits.uncounted and sent < 2**22:
                client.writer.write(more)
                await client.writer.drain()
                await asyncio.sleep(0.001)
                sent += len(more)
            assert sent < LIMIT + 2**19
            await client.refusal(status)
            assert client.refusals("headers_too_large") == 1

    run(test)


@pytest.mark.parametrize("more", [0, 1])
def test_a_url_may_be_as_long_as_elsewhere_and_no_longer(more: int) -> None:
    """Whatever its headers may be: parsing a query of 60 kB takes 10 ms."""

    async def test() -> None:
        async with serving(max_header_bytes=65_536) as client:
            url = b"/echo?" + b"a" * (MAX_URL_BYTES - 6 + more)
            client.writer.write(b"GET " + url + b" HTTP/1.1\r\nHost: a\r\n\r\n")
            if not more:
                assert await client.answer() == (200, b"0")
                return
            assert "the URL has more than 8192 bytes" in await client.refusal(431)
            assert client.refusals("headers_too_large") == 1

    run(test)


@pytest.mark.parametrize("more", [0, 1])
def test_a_request_has_no_more_headers_than_can_be_searched(more: int) -> None:
    async def test() -> None:
        async with serving(max_header_bytes=65_536) as client:
            headers = b"Host: a\r\n" + b"a: b\r\n" * (MAX_HEADERS - 1 + more)
            client.writer.write(b"GET /echo HTTP/1.1\r\n" + headers + b"\r\n")
            if not more:
                assert await client.answer() == (200, b"0")
                return
            assert "more than 1000 headers" in await client.refusal(431)

    run(test)


def test_a_large_body_that_comes_with_its_headers_is_no_header() -> None:
    async def test() -> None:
        async with serving() as client:
            request = (
                b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000
            )
            for _ in range(3):
                client.writer.write(request + request + GET)
                assert await client.answer() == (200, b"100000")
                assert await client.answer() == (200, b"100000")
                assert await client.answer() == (200, b"0")

    run(test)


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\nHost: a\r\n", b"\r\n", GET + b"GET "])
def test_headers_that_do_not_end_in_time_are_408(sent: bytes) -> None:
    async def test() -> None:
        async with serving(header_timeout_s=0.2) as client:
            client.writer.write(sent)
            if sent.startswith(GET):
                assert await client.answer() == (200, b"0")
            assert "0.2 s" in await client.refusal(408)
            assert client.refusals("request_too_slow") == 1

    run(test)


def test_a_byte_at_a_time_buys_no_more_time() -> None:
    async def test() -> None:
        async with serving(header_timeout_s=0.3) as client:
            dribble, sent = b"GET /" + b"a" * 1000, 0
            while not client.limits.uncounted:
                client.writer.write(dribble[sent : sent + 1])
                sent += 1
                await asyncio.sleep(0.02)
            assert sent < 200
            await client.refusal(408)

    run(test)


def test_who_sends_nothing_is_left_without_a_word() -> None:
    async def test() -> None:
        async with serving(header_timeout_s=0.1) as client:
            assert await client.reader.read() == b""
            assert client.refusals("request_too_slow") == 0

    run(test)


def test_a_slow_body_is_not_the_headers_affair() -> None:
    async def test() -> None:
        async with serving(header_timeout_s=0.1) as client:
            client.writer.write(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na")
            await asyncio.sleep(0.3)
            client.writer.write(b"b")
            assert await client.answer() == (200, b"2")

    run(test)


def test_connections_beyond_the_limit_are_503_until_others_close() -> None:
    async def test() -> None:
        async with serving(max_connections=2) as first:
            second = await first.connect()
            for client in (first, second):
                client.writer.write(GET)
                assert await client.answer() == (200, b"0")
            probe = await first.connect()
            probe.writer.write(GET.replace(b"/echo", b"/health/live"))
            assert await probe.answer() == (200, b"0")
            assert await probe.reader.read() == b""
            assert first.refusals("too_many_connections") == 0
            third = await first.connect()
            third.writer.write(GET)
            head = (await third.reader.readuntil(b"\r\n\r\n")).decode()
            assert head.startswith("HTTP/1.1 503 ")
            assert "retry-after: 1" in head
            assert "connection: close" in head
            assert first.refusals("too_many_connections") == 1
            second.writer.close()
            await second.writer.wait_closed()
            fourth = await first.connect()
            fourth.writer.write(GET)
            assert await fourth.answer() == (200, b"0")

    run(test)


def test_the_longest_idle_connection_gives_way_to_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idle, "LEAST_SECONDS", 0.05)

    async def test() -> None:
        async with serving(max_connections=3) as first:
            second, third = await first.connect(), await first.connect()
            for client in (second, first):
                client.writer.write(GET)
                assert await client.answer() == (200, b"0")
            await asyncio.sleep(0.1)
            third.writer.write(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
            # Neither one that sends nothing nor a probe closes anything.
            fourth, probe = await first.connect(), await first.connect()
            probe.writer.write(GET.replace(b"/echo", b"/health/live"))
            assert await probe.answer() == (200, b"0")
            assert await probe.reader.read() == b""
            assert len(first.connections) == 3
            fourth.writer.write(GET)
            assert await fourth.answer() == (200, b"0")
            assert await second.reader.read() == b""
            for client in (first, fourth):  # It is one of those that count now.
                client.writer.write(GET)
                assert await client.answer() == (200, b"0")
            monkeypatch.setattr(idle, "LEAST_SECONDS", 60)
            await asyncio.sleep(idle.PAUSE_SECONDS)
            fifth = await first.connect()
            fifth.writer.write(GET)  # All others have just had a response, or wait for one.
            assert str(3) in await fifth.refusal(503)
            assert third.left == []
            assert len(first.connections) == 3

    run(test)


def test_who_did_not_get_in_may_once_another_has_left() -> None:
    async def test() -> None:
        async with serving(max_connections=1) as first:
            first.writer.write(GET)
            assert await first.answer() == (200, b"0")
            second = await first.connect()
            while not first.limits.uncounted:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            first.writer.close()
            while first.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            for _ in range(2):
                second.writer.write(GET)
                assert await second.answer() == (200, b"0")

    run(test)


def test_an_idle_unix_connection_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "LEAST_SECONDS", 0.05)

    async def test() -> None:
        async with serving(max_connections=1, path=str(tmp_path / "socket")) as first:
            first.writer.write(GET)
            assert await first.answer() == (200, b"0")
            await asyncio.sleep(0.1)
            second = await first.connect()
            second.writer.write(GET)
            assert await second.answer() == (200, b"0")
            assert await first.reader.read() == b""

    run(test)


def test_an_idle_connection_is_kept_for_a_time_and_no_longer() -> None:
    async def test() -> None:
        async with serving(keep_alive_s=2.5) as client:
            for _ in range(4):
                client.writer.write(GET)
                assert await client.answer() == (200, b"0")
                await asyncio.sleep(0.5)
            assert await client.reader.read() == b""

    run(test)


def test_a_balancer_is_the_one_to_end_an_idle_connection() -> None:
    """The longest idle timeout that is common is Envoy's, of an hour."""
    assert Settings().keep_alive_s > 3600


@pytest.mark.parametrize(
    ("path", "answered"), [(b"/ping", True), (b"/up", True), (b"/up?x", False), (b"/upper", False)]
)
def test_a_platforms_probe_is_answered_beyond_the_limit(path: bytes, answered: bool) -> None:
    async def test() -> None:
        async with serving(max_connections=1, vertex_health_route="/up") as first:
            first.writer.write(GET)
            assert await first.answer() == (200, b"0")
            probe = await first.connect()
            probe.writer.write(GET.replace(b"/echo", path))
            head = await probe.reader.readuntil(b"\r\n")
            assert head.startswith(b"HTTP/1.1 200" if answered else b"HTTP/1.1 503")

    run(test)


def test_a_flood_of_connections_is_not_even_answered() -> None:
    async def test() -> None:
        async with serving(max_connections=1) as first:
            first.writer.write(GET)
            await first.answer()
            others = [await first.connect() for _ in range(6)]
            others[0].writer.write(GET)
            answers = []
            for other in others:
                try:
                    answers.append((await other.reader.read(12)).decode())
                except ConnectionResetError:
                    answers.append("")
            assert answers.count("HTTP/1.1 503") == 1
            assert len(first.limits.uncounted) <= 1
            assert first.refusals("too_many_connections") == 6

    run(test)


def test_each_front_end_has_its_part_of_the_connections() -> None:
    shared = ConnectionLimits(Settings(max_connections=100, workers=3), Metrics())
    assert shared.max_connections == 34


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00",  # TLS
        b"HELLO\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nBroken Header\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"GET http://a:99999999/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        CHUNKED + b"no number\r\n",
        b"GET /echo\r\n\r\n",  # HTTP/0.9
        b"GET /echo HTTP/1.1\r\n\r\n",  # no host
        b"GET /echo HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET /echo HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /echo HTTP/1.1\r\nHost: a/b\r\n\r\n",
        b"GET /echo HTTP/1.1\r\nHost: a b\r\n\r\n",
        CHUNKED.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n",
        CHUNKED.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n") + b"0\r\n\r\n",
    ],
)
def test_what_is_no_http_is_400(sent: bytes) -> None:
    async def test() -> None:
        async with serving() as client:
            client.writer.write(sent)
            assert re.search("HTTP|Host|chunked|CONNECT", await client.refusal(400))
            assert client.refusals("malformed_request") == 1
            assert client.left == (["/echo"] if sent == CHUNKED + b"no number\r\n" else [])

    run(test)


@pytest.mark.parametrize(
    ("version", "host"),
    [
        ("1.1", "Host: a"),
        ("1.1", "Host: A-b.c_d:80"),
        ("1.1", "Host: [::1]:8000"),
        ("1.1", "Host:"),
        ("1.0", "Host: a"),
        ("1.0", "X: 1"),
    ],
)
def test_a_host_may_be_any_that_a_url_can_have(version: str, host: str) -> None:
    async def test() -> None:
        async with serving() as client:
            client.writer.write(f"GET /echo HTTP/{version}\r\n{host}\r\n\r\n".encode())
            assert await client.answer() == (200, b"0")

    run(test)


def test_what_was_asked_before_nonsense_is_answered() -> None:
    async def test() -> None:
        async with serving() as client:
            client.writer.write(GET + GET + b"nonsense\r\n\r\n" + GET)
            assert await client.answer() == (200, b"0")
            assert await client.answer() == (200, b"0")
            assert await client.reader.read() == b""

    run(test)


def test_requests_may_be_sent_ahead_of_answers_up_to_a_number() -> None:
    async def test() -> None:
        async with serving() as client:
            for _ in range(2):
                client.writer.write(GET * 60)
                assert [await client.answer() for _ in range(60)] == [(200, b"0")] * 60
            client.writer.write(GET * (MAX_PIPELINED + 50))
            answered = re.findall(rb"HTTP/1\.1 200", await client.reader.read())
            assert len(answered) == MAX_PIPELINED + 1  # and the one that was being answered

    run(test)


def test_a_caller_who_asks_first_is_told_to_continue() -> None:
    async def test() -> None:
        async with serving() as client:
            client.writer.write(
                b"POST /echo HTTP/1.1\r\nHost:\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"
            )
            assert await client.answer() == (100, b"")
            client.writer.write(b"x")
            assert await client.answer() == (200, b"1")

    run(test)


def test_after_an_early_answer_the_body_may_end_but_not_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.5)
    early = b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"

    async def test() -> None:
        async with serving() as client:
            client.writer.write(early)
            assert await client.answer() == (200, b"0")
            client.writer.write(b"abcde" + GET)
            assert await client.answer() == (200, b"0")
            client.writer.write(early)
            assert await client.answer() == (200, b"0")
            client.writer.write(b"abc")
            assert await client.reader.read() == b""

    run(test)


def test_who_reads_no_answers_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_connection, "STALLED_SECONDS", 0.1)

    async def test() -> None:
        async with serving() as client:
            client.writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
            await client.reader.readuntil(b"\r\n\r\n")
            while client.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await client.reader.readexactly(LARGE)

    run(test)


def test_a_flood_of_refusals_is_one_line_in_a_while(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "QUIET_SECONDS", 1000)
    caplog.set_level("INFO")

    async def test() -> None:
        async with serving() as client:
            for _ in range(5):
                other = await client.connect()
                other.writer.write(b"nonsense\r\n\r\n")
                await other.refusal(400)

    run(test)
    assert len([line for line in caplog.messages if "malformed_request" in line]) == 1


def test_who_sent_requests_ahead_and_left_is_noticed_by_the_one_that_runs() -> None:
    """Not only by the newest, which has not begun."""

    async def test() -> None:
        async with serving() as client:
            unfinished = CHUNKED + b"1\r\nx\r\n"
            client.writer.write(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n" + GET + unfinished)
            while not client.limits.turns._turns:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            client.writer.transport.abort()
            while client.left != ["/slow"]:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    run(test)


def test_trailers_do_not_pass_for_headers() -> None:
    """RFC 9110, section 6.5.1: a proxy in front may have judged the headers alone."""

    async def test() -> None:
        async with serving() as client:
            trailers = b"1\r\nx\r\n0\r\nX-Echo: trailer\r\nExpect: 100-continue\r\n\r\n"
            client.writer.write(
                CHUNKED + trailers + GET.replace(b"\r\n\r\n", b"\r\nX-Echo: 1\r\n\r\n")
            )
            assert await client.answer() == (200, b"1")
            assert await client.answer() == (200, b"0")
        assert client.echoed == [[], [b"1"]]

    run(test)
