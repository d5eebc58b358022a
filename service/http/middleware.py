"""Every request's ID, its metrics, and at most one log line."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import errors
from service.config.addresses import with_port
from service.errors import RETRY_SECONDS
from service.http.problems import problem, refuse
from service.http.record import record_of
from service.http.request_log import RequestLog
from service.inference.pipeline import Pipeline
from service.metrics import Metrics

TOO_LATE = "the service shut down before the whole request had arrived; retry on another replica"
API = ("/v1/", "/v2", "/predictions/", "/invocations", "/ping")


class ObservabilityMiddleware:
    """Pure ASGI, so that it sees exactly what is sent.

    It keeps the client's `X-Request-ID` if that is one printable word, else it generates one. It
    logs an unexpected exception with the ID and responds with a plain 500. Every response gets
    `headers`; those on paths that begin as one of `private` must not be stored. `access_log`: see
    `service.http.request_log.RequestLog`.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        pipeline: Pipeline,
        headers: Sequence[tuple[bytes, bytes]] = (),
        private: tuple[str, ...] = API,
        *,
        access_log: bool = False,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._pipeline = pipeline
        self._headers = headers
        self._access_log = access_log
        self._request_log = RequestLog(metrics, access=access_log)
        self._private = private

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = record_of(scope)
        if self._access_log and (client := scope.get("client")) is not None:
            record.client = with_port(*client)
        request_id = self._request_log.id_of(scope["headers"])
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
                detail = errors.unexpected(request_id.decode("ascii"))
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
            route = getattr(scope.get("route"), "path", "other")
            self._request_log.end(record, scope["method"], scope["path"], route, status, request_id)
