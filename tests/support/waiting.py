"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.conftest import PATIENCE


def until(is_met: Callable[[], object], seconds: float = PATIENCE, pause: float = 0.02) -> None:
    end = time.monotonic() + seconds
    while not is_met():
        assert time.monotonic() < end
        time.sleep(pause)
