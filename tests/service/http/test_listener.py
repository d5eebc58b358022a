"""The sockets of a service: at every address of its host, or at none."""

from __future__ import annotations

import errno
import logging
import os
import socket
from pathlib import Path

import pytest

from service.config.addresses import TcpAddress
from service.config.settings import Settings
from service.errors import ConfigError
from service.http import listener as module
from service.http.listener import Listeners, announce, check_exposure, listen

needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6")


def addresses(listeners: Listeners) -> list[str]:
    return [each.getsockname()[0] for each in listeners.sockets]


def ports(listeners: Listeners) -> set[int]:
    return {each.getsockname()[1] for each in listeners.sockets}


def reaches(ip: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family) as client:
        return client.connect_ex((ip, port)) == 0


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "bound", "reached"),
    [
        ("localhost", ["127.0.0.1", "::1"], {"127.0.0.1", "::1"}),
        ("::", ["::", "0.0.0.0"], {"127.0.0.1", "127.0.0.2", "::1"}),
        ("0.0.0.0", ["0.0.0.0"], {"127.0.0.1", "127.0.0.2"}),
        ("::1", ["::1"], {"::1"}),
        ("127.0.0.1", ["127.0.0.1"], {"127.0.0.1"}),
        ("::ffff:127.0.0.1", ["::ffff:127.0.0.1"], {"127.0.0.1"}),
    ],
)
def test_all_addresses_of_a_host_have_one_port(
    host: str, bound: list[str], reached: set[str]
) -> None:
    with listen(host, 0) as listeners:
        assert addresses(listeners) == bound
        (port,) = ports(listeners)
        for each in listeners.sockets:
            each.listen()
        asked = ("127.0.0.1", "127.0.0.2", "::1")
        assert {ip for ip in asked if reaches(ip, port)} == reached


@needs_ipv6
def test_a_port_in_use_at_one_address_is_named_and_nothing_stays_bound() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            listen("localhost", port)
        line = f"port: cannot listen on [::1]:{port}, an address of localhost: Address already "
        assert str(caught.value).startswith(f"{line}in use; stop the process")
        with socket.socket() as other:  # Without SO_REUSEADDR.
            other.bind(("127.0.0.1", port))


@needs_ipv6
def test_a_free_port_that_is_taken_in_the_other_family_is_chosen_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused: list[int] = []
    bind = module._bind

    def unlucky(address: TcpAddress) -> socket.socket:
        if address.ip == "::1" and len(refused) < 3:
            refused.append(address.port)
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        return bind(address)

    monkeypatch.setattr(module, "_bind", unlucky)
    with listen("localhost", 0) as listeners:
        assert addresses(listeners) == ["127.0.0.1", "::1"]
        assert 0 not in refused
    monkeypatch.setattr(module, "PORT_TRIES", 0)
    with pytest.raises(ConfigError, match="no port that is free at all its addresses"):
        listen("localhost", 0)


def test_an_address_of_another_host_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        listen("203.0.113.1", 8000)
    line = "host: cannot listen on 203.0.113.1:8000: Cannot assign requested address; give an "
    assert str(caught.value).startswith(line)


def test_a_name_of_several_addresses_listens_on_all_or_on_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {
        "here.example": ["127.0.0.2", "127.0.0.3"],
        "half.example": ["127.0.0.4", "203.0.113.1"],
    }
    found = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, **options: int) -> list[object]:
        return [row for ip in names[host] for row in found(ip, port, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with listen("here.example", 0) as listeners:
        assert addresses(listeners) == names["here.example"]
        assert len(ports(listeners)) == 1
    with pytest.raises(ConfigError, match=r"203\.0\.113\.1:\d+, an address of half\.example: "):
        listen("half.example", 0)


@pytest.fixture
def without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the kernel was started with ipv6.disable=1."""
    made = socket.socket

    class Inet(made):  # type: ignore[misc, valid-type]
        def __init__(self, family: int = -1, *more: int, **options: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            super().__init__(family, *more, **options)

    monkeypatch.setattr(socket, "socket", Inet)


@pytest.mark.usefixtures("without_ipv6")
def test_without_one_family_the_other_serves(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for host, left in (("localhost", "127.0.0.1"), ("::", "0.0.0.0")):
        with listen(host, 0) as listeners:
            assert addresses(listeners) == [left]
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    assert "Address family not supported" in caplog.text
    with pytest.raises(ConfigError, match=r"^host: cannot listen on \[::1\]:0: Address family not"):
        listen("::1", 0)


def announced(listeners: Listeners, caplog: pytest.LogCaptureFixture) -> str:
    caplog.set_level(logging.INFO)
    announce(["a", "b"], listeners, encrypted=False)
    return caplog.messages[-1].removeprefix("serving a, b on ")


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "http://127.0.0.1:{}"),
        ("::1", "http://[::1]:{}"),
        ("localhost", "http://localhost:{} (127.0.0.1, ::1)"),
        ("::", "http://[::]:{} (::, 0.0.0.0)"),
    ],
)
def test_every_address_is_announced(
    host: str, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    with listen(host, 0) as listeners:
        (port,) = ports(listeners)
        line = f"{shown.format(port)} (page at /, API at /docs)"
        assert announced(listeners, caplog) == line


def test_a_unix_socket_is_announced_with_how_to_ask_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s"
    with listen(f"unix:{path}", 0) as listeners:
        hint = f"curl --unix-socket {path} http://localhost/v1/models"
        assert announced(listeners, caplog) == f"unix:{path} ({hint})"
        check_exposure(Settings(host=f"unix:{path}"), listeners)
    assert not path.exists()


def test_an_abstract_socket_of_a_service_manager_is_announced_as_curl_takes_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = f"resnet-serve-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        hint = f"curl --abstract-unix-socket {name} http://localhost/v1/models"
        assert announced(Listeners((listener,)), caplog) == f"unix:@{name} ({hint})"


@needs_ipv6
def test_every_address_must_be_for_this_host_or_need_a_key() -> None:
    """Also where only one of several is for others, and where another process chose them."""
    with listen("localhost", 0) as local, listen("::", 0) as every:
        check_exposure(Settings(), local)
        mixed = Listeners((*local.sockets, *every.sockets), kept=True)
        with pytest.raises(ConfigError, match="host: on :: other hosts could use the service"):
            check_exposure(Settings(), mixed)


def test_what_another_process_made_is_left_as_it_was() -> None:
    """A filter would stay in place for the next service."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        listeners = Listeners((made.dup(),), kept=True)
        listeners.turn_away()
        listeners.close()
        assert reaches(*made.getsockname())
