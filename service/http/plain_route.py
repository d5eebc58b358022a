"""Cheap routes, without FastAPI's dependency injection, validation and middleware.

Those take longer than a small network's inference.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ServiceError
from service.http.problems import handle_unrouted, refuse

Endpoint = Callable[[Request], Awaitable[Response]]


class PlainRoutesMiddleware:
    """Pure ASGI, around the application: dispatches requests for `routes` to their endpoints.

    `first`: routes whose paths others may have, too; each answers its own methods before them.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[Route], first: Sequence[Route] = ()) -> None:
        self._app = app
        self._first = {
            (route.path, method): route for route in first for method in route.methods or ()
        }
        self._exact = {route.path: route for route in routes if "{" not in route.path}
        self._patterns = [route for route in routes if "{" in route.path]
        # A cheap test first: most requests are for other routes.
        self._prefixes = tuple({route.path.partition("{")[0] for route in self._patterns})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._route(scope) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route  # As FastAPI does, for metrics and traces.
        try:
            response = await respond(route, Request(scope, receive))
        except ServiceError as error:
            response = refuse(scope, error)
        await response(scope, receive, send)

    def _route(self, scope: Scope) -> Route | None:
        path = scope["path"]
        if self._first and (route := self._first.get((path, scope["method"]))) is not None:
            return route
        if (exact := self._exact.get(path)) is not None:
            return exact
        if path.startswith(self._prefixes):
            for route in self._patterns:
                match, child = route.matches(scope)
                if match is not Match.NONE:
                    scope["path_params"] = child["path_params"]
                    return route
        return None


async def respond(route: Route, request: Request) -> Response:
    methods = route.methods or ()
    if request.scope["method"] in methods:
        endpoint: Endpoint = route.endpoint
        return await endpoint(request)
    allowed = {"Allow": ", ".join(sorted(methods))}
    return handle_unrouted(request, HTTPException(405, headers=allowed))
