"""Takes connections from a listener that several processes share, each about as many."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any

log = logging.getLogger(__name__)
# How long a connection is left to those who have fewer, and how many more one may have.
DEFER_SECONDS = 0.001
LEAD = 1
OUT_OF_FILES_SECONDS = 1.0


class Acceptor:
    """Accepts one connection at a time, and lets others go first while it has more than they.

    A kernel wakes every process and whoever is first would take all that wait, so that of two
    processes one might do all the work for as long as connections are kept alive.

    `lead`: how many more connections this process has than the one with the fewest.
    `encryption`: the arguments `ssl` and `ssl_handshake_timeout` of asyncio, if any.
    """

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[], asyncio.BaseProtocol],
        lead: Callable[[], int],
        encryption: Mapping[str, Any] | None = None,
    ) -> None:
        self._listener = listener
        self._make = make
        self._lead = lead
        self._encryption = encryption or {}
        self._loop = asyncio.get_running_loop()
        self._later: asyncio.TimerHandle | None = None
        self._hurrying = False
        self._accepting: set[asyncio.Task[object]] = set()

    def start(self, backlog: int) -> None:
        self._listener.setblocking(False)
        self._listener.listen(backlog)
        self._loop.add_reader(self._listener, self._notice)

    @property
    def pending(self) -> int:
        """Connections accepted that no protocol knows yet."""
        return len(self._accepting)

    def hurry(self) -> None:
        """Takes all that waits, now and from now on."""
        self._hurrying = True
        if self._later is not None:
            self._later.cancel()
        self._loop.add_reader(self._listener, self._notice)
        self._notice()

    def _notice(self) -> None:
        if self._hurrying:
            while self._accept():
                pass
        elif self._lead() > LEAD:
            self._pause(DEFER_SECONDS)
        else:
            self._accept()

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._later = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._loop.add_reader(self._listener, self._notice)
        self._accept()  # Who has fewer may be too busy to take what still waits.

    def _accept(self) -> bool:
        """Whether there was a connection to accept."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False  # Another was faster, or the caller has left.
        except OSError as error:
            log.error("cannot accept: %s", error.strerror)  # noqa: TRY400
            self._pause(OUT_OF_FILES_SECONDS)
            return False
        connecting = self._loop.connect_accepted_socket(self._make, connection, **self._encryption)
        task: asyncio.Task[object] = self._loop.create_task(connecting)
        self._accepting.add(task)
        task.add_done_callback(self._accepted)
        return True

    def _accepted(self, task: asyncio.Task[object]) -> None:
        self._accepting.discard(task)
        if not task.cancelled():
            task.exception()  # A handshake that failed is the caller's affair.

    def close(self) -> None:
        if self._later is not None:
            self._later.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    async def wait_closed(self) -> None:
        """Until a protocol knows of every connection that was accepted."""
        # Not `gather`, which since Python 3.12 comes back before what is done has been noticed.
        while self._accepting:
            await asyncio.wait(self._accepting)
