"""The page at /docs in a real browser, with a real service behind it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import Service, client, started, visiting
from tests.support.api_examples import SHIP, is_safe, operations, runs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

KEY = "an-api-key-of-the-reference"
STORED = {"resnet-serve-key": KEY}
EVERYTHING = "all => all.querySelectorAll('details').forEach((each) => { each.open = true; })"
PREFIX = "/behind/a-proxy"


@pytest.fixture(scope="module")
def keyed() -> Iterator[Service]:
    with started("--model", "builtin:resnet20-cifar10", RESNET_SERVE_API_KEYS=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def document(keyed: Service) -> Any:
    return client.get(f"{keyed.url}/openapi.json").json()


@pytest.fixture(scope="module")
def tab(browser: Browser, keyed: Service) -> Iterator[Page]:
    with visiting(browser, keyed.url, STORED, viewport={"width": 390, "height": 800}) as page:
        yield page


@pytest.fixture
def page(tab: Page, keyed: Service) -> Page:
    open_reference(tab, keyed.url)
    return tab


def open_reference(page: Page, url: str, fragment: str = "") -> None:
    page.goto(f"{url}/docs{fragment}")
    page.reload()  # Another fragment alone would not load the page anew.
    page.locator("#classify").wait_for()


def run(page: Page, name: str) -> str:
    """The status and the content of an operation's response, as the page shows it."""
    place = page.locator(f"#{name}")
    place.evaluate("all => { all.open = true; }")
    place.get_by_role("button", name="Run").click()
    place.locator(".outcome strong").wait_for()
    return place.locator(".outcome").inner_text()


def listed(document: Any) -> dict[str, tuple[str, str, Any]]:
    """Path, method and operation by name; those of a model's version are not shown."""
    return {
        operation["operationId"]: (path, method, operation)
        for path, method, operation in operations(document)
        if "{version}" not in path
    }


def test_each_operation_is_shown_with_its_sentence(page: Page, document: Any) -> None:
    for name, (path, method, operation) in listed(document).items():
        summary = page.locator(f"#{name} > summary").inner_text()
        assert method.upper() in summary
        assert path in summary.replace("\u200b", "").replace("\n", "")
        sentence = operation["description"].replace("`", "").split("\n")[0]
        assert sentence in summary
        assert page.locator(f"#contents a[href='#{name}']").count() == 1
    titles = page.locator("h2").all_inner_texts()
    assert titles == [*(tag["name"] for tag in document["tags"]), "Refusals"]


def test_what_is_shown_is_for_readers(page: Page, document: Any) -> None:
    page.locator("#reference").evaluate(EVERYTHING)
    # The model card of an example is in Markdown.
    page.locator("#reference").evaluate(
        "all => all.querySelectorAll('pre').forEach((e) => e.remove())"
    )
    text = page.locator("#reference").inner_text()
    for wrong in ("Successful Response", "undefined", "[object", "`", "$ref"):
        assert wrong not in text
    assert "X-Request-Timeout-Ms header, number above 0 up to 3,600,000" in text
    assert "probability number" in text
    # Each reason once, however many operations refuse so.
    for response in document["components"]["responses"].values():
        reason = response["description"].replace("`", "")
        assert text.count(f"{reason}\n") == 1, reason


