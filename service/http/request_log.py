"""A request's ID, and what becomes of it in the metrics and in the log."""

from __future__ import annotations

import itertools
import logging
import re
import time
import uuid
from collections.abc import Iterable
from urllib.parse import quote

from service.http.record import RequestRecord
from service.logs import LogLimit, fields, with_suppressed
from service.metrics import Metrics

log = logging.getLogger(__name__)
# A client chooses how many requests are refused: a line for each would fill the disk.
LINES_PER_SECOND = 10  # of each reason
MAX_CHARACTERS = 500  # characters of a path or detail, which may quote the client
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestLog:
    """Counts requests, and logs at most one line for each.

    `access`: also of those that are served, and with the address of the client.
    """

    def __init__(self, metrics: Metrics, *, access: bool = False) -> None:
        self._metrics = metrics
        self._access = access
        self._log_limit = LogLimit(1.0, LINES_PER_SECOND)
        # A random prefix per process, then a counter: reading the kernel's randomness would release
        # the GIL in every request.
        self._process, self._count = uuid.uuid4().hex[:20].encode(), itertools.count()

    def id_of(self, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """The client's `X-Request-ID` if that is one printable word, else a new one."""
        for name, value in headers:
            if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
                return value
        return b"%s%012x" % (self._process, next(self._count))

    def end(
        self,
        record: RequestRecord,
        method: str,
        path: str,
        route: str,
        status: int,
        request_id: bytes,
    ) -> None:
        """Counts a request, and logs at most one line; `status` is that of HTTP, whatever carried
        the request."""
        seconds = time.perf_counter() - record.started
        self._metrics.responded(route, status)
        reason, detail, failure = record.reason, record.detail, record.failure
        suppressed: int | None = 0
        if reason:
            self._metrics.refused(record.model, reason)
            suppressed = self._log_limit.suppressed(place_of(failure) if failure else reason)
        shown = reason or self._access
        level = logging.ERROR if failure else logging.INFO if shown else logging.DEBUG
        if suppressed is None or not log.isEnabledFor(level):
            return
        name = request_id.decode("ascii")
        place = quote(path)[:MAX_CHARACTERS]  # The query may contain secrets.
        client = record.client if self._access else ""
        outcome = f"{reason} in" if reason else "in"
        colon = f": {detail[:MAX_CHARACTERS]}" if reason else ""
        log.log(
            level,
            "%s %s %s %d %s %.1f ms%s%s%s%s",
            *(
                name,
                method,
                place,
                status,
                outcome,
                seconds * 1000,
                f" by {record.model}" if self._access and record.model else "",
                f" for {client}" if client else "",
                colon,
                with_suppressed(suppressed),
            ),
            exc_info=failure,
            extra=fields(
                detail[:MAX_CHARACTERS] or "completed",
                request_id=name,
                method=method,
                path=place,
                status=status,
                reason=reason,
                duration_ms=round(seconds * 1000, 3),
                model=record.model,
                client=client,
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
