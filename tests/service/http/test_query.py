"""Parameters of queries: only those that a route takes, each once."""

from __future__ import annotations

import pytest
from fastapi import APIRouter, FastAPI, Request, Response

from service.errors import BadParameter
from service.http.query import PlainRoute, QueryRoute, parameters_of, places_of
from service.http.routers.classify import NAMES, classify_by_query

KNOWN = ("model", "top_k")


def test_known_parameters_are_read() -> None:
    scope = {"query_string": b"top_k=%33&model=a+b&"}
    assert parameters_of(scope, KNOWN) == {"top_k": "3", "model": "a b"}
    assert parameters_of({"query_string": b"top_k="}, KNOWN) == {"top_k": ""}


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (b"topk=3", "unknown parameter 'topk'; did you mean top_k?"),
        (b"top-k=3", "did you mean top_k?"),
        (b"TOP_K=3", "did you mean top_k?"),
        (b"zzz=3", "unknown parameter 'zzz'; the parameters are model, top_k"),
        (b"top_k=1&top_k=1", "the parameter top_k is there twice"),
        (b"=1", "unknown parameter ''"),
        (b"%ff=1", "unknown parameter"),
    ],
)
def test_others_are_refused_with_the_nearest(query: bytes, said: str) -> None:
    with pytest.raises(BadParameter) as caught:
        parameters_of({"query_string": query}, KNOWN)
    assert said in str(caught.value)


def test_a_refusal_shows_no_value_and_little_of_a_long_name() -> None:
    with pytest.raises(BadParameter) as caught:
        parameters_of({"query_string": b"t" * 5000 + b"=secret"}, ())
    assert len(str(caught.value)) < 300
    assert "secret" not in str(caught.value)


def test_a_route_tells_its_own_parameters() -> None:
    router = APIRouter(route_class=QueryRoute)

    @router.get("/x")
    async def endpoint(size: int = 1, kind: str = "") -> None: ...

    app = FastAPI()
    app.include_router(router)
    (found,) = [places_of({"route": route}) for route in router.routes]
    assert found == {"size": "in the URL, as ?size=...", "kind": "in the URL, as ?kind=..."}
    plain = PlainRoute("/v1/classify", classify_by_query, ["POST"], NAMES)
    assert set(places_of({"route": plain})) == {"model", "top_k"}
    other = PlainRoute("/predict", classify_by_query, ["POST"], in_json=["topK"])
    assert places_of({"route": other})["topk"].endswith('{"topK": ...}}')
    assert places_of({}) == {}


@pytest.mark.anyio
async def test_a_plain_route_without_parameters_refuses_them() -> None:
    async def endpoint(request: Request) -> Response:
        return Response()

    route = PlainRoute("/predict", endpoint, ["POST"])
    scope = {"type": "http", "query_string": b""}
    assert (await route.endpoint(Request(scope))).status_code == 200
    with pytest.raises(BadParameter, match="unknown parameter 'top_k'; this endpoint takes none"):
        await route.endpoint(Request(scope | {"query_string": b"top_k=1"}))
