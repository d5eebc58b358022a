"""The page in docs/guides/javascript.md, in a real browser and from another origin."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.http.app import CORS
from tests.conftest import PATIENCE, Service, started
from tests.guides.blocks import blocks

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[2]
SHIP = ROOT / "docs/ship.png"
GUIDE = (ROOT / "docs/guides/javascript.md").read_text("utf-8")
(PAGE,) = (block.text for block in blocks(GUIDE) if block.language == "html")
(KEY,) = re.findall(r'"X-API-Key": "([\w-]+)"', PAGE)


class Pages(BaseHTTPRequestHandler):
    content = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        """Nothing: the tests' output is the tests'."""


@contextmanager
def served() -> Iterator[ThreadingHTTPServer]:
    """A web server of another origin, which shows `Pages.content`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with served() as server:
        yield f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(scope="module")
def service_for_it(origin: str) -> Iterator[Service]:
    with started(RESNET_SERVE_CORS_ORIGINS=origin, RESNET_SERVE_API_KEYS=KEY) as running:
        Pages.content = PAGE.replace("http://localhost:8000", running.url).encode()
        yield running


@contextmanager
def visited(browser: Browser, url: str) -> Iterator[Page]:
    with browser.new_context() as context:
        context.set_default_timeout(1000 * PATIENCE)
        page = context.new_page()
        page.goto(url)
        yield page


def test_a_page_of_an_allowed_origin_classifies(
    browser: Browser, service_for_it: Service, origin: str
) -> None:
    with visited(browser, origin) as page:
        page.set_input_files("input", SHIP)
        page.wait_for_function("document.querySelector('output').value")
        assert re.fullmatch(r"ship \(request [\w-]+\)", page.text_content("output") or "")


def test_a_page_of_an_origin_that_is_not_allowed_learns_nothing(
    browser: Browser, service_for_it: Service, origin: str
) -> None:
    said: list[str] = []
    with visited(browser, origin.replace("127.0.0.1", "localhost")) as page:
        page.on("console", lambda message: said.append(message.text))
        with page.expect_event("pageerror") as failed:
            page.set_input_files("input", SHIP)
        assert "Failed to fetch" in str(failed.value)
        assert page.text_content("output") == ""
    assert any("CORS policy" in each for each in said)


@pytest.mark.parametrize(
    ("row", "setting"),
    [
        ("methods", "allow_methods"),
        ("request headers", "allow_headers"),
        ("response headers that a script can read", "expose_headers"),
    ],
)
def test_what_it_says_is_allowed_is_allowed(row: str, setting: str) -> None:
    (cell,) = re.findall(rf"^\| {row} \| (.*) \|$", GUIDE, re.MULTILINE)
    named = set(re.findall(r"`([A-Z][\w-]+)`", cell))
    assert named == set(CORS.keywords[setting])
