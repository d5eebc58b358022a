"""A small forward proxy on a real socket: absolute-form requests, and CONNECT."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from tests.support.raw_server import RawServer


class ForwardProxy(RawServer):
    """Takes every host for one on this machine: `ports` has its port, by name. `seen`: request
    lines; `heads`: whole heads."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        self.seen: list[str] = []
        self.heads: list[str] = []
        self._ports = ports
        super().__init__()

    def serve(self, connection: socket.socket, head: str, body: bytes) -> None:
        line, _, headers = head.partition("\r\n")
        self.seen.append(line)
        self.heads.append(head)
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
