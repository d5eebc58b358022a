"""What operations share is said once in the API's description."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import APIRouter, FastAPI

from service.config.settings import ModelSettings, Settings
from service.http import api_document
from service.http.app import create_app
from service.http.openapi import REFUSALS, named
from service.http.routers import classify


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(Settings(models=[ModelSettings(spec="random:resnet20")]))


def described(app: FastAPI, *routers: APIRouter, keys: bool = False) -> Any:
    routes = [route for router in routers for route in router.routes]
    return api_document.of(app, routes, {"/ping"}, keys=keys)


def test_several_routers_are_described_and_one_without_a_tag_is_a_platforms(app: FastAPI) -> None:
    other = APIRouter()

    @other.post("/predictions/{name}", operation_id="predict", responses={404: REFUSALS[404]})
    async def predict(name: str) -> dict[str, str]:
        """Predicts as another server does."""
        return {"name": name}

    found = described(app, classify.plain, other)
    operation = found["paths"]["/predictions/{name}"]["post"]
    assert operation["tags"] == ["Platforms"]
    assert operation["responses"]["404"] == {"$ref": "#/components/responses/NotFound"}
    assert operation["security"] == [{}, *api_document.KEYS]
    tags = [tag["name"] for tag in found["tags"]]
    assert tags == ["Predictions", "Models", "Platforms", "Operation"]


def test_operations_without_a_name_are_named_after_their_functions(app: FastAPI) -> None:
    first, second = APIRouter(tags=["Torch 2"]), APIRouter()

    async def predict_one() -> None:
        """Predicts."""

    first.add_api_route("/a", predict_one)
    second.add_api_route("/b", predict_one, tags=["Torch 2"])
    found = described(app, first, second)
    names = [found["paths"][path]["get"]["operationId"] for path in ("/a", "/b")]
    assert names == ["predictOne", "predictOneTorch2"]
    assert "Torch 2" in [tag["name"] for tag in found["tags"]]


def test_a_refusal_with_words_of_its_own_stays_where_it_is(app: FastAPI) -> None:
    found = described(app)
    refused = found["paths"]["/v1/models/{name}"]["put"]["responses"]
    assert refused["415"]["description"] == "the content type is not JSON"
    assert refused["401"] == {"$ref": "#/components/responses/Unauthorized"}


def test_the_description_follows_whether_keys_are_required(app: FastAPI) -> None:
    services = app.state.services
    before = app.openapi()["paths"]["/v1/models"]["get"]["security"]
    services.keys.required = True
    after = app.openapi()["paths"]["/v1/models"]["get"]["security"]
    services.keys.required = False
    assert before == [{}, *after]
    assert app.openapi()["paths"]["/v1/models"]["get"]["security"] == before


def test_describing_twice_gives_the_same(app: FastAPI) -> None:
    assert described(app, classify.plain) == described(app, classify.plain)


def test_definitions_get_names_that_collide_with_no_others() -> None:
    schema = {"type": "object", "$defs": {"Input": {"title": "Input", "type": "string"}}}
    assert named(schema, "V2")["$defs"] == {"V2Input": {"title": "V2Input", "type": "string"}}
    assert named({"type": "object"}, "V2") == {"type": "object"}
