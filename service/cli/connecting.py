"""A connection to a service, over TCP or a Unix socket. It imports little, as `health` does."""

from __future__ import annotations

import contextlib
import socket
from typing import Any


def connect(family: int, address: Any, seconds: float) -> socket.socket:
    """A socket connected to `address`, of a Unix socket its path; it waits up to `seconds`.

    Raises:
        OSError: nothing accepts the connection in that time.
    """
    with contextlib.ExitStack() as opened:
        stream = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
        stream.settimeout(seconds)
        stream.connect(address)
        opened.pop_all()
    return stream
