"""What happens when: a heap of actions, and the time of the latest."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any

Action = Callable[[Any], None]


class Events:
    """Actions in the order of their times; of equal times, in the order in which they were added.

    `now` in seconds, from 0.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.happened = 0
        self._heap: list[tuple[float, int, Action, Any]] = []
        self._number = count()

    @property
    def next_at(self) -> float:
        """When the next action is due; infinite if there is none."""
        return self._heap[0][0] if self._heap else float("inf")

    def at(self, time: float, action: Action, argument: object) -> None:
        """Has `action` called with `argument` at `time`."""
        heappush(self._heap, (time, next(self._number), action, argument))

    def happen(self) -> None:
        """Calls the next action."""
        self.now, _, action, argument = heappop(self._heap)
        self.happened += 1
        action(argument)
