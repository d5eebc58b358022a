"""The sockets on which a service accepts connections: opened, announced, and closed at its end."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from service.config.addresses import UNIX, TcpAddress, resolve, unix_path, with_port
from service.config.settings import Settings
from service.errors import ConfigError
from service.http import unix_socket
from service.http.unix_socket import SocketFile
from service.logs import log_in_signal_handler

log = logging.getLogger(__name__)
BACKLOG = 2048
# At shutdown, clients that have just connected may still send requests for this long.
NEW_CONNECTION_SECONDS = 1.0
SO_ATTACH_FILTER, BPF_RETURN = 26, 0x06  # linux/socket.h, linux/bpf_common.h
REMEDIES = {
    errno.EADDRINUSE: "stop the process that listens there, or choose another port",
    errno.EACCES: "ports below 1024 need root or the capability CAP_NET_BIND_SERVICE; choose one "
    "above, such as 8000",
    errno.EADDRNOTAVAIL: "give an address or a name of this host",
    errno.EAFNOSUPPORT: "this host has no such addresses; use 127.0.0.1 or 0.0.0.0",
}
# A free port of one family may be in use in the other.
PORT_TRIES = 20


def _nobody(state: str) -> None:
    """See `Listeners.tell`."""


@dataclass(frozen=True)
class Listeners:
    """Where a service listens; every front end has the same.

    `host`: as it was asked for; `files`: of its unix sockets, which it removes; `kept`: another
    process made the sockets, and goes on listening when this service has ended; `tell`: reports a
    state to the service manager.
    """

    sockets: tuple[socket.socket, ...]
    host: str = ""
    files: tuple[SocketFile, ...] = ()
    kept: bool = False
    tell: Callable[[str], object] = _nobody

    def described(self) -> dict[str, Any]:
        """As JSON, for a process that inherits the sockets."""
        return {"files": self.files, "kept": self.kept}

    @classmethod
    def inherited(cls, descriptors: Iterable[int], described: dict[str, Any]) -> Self:
        """From what another process has described."""
        sockets = tuple(socket.socket(fileno=descriptor) for descriptor in descriptors)
        files = tuple(SocketFile(*file) for file in described["files"])
        return cls(sockets, files=files, kept=described["kept"])

    def turn_away(self) -> None:
        """Keeps new connections away; those that were made before can still be accepted.

        A unix socket has no packets to drop: clients no longer find its file.
        """
        self.remove_files()
        for each in self.sockets:
            if not self.kept and each.family != socket.AF_UNIX:
                ignore_new_connections(each)

    def remove_files(self) -> None:
        for file in self.files:
            file.remove()

    def hand_over(self) -> None:
        """Leaves the sockets to the processes that have inherited them.

        One with a file stays open, or the file's inode number could become another's.
        """
        if not self.files:
            self.close()

    def close(self) -> None:
        self.remove_files()
        for each in self.sockets:
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def urls(self, scheme: str) -> str:
        """As the log has them: the address that was asked for, and those that it stands for."""
        names = [_name(each) for each in self.sockets]
        urls = [  # The name of a unix socket is not a tuple; the service manager may mix them.
            f"{scheme}://{with_port(*name[:2])}" if isinstance(name, tuple) else f"{UNIX}{name}"
            for name in names
        ]
        if not self.host or self.files or (len(names) == 1 and names[0][0] == self.host):
            return ", ".join(urls)
        host = with_port(self.host.strip("[]"), names[0][1])
        return f"{scheme}://{host} ({', '.join(str(name[0]) for name in names)})"


def listen(host: str, port: int, socket_mode: str = "660") -> Listeners:
    """Opens sockets at every address of `host`, all with one port, or at none.

    That is before models are loaded, so that a port in use is reported early.

    Raises:
        ConfigError: an address is unavailable; the line names it.
    """
    if (path := unix_path(host)) is not None:
        listener, file = unix_socket.bind(path, int(socket_mode, 8), BACKLOG)
        return Listeners((listener,), host, (file,))
    try:
        found = resolve(host, port)
    except OSError as error:
        why = f"host: cannot listen on {host} port {port}: {error.strerror}"
        raise ConfigError(f"{why}; {REMEDIES[errno.EADDRNOTAVAIL]}") from None
    return Listeners(tuple(bind_all(host, found, _bind)), host)


def bind_all(
    host: str,
    found: Sequence[TcpAddress],
    bind: Callable[[TcpAddress], socket.socket],
    setting: str = "port",
) -> list[socket.socket]:
    """A socket, made by `bind`, for each address of `host` that this host has, all with one port,
    which `setting` chooses.

    Raises:
        ConfigError: an address is unavailable; nothing stays bound.
    """
    for _ in range(PORT_TRIES):
        if (bound := _bind_once(host, found, bind, setting)) is not None:
            return bound
    raise ConfigError(
        f"{setting}: cannot listen on {host}: found no port that is free at all its addresses; "
        "choose one"
    )


def _bind_once(
    host: str,
    found: Sequence[TcpAddress],
    bind: Callable[[TcpAddress], socket.socket],
    setting: str,
) -> list[socket.socket] | None:
    """None: a port that was chosen for the first address is not free at another."""
    bound: list[socket.socket] = []
    missing, cause = "", OSError()
    with contextlib.ExitStack() as opened:
        for each in found:
            chosen = bool(bound) and not each.port
            address = each.with_port(bound[0].getsockname()[1]) if chosen else each
            try:
                bound.append(opened.enter_context(bind(address)))
            except OSError as error:
                if chosen and error.errno == errno.EADDRINUSE:
                    return None
                of = "" if host.strip("[]") == each.ip else f", an address of {host}"
                why = f"cannot listen on {address}{of}: {error.strerror}"
                if not _is_no_family(error, each):
                    raise ConfigError(_with_remedy(why, error, setting)) from None
                missing, cause = missing or why, error
        if not bound:
            raise ConfigError(_with_remedy(missing, cause, setting))
        opened.pop_all()
    if missing:
        log.info("%s; it listens on the others", missing)
    return bound


def _with_remedy(why: str, error: OSError, setting: str) -> str:
    """`why`, with the setting to blame, and what to do."""
    remedy = REMEDIES.get(error.errno or 0)
    of_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
    return f"{setting if of_port else 'host'}: {why}{f'; {remedy}' if remedy else ''}"


def _bind(address: TcpAddress) -> socket.socket:
    listener = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Each family has a socket of its own, whatever net.ipv6.bindv6only says. An IPv4 address
        # in IPv6's notation is all that needs both.
        if address.family == socket.AF_INET6 and not address.ip.lower().startswith("::ffff:"):
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address.address)
    except OSError:
        listener.close()
        raise
    return listener


def _is_no_family(error: OSError, address: TcpAddress) -> bool:
    """Whether this host has no addresses of a family; even loopback is then missing."""
    if error.errno == errno.EADDRNOTAVAIL:
        return address.ip == "::1"
    return error.errno == errno.EAFNOSUPPORT


def check_exposure(settings: Settings, listeners: Listeners) -> None:
    """Refuses to serve other hosts without authentication, unless `allow_anonymous` is set.

    The permissions of a unix socket's file are authentication enough.

    Raises:
        ConfigError: it lists the remedies.
    """
    for each in listeners.sockets:
        if each.family != socket.AF_UNIX:
            check_address(settings, each.getsockname()[0])


def check_address(settings: Settings, bound: str) -> None:
    """As `check_exposure`, for an IP address to listen on."""
    if settings.api_keys or settings.allow_anonymous:
        return
    address = ipaddress.ip_address(bound)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if not address.is_loopback:
        raise ConfigError(
            f"host: on {bound} other hosts could use the service without "
            "a key; set api_keys or api_keys_file, or host: 127.0.0.1, or allow_anonymous: true"
        )


def _name(listener: socket.socket) -> Any:
    """As `getsockname` has it, but an abstract socket, which only a service manager can hand over,
    begins with @ instead of a zero."""
    name = listener.getsockname()
    return f"@{os.fsdecode(name[1:])}" if isinstance(name, bytes) else name


def announce(names: Iterable[str], listeners: Listeners, *, encrypted: bool) -> None:
    """Logs that the service accepts connections, and tells the service manager."""
    scheme, hint = "https" if encrypted else "http", "page at /, API at /docs"
    first = listeners.sockets[0]
    if first.family == socket.AF_UNIX:
        name = _name(first)
        option = "--abstract-unix-socket" if name.startswith("@") else "--unix-socket"
        hint = f"curl {option} {name.removeprefix('@')} {scheme}://localhost/v1/models"
    log.info("serving %s on %s (%s)", ", ".join(names), listeners.urls(scheme), hint)
    listeners.tell("READY=1")


def announce_grpc(addresses: Iterable[str]) -> None:
    """Logs that the service accepts calls."""
    log.info("serving gRPC on %s", ", ".join(addresses))


def announce_stop(name: str, settings: Settings) -> None:
    """Logs that a shutdown begins, on the signal called `name`, perhaps within its handler."""
    grace = f"serves for {settings.shutdown_grace_s:g} s, then " if name == "SIGTERM" else ""
    log_in_signal_handler(
        __name__,
        f"stopping on {name}: no longer ready; {grace}completes accepted requests within "
        f"{settings.shutdown_timeout_s:g} s; a second signal ends it at once",
    )


def announce_end(seconds: float, *, complete: bool) -> None:
    """Logs that the service has ended, so many seconds after it began to."""
    if complete:
        log.info("stopped after %.1f s; every accepted request got a response", seconds)
    else:
        log.warning("stopped after %.1f s by a second signal; requests were cut off", seconds)


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
