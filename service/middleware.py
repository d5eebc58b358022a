"""Around every request: its id, its count, and at most one log line."""

from __future__ import annotations

import itertools
import logging
import re
import time
import uuid
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import QueueFull
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.problems import problem

log = logging.getLogger(__name__)
# Between two lines that say that the queue is full: a line for each would add to the load.
QUIET_SECONDS = 1.0
API = "/v1/"
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Observe:
    """Pure ASGI, so that it sees exactly what is sent.

    The caller's `X-Request-ID` is kept where it is one printable word, else a new one is made.
    Whatever goes wrong unforeseen is logged with the id, and the caller gets a plain 500.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, pipeline: Pipeline) -> None:
        self._app = app
        self._metrics = metrics
        self._pipeline = pipeline
        # A random part for each process, then a count: asking the kernel for randomness would
        # give the interpreter's lock away in every request.
        self._quiet_until, self._unlogged = 0.0, 0
        self._process, self._count = uuid.uuid4().hex[:20], itertools.count()

    def _new_id(self) -> str:
        return f"{self._process}{next(self._count):012x}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else self._new_id()
        state = scope.setdefault("state", {})
        status = 0
        private = scope["path"].startswith(API)

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                if private:
                    headers.append("Cache-Control", "no-store")
                if self._pipeline.draining:
                    # Kept-alive connections should find another replica.
                    headers["Connection"] = "close"
            await send(message)

        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, send_marked)
        except Exception:
            log.exception("%s %s %s failed", request_id, scope["method"], quote(scope["path"]))
            state["refusal"] = ("internal_error", "see the log")
            if not status:
                answer = problem(
                    500,
                    f"an unforeseen error; the service's log has it under {request_id}",
                    "internal_error",
                )
                await answer(scope, receive, send_marked)
        finally:
            self._metrics.in_flight.dec()
            self._record(scope, status, request_id, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, request_id: str, seconds: float) -> None:
        route = scope.get("route")
        self._metrics.answered(getattr(route, "path", "other"), status)
        refusal = scope["state"].get("refusal")
        if refusal is None:
            return
        reason, detail = refusal
        self._metrics.refusals.labels(scope["state"].get("model", ""), reason).inc()
        unlogged = ""
        if reason == QueueFull.reason:
            now = time.monotonic()
            if now < self._quiet_until:
                self._unlogged += 1
                return
            if self._unlogged:
                unlogged = f" (and {self._unlogged} more since the last such line)"
            self._quiet_until, self._unlogged = now + QUIET_SECONDS, 0
        log.info(
            "%s %s %s %d %s in %.1f ms: %s%s",
            request_id,
            scope["method"],
            quote(scope["path"]),  # Decoded, it could hold a line break and forge a line.
            status,
            reason,
            seconds * 1000,
            detail,
            unlogged,
        )
