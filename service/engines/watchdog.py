"""Detects, from a thread of its own, that a call to an engine hangs."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import TypeVar

from service.runtime import AwakeClock

T = TypeVar("T")
log = logging.getLogger(__name__)
LOOK_SECONDS = 0.2
# A call hangs if it takes so many times what it was measured to take, and the timeout as well.
SLOWER = 20


class Late(Exception):
    """A call returned, but only after it had been given up."""


class Watchdog:
    """Watches one call at a time; calls `give_up` once with the seconds that a late call had.

    Nobody can end a thread inside native code: `give_up` answers those who wait for it. `timeout`,
    in seconds, is the least that a call has. While the whole process is paused, no time passes.
    """

    def __init__(self, name: str, timeout: float, give_up: Callable[[float], None]) -> None:
        self._timeout = timeout
        self._give_up = give_up
        self._lock = threading.Lock()
        self._clock = AwakeClock(LOOK_SECONDS)
        self._until, self._seconds = math.inf, 0.0
        self._late = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look, name=f"{name}/watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def call(self, function: Callable[[], T], expected: float) -> T:
        """What `function`, which is expected to take so many seconds, returns or raises.

        Raises:
            Late: it took too long and was given up.
        """
        self._seconds = max(self._timeout, SLOWER * expected)
        self._until = self._clock.seconds + LOOK_SECONDS + self._seconds
        try:
            result = function()
        except Exception:
            if self._was_late():
                raise Late from None
            raise
        if self._was_late():
            raise Late
        return result

    def _was_late(self) -> bool:
        with self._lock:  # `give_up` ends before the call does.
            self._until = math.inf
            late, self._late = self._late, False
            return late

    def _look(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            now = self._clock.look()
            with self._lock:
                if now > self._until and not self._late:
                    self._late = True
                    self._report()

    def _report(self) -> None:
        try:
            self._give_up(self._seconds)
        except Exception:  # Or the next call that hangs would go unnoticed.
            log.exception("%s: giving up a call failed", self._thread.name)
