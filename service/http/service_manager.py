"""What a service manager, such as systemd, hands to a service: sockets, and an ear.

See sd_listen_fds(3) and sd_notify(3); both are a few environment variables, and need no library.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import NamedTuple

from service.config import variables
from service.errors import ConfigError

FIRST_DESCRIPTOR = 3
FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
# For a manager that is slow to read: the event loop waits for so long.
TELL_SECONDS = 0.5
# No process has a million descriptors.
MAX_DIGITS = 6


class ServiceManager(NamedTuple):
    """`address`: where it is told what the service does; empty: nowhere."""

    sockets: tuple[socket.socket, ...] = ()
    address: str = ""

    def tell(self, state: str) -> None:
        """Sends a state such as READY=1. Nobody may listen, which is no fault of the service."""
        if not self.address:
            return
        # A leading @ means the abstract namespace.
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
            ear.settimeout(TELL_SECONDS)
            ear.sendto(state.encode(), address)


def taken_over() -> ServiceManager:
    """What this process was started with; its children find nothing of it.

    Raises:
        ConfigError: a descriptor is no listening stream socket.
    """
    handed = variables.take_handed()
    if handed.process != str(os.getpid()):  # They are meant for another.
        return ServiceManager((), handed.address)
    if not handed.sockets.isdecimal() or len(handed.sockets) > MAX_DIGITS:
        shown = handed.sockets[: 2 * MAX_DIGITS]
        raise ConfigError(f"LISTEN_FDS: must be a number of sockets, not {shown!r}")
    names = dict(enumerate(handed.names.split(":"))) if handed.names else {}
    sockets = tuple(
        _listening(FIRST_DESCRIPTOR + index, names.get(index, ""))
        for index in range(int(handed.sockets))
    )
    return ServiceManager(sockets, handed.address)


def _listening(descriptor: int, name: str) -> socket.socket:
    shown = f"LISTEN_FDS: descriptor {descriptor}" + (f" ({name})" if name else "")
    try:
        found = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(f"{shown} is not a socket: {error.strerror}") from None
    found.set_inheritable(False)
    if found.family not in FAMILIES or found.type != socket.SOCK_STREAM:
        raise ConfigError(f"{shown} is no stream socket; use ListenStream= in the .socket unit")
    if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ConfigError(f"{shown} is not listening; use Accept=no in the .socket unit")
    return found
