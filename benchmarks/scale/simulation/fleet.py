"""Many hosts and their callers: balancing, second tries, failures, autoscaling."""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.scale.simulation.balancers import POLICIES, Balancer
from benchmarks.scale.simulation.events import Events
from benchmarks.scale.simulation.node import BROKEN, LEAST_RETRY_AFTER, REFUSED, Host, Node
from benchmarks.scale.simulation.outcome import Outcome

# A host that is this near to its target is left alone, as Kubernetes does.
TOLERANCE = 0.1
PROGRESS_EVERY = 20_000


@dataclass(frozen=True, slots=True)
class Scaling:
    """Enough hosts that each has `target` of a signal on average; times in seconds.

    The signal is `unanswered` requests, or their `rate` a second. Every `interval` its mean since
    the last time is looked at; hosts are given back when for `hold` no more were wanted
    (Kubernetes' defaults).
    """

    target: float
    least: int
    most: int
    signal: Literal["unanswered", "rate"] = "unanswered"
    interval: float = 15.0
    hold: float = 300.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """Hosts and who sends to them; times in seconds.

    `balancers` choose independently, each by `policy` (see POLICIES). A caller who is refused or
    loses the connection tries `retries` times more, after Retry-After. A host fails on average
    after `mtbf`; balancers go on sending to it for `detect`; after `cold_start` another takes its
    place, which is also how long a host that `scaling` wants takes to come. Of the hosts, each
    `slow_every`th (0: none) takes twice as long for a batch.
    """

    host: Host
    hosts: int = 1
    policy: str = "power_of_two"
    balancers: int = 1
    retries: int = 0
    mtbf: float = math.inf
    detect: float = 2.0
    cold_start: float = 120.0
    scaling: Scaling | None = None
    slow_every: int = 0


