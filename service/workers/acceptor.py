"""Accepting connections from a listener that several processes share, about equally."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any

log = logging.getLogger(__name__)
# How long a process leaves a connection to those with fewer, and the lead above which it does.
DEFER_SECONDS = 0.001
LEAD = 1
OUT_OF_FILES_SECONDS = 1.0


class Acceptor:
    """Accepts one connection at a time, and defers to processes that have fewer.

    The kernel wakes every process, and the first could accept all pending connections. Then one of
    two processes might do all the work as long as connections are kept alive.

    `lead`: how many more connections this process has than the one with the fewest.
    `encryption`: asyncio's arguments `ssl` and `ssl_handshake_timeout`, if any.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.BaseProtocol],
        lead: Callable[[], int],
        encryption: Mapping[str, Any] | None = None,
    ) -> None:
        self._listener = listener
        self._protocol = protocol
        self._lead = lead
        self._encryption = encryption or {}
        self._loop = asyncio.get_running_loop()
        self._resuming: asyncio.TimerHandle | None = None
        self._hurrying = False
        self._accepting: set[asyncio.Task[object]] = set()

    def start(self, backlog: int) -> None:
        self._listener.setblocking(False)
        self._listener.listen(backlog)
        self._loop.add_reader(self._listener, self._on_readable)

    @property
    def pending(self) -> int:
        """Accepted connections that have no protocol yet."""
        return len(self._accepting)

    def hurry(self) -> None:
        """From now on, accepts all pending connections."""
        self._hurrying = True
        if self._resuming is not None:
            self._resuming.cancel()
        self._loop.add_reader(self._listener, self._on_readable)
        self._on_readable()

    def _on_readable(self) -> None:
        if self._hurrying:
            while self._accept():
                pass
        elif self._lead() > LEAD:
            self._pause(DEFER_SECONDS)
        else:
            self._accept()

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._resuming = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._loop.add_reader(self._listener, self._on_readable)
        self._accept()  # The processes with fewer may be too busy to accept it.

    def _accept(self) -> bool:
        """Accepts a connection; False if none is pending."""
        try:
            stream, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False  # Another process was faster, or the client has disconnected.
        except OSError as error:
            log.error("cannot accept connections: %s", error.strerror)  # noqa: TRY400
            self._pause(OUT_OF_FILES_SECONDS)
            return False
        connecting = self._loop.connect_accepted_socket(self._protocol, stream, **self._encryption)
        task: asyncio.Task[object] = self._loop.create_task(connecting)
        self._accepting.add(task)
        task.add_done_callback(self._accepted)
        return True

    def _accepted(self, task: asyncio.Task[object]) -> None:
        self._accepting.discard(task)
        if not task.cancelled():
            task.exception()  # Else asyncio logs failed TLS handshakes, which are the client's.

    def close(self) -> None:
        if self._resuming is not None:
            self._resuming.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    async def wait_closed(self) -> None:
        """Waits until every accepted connection has a protocol."""
        # Not `gather`: since Python 3.12 it returns before the callbacks of done tasks have run.
        while self._accepting:
            await asyncio.wait(self._accepting)
