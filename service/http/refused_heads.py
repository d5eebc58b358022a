"""Requests like one that was just refused, recognised by their heads without being parsed.

Clients of one kind send the same head with different bodies. What an overloaded service refused to
one of them it refuses to the next, until the turn of the event loop ends: then it may have time.
"""

from __future__ import annotations

import re
from typing import Generic, TypeVar

from service.http.turns import LoopTurns

T = TypeVar("T")
CONTENT_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]{1,9})(?=\r\n)")
HEAD_END = b"\r\n\r\n"
SAME_AGE = 0.001  # seconds
# The heads that are remembered in a turn, and their size.
MAX_REMEMBERED, MAX_REMEMBERED_BYTES = 64, 2048


class RefusedHeads(Generic[T]):
    """The refusals of one turn, by heads. One of a younger request stands for older ones: what
    comes too late for that comes too late for these."""

    def __init__(self, turns: LoopTurns) -> None:
        self._turns = turns
        self._turn = -1
        self._known: dict[bytes, tuple[float, T]] = {}

    def remember(self, data: bytes, age: float, refusal: T) -> None:
        """Takes note of the refusal of a request that arrived `age` seconds ago."""
        if self._turn != self._turns.number:
            self._turn = self._turns.number
            self._known.clear()
        head = head_of(data)
        if head is None or len(head) > MAX_REMEMBERED_BYTES or len(self._known) >= MAX_REMEMBERED:
            return
        known = self._known.get(head)
        if known is None or known[0] > age:
            self._known[head] = age, refusal

    def find(self, data: bytes, age: float) -> T | None:
        """The refusal of a request like this one, which arrived at least `age` seconds ago."""
        if self._turn != self._turns.number or not self._known:
            return None
        head = head_of(data)
        known = None if head is None else self._known.get(head)
        return None if known is None or known[0] > age + SAME_AGE else known[1]


def head_of(data: bytes) -> bytes | None:
    """The head of `data`, without the length of its body, if it is one whole request and no more;
    None if it is not, or if that is not certain."""
    found = CONTENT_LENGTH.search(data, 0, MAX_REMEMBERED_BYTES)
    if found is None:
        return None
    end = data.find(HEAD_END) + len(HEAD_END)
    if not found.end() <= end == len(data) - int(found[1]):
        return None
    return data[: found.start(1)] + data[found.end(1) : end]
