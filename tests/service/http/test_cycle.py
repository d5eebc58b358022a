"""Responses as they are written to the connection, by the real cycle on a transport that notes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl

from service.http.cycle import Cycle

App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Transport:
    """Notes each write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


class Ended:
    """In the place of an entry: how often it has ended."""

    def __init__(self) -> None:
        self.times = 0

    def ended(self) -> None:
        self.times += 1


def ran(app: App, method: str = "GET", *, keep_alive: bool = True, **more: Any) -> Transport:
    """The transport after a request to `app`; `more` are attributes of the cycle."""

    async def run() -> Transport:
        transport: Any = Transport()
        cycle = Cycle(
            scope={"type": "http", "method": method, "path": "/"},  # type: ignore[typeddict-item]
            transport=transport,
            flow=FlowControl(transport),
            logger=logging.getLogger("test"),
            access_logger=logging.getLogger("test"),
            access_log=False,
            default_headers=[(b"x-default", b"1")],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=keep_alive,
            on_response=lambda: None,
        )
        for name, value in more.items():
            setattr(cycle, name, value)
        await cycle.run_asgi(app)  # type: ignore[arg-type]
        assert cycle.response_complete or cycle.disconnected or transport.closed
        noted: Transport = transport
        return noted

    return asyncio.run(run())


def responds(*headers: tuple[bytes, bytes], body: bytes = b"body", status: int = 200) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        listed = [*headers, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": listed})
        await send({"type": "http.response.body", "body": body})

    return app


def test_a_whole_response_is_one_write() -> None:
    transport = ran(responds((b"x-own", b"2")))
    assert transport.writes == [
        b"HTTP/1.1 200 OK\r\nx-default: 1\r\nx-own: 2\r\ncontent-length: 4\r\n\r\nbody"
    ]
    assert not transport.closed


@pytest.mark.parametrize("by", ["client", "application"])
def test_a_response_that_closes_says_so_once(by: str) -> None:
    headers = [(b"connection", b"close")] if by == "application" else []
    transport = ran(responds(*headers), keep_alive=by == "application")
    (written,) = transport.writes
    assert written.count(b"connection: close\r\n") == 1
    assert transport.closed


def test_the_answer_to_head_has_no_body() -> None:
    written = b"".join(ran(responds(), "HEAD").writes)
    assert b"content-length: 4\r\n" in written
    assert written.endswith(b"\r\n\r\n")


def test_a_body_in_pieces_is_chunked() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        await send({"type": "http.response.body", "body": b"c"})

    written = b"".join(ran(app).writes)
    assert b"transfer-encoding: chunked\r\n" in written
    assert written.endswith(b"\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "header",
    [
        (b"x-own", b"1\r\nset-cookie: stolen"),
        (b"x-own", b"1\nset-cookie: stolen"),
        (b"x-own", b"1\rset-cookie: stolen"),
        (b"x-own\r\nset-cookie", b"stolen"),
        (b"x-own", b"1\r\n\r\n<script>"),
        (b"x-own", b"1\0"),
    ],
)
def test_a_header_with_a_line_break_is_not_sent(header: tuple[bytes, bytes]) -> None:
    transport = ran(responds(header))
    written = b"".join(transport.writes)
    assert b"stolen" not in written
    assert b"<script>" not in written
    assert b"\0" not in written
    assert written.startswith(b"HTTP/1.1 500 ") or not written


def test_a_wrong_length_is_not_sent_as_a_whole_response() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"9")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"body"})

    transport = ran(app)
    # uvicorn has sent the head; it ends the connection, so that nobody waits for the rest.
    assert transport.closed


@pytest.mark.parametrize("after", ["nothing", "start"])
def test_a_bug_before_the_body_is_500(after: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if after == "start":
            headers = [(b"content-length", b"4")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        raise KeyError("a bug")

    entry = Ended()
    written = b"".join(ran(app, entry=entry).writes)
    assert written.startswith(b"HTTP/1.1 500 ")
    assert entry.times == 1


def test_whoever_has_left_is_sent_nothing_and_its_entry_ends() -> None:
    entry = Ended()
    assert ran(responds(), entry=entry, disconnected=True).writes == []
    assert entry.times == 1


def test_the_loops_time_is_measured_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("service.http.cycle.time.perf_counter", lambda: now[0])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        now[0] += 2.0
        waiting = asyncio.get_running_loop().create_future()

        def later() -> None:
            now[0] += 100.0
            waiting.set_result("x")

        asyncio.get_running_loop().call_soon(later)
        assert await waiting == "x"
        now[0] += 3.0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.sleep(60)
        now[0] += 4.0
        await responds()(scope, receive, send)

    took: list[float] = []
    transport = ran(app, entry=Ended(), took=took.append)
    assert len(transport.writes) == 1
    assert took == [9.0]
