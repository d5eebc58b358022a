"""The descriptions of all platforms' routes, which FastAPI does not route."""

from __future__ import annotations

from types import ModuleType

import pytest
from fastapi.openapi.utils import get_openapi

from service.config.settings import Settings
from service.http.routers import kserve_v1, sagemaker, torchserve


@pytest.mark.parametrize(
    ("router", "paths"),
    [
        (
            kserve_v1,
            {"/v1/models/{name}:predict": "post", "/v1/models/{name}:classify": "post"},
        ),
        (torchserve, {"/predictions/{name}": "post", "/ping": "get"}),
        (sagemaker, {"/invocations": "post"}),
    ],
)
def test_what_is_described_is_routed(router: ModuleType, paths: dict[str, str]) -> None:
    described = get_openapi(title="a", version="1", routes=router.plain.routes)["paths"]
    assert {path: next(iter(methods)) for path, methods in described.items()} == paths
    routed = {
        (route.path, method.lower())
        for route in (*router.routes(Settings()), *torchserve.ping_routes(Settings()))
        for method in route.methods or ()
    }
    assert set(paths.items()) <= routed
    for path, method in paths.items():
        if method == "post":
            assert described[path]["post"]["requestBody"]["content"]


def test_switched_off_a_verb_is_no_part_of_a_models_name() -> None:
    (only,) = kserve_v1.routes(Settings(platforms=[]))
    assert only.path == "/v1/models/{name}:{verb}"
    assert {"GET", "POST", "PUT", "DELETE"} <= (only.methods or set())