def simulate(
    fleet: Fleet,
    due: NDArray[np.float64],
    seconds: float,
    *,
    warm_up: float = 0.0,
    slo: float = math.inf,
    grain: int = 1,
    seed: int = 0,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Outcome:
    """What becomes of requests that are `due`, rising times [N] from 0 to `seconds`.

    The same arguments give the same outcome. What is due before `warm_up` does not count. With
    `grain`, a request stands for so many images, and the host is made to fit (`Host.in_grains`).
    `on_progress` is told the time now and then.

    Raises:
        ValueError: there is no batch of `grain` images.
    """
    run = _Run(fleet, due, grain, Random(seed))
    run.go(on_progress)
    return run.outcome(warm_up, seconds, slo)


class _Run:
    def __init__(self, fleet: Fleet, due: NDArray[np.float64], grain: int, random: Random) -> None:
        self._fleet, self._grain, self._random = fleet, grain, random
        self._host = fleet.host if grain == 1 else fleet.host.in_grains(grain)
        self._events = Events()
        self._due: Sequence[float] = due.tolist()
        # A request's number is its place in all of these.
        self._came = array("d", bytes(8 * len(due)))
        self._latency = array("d", bytes(8 * len(due)))
        self._status = array("h", bytes(2 * len(due)))
        self._again: dict[int, int] = {}
        self._left = len(due)
        self._tries = self._failures = self._inside = 0
        self._changed_at = self._inside_seconds = self._stays = 0.0
        self._sent: dict[int, float] = {}
        self._balancers: list[Balancer[Node]] = [
            POLICIES[fleet.policy](random) for _ in range(fleet.balancers)
        ]
        self._ready: list[Node] = []
        self._nodes: list[Node] = []
        self._coming = 0
        self._history: list[tuple[float, int]] = []
        self._ended: dict[Node, float] = {}
        self._wanted: deque[tuple[float, int]] = deque()
        self._looked = 0.0
        for _ in range(fleet.hosts):
            self._join()
        if fleet.scaling:
            self._events.at(fleet.scaling.interval, self._scale, fleet.scaling)

    def go(self, on_progress: Callable[[float], None]) -> None:
        """Until every request is answered."""
        events, due, index = self._events, self._due, 0
        while self._left:
            if index < len(due) and due[index] <= events.next_at:
                events.now = due[index]
                self._send(index)
                index += 1
                if index % PROGRESS_EVERY == 0:
                    on_progress(events.now)
            else:
                events.happen()
        on_progress(events.now)

    def _send(self, request: int) -> None:
        self._tries += 1
        self._sent[request] = self._events.now
        self._count(1)
        balancer = self._balancers[request % len(self._balancers)]
        node = balancer.pick()
        if node is None or node.dead:
            if node is not None:
                balancer.returned(node)
            self._end(request, BROKEN, self._events.now, LEAST_RETRY_AFTER)
        else:
            node.arrive(request)

    def _answered(
        self, node: Node, request: int, status: int, time: float, retry_after: float
    ) -> None:
        self._balancers[request % len(self._balancers)].returned(node)
        self._end(request, status, time, retry_after)

    def _end(self, request: int, status: int, time: float, retry_after: float) -> None:
        """A try was answered at `time`; its caller tries again, or has that answer."""
        self._count(-1)
        self._stays += time - self._sent.pop(request)
        if status in (REFUSED, BROKEN) and self._fleet.retries:
            tried = self._again.get(request, 0)
            if tried < self._fleet.retries:
                self._again[request] = tried + 1
                self._events.at(time + retry_after, self._send, request)
                return
        self._latency[request] = time - self._due[request]
        self._status[request] = status
        self._left -= 1

    def _count(self, change: int) -> None:
        now = self._events.now
        self._inside_seconds += self._inside * (now - self._changed_at)
        self._changed_at = now
        self._inside += change

    def _join(self) -> None:
        """A host is ready."""
        host, every = self._host, self._fleet.slow_every
        if every and len(self._nodes) % every == every - 1:
            host = host.slower(2.0)
        node = Node(host, self._events, self._came, self._answered, self._random)
        self._nodes.append(node)
        self._ready.append(node)
        for balancer in self._balancers:
            balancer.add(node)
        self._note()
        if math.isfinite(self._fleet.mtbf):
            after = self._random.expovariate(1 / self._fleet.mtbf)
            self._events.at(self._events.now + after, self._fail, node)

    def _note(self) -> None:
        if self._history and self._history[-1][0] == self._events.now:
            self._history.pop()
        self._history.append((self._events.now, len(self._ready)))

    def _leave(self, node: Node) -> None:
        """No balancer sends to it any more; it answers what it has."""
        if node in self._ended:
            return
        self._ended[node] = self._events.now
        self._ready.remove(node)
        for balancer in self._balancers:
            balancer.remove(node)
        self._note()

    def _fail(self, node: Node) -> None:
        if node in self._ended:
            return
        self._failures += 1
        for request in node.fail():
            self._answered(node, request, BROKEN, self._events.now, LEAST_RETRY_AFTER)
        self._events.at(self._events.now + self._fleet.detect, self._leave, node)
        self._order(1)

    def _order(self, hosts: int) -> None:
        self._coming += hosts
        for _ in range(hosts):
            self._events.at(self._events.now + self._fleet.cold_start, self._arrived, None)

    def _arrived(self, _: object) -> None:
        self._coming -= 1
        self._join()

    def _scale(self, scaling: Scaling) -> None:
        self._events.at(self._events.now + scaling.interval, self._scale, scaling)
        self._count(0)
        now = self._events.now
        total = self._inside_seconds if scaling.signal == "unanswered" else float(self._tries)
        needed = (total - self._looked) / scaling.interval / scaling.target
        self._looked = total
        have = len(self._ready) + self._coming
        wanted = math.ceil(needed)
        if abs(needed / max(1, have) - 1) <= TOLERANCE:
            wanted = have
        wanted = min(scaling.most, max(scaling.least, wanted))
        self._wanted.append((now, wanted))
        while self._wanted[0][0] <= now - scaling.hold:
            self._wanted.popleft()
        if wanted > have:
            self._order(wanted - have)
        # Nothing is given back before a whole `hold` was seen, nor the last host.
        spare = have - max(count for _, count in self._wanted)
        if spare > 0 and now >= scaling.hold:
            for node in self._ready[max(1, len(self._ready) - spare) :]:
                self._leave(node)

    def outcome(self, begin: float, end: float, slo: float) -> Outcome:
        now = self._events.now
        alive = sum(self._ended.get(node, now) - node.since for node in self._nodes)
        started = len(self._nodes) - self._fleet.hosts
        paid = alive + started * self._fleet.cold_start
        return Outcome(
            due=np.asarray(self._due),
            latency=np.asarray(self._latency),
            status=np.asarray(self._status),
            begin=begin,
            end=end,
            grain=self._grain,
            slo=slo,
            batches=sum(node.batches for node in self._nodes),
            computed=sum(node.computed for node in self._nodes),
            deepest=max(node.deepest for node in self._nodes),
            tries=self._tries,
            failures=self._failures,
            inside_seconds=self._inside_seconds,
            stays=self._stays,
            busy_seconds=sum(node.busy for node in self._nodes),
            device_seconds=max(alive, 1e-12) * self._host.devices,
            usd=paid * self._host.usd_per_hour / 3600,
            hosts=self._history,
            events=self._events.happened + self._tries,
        )
