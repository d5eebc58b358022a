from __future__ import annotations

import socket

import pytest

from service.config.settings import Settings
from service.errors import ConfigError
from service.http.reserved_port import ReservedPort, reserve

OPEN = Settings(allow_anonymous=True)


def closed(reserved: ReservedPort) -> ReservedPort:
    for each in reserved.sockets:
        each.close()
    return reserved


def test_any_free_port_is_one_port() -> None:
    reserved = reserve(Settings(), "127.0.0.1", 0)
    (address,) = reserved.addresses
    host, _, port = address.rpartition(":")
    assert (host, int(port) > 0) == ("127.0.0.1", True)
    # Several processes of the service can listen there; nobody else can.
    sharing = []
    for _ in range(2):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", int(port)))
        listener.listen()
        sharing.append(listener)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", int(port)))
    with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: Address already in use"):
        reserve(Settings(), "127.0.0.1", int(port))
    for listener in sharing:
        listener.close()
    closed(reserved)


def test_both_families_have_one_port() -> None:
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        pytest.skip("needs IPv6")
    reserved = closed(reserve(Settings(), "localhost", 0))
    assert [address.rpartition(":")[0] for address in reserved.addresses] == ["127.0.0.1", "[::1]"]
    assert len({address.rpartition(":")[2] for address in reserved.addresses}) == 1
    (address,) = closed(reserve(OPEN, "::", 0)).addresses
    assert address.startswith("[::]:")


def test_without_ipv6_all_addresses_are_those_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    (address,) = closed(reserve(OPEN, "::", 0)).addresses
    assert address.startswith("0.0.0.0:")


def test_the_port_of_http_is_refused() -> None:
    with pytest.raises(ConfigError, match="grpc_port: 8123 is the port of HTTP; choose another"):
        reserve(Settings(port=8123), "127.0.0.1", 8123)


def test_other_hosts_need_a_key_or_leave() -> None:
    with pytest.raises(ConfigError, match="set api_keys"):
        reserve(Settings(), "0.0.0.0", 0)
    (address,) = closed(reserve(OPEN, "0.0.0.0", 0)).addresses
    assert address.startswith("0.0.0.0:")


def test_a_unix_socket_has_no_port() -> None:
    with pytest.raises(ConfigError, match="grpc_port: needs a host with TCP, not unix:/run/x"):
        reserve(Settings(), "unix:/run/x", 0)


def test_an_unknown_host_is_one_line() -> None:
    with pytest.raises(ConfigError, match="host: cannot listen on no"):
        reserve(Settings(), "no.such.invalid", 1)
