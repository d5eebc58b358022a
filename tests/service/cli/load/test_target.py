"""Requests as bytes, and what is read of answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from email.parser import BytesParser

import pytest

from service.cli.load.http_response import read_response
from service.cli.load.target import Target
from service.errors import ConfigError


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_request_is_ready_to_be_sent(port: int) -> None:
    target = Target.of(
        f"http://127.0.0.1:{port}?top_k=1",
        [b"one", b"two!"],
        content_type="image/png",
        headers=["X-Request-Timeout-Ms: 50"],
    )
    assert target.address == ("127.0.0.1", port)
    assert target.requests[1] == (
        b"POST /?top_k=1 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nX-Request-Timeout-Ms: 50\r\n"
        b"Content-Type: image/png\r\nContent-Length: 4\r\n\r\ntwo!" % port
    )


def test_a_form_has_the_image_in_its_field(port: int) -> None:
    image = bytes(range(256))
    target = Target.of(
        f"http://127.0.0.1:{port}/x", [image], form="photo", content_type="image/gif"
    )
    head, _, body = target.requests[0].partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head
    _, part = BytesParser().parsebytes(head.partition(b"\r\n")[2] + b"\r\n\r\n" + body).walk()
    assert part.get_param("name", header="content-disposition") == "photo"
    assert part.get_content_type() == "image/gif"
    assert image in body


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://127.0.0.1/", "does not support TLS"),
        ("ftp://127.0.0.1/", "must look like http://"),
        ("127.0.0.1:8000", "must look like http://"),
        ("http://127.0.0.1:8000/a b", "must look like http://"),
        ("http:///path", "must look like http://"),
        ("http://127.0.0.1:99999/", "must look like"),
        ("http://127.0.0.1:9/", "refused; is the server running"),
    ],
)
def test_an_impossible_url_is_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Target.of(url, [b"image"])


@pytest.mark.parametrize("header", ["X", ": x", "A: b\r\nC: d", ""])
def test_an_impossible_header_is_refused(port: int, header: str) -> None:
    with pytest.raises(ConfigError, match="is not a header"):
        Target.of(f"http://127.0.0.1:{port}/", [b"image"], headers=[header])


def test_no_image_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match="no image"):
        Target.of(f"http://127.0.0.1:{port}/", [])


WHOLE = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, False),
    (b"HTTP/1.1 503 \r\nconnection: close\r\ncontent-length:0\r\n\r\n", 503, True),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, True),
    (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx", 200, False),
    (b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n", 204, False),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 413 X\r\nContent-Length: 1\r\n\r\nx", 413, False),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nhi\r\n0\r\n\r\n", 200, False),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTrailer: x\r\n\r\n", 200, False),
]


@pytest.mark.parametrize(("data", "status", "closes"), WHOLE)
def test_an_answer_is_read_when_it_is_whole_and_not_before(
    data: bytes, status: int, closes: bool
) -> None:
    for end in range(len(data)):
        assert read_response(data[:end]) is None
        assert read_response(data[:end], ended=True) is None
    assert read_response(data) == (status, closes, b"")


def test_server_timing_is_kept_as_it_is() -> None:
    data = b"HTTP/1.1 200 OK\r\nServer-Timing: total;dur=1\r\nContent-Length: 0\r\n\r\n"
    answer = read_response(data)
    assert answer is not None
    assert answer.timing.strip() == b"total;dur=1"


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-x\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
    ],
)
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"HTTP|invalid literal"):
        read_response(data)
