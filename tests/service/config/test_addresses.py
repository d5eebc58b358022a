from __future__ import annotations

import socket

import pytest

from service.config.addresses import MAX_PATH_BYTES, TcpAddress, resolve
from service.config.loading import load
from service.errors import ConfigError


@pytest.mark.parametrize(
    ("host", "ips"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("0.0.0.0", ["0.0.0.0"]),
        ("localhost", ["127.0.0.1", "::1"]),
        ("LocalHost.", ["127.0.0.1", "::1"]),
        ("::1", ["::1"]),
        ("[::1]", ["::1"]),
        ("::", ["::", "0.0.0.0"]),
        ("0:0::0", ["::", "0.0.0.0"]),
    ],
)
def test_a_host_is_all_its_addresses(host: str, ips: list[str]) -> None:
    found = resolve(host, 80)
    assert [address.ip for address in found] == ips
    assert {address.port for address in found} == {80}


def test_an_address_that_is_found_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a name has where /etc/hosts repeats a line."""
    rows = [(socket.AF_INET, ip) for ip in ("192.0.2.1", "192.0.2.2", "192.0.2.1")]

    def found(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(family, socket.SOCK_STREAM, 6, "", (ip, port)) for family, ip in rows]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    assert [str(address) for address in resolve("a.example", 80)] == [
        "192.0.2.1:80",
        "192.0.2.2:80",
    ]


@pytest.mark.parametrize("host", ["nowhere.invalid", "", "x" * 64, "..", "a b"])
def test_what_is_no_host_is_said_in_words(host: str) -> None:
    with pytest.raises(OSError, match=r"[Nn]ame|host") as caught:
        resolve(host, 80)
    assert caught.value.strerror


def test_all_addresses_are_reached_by_loopback() -> None:
    v4, v6 = socket.AF_INET, socket.AF_INET6
    for address, ip in (
        (TcpAddress(v4, ("0.0.0.0", 80)), "127.0.0.1"),
        (TcpAddress(v6, ("::", 80, 0, 0)), "::1"),
        (TcpAddress(v4, ("192.0.2.1", 80)), "192.0.2.1"),
    ):
        assert address.reachable().ip == ip
        assert address.reachable().port == 80


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "such as unix:/run/"),
        ("@name", "abstract"),
        ("/" + "x" * MAX_PATH_BYTES, "at most 107 bytes"),
        ("/" + "ü" * (MAX_PATH_BYTES // 2 + 1), "at most 107 bytes"),
    ],
)
def test_what_is_no_path_of_a_socket_is_refused(path: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^--host: must .*{words}"):
        load({"host": f"unix:{path}"}, environ={})


def test_a_path_may_be_as_long_as_the_system_allows() -> None:
    host = "unix:/" + "x" * (MAX_PATH_BYTES - 1)
    assert load({"host": host}, environ={}).host == host


def test_a_unix_socket_has_no_port_on_the_command_line() -> None:
    host = "unix:/run/x.sock"
    with pytest.raises(ConfigError) as caught:
        load({"host": host, "port": 80}, environ={})
    assert str(caught.value) == "--port: unix:/run/x.sock has no port"
    with pytest.raises(ConfigError, match="has no port"):
        load({"port": 80}, environ={"RESNET_SERVE_HOST": host})
    # In a container the variable may be the image's.
    assert load({"host": host}, environ={"RESNET_SERVE_PORT": "80"}).host == host


@pytest.mark.parametrize("mode", ["660", "0660", "600", "777"])
def test_permissions_are_octal_digits(mode: str) -> None:
    assert load(config={"socket_mode": mode}, environ={}).socket_mode == mode


@pytest.mark.parametrize("mode", [660, 0o660, "680", "66", "rw", "1660", None])
def test_permissions_that_could_be_misread_are_refused(mode: object) -> None:
    with pytest.raises(ConfigError, match=r'socket_mode: must be octal digits in quotes, .*"660"'):
        load(config={"socket_mode": mode}, environ={})
