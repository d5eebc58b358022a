"""Fair scheduling of a device shared by several models."""

from __future__ import annotations

import threading
from collections.abc import Hashable


class DeviceShare:
    """One holder at a time; next is the model that has used the least of the device's time.

    Time counts in proportion to a model's share. A model that was idle starts level with the
    others, so that nobody saves up time.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._used: dict[Hashable, float] = {}
        self._waiting: set[Hashable] = set()
        self._holder: Hashable | None = None
        self._level = 0.0  # What the latest holder had used when its turn began.

    @property
    def contended(self) -> bool:
        """Whether anyone waits for the device."""
        return bool(self._waiting)

    def acquire(self, key: Hashable) -> None:
        """Waits for `key`'s turn, and begins it."""
        with self._changed:
            self._used[key] = max(self._used.get(key, 0.0), self._level)
            self._waiting.add(key)
            self._changed.wait_for(lambda: self._holder is None and self._next() == key)
            self._waiting.remove(key)
            self._holder, self._level = key, self._used[key]

    def _next(self) -> Hashable:
        return min(self._waiting, key=lambda key: self._used[key])

    def release(self, key: Hashable, seconds: float, share: float = 1.0) -> None:
        """Charges `key` with `seconds` of the device, and ends its turn if it has not ended."""
        with self._changed:
            self._used[key] += seconds / share
            if self._holder == key:
                self._holder = None
            self._changed.notify_all()

    def forget(self, key: Hashable) -> None:
        """Drops what `key` has used: it wants no more turns."""
        with self._changed:
            self._used.pop(key, None)
