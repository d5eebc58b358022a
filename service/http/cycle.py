"""One request and its response, as ASGI sees them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any

from uvicorn._types import ASGI3Application, ASGISendEvent, HTTPResponseStartEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from service.http.gate import Entry

# Headers that decide how a response is framed, or whose values uvicorn has to interpret.
FRAMING = frozenset((b"transfer-encoding", b"connection"))


class Cycle(RequestResponseCycle):
    """uvicorn's, with a whole response in one write, and the time that it keeps the event loop.

    `entry`: of a request that was let in by the gate; `took`, if any, is told the seconds that it
    kept the loop.
    """

    entry: Entry | None = None
    took: Callable[[float], None] | None = None
    _start: HTTPResponseStartEvent | None = None

    async def run_asgi(self, app: ASGI3Application) -> None:
        entry = self.entry
        if entry is None:
            await super().run_asgi(app)
            return
        try:
            if self.took is None:
                await super().run_asgi(app)
            else:
                self.took(await _timed(super().run_asgi(app)))
        finally:
            entry.ended()

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start" and not self.response_started:
            self._start = message  # It is sent with the body.
            return
        start, self._start = self._start, None
        if start is not None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                whole = self._whole(start, message.get("body", b""))
                if whole:
                    self.send_whole(whole)
                    return
            await super().send(start)
        await super().send(message)

    def _whole(self, start: HTTPResponseStartEvent, body: bytes) -> bytes:
        """The response's bytes; empty if uvicorn has to frame it, or to object to it."""
        if self.flow.write_paused or self.disconnected or self.scope["method"] == "HEAD":
            return b""
        length = b""
        lines = [STATUS_LINE[start["status"]]]
        count = 2
        for name, value in (*self.default_headers, *start["headers"]):
            if name == b"content-length":
                length = value
            elif name == b"connection" and value == b"close":
                self.keep_alive = False
                continue
            elif name in FRAMING:
                return b""
            lines += (name, b": ", value, b"\r\n")
            count += 1
        if length != b"%d" % len(body):
            return b""
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        head = b"".join(lines)
        count += not self.keep_alive
        if not head.count(b"\n") == head.count(b"\r") == count or b"\0" in head:
            return b""  # A header has a line break in it.
        return head + body

    def send_whole(self, whole: bytes) -> None:
        """Sends a response with its head, and completes the request."""
        self.response_started, self.waiting_for_100_continue = True, False
        self.transport.write(whole)
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


@coroutine
def _timed(work: Coroutine[Any, Any, None]) -> Generator[Any, Any, float]:
    """Runs `work`; the seconds that it kept the event loop, without those that it waited."""
    seconds = 0.0
    error: BaseException | None = None
    while True:
        began = time.perf_counter()
        try:
            waits_for = work.send(None) if error is None else work.throw(error)
        except StopIteration:
            return seconds + time.perf_counter() - began
        seconds += time.perf_counter() - began
        error = None
        try:
            yield waits_for
        except BaseException as thrown:  # noqa: BLE001 - it is the work's
            error = thrown


class Refused(Exception):
    """The gate's refusal of a request whose connection closes with it."""

    def __init__(self, response: bytes) -> None:
        self.response = response


class RefusedCycle:
    """In the place of a request that was refused by the gate: its response is complete."""

    response_complete = response_started = keep_alive = True
    disconnected = False
    message_event = asyncio.Event()


REFUSED: Any = RefusedCycle()
