"""An HTTP server on a real socket that answers as it is told, right or wrong."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.support.raw_server import RawServer

Answer = bytes | Callable[[socket.socket], None]


def answer(status: int, body: bytes = b"", *headers: str) -> bytes:
    length = f"Content-Length: {len(body)}"
    lines = [f"HTTP/1.1 {status} Some", length, "Connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Unruly(RawServer):
    """Gives each request the next answer, the last one again and again; a new connection each."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        # Of each request: when it was whole, and its header lines by lower-case name.
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        super().__init__()

    def serve(self, connection: socket.socket, head: str, body: bytes) -> None:
        pairs = [line.partition(": ") for line in head.split("\r\n")[1:]]
        headers = {name.lower(): value for name, _, value in pairs}
        while len(body) < int(headers.get("content-length", 0)):
            body += connection.recv(65_536)
        self.times.append(time.monotonic())
        self.headers.append(headers)
        what = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(what, bytes):
            connection.sendall(what)
        else:
            what(connection)


@contextmanager
def unruly(*answers: Answer) -> Iterator[Unruly]:
    server = Unruly(*answers)
    try:
        yield server
    finally:
        server.close()


def drips(connection: socket.socket) -> None:
    """A byte now and then: no wait for a single one is ever long."""
    with contextlib.suppress(OSError):
        for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)


def is_silent(connection: socket.socket) -> None:
    """Until the other side leaves."""
    with contextlib.suppress(OSError):
        connection.recv(1)


def breaks_off(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
