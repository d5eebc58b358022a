"""Counting the users of an object that may be replaced."""

from __future__ import annotations

from collections.abc import Callable


class RefCount:
    """A context manager that counts users; a retired object ends with its last user."""

    def __init__(self) -> None:
        self._users = 0
        self._end: Callable[[], object] | None = None

    def __enter__(self) -> None:
        self._users += 1

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        self._end_if_unused()

    def retire(self, end: Callable[[], object]) -> None:
        """Calls `end` once there are no users; none may be added from now on."""
        self._end = end
        self._end_if_unused()

    def _end_if_unused(self) -> None:
        if not self._users and self._end is not None:
            # `end` usually refers to the owner of this count, which must be freed with its users.
            end, self._end = self._end, None
            end()
