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

# Seconds of a turn for the requests that it begins, and for those that were held before.
BUDGET_SECONDS = 0.004
# With more than so many requests held, the newest comes first.
IN_ORDER = 32
SAMPLE_SECONDS = 0.02
REFUSING_SAMPLES = 10
# The share of `delay` that is left after each sample: half of it after about 60 ms.
DECAY = 0.8
# One in so many requests is timed, as that costs something.
TIMED = 8
# The share that the latest measurement has in an average.
LATEST = 0.05
# The longest turn is reported for one to two of these periods, so that every scrape sees it.
REPORT_SECONDS = 30.0


class Held(Protocol):
    """A connection with a request that has been read and waits for a turn."""

    def release(self) -> None: ...


class LoopTurns:
    """Measures the turns of this process's event loop, and limits what begins in one.

    Times in seconds. `delay`: how late the loop was lately, which decays; `polled`: data that
    arrived before this time of `time.perf_counter` has been read; `request`: what a request that is
    let in takes of the loop; `reading`: the share of its time that the loop reads, and refuses;
    `refusing`: samples for which requests count as being refused since the last that was.
    """

    def __init__(self, metrics: Metrics, request: float = 0.0) -> None:
        self.delay = 0.0
        self.polled = 0.0
        self.request = request
        self.reading = 0.0
        self.refusing = 0
        self._metrics = metrics
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held: deque[Held] = deque()
        self._reading_since = 0.0  # 0.0: nothing has been read in this turn
        self._scheduled = False
        self._starting: deque[Callable[[], None]] = deque()
        self._owed = 0.0  # by what this turn has started
        self._read_seconds = 0.0
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
        self.delay = max(late, self.delay * DECAY)
        self.reading += 4 * LATEST * (min(1.0, self._read_seconds / elapsed) - self.reading)
        self._read_seconds = 0.0
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
        self._let_in = 0
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
        return not self._held and now - self._reading_since < BUDGET_SECONDS

    def parsed(self, since: float) -> None:
        """A connection's data was parsed, and perhaps refused."""
        self._read_seconds += time.perf_counter() - since

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
        began = time.perf_counter()
        if self._reading_since:
            self._turns += 1
            self.polled, self._reading_since = self._reading_since, 0.0
        while self._starting and self._owed < BUDGET_SECONDS:
            self._owed += self.request
            self._starting.popleft()()
        if self._held:
            self._release(began)
        if self._held or self._starting:
            self._schedule()

    def _release(self, began: float) -> None:
        held, now, newest = self._held, began, False
        while held and now - began < BUDGET_SECONDS:
            newest = self.refusing > 0 and len(held) > IN_ORDER and not newest
            connection = held.pop() if newest else held.popleft()
            connection.release()
            now = time.perf_counter()
        self._read_seconds += now - began
