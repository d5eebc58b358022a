"""Who still uses what is to be replaced."""

from __future__ import annotations

from collections.abc import Callable


class RefCount:
    """Counts users of something, as a context; what is retired ends with the last of them."""

    def __init__(self) -> None:
        self._users = 0
        self._end: Callable[[], object] | None = None

    def __enter__(self) -> None:
        self._users += 1

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        self._look()

    def retire(self, end: Callable[[], object]) -> None:
        """Calls `end` when nobody uses it any more; nobody may begin to from now on."""
        self._end = end
        self._look()

    def _look(self) -> None:
        if not self._users and self._end is not None:
            # It usually refers to what has this lease, which should go when its last user has.
            end, self._end = self._end, None
            end()