@pytest.mark.parametrize("width", [320, 390, 1280, 2560])
def test_it_is_as_wide_as_its_window(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.locator("#reference").evaluate(EVERYTHING)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.set_viewport_size({"width": 390, "height": 800})


def test_examples_that_change_nothing_run(page: Page, document: Any) -> None:
    for name, (_, method, operation) in listed(document).items():
        if runs(method, operation):
            assert run(page, name).startswith("200 OK"), name
        else:
            assert page.locator(f"#{name}").get_by_role("button", name="Run").count() == 0
    assert '"label": "ship"' in page.locator("#classify .outcome").inner_text()
    assert "x-request-id: " in (page.locator("#classify .outcome details").text_content() or "")


def test_commands_run_in_a_shell(page: Page, document: Any, keyed: Service, tmp_path: Path) -> None:
    fetching = page.locator("#ship").inner_text()
    assert subprocess.run(["bash", "-c", fetching], cwd=tmp_path, check=False).returncode == 0
    assert (tmp_path / "ship.png").read_bytes() == SHIP.read_bytes()
    for name, (_, method, operation) in listed(document).items():
        command = page.locator(f"#{name} .command").text_content() or ""
        assert keyed.url in command
        assert ("X-API-Key: KEY" in command) == ("security" in operation)
        status = ["-sS", "-o", "answer", "-w", "'%{http_code}'"]
        line = command.replace("X-API-Key: KEY", f"X-API-Key: {KEY}")
        line = line.replace("curl", " ".join(["curl", *status]), 1)
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        if is_safe(method, operation) and not runs(method, operation):
            continue
        # No admin key is configured.
        expected = "200" if is_safe(method, operation) else "403"
        assert done.stdout == expected, f"{command}\n{done.stderr}"


def test_a_key_is_entered_and_kept_as_on_the_main_page(browser: Browser, keyed: Service) -> None:
    with visiting(browser, keyed.url) as page:
        open_reference(page, keyed.url)
        told = run(page, "classify")
        assert told.startswith("401")
        assert "Enter a key at the top of this page." in told
        page.get_by_label("API key").fill("two words")
        page.get_by_role("button", name="Use").click()
        page.get_by_text("without spaces").wait_for()
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Use").click()
        page.locator("#showModel .command").get_by_text("resnet20-cifar10").wait_for(
            state="attached"
        )
        assert run(page, "classify").startswith("200")
        assert page.evaluate("sessionStorage.getItem('resnet-serve-key')") == KEY
        page.goto(keyed.url)
        page.get_by_role("button", name="Try an example").click()
        page.locator("#predictions").get_by_text("ship").wait_for()


def test_a_link_to_an_operation_opens_it(page: Page, keyed: Service) -> None:
    open_reference(page, keyed.url, "#modelConfig")
    page.locator("#modelConfig .command").wait_for()
    assert page.locator("#modelConfig").bounding_box()["y"] < 100  # type: ignore[index]
    page.locator("#contents > summary").click()
    page.locator("#contents a[href='#explain']").click()
    page.locator("#explain .command").wait_for()
    page.locator("#explain a[href='#refusal-429']").click()
    assert page.locator("#refusal-429").is_visible()


def test_no_key_is_asked_for_where_none_is_needed(browser: Browser, service: Service) -> None:
    with visiting(browser, service.url) as page:
        open_reference(page, service.url)
        assert not page.get_by_label("API key").is_visible()
        assert "X-API-Key" not in (page.locator("#classify .command").text_content() or "")


class Prefixed(BaseHTTPRequestHandler):
    """A proxy that serves another service below a prefix."""

    behind = ""

    def do_GET(self) -> None:
        self._forward(b"")

    def do_POST(self) -> None:
        self._forward(self.rfile.read(int(self.headers["Content-Length"])))

    def _forward(self, body: bytes) -> None:
        path = self.path.removeprefix(PREFIX) if self.path.startswith(PREFIX) else "/nowhere"
        headers = {"Content-Type": self.headers.get("Content-Type", "")} if body else {}
        answer = client.request(self.command, self.behind + path, content=body, headers=headers)
        self.send_response(answer.status_code)
        for name in ("Content-Type", "Content-Security-Policy"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, *_: Any) -> None:
        pass


def test_it_works_behind_a_prefix(browser: Browser, service: Service) -> None:
    handler = type("Handler", (Prefixed,), {"behind": service.url})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        Thread(target=proxy.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{proxy.server_address[1]}{PREFIX}"
        with visiting(browser, f"{url}/") as page:
            open_reference(page, url)
            assert f"{url}/v1/classify" in (page.locator("#classify .command").text_content() or "")
            assert run(page, "classify").startswith("200")
            assert re.match("200", run(page, "infer"))
        proxy.shutdown()
