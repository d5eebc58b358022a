"""The order in which jobs are computed: by priority, and within one by arrival."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Generic, Protocol, TypeVar

# Those that were begun before; before all others; the usual; after all others.
AGAIN, FIRST, NORMAL, LAST = range(4)


class Prioritised(Protocol):
    priority: int


T = TypeVar("T", bound=Prioritised)


class Waiting(Generic[T]):
    """Jobs in their order. Whoever shares it holds a lock."""

    def __init__(self) -> None:
        self._lines: tuple[dict[T, None], ...] = ({}, {}, {}, {})

    def __len__(self) -> int:
        return sum(map(len, self._lines))

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(self._lines)

    def add(self, job: T) -> None:
        self._lines[job.priority][job] = None

    def put_back(self, jobs: Iterable[T]) -> None:
        """In front of all others, in their order."""
        line = self._lines[AGAIN]
        before = list(line)
        line.clear()
        for job in jobs:
            job.priority = AGAIN
            line[job] = None
        line.update(dict.fromkeys(before))

    def discard(self, job: T) -> None:
        self._lines[job.priority].pop(job, None)
