"""Every request's ID, its metrics, and at most one log line."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
import uuid
from collections.abc import Sequence
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import errors
from service.errors import RETRY_SECONDS
from service.http.problems import problem, refuse
from service.http.record import RequestRecord, record_of
from service.inference.pipeline import Pipeline
from service.logs import LogLimit, fields, with_suppressed
from service.metrics import Metrics

log = logging.getLogger(__name__)
# A client chooses how many requests are refused: a line for each would fill the disk.
LINES_PER_SECOND = 10  # of each reason
MAX_CHARACTERS = 500  # characters of a path or detail, which may quote the client
TOO_LATE = "the service shut down before the whole request had arrived; retry on another replica"
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
API = ("/v1/", "/v2", "/predictions/", "/invocations", "/ping")


class ObservabilityMiddleware:
    """Pure ASGI, so that it sees exactly what is sent.

    It keeps the client's `X-Request-ID` if that is one printable word, else it generates one. It
    logs an unexpected exception with the ID and responds with a plain 500. Every response gets
    `headers`; those on paths that begin as one of `private` must not be stored.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        pipeline: Pipeline,
        headers: Sequence[tuple[bytes, bytes]] = (),
        private: tuple[str, ...] = API,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._pipeline = pipeline
        self._headers = headers
        self._private = private
        self._log_limit = LogLimit(1.0, LINES_PER_SECOND)
        # A random prefix per process, then a counter: reading the kernel's randomness would release
        # the GIL in every request.
        self._process, self._count = uuid.uuid4().hex[:20].encode(), itertools.count()

    def _id_of(self, scope: Scope) -> bytes:
        for name, value in scope["headers"]:
            if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
                client_id: bytes = value
                return client_id
        return b"%s%012x" % (self._process, next(self._count))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = record_of(scope)
        request_id = self._id_of(scope)
        status = 0
        private = scope["path"].startswith(self._private)

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (b"x-request-id", request_id), *self._headers]
                if private:
                    headers.append((b"cache-control", b"no-store"))
                if self._pipeline.draining:
                    # Clients with kept-alive connections should move to another replica.
                    headers.append((b"connection", b"close"))
                message["headers"] = headers
            await send(message)

        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, send_marked)
        except Exception as error:  # noqa: BLE001
            record.failure = error
            record.reason, record.detail = errors.ServiceError.reason, "see the exception"
            if not status:
                name = request_id.decode("ascii")
                detail = f"unexpected error; the log has the details under request ID {name}"
                response = problem(scope["path"], 500, detail, errors.ServiceError.reason)
                await response(scope, receive, send_marked)
        except asyncio.CancelledError:
            # Only a shutdown that runs out of time cancels a request. A client that still sends the
            # body must learn what became of it.
            if status:
                raise
            response = refuse(scope, errors.NotReady(TOO_LATE, RETRY_SECONDS))
            await response(scope, receive, send_marked)
        finally:
            self._metrics.in_flight.dec()
            self._log(scope, record, status, request_id)

    def _log(self, scope: Scope, record: RequestRecord, status: int, request_id: bytes) -> None:
        """Counts the request, and logs at most one line."""
        seconds = time.perf_counter() - record.started
        self._metrics.responded(getattr(scope.get("route"), "path", "other"), status)
        reason, detail, failure = record.reason, record.detail, record.failure
        suppressed: int | None = 0
        if reason:
            self._metrics.refused(record.model, reason)
            suppressed = self._log_limit.suppressed(place_of(failure) if failure else reason)
        level = logging.ERROR if failure else logging.INFO if reason else logging.DEBUG
        if suppressed is None or not log.isEnabledFor(level):
            return
        method, name = scope["method"], request_id.decode("ascii")
        path = quote(scope["path"])[:MAX_CHARACTERS]  # The query may contain secrets.
        outcome = f"{reason} in" if reason else "in"
        colon = f": {detail[:MAX_CHARACTERS]}" if reason else ""
        log.log(
            level,
            "%s %s %s %d %s %.1f ms%s%s",
            *(
                name,
                method,
                path,
                status,
                outcome,
                seconds * 1000,
                colon,
                with_suppressed(suppressed),
            ),
            exc_info=failure,
            extra=fields(
                detail[:MAX_CHARACTERS] or "completed",
                request_id=name,
                method=method,
                path=path,
                status=status,
                reason=reason,
                duration_ms=round(seconds * 1000, 3),
                model=record.model,
                unlogged=suppressed or None,
                **record.trace,
            ),
        )


def place_of(failure: BaseException) -> str:
    """An exception's type, and the line that raised it: each bug is logged, whatever else fails."""
    trace = failure.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
    return f"{type(failure).__qualname__} {where}"
