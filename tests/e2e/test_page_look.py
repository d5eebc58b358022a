"""How the page looks on a phone, on a desktop and on a wide screen, and whose page it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import Service, encoded, visiting
from tests.e2e.test_page import SHIP, choose, shown

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FilePayload, Page

PHONE = {"width": 390, "height": 844}
SCREENS = ({"width": 1280, "height": 800}, {"width": 2560, "height": 1440})
# The space below what a card holds, in pixels.
BLANK = """
() => {
  const visible = (each) => each.checkVisibility();
  return [...document.querySelectorAll(".card")].filter(visible).map((card) => {
    const held = [...card.children].filter(visible);
    const bottoms = held.map((each) => each.getBoundingClientRect().bottom);
    return [card.id, card.getBoundingClientRect().bottom - Math.max(...bottoms)];
  });
}
"""


# The buttons whose words take several lines.
WRAPPED = """
() => [...document.querySelectorAll("#stage button, #languages span, #copy")].filter((each) => {
  const range = document.createRange();
  range.selectNodeContents(each);
  const lines = new Set([...range.getClientRects()].map(({ y }) => Math.round(y)));
  return each.checkVisibility() && lines.size > 1;
}).map((each) => each.textContent)
"""


def file(name: str, content: bytes | None = None) -> FilePayload:
    content = SHIP.read_bytes() if content is None else content
    return {"name": name, "mimeType": "image/png", "buffer": content}


@pytest.fixture(scope="module")
def tab(browser: Browser, service: Service) -> Iterator[Page]:
    with visiting(browser, service.url, color_scheme="light", viewport=PHONE) as page:
        yield page


@pytest.fixture
def page(tab: Page, service: Service) -> Page:
    tab.set_viewport_size(PHONE)  # type: ignore[arg-type]
    tab.goto(service.url)
    tab.locator("#about:not(:empty)").wait_for()
    return tab


def box(page: Page, name: str) -> dict[str, float]:
    found = page.locator(name).first.bounding_box()
    assert found is not None, name
    return {**found}  # type: ignore[dict-item]


@pytest.mark.parametrize("size", [(32, 32), (900, 600), (600, 900), (300, 2000)])
def test_on_a_phone_the_prediction_is_seen_at_once_after_a_photo(
    page: Page, tmp_path: Path, size: tuple[int, int]
) -> None:
    (tmp_path / "photo.png").write_bytes(encoded(size=size))
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    choose(page, tmp_path / "photo.png")
    page.get_by_role("img", name="Activation map").wait_for()
    assert box(page, "#preview")["y"] >= 0
    third = box(page, "#predictions li:nth-child(3)")
    assert third["y"] + third["height"] <= PHONE["height"]
    # What belongs to the map comes after it.
    last, tools = box(page, "#predictions li:last-child"), box(page, "#mapping")
    assert last["y"] + last["height"] <= tools["y"]
    image = box(page, "#preview")
    assert image["width"] / image["height"] == pytest.approx(size[0] / size[1], rel=0.03)


@pytest.mark.parametrize("width", [320, 360, 390])
def test_on_a_phone_no_words_of_a_button_wrap(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    choose(page, SHIP)
    shown(page, "ship")
    assert page.evaluate(WRAPPED) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # The theme is chosen beside the name, and all cards have the same edge.
    assert box(page, "#theme")["y"] < box(page, "h1")["y"] + box(page, "h1")["height"]
    names = ("#results-name", "#code-name", "#live-name")
    assert len({round(box(page, name)["x"]) for name in names}) == 1
    if width == PHONE["width"]:
        for row in ("#stage .buttons button", "#languages label", "#mapping label"):
            assert len({round(each.bounding_box()["y"]) for each in page.locator(row).all()}) == 1  # type: ignore[index]


def test_the_images_follow_the_results_of_a_refused_one_too(page: Page) -> None:
    page.set_viewport_size(SCREENS[0])  # type: ignore[arg-type]
    page.locator("#file").set_input_files([file("notes.txt", b"no image"), file("ship.png")])
    page.locator("#notice").wait_for()
    assert box(page, "#several")["y"] < box(page, "#code")["y"]
    assert box(page, "#several")["width"] > box(page, "#code")["width"] * 1.5


@pytest.mark.parametrize("screen", SCREENS, ids=["1280", "2560"])
def test_no_card_is_half_empty_on_a_desktop(page: Page, screen: dict[str, int]) -> None:
    page.set_viewport_size(screen)  # type: ignore[arg-type]
    for choosing in (False, True):
        if choosing:
            choose(page, SHIP)
            page.get_by_role("img", name="Activation map").wait_for()
        blanks = dict(page.evaluate(BLANK))
        assert blanks.keys() >= {"stage", "results", "code", "live"}
        assert max(blanks.values()) < 32, blanks


def test_a_wide_screen_is_used(page: Page) -> None:
    page.set_viewport_size(SCREENS[1])  # type: ignore[arg-type]
    choose(page, SHIP)
    shown(page, "ship")
    stage, results, code = (box(page, name) for name in ("#stage", "#results", "#code"))
    assert stage["x"] + stage["width"] < results["x"]
    assert results["x"] + results["width"] < code["x"]
    assert code["x"] + code["width"] - stage["x"] > 0.8 * SCREENS[1]["width"]
    assert len({round(each["y"]) for each in (stage, results, code)}) == 1
    assert box(page, "#preview")["width"] > 500


def test_the_page_has_a_name_a_mark_a_version_and_links(page: Page) -> None:
    page.set_viewport_size(SCREENS[0])  # type: ignore[arg-type]
    header = page.locator("header")
    assert header.get_by_role("heading", name="resnet-serve").is_visible()
    assert header.locator("svg").is_visible()
    assert page.locator("#version").inner_text() == version("resnet-serve")
    links = header.get_by_role("link")
    assert links.get_by_text("API reference").get_attribute("href") == "docs"
    footer = page.locator("footer")
    assert {each.get_attribute("href") for each in footer.get_by_role("link").all()} == {
        "docs",
        "openapi.json",
        "metrics",
    }
    # Also of a phone, where the header is short.
    assert version("resnet-serve") in footer.inner_text()


def test_the_theme_is_chosen_and_remembered(page: Page, service: Service) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    day = page.evaluate(paper)
    page.get_by_label("Theme").select_option("Dark")
    night = page.evaluate(paper)
    assert night != day
    page.reload()
    assert page.evaluate(paper) == night
    assert page.get_by_label("Theme").input_value() == "dark"
    page.goto(f"{service.url}/docs")
    assert page.evaluate(paper) == night
    page.get_by_label("Theme").select_option("Auto")
    assert page.evaluate(paper) == day
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(paper) == night
    page.get_by_label("Theme").select_option("Light")
    assert page.evaluate(paper) == day
    page.get_by_label("Theme").select_option("Auto")
    assert page.evaluate("localStorage.length") == 0
    page.emulate_media(color_scheme="light")


def test_the_model_is_described_by_the_name_people_use(page: Page) -> None:
    about = page.locator("#about").inner_text()
    assert about.startswith(
        "ResNet-20, 0.27 million parameters, 10 classes, 32\u00a0\u00d7\u00a032 "
    )
    assert re.search(r"; (eager|OpenVINO|compiled) engine, (FP32|BF16|INT8), on CPU", about)
