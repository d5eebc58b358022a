"""Request bodies while they arrive: limited in bytes, each and in total, and in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import TracebackType

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.errors import (
    RETRY_SECONDS,
    ClientDeadline,
    ClientLeft,
    RequestTooSlow,
    TooLarge,
    UploadsFull,
)


class UploadBudget:
    """Limits the bodies that this process receives at once: `max_bytes` in total, `max_seconds`
    each. A body that arrives alone may exceed the total.
    """

    def __init__(self, max_bytes: int, max_seconds: float) -> None:
        self.max_bytes = max_bytes
        self.max_seconds = max_seconds
        self.held = 0

    def reserve(self, count: int, own: int = 0) -> None:
        """Reserves `count` more bytes for a body that already holds `own`.

        Raises:
            UploadsFull: other bodies hold too many bytes.
        """
        if self.held > own and self.held + count > self.max_bytes:
            raise UploadsFull(
                f"{self.held - own} bytes of other requests' bodies are being received, and the "
                f"limit is {self.max_bytes} for all; retry after the given time",
                RETRY_SECONDS,
            )
        self.held += count


class Body:
    """One request's body, of at most `max_bytes`; leaving the context releases its reservation.

    `deadline` is the request's, in the event loop's time; `until` is the body's own.

    Raises:
        TooLarge: its Content-Length exceeds the limit.
        UploadsFull: other bodies hold too many bytes.
    """

    def __init__(
        self, request: Request, budget: UploadBudget, max_bytes: int, deadline: float
    ) -> None:
        text = request.headers.get("content-length", "")
        length = int(text) if text.isdecimal() else 0
        if length > max_bytes:
            raise TooLarge(f"the body has {length} bytes; the limit is {max_bytes}")
        self.request = request
        self.until = min(deadline, asyncio.get_running_loop().time() + budget.max_seconds)
        self._deadline = deadline
        self._budget = budget
        self.max_bytes = max_bytes
        budget.reserve(length)
        self._held = length

    def __enter__(self) -> Body:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._budget.held -= self._held

    def hold(self, count: int) -> None:
        """Raises the reservation to `count` bytes, as the body grows in memory.

        Raises:
            UploadsFull: other bodies hold too many bytes.
        """
        if count > self._held:
            self._budget.reserve(count - self._held, self._held)
            self._held = count

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body, chunk by chunk.

        Raises:
            TooLarge: it exceeds the limit.
            UploadsFull: it has no Content-Length, and other bodies hold too many bytes.
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

    async def read_all(self) -> bytes:
        """The complete body; raises as `chunks` does, or `timeout_error()`."""
        try:
            async with asyncio.timeout_at(self.until):
                return b"".join([chunk async for chunk in self.chunks()])
        except TimeoutError:
            raise self.timeout_error() from None

    def timeout_error(self) -> ClientDeadline | RequestTooSlow:
        """The refusal of a body that was not complete in time."""
        if self.until == self._deadline:
            return ClientDeadline(
                "the deadline passed while the body was being sent; "
                "allow more time with X-Request-Timeout-Ms, or send it faster"
            )
        seconds = self._budget.max_seconds
        return RequestTooSlow(f"the body took longer than {seconds:g} s to arrive; send it faster")
