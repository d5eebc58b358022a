from __future__ import annotations

import pytest

from service.config.settings import Settings
from service.http.platforms import health_paths, prediction_paths, vertex_routes

VERTEX = {"vertex_health_route": "/up", "vertex_predict_route": "/v1/endpoints/7:predict"}


def settings(*platforms: str, **more: str) -> Settings:
    return Settings.model_validate({"platforms": platforms} | more)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        (b"/v1/models/a:predict", "/v1/models/{name}:predict"),
        (b"/v1/models/a:predict/", "/v1/models/{name}:predict"),
        (b"/v1/models/a/versions/1:classify", "/v1/models/{name}:classify"),
        (b"/predictions/a", "/predictions/{name}"),
        (b"/predictions/a/1.0", "/predictions/{name}"),
        (b"/predictions/a/1/", "/predictions/{name}"),
        # What the application refuses.
        (b"/v1/models/a/versions/2:predict", None),
        (b"/v1/models/a:regress", None),
        (b"/v1/models/a", None),
        (b"/predictions/a/2.0", None),
        (b"/predictions/a/1x0", None),
        (b"/predictions", None),
    ],
)
def test_a_prediction_is_known_by_its_path(path: bytes, route: str | None) -> None:
    named = prediction_paths(Settings()).named
    found = [(match[1], found) for pattern, found in named if (match := pattern.fullmatch(path))]
    assert found == ([] if route is None else [(b"a", route)])


def test_what_is_switched_off_has_no_paths() -> None:
    assert prediction_paths(settings()) == ({}, [])
    assert prediction_paths(settings("sagemaker")).default == {b"/invocations": "/invocations"}
    assert len(prediction_paths(settings("kserve_v1")).named) == 2
    assert len(prediction_paths(settings("torchserve")).named) == 1
    assert vertex_routes(settings("torchserve", **VERTEX)) == (None, None)


def test_vertex_has_the_paths_that_it_chose() -> None:
    chosen = settings("vertex", **VERTEX)
    assert vertex_routes(chosen) == ("/up", "/v1/endpoints/7:predict")
    assert list(prediction_paths(chosen).default) == [b"/v1/endpoints/7:predict"]
    assert health_paths(chosen) == {"/up"}


@pytest.mark.parametrize(
    ("platforms", "paths"),
    [
        ((), set()),
        (("kserve_v1",), set()),
        (("torchserve",), {"/ping"}),
        (("sagemaker",), {"/ping"}),
    ],
)
def test_health_is_asked_where_a_platform_asks_it(
    platforms: tuple[str, ...], paths: set[str]
) -> None:
    assert health_paths(settings(*platforms)) == paths
