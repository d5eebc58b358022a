"""Around Ray's HTTP proxies: what Ray itself refuses is said as all else is.

Ray answers 500 or with a line of text where an ingress was lost or nothing is deployed. Its
setting RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=service.ray.proxy:middlewares, in the environment
of every node, puts this in front.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import RETRY_SECONDS, DeadlineExceeded, NotReady, QueueFull, ServiceError
from service.http.problems import refusal_response

TEXT = b"text/plain"
ID = b"x-request-id"
NOSNIFF = (b"x-content-type-options", b"nosniff")
GONE = "the process that had the request is gone, or none has started yet; retry"


def middlewares() -> list[Middleware]:
    """What Ray asks for."""
    return [Middleware(Front)]


def meant(status: int) -> ServiceError | None:
    """What a status of Ray's own means here."""
    if status == 429:
        return QueueFull("every ingress is busy; retry after the given time", RETRY_SECONDS)
    if status == 408:
        return DeadlineExceeded("Ray's request_timeout_s passed before the response was computed")
    return NotReady(GONE, RETRY_SECONDS) if status >= 500 else None


class Front:
    """Pure ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        instead: ServiceError | None = None

        async def forward(message: Message) -> None:
            nonlocal started, instead
            if message["type"] == "http.response.start":
                headers = dict(message["headers"])
                if headers.get(b"content-type", TEXT).startswith(TEXT):
                    instead = meant(message["status"])
                if instead is None:
                    started = True
                    # Ray adds the id that we have answered with.
                    named = [(name.lower(), value) for name, value in message["headers"]]
                    once = [pair for pair in named if pair[0] != ID]
                    ids = [pair for pair in named if pair[0] == ID][:1]
                    message["headers"] = [*once, *ids, NOSNIFF]
            if instead is None:
                await send(message)

        await self._app(scope, receive, forward)
        if not started:
            refusal = refusal_response(scope["path"], instead or NotReady(GONE, RETRY_SECONDS))
            refusal.raw_headers += [pair for pair in scope["headers"] if pair[0] == ID]
            refusal.raw_headers.append(NOSNIFF)
            await refusal(scope, receive, send)
