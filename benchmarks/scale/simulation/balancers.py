"""Which host gets the next request. Each balancer knows only of what it sent itself."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from random import Random
from typing import Any, Generic, Protocol, TypeVar

N = TypeVar("N", bound=Hashable)


class Balancer(Protocol[N]):
    def add(self, node: N) -> None: ...
    def remove(self, node: N) -> None: ...
    def pick(self) -> N | None:
        """The host for one more request; None where there is no host."""

    def returned(self, node: N) -> None:
        """A request that `pick` sent to `node` was answered."""


class AtRandom(Generic[N]):
    def __init__(self, random: Random) -> None:
        self._random = random.random
        self._nodes: list[N] = []

    def add(self, node: N) -> None:
        self._nodes.append(node)

    def remove(self, node: N) -> None:
        self._nodes.remove(node)

    def pick(self) -> N | None:
        nodes = self._nodes
        return nodes[int(self._random() * len(nodes))] if nodes else None

    def returned(self, node: N) -> None:
        pass


class RoundRobin(AtRandom[N]):
    """From a host of its own, so that several balancers do not go in step."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._turn = random.randrange(2**32)

    def pick(self) -> N | None:
        self._turn += 1
        return self._nodes[self._turn % len(self._nodes)] if self._nodes else None


class PowerOfTwo(AtRandom[N]):
    """The one of two hosts drawn at random that has fewer unanswered requests."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._unanswered: dict[N, int] = {}

    def add(self, node: N) -> None:
        super().add(node)
        self._unanswered[node] = 0

    def remove(self, node: N) -> None:
        super().remove(node)
        del self._unanswered[node]

    def pick(self) -> N | None:
        nodes, unanswered = self._nodes, self._unanswered
        if not nodes:
            return None
        first = nodes[int(self._random() * len(nodes))]
        second = nodes[int(self._random() * len(nodes))]
        node = second if unanswered[second] < unanswered[first] else first
        unanswered[node] += 1
        return node

    def returned(self, node: N) -> None:
        if node in self._unanswered:
            self._unanswered[node] -= 1


class LeastOutstanding(Generic[N]):
    """The host with the fewest unanswered requests; of several, one at random.

    Hosts lie in levels by that number, so that finding one takes no longer with a thousand.
    """

    def __init__(self, random: Random) -> None:
        self._random = random.random
        self._levels: list[list[N]] = [[]]
        self._level: dict[N, int] = {}
        self._place: dict[N, int] = {}  # in its level
        self._least = 0

    def add(self, node: N) -> None:
        self._put(node, 0)

    def remove(self, node: N) -> None:
        self._take_out(node)
        del self._level[node], self._place[node]

    def pick(self) -> N | None:
        if not self._level:
            return None
        while not self._levels[self._least]:
            self._least += 1
        level = self._levels[self._least]
        node = level[int(self._random() * len(level))]
        self._take_out(node)
        self._put(node, self._least + 1)
        return node

    def returned(self, node: N) -> None:
        if node in self._level:
            level = self._level[node]
            self._take_out(node)
            self._put(node, level - 1)

    def _put(self, node: N, number: int) -> None:
        if number == len(self._levels):
            self._levels.append([])
        level = self._levels[number]
        self._level[node], self._place[node] = number, len(level)
        level.append(node)
        self._least = min(self._least, number)

    def _take_out(self, node: N) -> None:
        level, place = self._levels[self._level[node]], self._place[node]
        last = level.pop()
        if last is not node:
            level[place] = last
            self._place[last] = place


POLICIES: dict[str, Callable[[Random], Balancer[Any]]] = {
    "random": AtRandom,
    "round_robin": RoundRobin,
    "power_of_two": PowerOfTwo,
    "least_outstanding": LeastOutstanding,
}
