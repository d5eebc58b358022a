"""The parameters of a query: unknown ones are refused, as ignoring them would answer another
question than was asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.routing import Route
from starlette.types import Scope

from models.suggestions import nearest
from service.errors import QUOTED, BadParameter
from service.http.plain_route import Endpoint
from service.http.upload import refuse_parameter


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
    """A route without FastAPI. `names`: the parameters of the query, which its endpoint checks; if
    it takes none, they are refused here. `in_json`: those that it takes in JSON."""

    def __init__(
        self,
        path: str,
        endpoint: Endpoint,
        methods: list[str],
        names: Collection[str] = (),
        in_json: Collection[str] = (),
    ) -> None:
        self.places = places = in_the_url(names) | {
            name.lower(): f'in JSON, as {{"instances": [...], "parameters": {{"{name}": ...}}}}'
            for name in in_json
        }

        async def without_query(request: Request) -> Response:
            if request.scope["query_string"]:
                for name, _ in _pairs(request.scope):
                    refuse_parameter(name, places)
                parameters_of(request.scope, ())
            return await endpoint(request)

        super().__init__(path, endpoint if names else without_query, methods=methods)


def in_the_url(names: Collection[str]) -> dict[str, str]:
    return {name: f"in the URL, as ?{name}=..." for name in names}


def places_of(scope: Scope) -> Mapping[str, str]:
    """Where the parameters of the request's route belong, by their names in lower case."""
    route = scope.get("route")
    if isinstance(route, APIRoute):
        return in_the_url([field.alias for field in route.dependant.query_params])
    return route.places if isinstance(route, PlainRoute) else {}


def parameters_of(scope: Scope, names: Collection[str]) -> dict[str, str]:
    """The parameters of a request whose route takes `names`.

    Raises:
        BadParameter: one is unknown, or there twice.
    """
    found: dict[str, str] = {}
    for name, value in _pairs(scope):
        if name not in names:
            raise BadParameter(_unknown(name, names))
        if name in found:
            raise BadParameter(f"the parameter {name} is there twice; send it once")
        found[name] = value
    return found


def _pairs(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)


def _unknown(name: str, names: Collection[str]) -> str:
    said = f"unknown parameter {name[:QUOTED]!r}"
    if not names:
        return f"{said}; this endpoint takes none"
    if near := nearest(name[:QUOTED].replace("-", "_"), names):
        return f"{said}; did you mean {near[0]}?"
    if len(names) == 1:
        return f"{said}; the only one is {next(iter(names))}"
    return f"{said}; the parameters are {', '.join(sorted(names))}"
