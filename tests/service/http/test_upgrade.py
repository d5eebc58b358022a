"""Requests that ask to go on in another protocol: they are served as if they did not."""

from __future__ import annotations

import asyncio
import re

import pytest

from service.http.connection import MAX_HEADERS, MAX_PIPELINED
from service.http.head import without_upgrade
from tests.service.http.test_connection import GET, LIMIT, Open, head_of, run, serving
from tests.service.http.test_gate import BUSY, overloaded, refused
from tests.support.gated import gated, post

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
# What would be a request, if it were not a body.
BODY = GET.replace(b"echo", b"smuggled")
LENGTH = b"Content-Length: %d\r\n\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKS = b"5\r\n%b\r\n%x\r\n%b\r\n0\r\nTrailer: 1\r\n\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:])


def asking(request: bytes, wish: bytes = H2C) -> bytes:
    """The request, with a wish for another protocol at the end of its head."""
    head, _, body = request.partition(b"\r\n\r\n")
    return head + b"\r\n" + wish + b"\r\n" + body


def request_of(wish: bytes, rest: bytes, version: bytes = b"1.1") -> bytes:
    return b"POST /echo HTTP/%b\r\nHost: a\r\n%b%b" % (version, wish, rest)


async def in_pieces(client: Open, data: bytes, size: int) -> None:
    for start in range(0, len(data), size):
        client.writer.write(data[start : start + size])
        await client.writer.drain()
        if size < len(data):
            await asyncio.sleep(0)


@pytest.mark.parametrize("piece", [10_000, 50, 1])
@pytest.mark.parametrize(
    "wish",
    [
        H2C,
        b"Upgrade: websocket\r\nConnection: keep-alive, upgrade\r\n",
        b"upgrade: foo/2\r\nUpgrade: bar\r\nCONNECTION: UPGRADE\r\n",
        b"Proxy-Connection: upgrade\r\nUpgrade: h2c\r\n",
    ],
)
@pytest.mark.parametrize(
    ("rest", "size"), [(LENGTH + BODY, len(BODY)), (CHUNKED + CHUNKS, len(BODY)), (b"\r\n", 0)]
)
def test_the_body_is_read_and_the_connection_goes_on(
    wish: bytes, rest: bytes, size: int, piece: int
) -> None:
    async def test() -> None:
        async with serving() as client:
            for _ in range(2):
                await in_pieces(client, request_of(wish, rest), piece)
                assert await client.answer() == (200, b"%d" % size)
            await in_pieces(client, GET, piece)
            assert await client.answer() == (200, b"0")

    run(test)


def test_pipelined_requests_of_both_kinds_are_served_in_order() -> None:
    async def test() -> None:
        async with serving() as client:
            wishing = request_of(H2C, LENGTH + BODY)
            client.writer.write((wishing + GET + asking(GET)) * 30)
            for _ in range(30):
                assert await client.answer() == (200, b"%d" % len(BODY))
                assert await client.answer() == (200, b"0")
                assert await client.answer() == (200, b"0")
            client.writer.write(wishing * (MAX_PIPELINED + 50))
            served = re.findall(rb"HTTP/1\.1 200", await client.reader.read())
            assert len(served) == MAX_PIPELINED + 1  # and the one that was being served

    run(test)


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_connection_that_closes_is_closed_after_the_response(version: bytes) -> None:
    async def test() -> None:
        async with serving() as client:
            close = H2C if version == b"1.0" else H2C.replace(b"Upgrade,", b"close, Upgrade,")
            client.writer.write(request_of(close, LENGTH + BODY, version))
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" in head
            assert await client.reader.read() == b"%d" % len(BODY)

    run(test)


def test_a_client_that_asks_first_is_told_to_continue() -> None:
    async def test() -> None:
        async with serving() as client:
            client.writer.write(request_of(H2C + b"Expect: 100-continue\r\n", LENGTH))
            assert await client.answer() == (100, b"")
            client.writer.write(BODY)
            assert await client.answer() == (200, b"%d" % len(BODY))

    run(test)


