"""The web pages, and the files they load."""

from __future__ import annotations

import html
from collections.abc import Callable
from functools import partial
from importlib import resources

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import Response
from pydantic_core import to_json

from service.http.services import services_of

WEB = {
    "index.html": "text/html",
    "page.css": "text/css",
    "style.css": "text/css",
    "docs.html": "text/html",
    "docs.css": "text/css",
    "icon.svg": "image/svg+xml",
    "ship.png": "image/png",
}
# The JavaScript of the pages.
WEB |= {
    f"{name}.js": "text/javascript"
    for name in (
        "api",
        "app",
        "camera",
        "docs",
        "elements",
        "key",
        "live",
        "map",
        "models",
        "notice",
        "operation",
        "predictions",
        "preview",
        "pulse",
        "schema",
        "sending",
        "snippets",
        "state",
        "theme",
        "trying",
        "words",
    )
}
# The pages load nothing from other origins; injected content must not either.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
}

router = APIRouter()


@router.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    return web_page("index.html", request)


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    if request.scope.get("raw_path", b"").endswith(b"/"):
        # The page's links are relative, so that a prefix may stand before it. So is this one.
        return Response(status_code=308, headers={"Location": "../docs"})
    return web_page("docs.html", request)


@router.get("/openapi.json", include_in_schema=False)
async def description(request: Request) -> Response:
    """The description of the API, which the first request makes."""
    make = partial(_description, request.app)
    content = await services_of(request.scope).lane.run(make)
    return Response(content, media_type="application/json")


def _description(app: FastAPI) -> bytes:
    return to_json(app.openapi())


@router.get("/web/{file}", include_in_schema=False)
async def page_file(file: str) -> Response:
    if file not in WEB:
        raise HTTPException(404)
    return web_file(file)


def web_page(name: str, request: Request) -> Response:
    """A page, with the version of the service in it."""
    version = html.escape(request.app.version).encode()
    return web_file(name, lambda content: content.replace(b"{version}", version))


def web_file(name: str, change: Callable[[bytes], bytes] = bytes) -> Response:
    content = resources.files("service.http.web").joinpath(name).read_bytes()
    return Response(change(content), media_type=WEB[name], headers=PAGE_HEADERS)
