"""What Linux's TCP knows of a connection: how long its data has waited to be read.

A service that is late to read a request cannot see that from inside: its own clocks start when it
reads. The kernel keeps the time at which the data arrived. See tcp(7), `TCP_INFO`, and
`struct tcp_info` in linux/tcp.h.
"""

from __future__ import annotations

import logging
import socket
import sys
import time
from typing import Protocol

log = logging.getLogger(__name__)
# Offsets in `struct tcp_info`: of one byte, and of 32-bit numbers.
STATE = 0
UNACKED, LAST_DATA_RECV, END = 24, 52, 56
# The kernel counts in ticks of its timer: what is not more than one may be nothing. The coarse
# clock has the same resolution.
COARSE_CLOCK = 6  # CLOCK_MONOTONIC_COARSE in linux/time.h
TICK = time.clock_getres(COARSE_CLOCK) if sys.platform == "linux" else 0.01


class Socket(Protocol):
    """A socket, or what an event loop has in its place."""

    def getsockopt(self, level: int, option: int, length: int, /) -> bytes: ...

    def recv(self, length: int, flags: int, /) -> bytes: ...


def waited(connection: Socket) -> float:
    """Seconds since the latest data of a connection arrived, or since it was made if it has sent
    none; 0 where the platform does not tell, and for times within the kernel's resolution."""
    seconds = _info(connection, LAST_DATA_RECV) / 1000
    return seconds if seconds > TICK else 0.0


def has_data(connection: Socket) -> bool:
    """Whether something of a client, which goes on, has arrived and was not read yet."""
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:  # Nothing, or it was just closed.
        return False


def arrived_within(connection: Socket, seconds: float) -> bool:
    """Whether data of a client arrived in the last seconds, read or not; False where the platform
    does not tell."""
    known = _info(connection, STATE)
    return bool(known) and _info(connection, LAST_DATA_RECV) < seconds * 1000


def backlog(listener: Socket) -> int:
    """How many connections wait to be accepted; 0 where the platform does not tell."""
    return _info(listener, UNACKED)


def log_if_silent(listener: Socket) -> None:
    """Logs if this platform does not tell how long data has waited; a unix socket never does."""
    if getattr(listener, "family", None) == socket.AF_UNIX:
        return
    try:
        listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, END)
    except (AttributeError, OSError):
        log.info("this platform does not tell when a request arrived; it counts from being read")


def _info(connection: Socket, offset: int) -> int:
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, END)
    except (AttributeError, OSError):  # Not Linux, not TCP, or just closed.
        return 0
    return int.from_bytes(info[offset : offset + 4], sys.byteorder)
