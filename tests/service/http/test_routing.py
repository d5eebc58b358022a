"""Every route, as GET and as HEAD, with and without a slash at its end, on a real socket."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.routing import Route

from service.config.settings import Settings
from service.http.app import Application, create_app
from service.http.routers.pages import WEB
from tests.conftest import Service


def routes() -> list[Route]:
    """Those of an application as it is started: FastAPI's, and the plain ones around it."""
    nothing: Any = SimpleNamespace(models={})
    app = create_app(Settings(), repository=nothing)
    assert isinstance(app, Application)
    included = [getattr(each, "original_router", None) for each in app.routes]
    plain = [getattr(layer, "keywords", {}).get("routes", []) for layer in app.layers]
    groups = [app.routes, *plain, *(router.routes for router in included if router is not None)]
    return [route for group in groups for route in group if isinstance(route, Route)]


ROUTES = routes()
MODEL = "resnet20"
# These differ between two requests.
OF_A_REQUEST = {"x-request-id", "date", "server-timing"}
# What other servers have and this one has not: the response says what there is instead.
HINTS = (
    "/models",
    f"/models/{MODEL}",
    f"/v1/models/{MODEL}:tune",
    f"/v1/models/{MODEL}/versions/1:tune",
)
# So does the length of these.
CHANGING = ("/metrics", "/stats")


def paths(method: str) -> list[str]:
    """Those of all routes with a method, filled in."""
    filled = set()
    for route in ROUTES:
        if method in (route.methods or ()):
            path = (
                route.path.replace("{name}", MODEL)
                .replace("{version}", "1")
                .replace("{verb}", "tune")
            )
            filled |= {path.replace("{file}", file) for file in WEB}
    return sorted(filled)


GETS = paths("GET")
SPELLINGS = sorted({path.rstrip("/") + slash for path in GETS for slash in ("", "/")} - {""})


@pytest.fixture(scope="module")
def connection(service: Service) -> Iterator[http.client.HTTPConnection]:
    """One for all: a body behind a response to HEAD would be the next response's start."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    yield connection
    connection.close()


def ask(
    connection: http.client.HTTPConnection, method: str, path: str
) -> tuple[int, dict[str, str], bytes]:
    connection.request(method, path)
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    body = response.read()
    return response.status, {k: v for k, v in headers.items() if k not in OF_A_REQUEST}, body


def test_all_routes_are_asked() -> None:
    assert {"/", "/docs", "/metrics", "/health/live", "/v1/models", "/v2", "/web/app.js"} <= {*GETS}
    assert {"/openapi.json", f"/v2/models/{MODEL}/versions/1/ready"} <= {*GETS}
    assert "/v1/classify" in paths("POST")
    assert len(GETS) > 30


@pytest.mark.parametrize("path", SPELLINGS)
def test_head_has_the_headers_of_get_and_no_body(
    connection: http.client.HTTPConnection, path: str
) -> None:
    status, headers, body = ask(connection, "GET", path)
    again, same, nothing = ask(connection, "HEAD", path)
    if path.rstrip("/").endswith(CHANGING):
        assert int(headers.pop("content-length")) > 0
        assert int(same.pop("content-length")) > 0
    assert (again, same, nothing) == (status, headers, b"")
    if path == "/docs/":  # Its links are relative; this one stays with scheme and host, too.
        assert (status, headers["location"]) == (308, "../docs")
    else:
        expected = 404 if path.rstrip("/") in HINTS else 200
        assert (status, "location" in headers) == (expected, False)
        assert body


@pytest.mark.parametrize("path", [p for m in ("POST", "PUT", "DELETE") for p in paths(m)])
def test_both_spellings_of_all_others_are_the_same(
    connection: http.client.HTTPConnection, path: str
) -> None:
    for method in ("POST", "PUT", "DELETE"):
        plain, slashed = (ask(connection, method, each) for each in (path, f"{path}/"))
        assert plain[0] == slashed[0] != 307


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/", {"GET", "HEAD"}),
        ("POST", f"/v1/models/{MODEL}", {"GET", "HEAD", "PUT", "DELETE"}),
        ("OPTIONS", f"/v1/models/{MODEL}/", {"GET", "HEAD", "PUT", "DELETE"}),
        ("DELETE", "/v1/models", {"GET", "HEAD"}),
        ("HEAD", "/v1/classify", {"POST", "PUT"}),
        ("GET", "/v1/embed/", {"POST", "PUT"}),
        ("DELETE", "/v1/explain", {"POST", "PUT"}),
        ("GET", "/v1/classify/batch", {"POST"}),
        ("DELETE", f"/v2/models/{MODEL}", {"GET", "HEAD"}),
        ("GET", f"/v2/models/{MODEL}/infer/", {"POST"}),
        ("PUT", "/metrics", {"GET", "HEAD"}),
    ],
)
def test_a_wrong_method_is_405_with_all_that_are_right(
    connection: http.client.HTTPConnection, method: str, path: str, allow: set[str]
) -> None:
    status, headers, _ = ask(connection, method, path)
    assert status == 405
    assert {*headers["allow"].split(", ")} == allow


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT"])
@pytest.mark.parametrize(
    "path",
    [
        *("/v1", "/v1/", "/nowhere/", "//", "//v1/models", "/web/", "/health"),
        *("//v1/classify", "/v1//classify", "/v1/classify//", "/v2x", "/v1/classify%00/"),
    ],
)
def test_what_is_not_there_is_404_in_both_spellings(
    connection: http.client.HTTPConnection, method: str, path: str
) -> None:
    status, headers, body = ask(connection, method, path)
    assert (status, headers["content-type"]) == (404, "application/problem+json")
    assert (b"there is no " in body) == (method != "HEAD")


@pytest.mark.parametrize(
    "path", ["/v2/models/nothing", "/v2/nowhere/", "/v1/models/nothing/", "/v1/classify"]
)
def test_a_refusal_of_head_has_the_headers_of_the_one_of_get(
    connection: http.client.HTTPConnection, path: str
) -> None:
    status, headers, body = ask(connection, "GET", path)
    assert status in (404, 405)
    again, same, nothing = ask(connection, "HEAD", path)
    for each in (headers, same):
        each.pop("content-length")  # The detail names the method.
    assert (again, same, nothing) == (status, headers, b"")
    assert body


@pytest.mark.parametrize(
    "path", ["/%76%31/models", "/v1/mod%65ls/", "/v1/models%2F", "/v2/models/%72esnet20/"]
)
def test_a_path_may_be_encoded(connection: http.client.HTTPConnection, path: str) -> None:
    for method in ("GET", "HEAD"):
        assert ask(connection, method, path)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/" + "%ff" * 2_600, 404),
        ("PUT", "/web/" + "x" * 8_000, 405),
        ("GET", "/v1/models/" + "%F3%A0%80%81" * 680, 404),
        ("POST", "/v1/classify?model=" + "x" * 8_000, 404),
        ("POST", "/v1/classify?top_k=" + "x" * 8_000, 422),
        ("GET", f"/v2/models/{'x' * 8_000}", 404),
    ],
)
def test_a_refusal_repeats_little_of_what_was_sent(
    connection: http.client.HTTPConnection, method: str, path: str, expected: int
) -> None:
    status, headers, body = ask(connection, method, path)
    assert status == expected
    assert len(body) < 3000
    assert not [value for value in headers.values() if len(value) > 300]
