"""A request's head: what RFC 9112 demands of it besides what the parser checks, and its target."""

from __future__ import annotations

import re
from typing import TypedDict
from urllib.parse import unquote

import httptools

from service.errors import MalformedRequest

# RFC 9112, section 3.2, and RFC 3986, section 3.2.2; an empty host is allowed.
HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
VERSIONS = ("1.1", "1.0")
# What the parser takes only in RTSP (RFC 2326, section 10); each of its requests has a CSeq.
RTSP_METHODS = frozenset(
    b"DESCRIBE ANNOUNCE SETUP PLAY PAUSE TEARDOWN GET_PARAMETER SET_PARAMETER REDIRECT RECORD "
    b"FLUSH".split()
)


def check(version: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Checks the version and the headers that decide where a request ends and whom it is for.

    Raises:
        MalformedRequest: it has no or several hosts, so that a proxy and the service could take
            it for two different requests, or it is not HTTP/1.0 or HTTP/1.1.
    """
    if version not in VERSIONS:
        raise MalformedRequest(f"HTTP/{version} is not supported; send HTTP/1.1")
    hosts = coded = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
            if not HOST.fullmatch(value):
                raise MalformedRequest("the Host header is not a host name with an optional port")
        elif name == b"transfer-encoding":
            coded += 1
            if coded > 1 or value.strip().lower() != b"chunked":
                raise MalformedRequest("the only Transfer-Encoding supported is chunked, once")
    if hosts > 1 or (not hosts and version == "1.1"):
        raise MalformedRequest(f"HTTP/1.1 needs exactly one Host header; the request has {hosts}")


def is_rtsp(method: bytes, headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a request of version 1.0 is RTSP's, which the parser reads and does not tell apart
    from HTTP's."""
    return method in RTSP_METHODS or any(name == b"cseq" for name, _ in headers)


def without_upgrade(
    method: bytes, url: bytes, version: str, headers: list[tuple[bytes, bytes]]
) -> bytes:
    """The head of a request without its wish for another protocol, which a server may ignore
    (RFC 9110, section 7.8). All else is as it was parsed, so that it is judged by the same rules.
    """
    lines = [b"%b %b HTTP/%b\r\n" % (method, url, version.encode("ascii"))]
    lines += [b"%b: %b\r\n" % header for header in headers if header[0] != b"upgrade"]
    return b"".join([*lines, b"\r\n"])


class RequestTarget(TypedDict):
    """What a request is for, in ASGI's scope."""

    path: str
    raw_path: bytes
    query_string: bytes


def target_of(url: bytes, root_path: str) -> RequestTarget:
    """The target of a request line.

    Raises:
        HttpParserInvalidURLError, UnicodeError: it is none.
    """
    if url.startswith(b"/") and b"#" not in url:
        raw_path, _, query = url.partition(b"?")
    else:
        parsed = httptools.parse_url(url)
        raw_path, query = parsed.path, parsed.query or b""
    path = raw_path.decode("ascii")
    return {
        "path": root_path + (unquote(path) if "%" in path else path),
        "raw_path": root_path.encode("ascii") + raw_path,
        "query_string": query,
    }
