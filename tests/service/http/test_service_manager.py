from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from service.http.service_manager import ServiceManager

# Becomes a process with sockets from 3 on, as systemd starts one.
AS_SYSTEMD = """
import fcntl, os, sys
# First away from where they go.
moved = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 50) for fd in sys.argv[1].split(",")]
for index, fd in enumerate(moved):
    os.dup2(fd, 3 + index)
    os.set_inheritable(3 + index, True)
os.environ.setdefault("LISTEN_PID", str(os.getpid()))
os.environ.setdefault("LISTEN_FDS", str(len(moved)))
os.execv(sys.argv[2], sys.argv[2:])
"""
TAKE = """
import json, os
from service.errors import ConfigError
from service.http.service_manager import taken_over
try:
    manager = taken_over()
    found = [[each.getsockname(), os.get_inheritable(each.fileno())] for each in manager.sockets]
except ConfigError as error:
    found = str(error)
left = [name for name in os.environ if name.startswith("LISTEN_") or name == "NOTIFY_SOCKET"]
print(json.dumps([found, left]))
"""


def as_systemd(descriptors: Sequence[int]) -> list[str]:
    """To be put before a command, which inherits `descriptors`."""
    return [sys.executable, "-c", AS_SYSTEMD, ",".join(map(str, descriptors))]


def taken(*sockets: Any, **variables: str) -> Any:
    """What a process takes over, and the variables that its children would see."""
    descriptors = [each.fileno() for each in sockets]
    said = subprocess.check_output(
        [*as_systemd(descriptors), sys.executable, "-c", TAKE],
        env=os.environ | variables,
        pass_fds=descriptors,
        text=True,
    )
    return json.loads(said)


def test_sockets_are_taken_over_and_children_see_nothing_of_them(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.create_server(path, family=socket.AF_UNIX) as unix,
    ):
        found, left = taken(tcp, unix, LISTEN_FDNAMES="http:local", NOTIFY_SOCKET="/nowhere")
        assert found == [[list(tcp.getsockname()), False], [path, False]]
        assert left == []


def test_what_is_meant_for_another_process_is_not_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp:
        assert taken(tcp, LISTEN_PID="1") == [[], []]


def test_what_cannot_be_served_is_one_line() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
        socket.socket() as silent,
        tempfile.TemporaryFile() as file,
    ):
        name = "LISTEN_FDS: descriptor"
        line, _ = taken(tcp, datagrams, LISTEN_FDNAMES="http:other")
        assert (
            line == f"{name} 4 (other) is no stream socket; use ListenStream= in the .socket unit"
        )
        assert "3 is not listening; use Accept=no" in taken(silent)[0]
        assert taken(file)[0].startswith(f"{name} 3 is not a socket: ")
        for junk in ("all", "", "-1", "9" * 5000):
            assert taken(tcp, LISTEN_FDS=junk)[0].startswith("LISTEN_FDS: must be a number")


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_is_told(tmp_path: Path, abstract: bool) -> None:
    name = f"resnet-serve-test-{os.getpid()}" if abstract else str(tmp_path / "ear")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(f"\0{name}" if abstract else name)
        ear.settimeout(10)
        ServiceManager((), f"@{name}" if abstract else name).tell("READY=1")
        assert ear.recv(100) == b"READY=1"


def test_where_nobody_listens_nothing_happens() -> None:
    ServiceManager().tell("READY=1")
    ServiceManager((), "/nowhere").tell("READY=1")


def test_a_manager_that_does_not_read_stops_nobody(tmp_path: Path) -> None:
    path = str(tmp_path / "ear")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as crowd,
    ):
        ear.bind(path)
        crowd.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                crowd.sendto(b"x", path)
        ServiceManager((), path).tell("READY=1")  # It returns.
