"""A server on a real socket that serves each connection in a thread, byte by byte."""

from __future__ import annotations

import contextlib
import socket
import threading
from abc import ABC, abstractmethod


class RawServer(ABC):
    """It listens from when it is made until `close`."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @abstractmethod
    def serve(self, connection: socket.socket, head: str, body: bytes) -> None:
        """Serves a connection that has sent a whole head, and as much of the body as came with
        it."""

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # Closed.
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            received = b""
            while b"\r\n\r\n" not in received:
                data = connection.recv(65_536)
                if not data:
                    return
                received += data
            head, _, body = received.partition(b"\r\n\r\n")
            self.serve(connection, head.decode(), body)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # Wakes who accepts.
        self._listener.close()
        self._thread.join()
