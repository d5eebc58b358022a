from __future__ import annotations

import pytest

from service.errors import MalformedRequest
from service.http import head

HOST = (b"host", b"a")
CHUNKED = (b"transfer-encoding", b"chunked")


@pytest.mark.parametrize(
    ("version", "headers"),
    [
        ("1.1", [HOST]),
        ("1.1", [(b"host", b"")]),
        ("1.1", [(b"host", b"[::1]:8000")]),
        ("1.1", [(b"host", b"a_b.example:")]),
        ("1.0", []),
        ("1.0", [HOST]),
        ("1.1", [HOST, CHUNKED]),
        ("1.1", [HOST, (b"transfer-encoding", b" Chunked ")]),
        ("1.1", [HOST, (b"x-forwarded-host", b"b")]),
    ],
)
def test_what_the_rfc_allows_passes(version: str, headers: list[tuple[bytes, bytes]]) -> None:
    head.check(version, headers)


@pytest.mark.parametrize(
    ("version", "headers", "said"),
    [
        ("1.1", [], "exactly one Host header; the request has 0"),
        ("1.1", [HOST, HOST], "the request has 2"),
        ("1.0", [HOST, HOST], "the request has 2"),
        ("1.1", [(b"host", b"a, b")], "not a host name"),
        ("1.1", [(b"host", b"a/b")], "not a host name"),
        ("1.1", [(b"host", b"user@a")], "not a host name"),
        ("1.1", [(b"host", b"a:port")], "not a host name"),
        ("1.1", [(b"host", b"a\nb")], "not a host name"),
        ("1.1", [(b"host", b"[::1")], "not a host name"),
        ("0.9", [], "HTTP/0.9 is not supported; send HTTP/1.1"),
        ("1.2", [HOST], "HTTP/1.2 is not supported"),
        ("1.1", [HOST, (b"transfer-encoding", b"gzip, chunked")], "chunked, once"),
        ("1.1", [HOST, (b"transfer-encoding", b"identity")], "chunked, once"),
        ("1.1", [HOST, (b"transfer-encoding", b"")], "chunked, once"),
        ("1.1", [HOST, CHUNKED, CHUNKED], "chunked, once"),
    ],
)
def test_what_two_readers_could_take_for_two_requests_is_refused(
    version: str, headers: list[tuple[bytes, bytes]], said: str
) -> None:
    with pytest.raises(MalformedRequest, match=said):
        head.check(version, headers)


@pytest.mark.parametrize(
    ("method", "headers", "rtsp"),
    [
        (b"DESCRIBE", [], True),
        (b"OPTIONS", [(b"cseq", b"1")], True),
        (b"OPTIONS", [], False),
        (b"GET", [HOST], False),
        (b"SOURCE", [HOST], False),
    ],
)
def test_rtsp_is_known_by_its_methods_or_its_cseq(
    method: bytes, headers: list[tuple[bytes, bytes]], rtsp: bool
) -> None:
    assert head.is_rtsp(method, headers) == rtsp
