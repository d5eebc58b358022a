"""As much of HTTP/1.1 as a load generator must read."""

from __future__ import annotations

from typing import NamedTuple

HEAD_END = b"\r\n\r\n"
HEAD_LIMIT = 65_536
LENGTH = b"\r\ncontent-length:"
TIMING = b"\r\nserver-timing:"


class Answer(NamedTuple):
    """`closes`: the connection takes no other request; `timing`: Server-Timing's value."""

    status: int
    closes: bool
    timing: bytes


def read_answer(data: bytes, *, ended: bool = False) -> Answer | None:
    """The answer that `data` begins with; None if it is not whole yet.

    `ended`: nothing will follow, which is how a body without a length ends.

    Raises:
        ValueError: it is no HTTP answer.
    """
    end = data.find(HEAD_END)
    if end < 0:
        if len(data) > HEAD_LIMIT or not data.startswith(b"HTTP/1."[: len(data)]):
            raise ValueError("no HTTP answer")
        return None
    head = data[: end + 2].lower()
    if not head.startswith(b"http/1."):
        raise ValueError("no HTTP answer")
    status = int(head[9:12])
    if status < 200:  # An interim answer; the answer follows it.
        return read_answer(data[end + 4 :], ended=ended)
    closes = b"\r\nconnection: close" in head or (
        head.startswith(b"http/1.0") and b"\r\nconnection: keep-alive" not in head
    )
    length = _value(head, LENGTH)
    if length is not None:
        whole = len(data) - end - 4 >= int(length)
    elif b"\r\ntransfer-encoding: chunked" in head:
        whole = _last_chunk_is_in(data, end + 4)
    elif status in (204, 304):
        whole = True
    else:
        whole = closes = ended
    return Answer(status, closes, _value(head, TIMING) or b"") if whole else None


def _value(head: bytes, name: bytes) -> bytes | None:
    at = head.find(name)
    if at < 0:
        return None
    at += len(name)
    return head[at : head.find(b"\r\n", at)]


def _last_chunk_is_in(data: bytes, at: int) -> bool:
    while (line_end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:line_end].partition(b";")[0], 16)
        if not size:
            # Trailers may stand before the empty line that ends the answer.
            return data.find(HEAD_END, line_end) >= 0
        at = line_end + 2 + size + 2
    return False
