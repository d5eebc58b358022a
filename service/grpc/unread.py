"""Clients that do not read their responses: as over HTTP, their connection closes.

A response waits in gRPC's memory, and its call counts as open, until the client's flow-control
window takes it (RFC 9113, section 5.2); gRPC sets no time for that, and can end neither the call
nor the connection. So the connection's socket is shut down beneath it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from service.http.timed_connection import STALLED_SECONDS


class Unread:
    """Closes the connections of clients to the given ports that do not read for too long."""

    def __init__(self, ports: Collection[int], seconds: float = STALLED_SECONDS) -> None:
        self._ports = ports
        self._seconds = seconds

    def until_done(self, context: Any) -> None:
        """Gives the client of a call time from now on for all that is still to be sent."""
        timer = self._timer(context)
        context.add_done_callback(lambda _: timer.cancel())

    @contextmanager
    def within(self, context: Any) -> Iterator[None]:
        """Gives the client time to take what the block sends."""
        timer = self._timer(context)
        try:
            yield
        finally:
            timer.cancel()

    def _timer(self, context: Any) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        return loop.call_later(
            self._seconds, lambda: close_connections(context.peer(), self._ports)
        )


def close_connections(peer: str, ports: Collection[int]) -> int:
    """Closes this process's connections of a peer, such as ipv4:127.0.0.1:4711, to the given ports;
    returns how many."""
    count = 0
    for file in [*Path("/proc/self/fd").iterdir()]:
        try:
            if not file.readlink().name.startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(file.name))) as found:
                if found.getsockname()[1] in ports and named(found.getpeername()) == unquote(peer):
                    found.shutdown(socket.SHUT_RDWR)
                    count += 1
        except (OSError, ValueError, IndexError):  # Closed meanwhile, or of another kind.
            continue
    return count


def named(address: tuple[Any, ...]) -> str:
    """A TCP address as gRPC names it."""
    ip = ip_address(address[0].partition("%")[0])
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return f"ipv{ip.version}:{ip}:{address[1]}" if ip.version == 4 else f"ipv6:[{ip}]:{address[1]}"
