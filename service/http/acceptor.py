"""Accepting connections: many in one turn of the event loop, and shared among processes.

uvloop's own servers accept one connection in each turn. Under load a turn takes tens of
milliseconds, and new clients, probes among them, would wait for seconds.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from service.http import tcp

log = logging.getLogger(__name__)
# Connections accepted in one turn: the next turn takes the others.
MOST = 128
# How long a process leaves a connection to those with fewer, and the lead above which it does.
DEFER_SECONDS = 0.001
LEAD = 1
OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
OUT_OF_RESOURCES_SECONDS = 1.0


class Door(Protocol):
    """Who decides about new connections, and counts them."""

    def lead(self, pending: int) -> int:
        """How many more connections this process has than the one with the fewest, with `pending`
        ones that it has accepted and that have no protocol yet."""

    def admits(self, pending: int) -> bool:
        """Whether one more than `pending` may have a protocol; if not, it is closed at once."""

    def accepted(self, waited: float) -> None:
        """A connection was accepted, `waited` seconds after it was made or had sent data."""


class Acceptor:
    """Accepts connections from listeners, and defers to processes that have fewer.

    The kernel wakes every process, and the first could accept all pending connections. Then one of
    two processes might do all the work as long as connections are kept alive.

    `encryption`: asyncio's arguments `ssl`, `ssl_handshake_timeout` and so on, if any.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        protocol: Callable[[socket.socket], asyncio.BaseProtocol],
        door: Door,
        encryption: Mapping[str, Any] | None = None,
    ) -> None:
        self._listeners = listeners
        self._protocol = protocol
        self._door = door
        self._encryption = encryption or {}
        self._loop = asyncio.get_running_loop()
        self._resuming: asyncio.TimerHandle | None = None
        self._hurrying = self._closed = False
        self._accepting: set[asyncio.Task[object]] = set()

    def start(self, backlog: int) -> None:
        for listener in self._listeners:
            listener.setblocking(False)
            # Who made it may have chosen another backlog.
            if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                listener.listen(backlog)
        self._watch()

    def _watch(self) -> None:
        for listener in self._listeners:
            self._loop.add_reader(listener, self._on_readable, listener)

    @property
    def pending(self) -> int:
        """Accepted connections that have no protocol yet, such as those in a TLS handshake."""
        return len(self._accepting)

    def hurry(self) -> None:
        """From now on, accepts all pending connections."""
        self._hurrying = True
        if self._resuming is not None:
            self._resuming.cancel()
        self._watch()
        for listener in self._listeners:
            self._on_readable(listener)

    def _on_readable(self, listener: socket.socket) -> None:
        if self._hurrying:
            while self._accept(listener):
                pass
            return
        for _ in range(MOST):
            if self._door.lead(self.pending) > LEAD:
                self._pause(DEFER_SECONDS)
                return
            if not self._accept(listener):
                return

    def _pause(self, seconds: float) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener)
        if self._resuming is not None:  # One of the others has paused in the same turn.
            self._resuming.cancel()
        self._resuming = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._resuming = None
        self._watch()
        # The processes with fewer were too busy to accept these: they are left half of them.
        for listener in self._listeners:
            for _ in range(max(1, min(MOST, tcp.backlog(listener) // 2))):
                if not self._accept(listener):
                    break

    def _accept(self, listener: socket.socket) -> bool:
        """Accepts a connection; False if none is pending."""
        try:
            stream, _ = listener.accept()
        except BlockingIOError:
            return False  # Another process was faster.
        except OSError as error:
            if error.errno not in OUT_OF_RESOURCES:
                return True  # This one has failed already; the next one may not have.
            log.error("cannot accept connections: %s", error.strerror)  # noqa: TRY400
            self._pause(OUT_OF_RESOURCES_SECONDS)
            return False
        self._door.accepted(tcp.waited(stream))
        if not self._door.admits(self.pending):
            stream.close()
            return True
        # The protocol gets the socket itself: what uvloop shows of it is a copy for each use.
        make = partial(self._protocol, stream)
        connecting = self._loop.connect_accepted_socket(make, stream, **self._encryption)
        task: asyncio.Task[object] = self._loop.create_task(connecting)
        self._accepting.add(task)
        task.add_done_callback(self._accepted)
        return True

    def _accepted(self, task: asyncio.Task[object]) -> None:
        self._accepting.discard(task)
        if not task.cancelled():
            task.exception()  # Else asyncio logs failed TLS handshakes, which are the client's.

    def close(self) -> None:
        """Accepts no more; may be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._resuming is not None:
            self._resuming.cancel()
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()

    async def wait_closed(self) -> None:
        """Waits until every accepted connection has a protocol."""
        # Not `gather`: since Python 3.12 it returns before the callbacks of done tasks have run.
        while self._accepting:
            await asyncio.wait(self._accepting)
