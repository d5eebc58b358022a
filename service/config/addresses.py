"""Where `host` says that a service listens: addresses of TCP, or the path of a unix socket."""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Any, NamedTuple

UNIX = "unix:"
# unix(7): `sun_path` has 108 bytes, and ends with a zero.
MAX_PATH_BYTES = 107
# What `localhost` means by RFC 6761, section 6.3, whatever /etc/hosts says: curl and browsers
# do not even look.
LOOPBACK = ("127.0.0.1", "::1")


class TcpAddress(NamedTuple):
    """A family of `socket`, and an address as `bind` and `connect` take it."""

    family: int
    address: tuple[Any, ...]

    @property
    def ip(self) -> str:
        return str(self.address[0])

    @property
    def port(self) -> int:
        return int(self.address[1])

    def with_port(self, port: int) -> TcpAddress:
        return TcpAddress(self.family, (self.ip, port, *self.address[2:]))

    def reachable(self) -> TcpAddress:
        """Where this host reaches whoever listens here."""
        if not ipaddress.ip_address(self.ip).is_unspecified:
            return self
        ip = "127.0.0.1" if self.family == socket.AF_INET else "::1"
        return TcpAddress(self.family, (ip, *self.address[1:]))

    def __str__(self) -> str:
        return with_port(self.ip, self.port)


def with_port(host: str, port: int) -> str:
    """As in a URL: IPv6 addresses have brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unix_path(host: str) -> str | None:
    """The path of a unix socket, from `unix:PATH`; None for a name or an address."""
    return host.removeprefix(UNIX) if host.startswith(UNIX) else None


def path_problem(path: str) -> str | None:
    """Why no unix socket can have this path, if so."""
    if path.startswith("@"):
        return (
            "must be unix: and the path of a file; an abstract socket has no permissions that "
            "would guard it"
        )
    if not path or "\0" in path:
        return "must be unix: and the path of a file, such as unix:/run/resnet-serve.sock"
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        return f"must have a path of at most {MAX_PATH_BYTES} bytes"
    return None


def resolve(host: str, port: int) -> list[TcpAddress]:
    """Every address that `host` means, each once: `::` is all of IPv6 and all of IPv4, and
    `localhost` is loopback of both.

    Raises:
        OSError: the name resolves to nothing; `strerror` says why.
    """
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    names = LOOPBACK if host.lower().rstrip(".") == "localhost" else (host,)
    try:
        found = [
            TcpAddress(int(family), tuple(address))
            for name in names
            for family, _, _, _, address in socket.getaddrinfo(
                name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        ]
    except UnicodeError:  # Of the codec for international names.
        raise OSError(socket.EAI_NONAME, "Not a name of a host") from None
    if any(each.family == socket.AF_INET6 and each.ip == "::" for each in found):
        found.append(TcpAddress(socket.AF_INET, ("0.0.0.0", port)))  # noqa: S104
    return list(dict.fromkeys(found))
