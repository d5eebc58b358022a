"""Messages as they are received: limited in time, each in bytes, and all together.

gRPC tells nobody how much of a message has arrived, and keeps all of it in memory until the last
byte. Two limits take the place of counting what arrives. Within `QUICK_SECONDS` any call may
receive; of those that take longer, only as many may go on as have room in the limit on uploads if
each is of the largest size. Beyond that, the one that has taken longest gives way. A stream that
waits for its client looks the same as one in the middle of a message: streams are limited in number
instead, by `grpc_max_streams`. What has arrived counts among the bodies of HTTP.
"""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import Any

import grpc.aio

from service.errors import (
    RETRY_SECONDS,
    ClientDeadline,
    ClientLeft,
    InvalidInput,
    RequestTooSlow,
    ServiceError,
    TooLarge,
    UploadsFull,
)
from service.http import encoding
from service.http.body import UploadBudget
from service.inference.deadline import before
from service.inference.lane import Lane

QUICK_SECONDS = 1.0


class Message:
    """One message of a call, of at most `max_bytes`; it counts until the context is left. See
    `service.http.body.Arriving`."""

    def __init__(self, receiving: Receiving, max_bytes: int) -> None:
        self.held = 0
        self.receiving = False  # Once its bytes count, it is complete.
        self._common = receiving
        self._max_bytes = max_bytes
        self._timeout: asyncio.Timeout | None = None
        self._ended: ServiceError | None = None

    def __enter__(self) -> Message:
        self._common.budget.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._common.budget.remove(self)

    def seconds_left(self, now: float) -> float:
        return 0.0

    def measure(self, now: float) -> int | None:
        return None

    def end(self, error: ServiceError) -> None:
        """Stops receiving: what reads the message raises `error`."""
        self._ended = error
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(0)

    async def read(
        self, context: Any, deadline: float = math.inf, *, may_pause: bool = False
    ) -> bytes | None:
        """The message's bytes; None: the client sends no more.

        `deadline`: the call's, in the event loop's time; a stream has none. `may_pause`: its client
        may take any time before the message, which never counts as slow.

        Raises:
            TooLarge: it exceeds the limit, compressed or decompressed.
            InvalidInput: its compressed data is corrupt.
            ClientDeadline, RequestTooSlow: it took too long to arrive.
            UploadsFull: others take the room that it needs.
            ClientLeft: the call ended.
            ServiceError: that of `end`.
        """
        if self._ended is not None:
            raise self._ended
        loop = asyncio.get_running_loop()
        until = deadline
        if deadline < math.inf:
            until = min(deadline, loop.time() + self._common.budget.max_seconds)
        slow = None if may_pause else loop.call_later(QUICK_SECONDS, self._common.slow, self)
        try:
            async with asyncio.timeout_at(None if until == math.inf else until) as self._timeout:
                content = await context.read()
        except TimeoutError:
            raise self._ended or self._late(until == deadline) from None
        except (grpc.aio.InternalError, grpc.aio.UsageError):
            # The call has ended meanwhile, or the message was larger than what gRPC itself allows.
            raise ClientLeft("the call ended before its message was complete") from None
        finally:
            self._timeout = None
            if slow is not None:
                slow.cancel()
                self._common.ended(self)
        if content is grpc.aio.EOF:
            return None
        if coding := compression_of(content):
            work = self._common.lane.run(encoding.inflate, [content], coding, self._max_bytes)
            async with before(until):
                return await work
        if len(content) > self._max_bytes:
            raise TooLarge(f"the message has {len(content)} bytes; the limit is {self._max_bytes}")
        return bytes(content)

    def count(self, content: bytes) -> None:
        """Counts the message's bytes.

        Raises:
            UploadsFull: others hold too many.
        """
        self._common.budget.hold(self, len(content))

    async def read_one(self, context: Any, deadline: float) -> bytes:
        """The only message of a call, counted; raises as `read` and `count`."""
        content = await self.read(context, deadline)
        if content is None:
            raise InvalidInput("the call has no message; send one")
        self.count(content)
        return content

    def _late(self, of_call: bool) -> ServiceError:
        if of_call:
            return ClientDeadline(
                "the deadline passed while the message was being sent; "
                "allow more time, or send it faster"
            )
        seconds = self._common.budget.max_seconds
        return RequestTooSlow(f"the message took longer than {seconds:g} s to arrive")


class Receiving:
    """What the calls of one process share; `lane`: threads that decompress; `max_bytes`: the
    largest message."""

    def __init__(self, budget: UploadBudget, lane: Lane, max_bytes: int) -> None:
        self.budget = budget
        self.lane = lane
        self.most_slow = max(1, budget.max_bytes // max_bytes)
        self._slow: dict[Message, None] = {}

    def slow(self, message: Message) -> None:
        """A message takes longer than most do."""
        self._slow[message] = None
        if len(self._slow) > self.most_slow:
            oldest = next(iter(self._slow))
            del self._slow[oldest]
            oldest.end(
                UploadsFull(
                    f"more than {self.most_slow} calls have been sending a message for longer than "
                    f"{QUICK_SECONDS:g} s, this one for the longest; retry after the given time",
                    RETRY_SECONDS,
                )
            )

    def ended(self, message: Message) -> None:
        self._slow.pop(message, None)


def compression_of(content: bytes) -> str | None:
    """How a message is compressed, by its first bytes; None: it is not.

    gRPC itself would decompress all of it before it looks at the limit, so it is told not to, and
    then says no more of the compression. A message that is not compressed begins with the tag of a
    field: the first byte of gzip is none, and that of zlib is one that no message here has.
    """
    if content[:2] == b"\x1f\x8b":
        return "gzip"
    zlib = content[:1] == b"\x78" and len(content) > 1 and (0x7800 + content[1]) % 31 == 0
    return "deflate" if zlib else None
