"""Bodies of requests while they arrive: bounded in bytes, all of them together, and in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import TracebackType

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.errors import (
    RETRY_SECONDS,
    ClientLeft,
    DeadlineExceeded,
    RequestTooSlow,
    TooLarge,
    UploadsFull,
)


class Intake:
    """The bodies that this process receives at a time: at most `max_bytes` of them all, each for
    at most `max_seconds`. One that comes alone is taken whatever its size.
    """

    def __init__(self, max_bytes: int, max_seconds: float) -> None:
        self.max_bytes = max_bytes
        self.max_seconds = max_seconds
        self.held = 0

    def take(self, count: int, own: int = 0) -> None:
        """Takes `count` bytes more for who has `own` already.

        Raises:
            UploadsFull: others have too many.
        """
        if self.held > own and self.held + count > self.max_bytes:
            raise UploadsFull(
                f"{self.held - own} bytes of other requests' bodies are being received, and the "
                f"limit is {self.max_bytes} for all; retry after the given time",
                RETRY_SECONDS,
            )
        self.held += count


class Body:
    """One request's body, of at most `max_bytes`; a context that ends when nobody holds it more.

    `deadline` is the request's, in the event loop's time; `until` is when the body must be whole.

    Raises:
        TooLarge: it says itself that it is larger.
        UploadsFull: others have too many bytes.
    """

    def __init__(self, request: Request, intake: Intake, max_bytes: int, deadline: float) -> None:
        text = request.headers.get("content-length", "")
        length = int(text) if text.isdecimal() else 0
        if length > max_bytes:
            raise TooLarge(f"the body has {length} bytes; the limit is {max_bytes}")
        self.request = request
        self.until = min(deadline, asyncio.get_running_loop().time() + intake.max_seconds)
        self._deadline = deadline
        self._intake = intake
        self.max_bytes = max_bytes
        intake.take(length)
        self._held = length

    def __enter__(self) -> Body:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._intake.held -= self._held

    def hold(self, count: int) -> None:
        """Counts the body as `count` bytes, as soon as it has become so many in memory.

        Raises:
            UploadsFull: others have too many.
        """
        if count > self._held:
            self._intake.take(count - self._held, self._held)
            self._held = count

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """What arrives.

        Raises:
            TooLarge: there is more than the limit.
            UploadsFull: it did not say its length, and others have too many bytes.
            ClientLeft: the connection closed before its end.
        """
        received = 0
        try:
            async for chunk in self.request.stream():
                received += len(chunk)
                if received > self.max_bytes:
                    raise TooLarge(f"the body exceeds the limit of {self.max_bytes} bytes")
                self.hold(received)
                yield chunk
        except ClientDisconnect:
            raise ClientLeft("the client disconnected while sending the body") from None

    async def whole(self) -> bytes:
        """All of it. Raises as `chunks`, and where it is not whole in time: see `late`."""
        try:
            async with asyncio.timeout_at(self.until):
                return b"".join([chunk async for chunk in self.chunks()])
        except TimeoutError:
            raise self.late() from None

    def late(self) -> DeadlineExceeded | RequestTooSlow:
        """Why it is refused that was not whole in time."""
        if self.until == self._deadline:
            return DeadlineExceeded(
                "the deadline passed while the body was being sent; "
                "allow more time with X-Request-Timeout-Ms, or send it faster"
            )
        seconds = self._intake.max_seconds
        return RequestTooSlow(f"the body took longer than {seconds:g} s to arrive; send it faster")
