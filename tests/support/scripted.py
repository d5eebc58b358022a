"""A small HTTP server whose answers, delays and accidents a test writes down."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import BinaryIO

# What is sent for a request, from its number and its body: bytes to send, seconds to wait before
# going on, or CLOSE, after which the connection takes no more requests.
Script = Callable[[int, bytes], Iterable[bytes | float | None]]
CLOSE = None


def answer(status: int = 200, headers: str = "", body: bytes = b"{}") -> bytes:
    head = f"HTTP/1.1 {status} Words\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


class Scripted:
    """`bodies` are those of all requests so far; `connections` counts those accepted."""

    def __init__(self, script: Script) -> None:
        self.bodies: list[bytes] = []
        self.connections = 0
        self._script = script
        self._numbers = count()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1/classify?top_k=1"
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rb") as stream:
            while head := _head(stream):
                length = re.search(rb"content-length: (\d+)", head.lower())
                body = stream.read(int(length[1]) if length else 0)
                self.bodies.append(body)
                for step in self._script(next(self._numbers), body):
                    if step is CLOSE:
                        return
                    elif isinstance(step, bytes):
                        connection.sendall(step)
                    else:
                        time.sleep(step)

    def stop_listening(self) -> None:
        """New connections are refused; those there are stay."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def end(self) -> None:
        self.stop_listening()
        self._threads[0].join()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


def _head(stream: BinaryIO) -> bytes:
    """The lines before the empty one; nothing if the connection ended."""
    lines = []
    while (line := stream.readline()) not in (b"", b"\r\n"):
        lines.append(line)
    return b"".join(lines)


@contextmanager
def scripted(script: Script) -> Iterator[Scripted]:
    server = Scripted(script)
    try:
        yield server
    finally:
        server.end()
