"""Connections over TCP and Unix sockets."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from service.cli.connecting import connect
from tests.support.ports import free_port


def test_a_unix_socket_and_a_port_are_connected_to(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with connect(socket.AF_UNIX, path, 5) as stream:
            assert (stream.getpeername(), stream.gettimeout()) == (path, 5)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        connect(socket.AF_INET, listener.getsockname(), 5) as stream,
    ):
        assert stream.getpeername() == listener.getsockname()


def test_what_nothing_listens_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect(socket.AF_UNIX, str(tmp_path / "none"), 5)
    with pytest.raises(ConnectionRefusedError):
        connect(socket.AF_INET, ("127.0.0.1", free_port()), 5)
