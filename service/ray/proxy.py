"""Middleware for Ray's HTTP proxies: turns Ray's own refusals into problem documents.

If an ingress is lost or nothing is deployed, Ray responds with 500 or a line of text. Setting
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=service.ray.proxy:middlewares in every node's environment
installs this.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import RETRY_SECONDS, DeadlineExceeded, NotReady, QueueFull, ServiceError
from service.http.problems import refusal_response

TEXT = b"text/plain"
REQUEST_ID = b"x-request-id"
NOSNIFF = (b"x-content-type-options", b"nosniff")
GONE = "the process handling the request was lost, or none has started yet; retry"


def middlewares() -> list[Middleware]:
    """The factory that Ray imports."""
    return [Middleware(ProblemMiddleware)]


def error_of_status(status: int) -> ServiceError | None:
    """Our equivalent of Ray's own status."""
    if status == 429:
        return QueueFull("every ingress is busy; retry after the given time", RETRY_SECONDS)
    if status == 408:
        return DeadlineExceeded("Ray's request_timeout_s passed before the response was computed")
    return NotReady(GONE, RETRY_SECONDS) if status >= 500 else None


class ProblemMiddleware:
    """Pure ASGI, replacing Ray's plain-text responses."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        error: ServiceError | None = None

        async def forward(message: Message) -> None:
            nonlocal started, error
            if message["type"] == "http.response.start":
                headers = dict(message["headers"])
                if headers.get(b"content-type", TEXT).startswith(TEXT):
                    error = error_of_status(message["status"])
                if error is None:
                    started = True
                    # Ray repeats the ID that our response already has.
                    lowered = [(name.lower(), value) for name, value in message["headers"]]
                    others = [pair for pair in lowered if pair[0] != REQUEST_ID]
                    ids = [pair for pair in lowered if pair[0] == REQUEST_ID][:1]
                    message["headers"] = [*others, *ids, NOSNIFF]
            if error is None:
                await send(message)

        await self._app(scope, receive, forward)
        if not started:
            refusal = refusal_response(scope["path"], error or NotReady(GONE, RETRY_SECONDS))
            refusal.raw_headers += [pair for pair in scope["headers"] if pair[0] == REQUEST_ID]
            refusal.raw_headers.append(NOSNIFF)
            await refusal(scope, receive, send)
