"""A port that several sockets of this user share, reserved before any of them listens."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from service.config.addresses import TcpAddress, resolve, unix_path
from service.config.settings import Settings
from service.errors import ConfigError
from service.http.listener import PORT_TRIES, check_address, is_no_family


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
        raise _unavailable(host, port, error) from None
    if any(each.ip == "::" for each in found):  # gRPC's is that of both families.
        found = [each for each in found if each.ip != "0.0.0.0"]  # noqa: S104
    for each in found:
        check_address(settings, each.ip)
    for _ in range(PORT_TRIES):
        if (reserved := _reserved(host, port, found)) is not None:
            return reserved
    raise ConfigError(f"grpc_port: found no port that is free at all addresses of {host}")


def _reserved(host: str, port: int, found: Sequence[TcpAddress]) -> ReservedPort | None:
    """None: a port that was chosen for the first address is in use at another."""
    sockets: list[socket.socket] = []
    addresses: list[str] = []
    missing: OSError | None = None
    for each in found:
        chosen = sockets[0].getsockname()[1] if sockets else port
        try:
            sockets.append(_bound(each.with_port(chosen)))
        except OSError as error:
            if is_no_family(error, each):
                missing = error
                continue
            for other in sockets:
                other.close()
            if sockets and not port and error.errno == errno.EADDRINUSE:
                return None
            raise _unavailable(host, port, error) from None
        addresses.append(str(each.with_port(sockets[0].getsockname()[1])))
    if missing is not None and not sockets:
        raise _unavailable(host, port, missing)
    return ReservedPort(addresses, sockets)


def _unavailable(host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(f"grpc_port: cannot listen on {host} port {port}: {error.strerror}")


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
