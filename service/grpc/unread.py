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
from service.inference.lane import Lane


class Unread:
    """Closes the connections of clients to the given ports that do not read for too long; `lane`:
    threads that look for them."""

    def __init__(
        self, ports: Collection[int], lane: Lane, seconds: float = STALLED_SECONDS
    ) -> None:
        self._ports = ports
        self._lane = lane
        self._seconds = seconds
        self._peers: set[str] = set()
        self._closing: asyncio.Task[None] | None = None

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
        return asyncio.get_running_loop().call_later(self._seconds, self._late, context)

    def _late(self, context: Any) -> None:
        self._peers.add(context.peer())
        if self._closing is None or self._closing.done():
            self._closing = asyncio.ensure_future(self._close())

    async def _close(self) -> None:
        """Looks once for the peers of any number of calls."""
        while self._peers:
            peers, self._peers = self._peers, set()
            await self._lane.run(close_connections, peers, self._ports)


def close_connections(peers: Collection[str], ports: Collection[int]) -> int:
    """Closes this process's connections of peers, such as ipv4:127.0.0.1:4711, to the given ports;
    returns how many."""
    names = {unquote(peer) for peer in peers}
    count = 0
    for file in [*Path("/proc/self/fd").iterdir()]:
        try:
            if not file.readlink().name.startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(file.name))) as found:
                if found.getsockname()[1] in ports and named(found.getpeername()) in names:
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
