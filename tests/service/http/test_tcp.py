from __future__ import annotations

import logging
import select
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.http import tcp

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
# Of the time that a busy machine takes longer.
MUCH = 30.0


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's and a service's end of a connection."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as service,
    ):
        yield client, service


@linux
def test_data_that_waits_gets_older_until_newer_comes() -> None:
    with pair() as (client, service):
        client.sendall(b"a")
        before = time.monotonic()
        time.sleep(0.3)
        assert 0.28 < tcp.waited(service) < 0.3 + MUCH
        # Reading it changes nothing: it is the time of its arrival that counts.
        service.recv(1)
        waited = tcp.waited(service)
        assert 0.28 < waited < time.monotonic() - before + 0.1
        client.sendall(b"b")
        service.recv(1)
        assert tcp.waited(service) < waited


@linux
def test_a_connection_that_sent_nothing_is_as_old_as_it_is() -> None:
    with pair() as (_, service):
        time.sleep(0.1)
        assert 0.08 < tcp.waited(service) < 0.1 + MUCH


@linux
def test_data_that_arrived_lately_is_known_although_it_was_read() -> None:
    with pair() as (client, service):
        client.sendall(b"a")
        service.recv(1)
        assert tcp.arrived_within(service, MUCH)
        time.sleep(0.1)
        assert not tcp.arrived_within(service, 0.05)


def test_where_nobody_tells_nothing_arrived_lately() -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        assert not tcp.arrived_within(unix, MUCH)


@linux
def test_what_is_not_more_than_a_tick_is_nothing() -> None:
    assert 0 < tcp.TICK <= 0.01

    class JustRead:
        def getsockopt(self, level: int, option: int, length: int, /) -> bytes:
            return int(tcp.TICK * 1000).to_bytes(4, sys.byteorder).rjust(tcp.END, b"\0")

        def recv(self, length: int, flags: int, /) -> bytes:
            raise BlockingIOError

    assert tcp.waited(JustRead()) == 0.0


def test_data_that_waits_is_seen_and_stays() -> None:
    with pair() as (client, service):
        service.setblocking(False)
        assert not tcp.has_data(service)
        client.sendall(b"a")
        until = time.monotonic() + MUCH
        while not tcp.has_data(service):
            assert time.monotonic() < until
        assert service.recv(10) == b"a"
        client.close()
        select.select([service], [], [], MUCH)
        assert not tcp.has_data(service)  # The end is no data.
        service.close()
        assert not tcp.has_data(service)


@linux
def test_a_listener_tells_how_many_wait() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=10) as listener:
        assert tcp.backlog(listener) == 0
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        assert tcp.backlog(listener) == 3
        listener.accept()[0].close()
        assert tcp.backlog(listener) == 2
        for client in clients:
            client.close()


def test_what_is_no_tcp_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first, second = socket.socketpair()
    with first, second:
        second.sendall(b"a")
        time.sleep(0.05)
        assert tcp.waited(first) == 0.0
        assert tcp.backlog(first) == 0
        tcp.log_if_silent(first)
    assert not caplog.records  # Of unix sockets, everybody knows.

    class Mute:
        def getsockopt(self, level: int, option: int, length: int, /) -> bytes:
            raise OSError

        def recv(self, size: int, flags: int, /) -> bytes:
            raise OSError

    tcp.log_if_silent(Mute())
    assert "counts from being read" in caplog.text


def test_what_is_closed_tells_nothing() -> None:
    with pair() as (_, service):
        service.close()
        assert tcp.waited(service) == 0.0


@linux
def test_where_the_platform_tells_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tcp.log_if_silent(listener)
    assert not caplog.records
