"""A port that several sockets of this user share, reserved before any of them listens."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from service.config.settings import Settings
from service.errors import ConfigError
from service.http.listener import check_address


@dataclass(frozen=True)
class ReservedPort:
    """`addresses`, HOST:PORT, all with one port. The sockets never listen: they keep the port until
    every process has its own."""

    addresses: list[str]
    sockets: Sequence[socket.socket]


def reserve(settings: Settings, host: str, port: int) -> ReservedPort:
    """Reserves a port on each address of a host; 0: any free one.

    Raises:
        ConfigError: an address is unavailable or in use, or open to others without a key.
    """
    if ":" in host and host.partition(":")[0] in ("unix", "fd", "systemd"):
        raise ConfigError(f"grpc_port: needs a host with TCP, not {host}")
    sockets: list[socket.socket] = []
    addresses: list[str] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, (ip, *_) in dict.fromkeys(found):
            check_address(settings, str(ip))
            reserved = _bound(family, str(ip), port)
            sockets.append(reserved)
            port = reserved.getsockname()[1]
            addresses.append(f"[{ip}]:{port}" if family == socket.AF_INET6 else f"{ip}:{port}")
    except OSError as error:
        for each in sockets:
            each.close()
        raise ConfigError(
            f"grpc_port: cannot listen on {host} port {port}: {error.strerror}"
        ) from None
    return ReservedPort(addresses, sockets)


def _bound(family: socket.AddressFamily, ip: str, port: int) -> socket.socket:
    """A bound socket. First without sharing, as another service's port could be shared as well."""
    with _new(family) as alone:
        alone.bind((ip, port))
        free = alone.getsockname()[1]
    shared = _new(family)
    try:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind((ip, free))
    except OSError:
        shared.close()
        raise
    return shared


def _new(family: socket.AddressFamily) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        # As gRPC does: the address `::` is that of both families.
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return made
