"""A child's end of the control channel, in a real process."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.runtime import FAILED_STATUS

CHILD = """
import asyncio, sys
from service.workers.control import ControlChannel

channel = ControlChannel(int(sys.argv[1]), sys.argv[2])

async def follow():
    channel.follow(lambda message: message["number"] / 0)
    channel.send(up=True)
    await asyncio.sleep(60)

def send():
    channel.receive()
    while True:
        channel.send(up=True)

{"follow": lambda: asyncio.run(follow()), "send": send}[sys.argv[3]]()
"""


@contextmanager
def child(folder: Path, mode: str) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    ours, theirs = socket.socketpair()
    folder.mkdir()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(theirs.fileno()), str(folder), mode],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                text=True,
            )
        try:
            yield process, ours
        finally:
            process.kill()
            process.communicate()


def test_who_sends_when_the_supervisor_is_gone_exits_and_leaves_nothing(tmp_path: Path) -> None:
    with child(tmp_path / "shared", "send") as (process, ours):
        ours.sendall(b"{}\n")
        assert ours.recv(1)
        ours.close()
        _, log = process.communicate(timeout=60)
    assert (process.returncode, log) == (0, "")
    assert not (tmp_path / "shared").exists()


def test_a_message_that_cannot_be_handled_ends_the_process(tmp_path: Path) -> None:
    with child(tmp_path / "shared", "follow") as (process, ours):
        assert ours.recv(1)
        ours.sendall(b'{"number": 1}\n')
        _, log = process.communicate(timeout=60)
    assert process.returncode == FAILED_STATUS
    assert "cannot handle a message of the supervisor; exiting" in log
    assert "ZeroDivisionError" in log
