"""Every route, as GET and as HEAD, with and without a slash at its end, on a real socket."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest
from starlette.routing import Route

from service.http.app import ENDPOINTS
from service.http.routers import classify, v2
from service.http.routers.pages import WEB
from tests.conftest import Service

ROUTES = [
    route
    for route in (
        *classify.ROUTES,
        *v2.ROUTES,
        *(route for each in ENDPOINTS for route in each.router.routes),
    )
    if isinstance(route, Route)
]
MODEL = "resnet20"
# These differ between two requests.
OF_A_REQUEST = {"x-request-id", "date", "server-timing"}
# So does the length of these.
CHANGING = ("/metrics", "/stats")


def paths(method: str) -> list[str]:
    """Those of all routes with a method, filled in; of FastAPI's own, which has no router, too."""
    filled = {"/openapi.json"} if method == "GET" else set()
    for route in ROUTES:
        if method in (route.methods or ()):
            path = route.path.replace("{name}", MODEL).replace("{version}", "1")
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
        assert (status, "location" in headers) == (200, False)
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


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/", "/nowhere/", "//", "//v1/models", "/web/", "/health"]
)
def test_what_is_not_there_is_404_in_both_spellings(
    connection: http.client.HTTPConnection, path: str
) -> None:
    status, headers, body = ask(connection, "GET", path)
    assert (status, headers["content-type"]) == (404, "application/problem+json")
    assert b"there is no " in body


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
