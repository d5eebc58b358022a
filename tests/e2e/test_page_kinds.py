"""The page with models of other inputs, heads and outputs than the usual ones."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from models import bundle, bundling
from tests.conftest import Service, client, encoded, started, visiting
from tests.e2e.test_page import SHIP, choose, shown
from tests.support import kinds, tiny
from tests.support.own_blocks import Cosine

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[2]
NAMES = ("grey", "independent", "headless", "letterboxed", "layers", "mirrored")


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("kinds")
    kinds.write(folder, *NAMES)
    network = tiny.network()
    network.set_head(Cosine(network.out_channels, 10))
    described = tiny.described(name="own-head", input=kinds.SQUARE)
    bundle.write(bundling.from_network(network, **described), folder / "own-head.safetensors")
    kind = ("--engine", "eager", "--precision", "fp32", "--allow-code", Cosine.__module__)
    chosen = kinds.options(folder, *NAMES, "own-head")
    with started(*chosen, *kind, PYTHONPATH=str(ROOT)) as running:
        yield running


@pytest.fixture(scope="module")
def tab(browser: Browser, serving: Service) -> Iterator[Page]:
    with visiting(browser, serving.url) as page:
        yield page


@pytest.fixture
def page(tab: Page, serving: Service) -> Page:
    """The page anew, in the same tab."""
    tab.goto(serving.url)
    tab.locator("#about:not(:empty)").wait_for()
    return tab


def test_a_grey_model_is_described_and_classifies(page: Page) -> None:
    assert "10 classes, 28\u00a0\u00d7\u00a028 grey pixels" in page.locator("#about").inner_text()
    choose(page, SHIP)
    shown(page, "label")
    assert page.locator("#predictions li").first.inner_text().endswith("%")
    assert not page.locator("#independent").is_visible()


def test_independent_labels_are_no_shares_of_a_whole(page: Page, serving: Service) -> None:
    page.get_by_label("Model").select_option("independent")
    assert "7 independent labels" in page.locator("#about").inner_text()
    choose(page, SHIP)
    shown(page, "label")
    assert page.locator("#independent").inner_text().startswith("Independent labels: ")
    answer = client.post(
        f"{serving.url}/v1/classify?model=independent", content=SHIP.read_bytes()
    ).json()
    lines = [text.split("\n") for text in page.locator("#predictions li").all_inner_texts()]
    told = answer["predictions"]
    assert [line[0] for line in lines] == [each["label"] for each in told]
    for (_, figure), each in zip(lines, told, strict=True):
        small = figure == "<\u00a00.001"
        assert each["probability"] < 0.0005 if small else f"{each['probability']:.3f}" == figure
    page.get_by_role("status").filter(has_text=f"ship.png: {lines[0][0]}").wait_for()
    assert "%" not in page.locator("#said").inner_text()
    assert "%" not in page.locator("#predictions").inner_text()
    # Each has a scale of its own, with a mark in the middle.
    mark = page.locator(".track").first.evaluate(
        "track => getComputedStyle(track, '::after').content"
    )
    assert mark != "none"


def test_a_model_without_classes_says_so_and_shows_what_to_send(page: Page, tmp_path: Path) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_label("Model").select_option("headless")
    assert "no classes, embeddings of 8 numbers" in page.locator("#about").inner_text()
    assert page.get_by_label("Classes shown").is_disabled()
    shown(page, "This model has no classes. It turns images into embeddings", "#hint")
    assert "1,364 parameters" in page.locator("#about").inner_text()
    choose(page, SHIP, SHIP)
    shown(page, "No classes", "#gallery")
    choose(page, SHIP)
    alert = page.get_by_role("alert").filter(has_text="no classes")
    alert.wait_for()
    assert "It turns images into embeddings" in alert.inner_text()
    assert not any("/v1/classify" in url for url in asked)
    assert page.locator("#predictions li").count() == 0
    (tmp_path / "ship.png").write_bytes(SHIP.read_bytes())
    curl = page.locator("#snippet").inner_text()
    done = subprocess.run(["bash", "-c", curl], cwd=tmp_path, capture_output=True, check=True)
    assert b'"dimensions":8' in done.stdout
    page.get_by_role("radio", name="Client").check()
    assert "client.embed(" in page.locator("#snippet").inner_text()
    page.get_by_label("Model").select_option("grey")
    shown(page, "label")
    assert page.locator("#error").text_content() == ""


def test_a_letterboxed_map_goes_beyond_the_image(page: Page, tmp_path: Path) -> None:
    wide = tmp_path / "wide.png"
    wide.write_bytes(encoded(size=(80, 20)))
    page.get_by_label("Model").select_option("letterboxed")
    choose(page, wide)
    page.get_by_role("img", name=re.compile("Activation map for label")).wait_for()
    image, canvas = (page.locator(name).bounding_box() for name in ("#preview", "#map"))
    assert image is not None
    assert canvas is not None
    assert canvas["y"] < image["y"] - 10
    assert canvas["y"] + canvas["height"] > image["y"] + image["height"] + 10
    assert (canvas["x"], canvas["width"]) == pytest.approx((image["x"], image["width"]), abs=1)
    shown(page, "The network sees the whole image, with a border added.", "#stage")
    assert not page.locator("#crop").is_visible()


@pytest.mark.parametrize("name", ["layers", "own-head"])
def test_a_head_of_several_layers_or_of_its_own_has_no_map_and_the_page_says_why(
    page: Page, name: str
) -> None:
    page.get_by_label("Model").select_option(name)
    choose(page, SHIP)
    shown(page, f"{name} has no activation map: its head is not a single linear layer.", "#results")
    assert page.locator("#predictions button").count() == 0


def test_a_model_that_averages_mirror_images_says_so(page: Page) -> None:
    assert "mirror" not in page.locator("#about").inner_text()
    page.get_by_label("Model").select_option("mirrored")
    assert "pixels, averaged with their mirror images; " in page.locator("#about").inner_text()
