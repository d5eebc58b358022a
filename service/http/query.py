"""The parameters of a query: unknown ones are refused, as ignoring them would answer another
question than was asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.routing import Route
from starlette.types import Scope

from models.suggestions import nearest
from service.errors import QUOTED, BadParameter
from service.http.plain_route import Endpoint


class QueryRoute(APIRoute):
    """A route of FastAPI that refuses parameters that it does not declare.

    FastAPI ignores them. It is a class of routes, not a dependency: those cost more.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        names = frozenset(field.alias for field in self.dependant.query_params)

        async def checked(request: Request) -> Response:
            if request.scope["query_string"]:
                parameters_of(request.scope, names)
            return await handler(request)

        return checked


class PlainRoute(Route):
    """A route without FastAPI, and the names of the parameters that its endpoint takes."""

    def __init__(
        self, path: str, endpoint: Endpoint, methods: list[str], names: Collection[str]
    ) -> None:
        super().__init__(path, endpoint, methods=methods)
        self.names = frozenset(names)


def names_of(scope: Scope) -> Collection[str]:
    """The parameters that the request's route takes."""
    route = scope.get("route")
    if isinstance(route, APIRoute):
        return [field.alias for field in route.dependant.query_params]
    return route.names if isinstance(route, PlainRoute) else ()


def parameters_of(scope: Scope, names: Collection[str]) -> dict[str, str]:
    """The parameters of a request whose route takes `names`.

    Raises:
        BadParameter: one is unknown, or there twice.
    """
    pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in names:
            raise BadParameter(_unknown(name, names))
        if name in found:
            raise BadParameter(f"the parameter {name} is there twice; send it once")
        found[name] = value
    return found


def _unknown(name: str, names: Collection[str]) -> str:
    said = f"unknown parameter {name[:QUOTED]!r}"
    if not names:
        return f"{said}; this endpoint takes none"
    if near := nearest(name[:QUOTED].replace("-", "_"), names):
        return f"{said}; did you mean {near[0]}?"
    if len(names) == 1:
        return f"{said}; the only one is {next(iter(names))}"
    return f"{said}; the parameters are {', '.join(sorted(names))}"
