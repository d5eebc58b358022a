"""The listening socket."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import logging
import socket
import struct
from collections.abc import Iterable

from service.config.settings import Settings
from service.errors import ConfigError

log = logging.getLogger(__name__)
BACKLOG = 2048
# At shutdown, clients that have just connected may still send requests for this long.
NEW_CONNECTION_SECONDS = 1.0
SO_ATTACH_FILTER, BPF_RETURN = 26, 0x06  # linux/socket.h, linux/bpf_common.h


def listen(host: str, port: int) -> socket.socket:
    """Binds a socket before models are loaded, so that a port in use is reported early.

    Raises:
        ConfigError: the address is unavailable.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    return listener


def check_exposure(settings: Settings, listener: socket.socket) -> None:
    """Refuses to serve other hosts without authentication, unless `allow_anonymous` is set.

    Raises:
        ConfigError: it lists the remedies.
    """
    check_address(settings, listener.getsockname()[0])


def check_address(settings: Settings, bound: str) -> None:
    """As `check_exposure`, for an IP address to listen on."""
    if settings.api_keys or settings.allow_anonymous:
        return
    address = ipaddress.ip_address(bound)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if not address.is_loopback:
        raise ConfigError(
            f"host: on {settings.host} other hosts could use the service without "
            "a key; set api_keys or api_keys_file, or host: 127.0.0.1, or allow_anonymous: true"
        )


def announce(names: Iterable[str], listener: socket.socket, *, encrypted: bool) -> None:
    """Logs that the service accepts connections."""
    host, port, *_ = listener.getsockname()
    shown = f"[{host}]" if ":" in host else host
    models = ", ".join(names)
    scheme = "https" if encrypted else "http"
    log.info("serving %s on %s://%s:%d (page at /, API at /docs)", models, scheme, shown, port)


def announce_grpc(addresses: Iterable[str]) -> None:
    """Logs that the service accepts calls."""
    log.info("serving gRPC on %s", ", ".join(addresses))


def ignore_new_connections(listener: socket.socket) -> None:
    """Makes the kernel drop packets for `listener`; accepted connections are not affected.

    Closing a listener resets the connections in its backlog, including requests that clients have
    already sent. Without socket filters in the kernel, that is what happens.
    """
    program = ctypes.create_string_buffer(struct.pack("HBBI", BPF_RETURN, 0, 0, 0))
    with contextlib.suppress(OSError):
        listener.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program))
        )
