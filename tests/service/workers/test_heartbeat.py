"""Whether another process's event loop turns, as a real process that is stopped shows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from service.workers.heartbeat import (
    BEAT_SECONDS,
    ENGINES,
    FRONT_ENDS,
    Heartbeats,
    Silence,
    patience,
)

BEATING = """
import asyncio, sys
from service.workers.heartbeat import ENGINES, Heartbeats
asyncio.run(Heartbeats(int(sys.argv[1]), 1).beat(ENGINES))
"""


@pytest.fixture
def heartbeats() -> Iterator[tuple[Heartbeats, int]]:
    fd = Heartbeats.allocate(1)
    yield Heartbeats(fd, 1), fd
    os.close(fd)


def watched(silence: Silence, seconds: float) -> float:
    """The silence after looking for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        silence.look()
        time.sleep(BEAT_SECONDS)
    return silence.look()


def test_a_stopped_process_is_silent_until_it_goes_on(heartbeats: tuple[Heartbeats, int]) -> None:
    shared, fd = heartbeats
    silence = shared.watch(ENGINES)
    assert watched(silence, 1.0) == 0, "it has not begun"
    process = subprocess.Popen([sys.executable, "-c", BEATING, str(fd)], pass_fds=[fd])
    try:
        while not shared._beats[ENGINES]:
            assert process.poll() is None
            time.sleep(0.02)
        assert watched(silence, 1.0) < 0.9
        process.send_signal(signal.SIGSTOP)
        assert watched(silence, 2.0) > 1.0
        process.send_signal(signal.SIGCONT)
        time.sleep(2 * BEAT_SECONDS)
        assert watched(silence, BEAT_SECONDS) < 0.9
    finally:
        process.kill()
        process.wait()
    shared.clear(ENGINES)
    assert watched(silence, 1.0) == 0, "its successor has not begun"


def test_a_watcher_that_was_paused_itself_begins_anew(heartbeats: tuple[Heartbeats, int]) -> None:
    shared, _ = heartbeats
    shared._beats[FRONT_ENDS] = 1
    silence = shared.watch(FRONT_ENDS)
    silence.look()
    time.sleep(8 * BEAT_SECONDS)  # As if both had been stopped.
    assert silence.look() <= 2 * BEAT_SECONDS


def test_nobody_is_replaced_within_ten_seconds() -> None:
    assert [patience(1), patience(30)] == [10, 30]
