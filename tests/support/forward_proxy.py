"""A small forward proxy on a real socket: absolute-form requests, and CONNECT."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit


class ForwardProxy:
    """Takes every host for one on this machine: `ports` has its port, by name. `seen`: request
    lines; `heads`: whole heads."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        self.seen: list[str] = []
        self.heads: list[str] = []
        self._ports = ports
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

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
            line, _, headers = head.decode().partition("\r\n")
            self.seen.append(line)
            self.heads.append(head.decode())
            method, target, version = line.split()
            tunnel = method == "CONNECT"
            parts = urlsplit(f"//{target}" if tunnel else target)
            port = self._ports.get(parts.hostname or "")
            if port is None:
                connection.sendall(b"HTTP/1.1 502 No Route\r\nContent-Length: 0\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", port)) as upstream:
                if tunnel:
                    connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                else:
                    path = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
                    first = f"{method} {path} {version}\r\nConnection: close\r\n{headers}\r\n\r\n"
                    upstream.sendall(first.encode() + body)
                back = threading.Thread(target=_copy, args=(upstream, connection), daemon=True)
                back.start()
                _copy(connection, upstream)
                back.join()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def forward_proxy(**ports: int) -> Iterator[ForwardProxy]:
    """A proxy that knows hosts as `name.example`, by their ports."""
    proxy = ForwardProxy({f"{name}.example": port for name, port in ports.items()})
    try:
        yield proxy
    finally:
        proxy.close()
