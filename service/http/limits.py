"""What the connections of one process share: limits, and how a refusal is sent and reported."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Collection
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.config.settings import Settings
from service.errors import RETRY_SECONDS, HeadersTooLarge, ServiceError, TooManyConnections
from service.http import problems
from service.http.idle import IdleConnection, Room
from service.http.platforms import health_paths
from service.http.turns import LoopTurns
from service.logs import LogLimit, fields, with_suppressed
from service.metrics import REASONS, Metrics

if TYPE_CHECKING:
    from service.http.connection import ServerConnection
    from service.http.gate import Gate

log = logging.getLogger(__name__)
# Between two log lines about refusals: a line for each would add to the load.
QUIET_SECONDS = 1.0


class ConnectionLimits:
    """What the connections of one process share: the limits, and how a refusal is reported."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.max_header_bytes = settings.max_header_bytes
        self.header_timeout = settings.header_timeout_s
        self.keep_alive = settings.keep_alive_s
        # Of platforms; for those requests, see `service.http.connection.PROBES`.
        self.health = frozenset(path.encode() for path in health_paths(settings))
        self.probes = tuple(
            b"%b %b " % (method, path) for method in (b"GET", b"HEAD") for path in self.health
        )
        self.max_connections = math.ceil(settings.max_connections / settings.workers)
        # Not among the counted connections: surplus, or refused and not yet closed.
        self.uncounted: set[ServerConnection] = set()
        self.turns = LoopTurns(metrics)
        self._room = Room()
        self.gate: Gate | None = None  # Without one, everything is the application's to refuse.
        self._metrics = metrics
        for reason in REASONS:  # So that each series rises from zero.
            metrics.refusals.labels("", reason)
        self._log_limit = LogLimit(QUIET_SECONDS)

    def count(self, error: ServiceError, request_id: str = "-") -> None:
        """Counts and logs a refusal that no endpoint made."""
        self._metrics.refused("", error.reason)
        suppressed = self._log_limit.suppressed(
            ""
        )  # All together: a client that sends one sends many.
        if suppressed is None:
            return
        status = problems.STATUSES[type(error)]
        log.info(
            "%s %d %s: %s%s",
            *(request_id, status, error.reason, error, with_suppressed(suppressed)),
            extra=fields(
                str(error),
                request_id=request_id.strip("-"),
                status=status,
                reason=error.reason,
                unlogged=suppressed or None,
            ),
        )

    def refused(
        self,
        error: ServiceError,
        model: str,
        method: bytes,
        route: str,
        status: int,
        request_id: bytes,
    ) -> None:
        """Counts and logs a refusal by the gate."""
        self._metrics.refused(model, error.reason)
        self._metrics.responded(route, status)
        suppressed = self._log_limit.suppressed(error.reason)
        if suppressed is not None:
            name, verb = request_id.decode("ascii"), method.decode("ascii")
            log.info(
                "%s %s %s %d %s: %s%s",
                *(name, verb, route, status, error.reason, error, with_suppressed(suppressed)),
                extra=fields(
                    str(error),
                    request_id=name,
                    method=verb,
                    path=route,
                    status=status,
                    reason=error.reason,
                    model=model,
                    unlogged=suppressed or None,
                ),
            )

    def refuse(self, error: ServiceError, path: str) -> bytes:
        """The response for a refusal that no endpoint made; counts and logs it."""
        request_id = uuid.uuid4().hex
        self.count(error, request_id)
        self._metrics.responded("other", problems.STATUSES[type(error)])
        response = problems.refusal_response(path, error)
        headers = [
            *response.raw_headers,
            (b"x-content-type-options", b"nosniff"),
            (b"x-request-id", request_id.encode()),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),
        ]
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        return b"".join([STATUS_LINE[response.status_code], *lines, b"\r\n", response.body])

    def admits(self, connections: int) -> bool:
        """Whether one more connection than these may exist at all: those over the limit are told
        so, but not without end. A TLS handshake counts, as it is an open file."""
        if connections < 2 * self.max_connections:
            return True
        self.count(self.too_many())
        return False

    def has_room(self, connections: Collection[IdleConnection], now: float) -> bool:
        """Whether one more than these may be counted, perhaps as others have given way."""
        return self._room.has(connections, self.max_connections, now)

    def too_many(self) -> TooManyConnections:
        return TooManyConnections(
            f"the limit of {self.max_connections} open connections is reached; "
            "retry after the given time",
            RETRY_SECONDS,
        )

    def too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(
            f"the request line and the headers are larger than {self.max_header_bytes} bytes"
        )
