"""What the page says when the service is not ready, busy or gone, and when an image is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from service.errors import REFUSALS
from tests.conftest import Service, encoded, started, visiting
from tests.e2e.test_page import CONTRASTS, SHIP, choose, shown
from tests.e2e.test_page_look import file

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

NOON = datetime(2030, 1, 1, 12)
# Reasons that no request of the page is refused for.
OF_OTHERS = {
    "invalid_input",
    "malformed_request",
    "headers_too_large",
    "unauthorized",
    "forbidden",
    "load_failed",
    "conflict",
    "caller_left",
}
COLOURS = {"good": "rgb(28, 122, 63)", "warn": "rgb(154, 91, 0)", "bad": "rgb(179, 38, 30)"}


@pytest.fixture(scope="module")
def tab(browser: Browser, service: Service) -> Iterator[Page]:
    with visiting(browser, service.url, color_scheme="light") as page:
        yield page


@pytest.fixture
def page(tab: Page, service: Service) -> Iterator[Page]:
    tab.goto(service.url)
    tab.locator("#about:not(:empty)").wait_for()
    yield tab
    tab.unroute_all()


def answer(page: Page, path: str, status: int, body: Any, times: int | None = None) -> None:
    """Answers a path in the place of the service, so many times."""

    def fulfill(route: Route) -> None:
        content = {"Content-Type": "application/json", "X-Request-ID": "word"}
        route.fulfill(status=status, headers=content, body=json.dumps(body))

    page.route(f"**/{path}", fulfill, times=times)


def problem(status: int, reason: str) -> dict[str, Any]:
    detail = f"what the `API` says of {reason}"
    return {"type": f"urn:resnet-serve:problem:{reason}", "status": status, "detail": detail}


def state_of(page: Page, words: str) -> str:
    """The colour of the state once it has these words."""
    page.locator("#state").get_by_text(words, exact=True).wait_for()
    dot = "getComputedStyle(document.getElementById('state'), '::before').backgroundColor"
    colour = page.evaluate(dot)
    return next(name for name, each in COLOURS.items() if each == colour)


def test_the_state_is_red_while_the_service_is_gone_and_green_when_it_is_back(
    browser: Browser,
) -> None:
    model = ("--model", "builtin:resnet20-cifar10", "--engine", "eager")
    with started(*model) as first, visiting(browser, first.url, color_scheme="light") as page:
        assert state_of(page, "Ready on CPU") == "good"
        assert first.end() == 0
        page.get_by_role("alert").filter(has_text="The service is not responding.").wait_for()
        assert state_of(page, "Not responding") == "bad"
        shown(page, "Next attempt in", "#outage")
        shown(page, "No figures: the service is not responding.", "#live")
        choose(page, SHIP)
        shown(page, "It is sent as soon as the service responds again.", "#notice")
        assert page.get_by_role("button", name="Try again").is_visible()
        with started(*model, "--port", str(first.port)):
            # By itself: the photo too.
            shown(page, "ship")
            assert state_of(page, "Ready on CPU") == "good"
            assert not page.locator("#outage").is_visible()
            assert not page.locator("#notice").is_visible()
            shown(page, "latencies over the last 10 s", "#live")


def test_it_asks_less_and_less_often_and_at_once_if_told_to(
    browser: Browser, service: Service
) -> None:
    with visiting(browser, service.url, color_scheme="light") as page:
        page.clock.install(time=NOON)
        page.reload()
        state_of(page, "Ready on CPU")
        shown(page, "latencies over the last 10 s", "#live")
        page.route("**/health/ready", lambda route: route.abort())
        page.clock.pause_at(NOON + timedelta(hours=1))
        for seconds in (2, 4, 8, 16):
            shown(page, f"Next attempt in {seconds} s.", "#outage")
            page.clock.run_for(1000 * seconds)
        shown(page, "Next attempt in 16 s.", "#outage")
        page.unroute_all()
        page.get_by_role("button", name="Try now").click()
        page.locator("#outage").wait_for(state="hidden")
        assert state_of(page, "Ready on CPU") == "good"


def test_a_key_that_is_taken_back_is_asked_for_and_the_photo_waits(page: Page) -> None:
    answer(page, "v1/classify*", 401, problem(401, "unauthorized"), times=1)
    choose(page, SHIP)
    shown(page, "Enter the API key above; your image is then classified.", "#hint")
    page.get_by_label("API key").fill("a-new-key")
    page.keyboard.press("Enter")
    shown(page, "ship")
    assert page.evaluate("document.activeElement.id") == "choose"
    page.evaluate("sessionStorage.clear()")


def test_a_model_that_is_gone_gives_way_to_another_one_and_the_page_says_so(
    page: Page, service: Service
) -> None:
    page.get_by_label("Model").select_option("resnet20")
    choose(page, SHIP)
    shown(page, "resnet20", "#snippet")
    page.locator("#predictions li").first.wait_for()
    models = page.request.get(f"{service.url}/v1/models").json()["models"]
    left = [each for each in models if each["name"] != "resnet20"]
    answer(page, "v1/models", 200, {"models": left})
    # The page lists the models again when the service says something new of itself.
    answer(page, "health/ready", 200, {"status": "ready", "reasons": {}, "new": True})
    shown(page, "resnet20 is no longer served; resnet20-cifar10 is chosen.", "#choices")
    shown(page, "ship")
    assert "model=resnet20-cifar10" in page.locator("#snippet").inner_text()


def test_long_names_are_cut_and_turned_ones_turn_nothing_else(page: Page, tmp_path: Path) -> None:
    page.locator("#file").set_input_files([file(f"{'n' * 300}.txt", b"no image")])
    shown(page, f"This browser cannot display {'n' * 40}\u2026{'n' * 11}.txt.", "#unshown")
    turned = "a\u202egnp.\u2066'\\x.png"
    page.locator("#file").set_input_files([file(turned)])
    shown(page, "ship")
    (tmp_path / turned).write_bytes(SHIP.read_bytes())
    for language, command in (("curl", ["bash", "-c"]), ("Python", [sys.executable, "-c"])):
        page.get_by_role("radio", name=language, exact=True).check()
        code = page.locator("#snippet").inner_text()
        assert "\u202e" not in code
        done = subprocess.run([*command, code], cwd=tmp_path, capture_output=True, check=True)
        assert b"ship" in done.stdout
    page.get_by_role("radio", name="curl").check()


def test_a_photo_whose_connection_broke_off_can_be_sent_again(page: Page) -> None:
    page.route("**/v1/classify*", lambda route: route.abort(), times=1)
    choose(page, SHIP)
    page.get_by_role("alert").filter(has_text="The connection broke off.").wait_for()
    assert state_of(page, "Ready on CPU") == "good"
    page.get_by_role("button", name="Try again").click()
    shown(page, "ship")
    assert page.evaluate("document.activeElement.id") == "results-name"


def test_all_failed_photos_can_be_sent_again(page: Page) -> None:
    answer(page, "v1/classify*", 500, problem(500, "internal_error"), times=2)
    choose(page, SHIP, SHIP, SHIP)
    page.get_by_text("3 images processed, 2 failed.").wait_for()
    page.get_by_role("button", name="Try failed images again").click()
    page.get_by_text("2 images processed, 0 failed.").or_(
        page.get_by_text("3 images processed, 0 failed.")
    ).wait_for()
    assert not page.get_by_role("button", name="Try failed images again").is_visible()


@pytest.mark.parametrize(
    ("reason", "words", "colour"),
    [
        ("loading", "Loading resnet20-cifar10\u2026", "warn"),
        ("the service is shutting down", "Shutting down", "warn"),
    ],
)
def test_a_service_that_cannot_serve_yet_or_any_more_says_so(
    page: Page, reason: str, words: str, colour: str
) -> None:
    reasons = {"resnet20-cifar10": reason}
    answer(page, "health/ready", 503, {"status": "not ready", "reasons": reasons})
    assert state_of(page, words) == colour
    page.unroute_all()
    assert state_of(page, "Ready on CPU") == "good"


def test_a_proxy_that_answers_is_no_service(page: Page) -> None:
    answer(page, "health/ready", 502, {"message": "bad gateway"})
    assert state_of(page, "Not responding") == "bad"


def test_every_refusal_has_words_for_people(page: Page) -> None:
    words = page.evaluate("import('./web/words.js').then((module) => module.WORDS)")
    assert {each.reason for each in REFUSALS} - OF_OTHERS <= words.keys()
    for title, remedy, *_ in words.values():
        assert title[0].isupper()
        assert title[-1] == remedy[-1] == "."
        assert "`" not in title + remedy


@pytest.mark.parametrize("content", [b"no image", SHIP.read_bytes()[:2000]])
def test_a_refused_image_is_explained_in_words_with_a_sign(
    page: Page, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "notes.png").write_bytes(content)
    choose(page, tmp_path / "notes.png")
    page.get_by_role("alert").filter(has_text="cannot be read as an image.").wait_for()
    assert "Try another image" in page.locator("#error").inner_text()
    assert page.locator("#notice .sign").is_visible()
    # The same bytes fail again.
    assert not page.get_by_role("button", name="Try again").is_visible()
    # What the service itself says is for whoever wants it.
    assert not page.locator("#detail").is_visible()
    page.get_by_text("Technical details", exact=True).click()
    detail = page.locator("#detail").inner_text()
    assert detail.startswith("4")
    assert "request ID" in detail


def test_what_the_service_says_is_shown_without_marks(page: Page) -> None:
    answer(page, "v1/classify*", 418, problem(418, "of_another_version"))
    choose(page, SHIP)
    page.get_by_role("alert").filter(has_text="The service refused this request.").wait_for()
    page.get_by_text("Technical details", exact=True).click()
    assert page.locator("#detail code").inner_text() == "API"
    assert "`" not in page.locator("body").inner_text()


def test_the_cut_off_edges_are_shown_and_explained(
    page: Page, service: Service, tmp_path: Path
) -> None:
    (tmp_path / "wide.png").write_bytes(encoded(size=(240, 160)))
    choose(page, tmp_path / "wide.png")
    page.get_by_role("img", name="Activation map").wait_for()
    shown(page, "Outlined: what the network sees. The dimmed edges are cut off.", "#stage")
    crop, canvas, image = (
        page.locator(name).bounding_box() for name in ("#crop", "#map", "#preview")
    )
    assert crop is not None
    assert image is not None
    assert crop == pytest.approx(canvas, abs=1)
    assert crop["width"] == pytest.approx(image["height"], abs=1)
    dimmed = page.locator("#crop").evaluate("crop => getComputedStyle(crop).boxShadow")
    assert dimmed.startswith("rgba(0, 0, 0, 0.6)")
    choose(page, SHIP)
    page.get_by_role("img", name="Activation map for ship").wait_for()
    assert not page.locator("#crop").is_visible()
    assert page.locator("#seen").inner_text() == ""


def refused(page: Page) -> None:
    choose(page, Path(__file__))
    page.locator("#notice").wait_for()


def gone(page: Page) -> None:
    page.route("**/health/ready", lambda route: route.abort())
    page.locator("#outage").wait_for()


def locked(page: Page) -> None:
    answer(page, "v1/models", 401, problem(401, "unauthorized"))
    page.evaluate("sessionStorage.setItem('resnet-serve-key', 'wrong')")
    page.reload()
    page.get_by_text("does not know this key").wait_for()
    page.evaluate("sessionStorage.clear()")


def busy(page: Page) -> None:
    body = json.dumps(problem(429, "queue_full"))
    headers = {"Retry-After": "60"}
    page.route(
        "**/v1/classify*", lambda route: route.fulfill(status=429, headers=headers, body=body)
    )
    choose(page, SHIP)
    page.get_by_text("Your image is sent again in 60 s.").wait_for()


@pytest.mark.parametrize("enter", [refused, gone, locked, busy])
def test_each_state_can_be_read_and_fits_its_window(page: Page, enter: Any) -> None:
    enter(page)
    for width in (320, 390, 1280, 2560):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        contrasts = page.evaluate(CONTRASTS)
        assert contrasts[0][0] >= 4.5, contrasts[0]
