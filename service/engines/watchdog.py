"""Notices, from a thread of its own, that a call takes longer than it may."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
LOOK_SECONDS = 0.2


class Late(Exception):
    """A call came back, but only after it had been given up."""


class Watchdog:
    """Watches one call at a time; `give_up` is told, once, the seconds that a late one had.

    Nobody can end a thread inside native code: `give_up` answers those who wait for it.
    """

    def __init__(self, name: str, give_up: Callable[[float], None]) -> None:
        self._give_up = give_up
        self._lock = threading.Lock()
        self._until, self._seconds = math.inf, 0.0
        self._late = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look, name=f"{name}/watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def call(self, function: Callable[[], T], seconds: float) -> T:
        """What `function` returns or raises.

        Raises:
            Late: it took longer than `seconds`, and was given up.
        """
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        try:
            returned = function()
        except Exception:
            if self._was_late():
                raise Late from None
            raise
        if self._was_late():
            raise Late
        return returned

    def _was_late(self) -> bool:
        with self._lock:  # `give_up` ends before the call does.
            self._until = math.inf
            late, self._late = self._late, False
            return late

    def _look(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            with self._lock:
                if time.monotonic() > self._until and not self._late:
                    self._late = True
                    self._give_up(self._seconds)
