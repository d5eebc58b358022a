"""One spelling and one method for each resource, so that a route is written once."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class RoutingMiddleware:
    """Pure ASGI: routes a path with a trailing slash as without, and HEAD as GET.

    A redirect to the other spelling would name a scheme and a host, and behind a proxy that ends
    TLS the wrong ones: a client that follows it would send its key in clear text. The server omits
    the body of a response to HEAD (RFC 9110, section 9.3.2).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (
            scope["method"] != "HEAD" and not scope["path"].endswith("/")
        ):
            await self._app(scope, receive, send)
            return
        # A copy: the server and the log line need the request as it came.
        inner = dict(scope)
        bare = scope["path"].removesuffix("/")
        # The main page's path is a slash, or one behind a prefix.
        if bare != scope.get("root_path", "") and not bare.endswith("/"):
            inner["path"] = bare
        if scope["method"] == "HEAD":
            inner["method"] = "GET"
        try:
            await self._app(inner, receive, send)
        finally:
            if "route" in inner:
                scope["route"] = inner["route"]
