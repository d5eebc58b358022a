"""A port that several sockets of this user share, reserved before any of them listens."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from service.config.addresses import TcpAddress, resolve, unix_path, with_port
from service.config.settings import Settings
from service.errors import ConfigError
from service.http.listener import bind_all, check_address


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
    if unix_path(host) is not None:
        raise ConfigError(f"grpc_port: needs a host with TCP, not {host}")
    if port and port == settings.port:
        raise ConfigError(f"grpc_port: {port} is the port of HTTP; choose another")
    try:
        found = resolve(host, port)
    except OSError as error:
        raise ConfigError(f"host: cannot listen on {host} port {port}: {error.strerror}") from None
    if any(each.ip == "::" for each in found):  # Of both families, where both are.
        other = "0.0.0.0" if socket.has_dualstack_ipv6() else "::"  # noqa: S104
        found = [each for each in found if each.ip != other]
    for each in found:
        check_address(settings, each.ip)
    sockets = bind_all(host, found, _bound, "grpc_port")
    return ReservedPort([with_port(*each.getsockname()[:2]) for each in sockets], sockets)


def _bound(address: TcpAddress) -> socket.socket:
    """A bound socket. First without sharing, as another service's port could be shared as well."""
    with _new(address) as alone:
        alone.bind(address.address)
        free = address.with_port(alone.getsockname()[1])
    shared = _new(address)
    try:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind(free.address)
    except OSError:
        shared.close()
        raise
    return shared


def _new(address: TcpAddress) -> socket.socket:
    made = socket.socket(address.family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if address.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address.ip != "::"))
    return made