@pytest.mark.parametrize(
    ("refused_", "status"),
    [
        (b"GET / HTTP/1.1\r\nBroken Header\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n" + CHUNKED, 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: none\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + CHUNKED, 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\n" + CHUNKED + b"no number\r\n", 400),
        (b"GET /echo HTTP/1.1\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
        (b"GET a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (head_of(LIMIT + 200), 431),
        (b"GET /" + b"x" * 8192 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_is_refused_without_the_wish_is_refused_with_it(
    refused_: bytes, status: int, first: bool
) -> None:
    async def test() -> None:
        start, _, rest = refused_.partition(b"\r\n")
        wishing = b"\r\n".join([start, H2C + rest]) if first else asking(refused_)
        for request in (refused_, wishing):
            async with serving() as client:
                client.writer.write(request)
                await client.refusal(status)

    run(test)


@pytest.mark.parametrize("more", [0, 1])
def test_the_wish_counts_as_part_of_the_head(more: int) -> None:
    async def test() -> None:
        async with serving(max_header_bytes=65_536) as client:
            headers = b"a: b\r\n" * (MAX_HEADERS - 4 + more)
            client.writer.write(asking(b"GET /echo HTTP/1.1\r\nHost: a\r\n" + headers + b"\r\n"))
            if not more:
                assert await client.answer() == (200, b"0")
                return
            assert "more than 1000 headers" in await client.refusal(431)
        async with serving() as client:
            long = b"Connection: upgrade\r\nUpgrade: " + b"x" * LIMIT + b"\r\n"
            client.writer.write(asking(GET, long) + bytes(10_000))
            assert str(LIMIT) in await client.refusal(431)

    run(test)


@pytest.mark.parametrize("target", [b"/echo", b"a:1"])
def test_connect_is_refused_and_what_follows_it_is_no_request(target: bytes) -> None:
    async def test() -> None:
        async with serving() as client:
            client.writer.write(b"CONNECT %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (target, H2C) + BODY)
            assert "CONNECT is for proxies" in await client.refusal(400)

    run(test)


@pytest.mark.parametrize("piece", [100, 1])
def test_who_begins_with_http_2_is_told_what_to_send(piece: int) -> None:
    async def test() -> None:
        async with serving() as client:
            await in_pieces(client, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", piece)
            assert "HTTP/2 is not supported; send HTTP/1.1" in await client.refusal(400)

    run(test)


def test_a_head_that_does_not_end_in_time_is_408() -> None:
    async def test() -> None:
        async with serving(header_timeout_s=0.2) as client:
            client.writer.write(request_of(H2C, b""))
            assert "0.2 s" in await client.refusal(408)
            slow = await client.connect()
            slow.writer.write(request_of(H2C, b"Content-Length: 1\r\n\r\n"))
            await asyncio.sleep(0.4)  # Of the head nothing is missing.
            slow.writer.write(b"x")
            assert await slow.answer() == (200, b"1")

    run(test)


def test_the_gate_refuses_a_wishing_request_once_and_the_connection_goes_on() -> None:
    with overloaded() as service:
        client = service.connect()
        wishing = asking(BUSY)
        for count in range(1, 4):
            refused(client.send(wishing).answer(), 429, "deadline_too_short")
            assert service.refusals("first", "deadline_too_short") == count
        client.send(wishing * 3)
        for _ in range(3):
            refused(client.answer(), 429, "deadline_too_short")
        head, _, body = wishing.partition(b"\r\n\r\n")
        refused(client.send(head + b"\r\n\r\n").answer(), 429, "deadline_too_short")
        service.model.open.set()
        service.until(service.idle)
        assert client.send(body + asking(post())).answer().status == 200
        assert service.refusals("first", "deadline_too_short") == 7


def test_those_held_while_the_loop_has_no_time_are_served() -> None:
    with gated() as service:
        clients = [service.connect() for _ in range(50)]
        with service.stalled():
            for client in clients:
                client.send(asking(post()))
        assert [client.answer().status for client in clients] == [200] * 50
        assert service.on_loop(service.idle)


def test_a_head_loses_its_wish_and_nothing_else() -> None:
    headers = [(b"host", b"a"), (b"upgrade", b"h2c"), (b"x", b" b "), (b"upgrade", b"")]
    assert without_upgrade(b"PUT", b"/a?b", "1.0", headers) == (
        b"PUT /a?b HTTP/1.0\r\nhost: a\r\nx:  b \r\n\r\n"
    )
