"""The shortest way for the request that nearly all requests are.

Routing, dependency resolution and validation cost FastAPI more time than a small network needs
for its image. `POST /v1/classify` with an ordinary query goes straight to what the endpoint does,
and a refusal straight back: under overload nearly all are. Whatever is unusual takes FastAPI's way
to the very same functions, and is refused there.
"""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ServiceError
from service.http.problems import refused
from service.http.routers.classify import CLASSIFY, admit, answer, router

# Names that need no unquoting, each parameter once, a number of reasonable length.
QUERY = re.compile(
    rb"(?:model=(?P<model>[A-Za-z0-9._-]+))?(?:(?:^|&)top_k=(?P<top_k>[1-9][0-9]{0,5}))?"
)
ROUTE = next(route for route in router.routes if getattr(route, "path", "") == CLASSIFY)


class Express:
    """Pure ASGI, around the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = (
            QUERY.fullmatch(scope["query_string"])
            if scope["type"] == "http" and scope["path"] == CLASSIFY and scope["method"] == "POST"
            else None
        )
        if query is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = ROUTE
        name, number = query["model"], query["top_k"]
        model = name.decode("ascii") if name else None
        try:
            admitted = admit(scope, model, int(number) if number else None)
            response = await answer(Request(scope, receive), *admitted)
        except ServiceError as error:
            response = refused(scope, error)
        await response(scope, receive, send)
