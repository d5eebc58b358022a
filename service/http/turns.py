"""The turns of a process's event loop: how long they take, and how much is done in one.

A turn runs callbacks and tasks, and then reads from every socket that has data. Nothing that was
computed is sent, and no new client is accepted, before the turn ends. So what arrives beyond a
turn's budget is held, and the newest of it comes first: those who have waited longest are the most
likely to have given up.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from service.metrics import Metrics

# Seconds of a turn for the requests that it starts: short turns are what keeps a request's way
# short, as it takes several.
BUDGET_SECONDS = 0.001
# Seconds of a turn for parsing and refusing, if that is enough to refuse all that is held within so
# many turns. An overloaded service that refused all at once would do nothing else.
REFUSE_SECONDS, DRAIN_TURNS = 0.001, 40
# With more than so many requests held, the newest comes first.
IN_ORDER = 32
SAMPLE_SECONDS = 0.02
REFUSING_SAMPLES = 10
# The share that the latest sample has in `delay`: half of what was is forgotten after 60 ms.
DELAY_SHARE = 0.2
# One in so many requests is timed, as that costs something.
TIMED = 8
# The share that the latest measurement has in an average.
LATEST, STEADY = 0.05, 0.2
# The longest turn is reported for one to two of these periods, so that every scrape sees it.
REPORT_SECONDS = 30.0


class Held(Protocol):
    """A connection with a request that has been read and waits for a turn."""

    def release(self) -> None: ...


class LoopTurns:
    """Measures the turns of this process's event loop, and limits what begins in one.

    `number` counts the turns. Times in seconds: `delay`: how late it was lately, which decays;
    `polled`: data that arrived before this time of `time.perf_counter` has been read; `request`:
    what a request that is let in takes of the loop; `per_start`: how long each waits for those
    before it, while there are more than one turn can start; `refusing`: samples for which requests
    count as being refused since the last that was.
    """

    def __init__(self, metrics: Metrics, request: float = 0.0) -> None:
        self.number = 0
        self.delay = 0.0
        self.polled = 0.0
        self.request = request
        self.per_start = request
        self.refusing = 0
        self._metrics = metrics
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held: deque[Held] = deque()
        self._newest = False  # whether the last released was the newest
        self._reading_since = 0.0  # 0.0: nothing has been read in this turn
        self._scheduled = False
        self._starting: deque[Callable[[], None]] = deque()
        self._started, self._started_at = 0, 0.0
        self._owed = 0.0  # by what this turn has started
        self._let_in = 0
        self._turns = self._reads = self._accepts = 0
        self._longest = self._longest_before = 0.0
        self._sampled = self._reported = 0.0

    async def watch(self) -> None:
        """Samples how late the loop is, forever."""
        self._reported = self._sampled = time.perf_counter()
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            self._sample(time.perf_counter())

    def _sample(self, now: float) -> None:
        elapsed, self._sampled = now - self._sampled, now
        late = max(0.0, elapsed - SAMPLE_SECONDS)
        self.delay += DELAY_SHARE * (late - self.delay)
        self._longest = max(self._longest, late)
        self.refusing = max(0, self.refusing - 1)
        metrics = self._metrics
        metrics.loop_delay.observe(late)
        for counter, count in (
            (metrics.loop_turns, self._turns),
            (metrics.loop_reads, self._reads),
            (metrics.loop_accepts, self._accepts),
        ):
            if count:
                counter.inc(count)
        self._turns = self._reads = self._accepts = 0
        metrics.loop_longest_turn.set(max(self._longest, self._longest_before))
        if now > self._reported + REPORT_SECONDS:
            self._reported = now
            self._longest_before, self._longest = self._longest, 0.0

    def accepted(self) -> None:
        self._accepts += 1

    def read(self, now: float) -> bool:
        """A connection has data; whether this turn may still begin a request."""
        self._reads += 1
        if not self._reading_since:
            self._reading_since = now
            self._schedule()
        return not self._held and now - self._reading_since < REFUSE_SECONDS

    def start(self, start: Callable[[], None]) -> None:
        """Starts a request that was let in, in this turn or in a later one."""
        if self._starting or self._owed >= BUDGET_SECONDS:
            self._starting.append(start)
            self._schedule()
        else:
            self._owed += self.request
            start()

    def refused(self) -> None:
        """A request was refused because of the load."""
        self.refusing = REFUSING_SAMPLES

    @property
    def wait(self) -> float:
        """How long a request that is let in now has to wait until it is started."""
        return len(self._starting) * self.per_start

    def timed(self) -> Callable[[float], None] | None:
        """For some requests that are let in, who is told how long they kept the loop."""
        self._let_in += 1
        return self._took if self._let_in % TIMED == 0 else None

    def _took(self, seconds: float) -> None:
        self.request += LATEST * (seconds - self.request)

    def hold(self, connection: Held) -> None:
        """Keeps a connection's request for a later turn."""
        self._held.append(connection)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop = self._loop or asyncio.get_running_loop()
            self._loop.call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._scheduled, self._owed = False, 0.0
        self.number += 1
        began = time.perf_counter()
        if self._reading_since:
            self._turns += 1
            self.polled, self._reading_since = self._reading_since, 0.0
        try:
            if self._starting:
                self._start_some(began)
            if self._held:
                self._release(began)
        finally:  # A bug in one of them must not keep the others waiting.
            if self._held or self._starting:
                self._schedule()

    def _start_some(self, now: float) -> None:
        if self._started:  # In the previous turn, which was full as well.
            took = (now - self._started_at) / self._started
            self.per_start += STEADY * (took - self.per_start)
        started = 0
        while self._starting and self._owed < BUDGET_SECONDS:
            self._owed += self.request
            self._starting.popleft()()
            started += 1
        self._started, self._started_at = started if self._starting else 0, now

    def _release(self, began: float) -> None:
        held, now = self._held, began
        rest = len(held) - len(held) // DRAIN_TURNS
        while held and (now - began < REFUSE_SECONDS or len(held) > rest):
            # Alternating across turns too: the oldest's share does not depend on a turn's length.
            self._newest = self.refusing > 0 and len(held) > IN_ORDER and not self._newest
            connection = held.pop() if self._newest else held.popleft()
            connection.release()
            now = time.perf_counter()
