"""The part of HTTP/1.1 that a load generator has to parse."""

from __future__ import annotations

from typing import NamedTuple

HEAD_END = b"\r\n\r\n"
HEAD_LIMIT = 65_536
LENGTH = b"\r\ncontent-length:"
TIMING = b"\r\nserver-timing:"


class HttpResponse(NamedTuple):
    """`closes`: the connection takes no further request; `timing`: Server-Timing's value."""

    status: int
    closes: bool
    timing: bytes


def read_response(data: bytes, *, ended: bool = False) -> HttpResponse | None:
    """The response at the start of `data`, or None if it is incomplete.

    `ended`: nothing will follow, which is how a body without a length ends.

    Raises:
        ValueError: it is not an HTTP response.
    """
    end = data.find(HEAD_END)
    if end < 0:
        if len(data) > HEAD_LIMIT or not data.startswith(b"HTTP/1."[: len(data)]):
            raise ValueError("not an HTTP response")
        return None
    head = data[: end + 2].lower()
    if not head.startswith(b"http/1."):
        raise ValueError("not an HTTP response")
    status = int(head[9:12])
    if status < 200:  # An interim response; the final one follows.
        return read_response(data[end + 4 :], ended=ended)
    closes = b"\r\nconnection: close" in head or (
        head.startswith(b"http/1.0") and b"\r\nconnection: keep-alive" not in head
    )
    length = _value(head, LENGTH)
    if length is not None:
        complete = len(data) - end - 4 >= int(length)
    elif b"\r\ntransfer-encoding: chunked" in head:
        complete = _has_last_chunk(data, end + 4)
    elif status in (204, 304):
        complete = True
    else:
        complete = closes = ended
    return HttpResponse(status, closes, _value(head, TIMING) or b"") if complete else None


def _value(head: bytes, name: bytes) -> bytes | None:
    start = head.find(name)
    if start < 0:
        return None
    start += len(name)
    return head[start : head.find(b"\r\n", start)]


def _has_last_chunk(data: bytes, start: int) -> bool:
    while (line_end := data.find(b"\r\n", start)) >= 0:
        size = int(data[start:line_end].partition(b";")[0], 16)
        if not size:
            # Trailers may precede the empty line that ends the response.
            return data.find(HEAD_END, line_end) >= 0
        start = line_end + 2 + size + 2
    return False
