"""Request bodies while they arrive: limited in bytes, each and in total, and in time."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import Protocol

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.errors import (
    RETRY_SECONDS,
    ClientDeadline,
    ClientLeft,
    RequestTooSlow,
    ServiceError,
    TooLarge,
    UploadsFull,
)
from service.inference.lane import Lane

# Joining more takes milliseconds, during which Python releases the GIL.
JOINED_BYTES = 2**21
# No more bodies than these can give way: smaller ones free too little for what it takes to choose.
MOST_BODIES = 1000
# How often the rates of bodies are measured; networks pause for less.
RATE_SECONDS = 5.0
# A loop that is later than this may have left bodies unread.
LATE_SECONDS = 1.0


class Arriving(Protocol):
    """What counts among the bodies being received; see `Body`, whose members these are."""

    held: int
    receiving: bool

    def seconds_left(self, now: float) -> float: ...
    def measure(self, now: float) -> int | None: ...
    def end(self, error: ServiceError) -> None: ...


class UploadBudget:
    """Limits the bodies that this process receives at once: `max_bytes` in total, and for each
    `max_seconds` and at least `min_rate` bytes per second.

    Bytes count once they have arrived, and those of the largest body do not: a body may be larger
    than the total, and then keeps no other out. Beyond the limit, the bodies that would take
    longest to complete give way.
    """

    def __init__(self, max_bytes: int, max_seconds: float, min_rate: int = 0) -> None:
        self.max_bytes = max_bytes
        self.max_seconds = max_seconds
        self.min_rate = min_rate
        self.held = 0
        self._bodies: set[Arriving] = set()
        self._measuring: asyncio.TimerHandle | None = None

    def add(self, body: Arriving) -> None:
        self._bodies.add(body)
        if self._measuring is None:
            self._schedule()

    def remove(self, body: Arriving) -> None:
        self.free(body)
        self._bodies.discard(body)

    def free(self, body: Arriving) -> None:
        self.held -= body.held
        body.held = 0

    def hold(self, body: Arriving, count: int) -> None:
        """Counts `count` more bytes of `body`.

        Raises:
            UploadsFull: no other body can give way.
        """
        self.held += count
        body.held += count
        if self.held > self.max_bytes:
            self._make_room(body)

    def _make_room(self, body: Arriving) -> None:
        largest = max(self._bodies, key=lambda other: other.held)
        excess = self.held - largest.held - self.max_bytes
        if excess <= 0:
            return
        now = asyncio.get_running_loop().time()
        enough = self.max_bytes // MOST_BODIES
        others = [
            other
            for other in self._bodies
            if other is not largest and (other is body or (other.receiving and other.held > enough))
        ]
        for slowest in sorted(others, key=lambda other: other.seconds_left(now), reverse=True):
            if slowest is body:
                break
            excess -= slowest.held
            slowest.end(self._full())
            if excess <= 0:
                return
        raise self._full()

    def _full(self) -> UploadsFull:
        return UploadsFull(
            f"more than {self.max_bytes} bytes of bodies are being received, and this one would "
            "take longest to complete; retry after the given time",
            RETRY_SECONDS,
        )

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + RATE_SECONDS
        self._measuring = loop.call_at(due, self._measure, due)

    def _measure(self, due: float) -> None:
        """Ends the bodies that are too slow."""
        self._measuring = None
        if self._bodies:
            self._schedule()
        now = asyncio.get_running_loop().time()
        late = now - due > LATE_SECONDS
        for body in list(self._bodies):
            count = body.measure(now)
            slow = body.receiving and count is not None and count < self.min_rate * RATE_SECONDS
            if slow and not late:
                body.end(
                    RequestTooSlow(
                        f"the body arrived at less than {self.min_rate} bytes per second; "
                        "send it faster"
                    )
                )


class Body:
    """One request's body, of at most `max_bytes`; it counts until the context is left.

    `max_received`: the limit where the body may be the text of that many bytes; default: the same.
    `lane`: threads for what is large. `deadline` is the request's, in the event loop's time;
    `until` is the body's own. `held`: the bytes that count; `receiving`: more is to come.

    Raises:
        TooLarge: its Content-Length exceeds the limit.
    """

    def __init__(
        self,
        request: Request,
        budget: UploadBudget,
        lane: Lane,
        max_bytes: int,
        deadline: float,
        max_received: int | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self.max_received = max_bytes if max_received is None else max_received
        text = request.headers.get("content-length", "")
        length = int(text) if text.isdecimal() else None
        if length is not None and length > self.max_received:
            raise TooLarge(f"the body has {length} bytes; the limit is {self.max_received}")
        now = asyncio.get_running_loop().time()
        self.request = request
        self.lane = lane
        self.until = min(deadline, now + budget.max_seconds)
        self.held = 0
        self.receiving = True
        self._length = self.max_received if length is None else length
        self._received = 0
        # When the previous two measurements were, and what had been received.
        self._marks: list[tuple[float, int]] = [(now, 0)]
        self.deadline = deadline
        self._budget = budget
        self._timeout: asyncio.Timeout | None = None
        self._ended: ServiceError | None = None

    def __enter__(self) -> Body:
        self._budget.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._budget.remove(self)

    def hold(self, count: int) -> None:
        """Counts `count` more bytes that the body takes, as when it was decompressed.

        Raises:
            UploadsFull: other bodies hold too many bytes.
        """
        self._budget.hold(self, count)

    def seconds_left(self, now: float) -> float:
        """Until the body is complete, at its rate since the last measurement but one."""
        if not self.receiving:
            return 0.0
        time, received = self._marks[0]
        arrived = self._received - received
        return (self._length - self._received) * (now - time) / arrived if arrived else math.inf

    def measure(self, now: float) -> int | None:
        """The bytes received since the previous measurement; None: this is the first."""
        previous = self._marks[-1][1] if len(self._marks) > 1 else None
        self._marks = [self._marks[-1], (now, self._received)]
        return None if previous is None else self._received - previous

    def end(self, error: ServiceError) -> None:
        """Stops receiving: what reads the body raises `error`."""
        self._ended, self.receiving = error, False
        self._budget.free(self)
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(0)

    @contextlib.asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Receives the body within its time; else raises `DeadlineExceeded`, `RequestTooSlow` or
        `UploadsFull`."""
        try:
            async with asyncio.timeout_at(self.until) as self._timeout:
                yield
        except TimeoutError:
            raise self._ended or self._timeout_error() from None
        finally:
            self.receiving, self._timeout = False, None

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body, chunk by chunk; to be read `in_time`.

        Raises:
            TooLarge: it exceeds the limit.
            UploadsFull: other bodies hold too many bytes.
            ClientLeft: the connection closed before its end.
        """
        try:
            async for chunk in self.request.stream():
                self._received += len(chunk)
                if self._received > self.max_received:
                    raise TooLarge(f"the body exceeds the limit of {self.max_received} bytes")
                self._budget.hold(self, len(chunk))
                yield chunk
        except ClientDisconnect:
            raise ClientLeft("the client disconnected while sending the body") from None
        self.receiving = False

    async def read_all(self) -> bytes:
        """The complete body; raises as `chunks` and `in_time` do."""
        async with self.in_time():
            chunks = [chunk async for chunk in self.chunks()]
            if self._received > JOINED_BYTES:
                return await self.lane.run(b"".join, chunks)
            return b"".join(chunks)

    def _timeout_error(self) -> ClientDeadline | RequestTooSlow:
        if self.until == self.deadline:
            return ClientDeadline(
                "the deadline passed while the body was being sent; "
                "allow more time with X-Request-Timeout-Ms, or send it faster"
            )
        seconds = self._budget.max_seconds
        return RequestTooSlow(f"the body took longer than {seconds:g} s to arrive; send it faster")
