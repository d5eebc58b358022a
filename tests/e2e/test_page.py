"""The page at / in a real browser, with a real service behind it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.conftest import Service, client, encoded, started, visiting

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

ROOT = Path(__file__).parents[2]
SHIP = ROOT / "docs" / "ship.png"
KEY = "an-api-key-of-the-page"
STORED = {"resnet-serve-key": KEY}
# The second halves its images until one place is left.
MODELS = """
models:
  - {spec: "builtin:resnet20-cifar10", engine: eager, max_batch: 4}
  - name: narrow
    spec: random:resnet20
    architecture: {blocks: [1, 1, 1, 1, 1, 1], planes: [4, 4, 4, 4, 4, 4]}
    engine: eager
    max_batch: 1
"""


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    config = tmp_path_factory.mktemp("page") / "serve.yaml"
    config.write_text(MODELS)
    with started(
        "--config",
        str(config),
        RESNET_SERVE_API_KEYS=KEY,
    ) as running:
        yield running


@pytest.fixture(scope="module")
def tab(browser: Browser, keyed: Service) -> Iterator[Page]:
    with visiting(browser, keyed.url, STORED) as page:
        yield page


@pytest.fixture
def page(tab: Page, keyed: Service) -> Page:
    """The page anew, in the same tab: another one takes much longer."""
    tab.goto(keyed.url)
    return tab


def choose(page: Page, *files: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose images").click()
    chooser.value.set_files(list(files))


def classified(service: Service) -> httpx.Response:
    return client.post(
        f"{service.url}/v1/classify", headers={"X-API-Key": KEY}, content=SHIP.read_bytes()
    )


def shown(page: Page, text: str, place: str = "#predictions") -> None:
    page.locator(place).get_by_text(text).first.wait_for()


def test_a_chosen_image_is_classified_timed_and_explained(page: Page, keyed: Service) -> None:
    choose(page, SHIP)
    shown(page, "ship")
    rows = page.locator("#predictions li").all_inner_texts()
    assert len(rows) == 5
    assert re.fullmatch(r"ship\s+(100\.0|9\d\.\d)\s%", rows[0])
    assert page.locator(".fill").first.bounding_box()["width"] > 100  # type: ignore[index]
    phases = page.get_by_role(
        "img", name=re.compile("accepting .* decoding .* inference .* other")
    ).first
    parts = phases.locator("span").evaluate_all("all => all.map(each => each.offsetWidth)")
    assert len(parts) == 5
    assert min(parts) > 0
    assert "in a batch of 1" in page.locator("#sum").inner_text()
    assert page.get_by_role("status").filter(has_text="ship.png: ship").count() == 1
    # The map is what the service says, over the whole image, and its figures add up.
    page.get_by_role("img", name="Activation map for ship").wait_for()
    told = client.post(
        f"{keyed.url}/v1/explain", headers={"X-API-Key": KEY}, content=SHIP.read_bytes()
    ).json()
    note = page.locator("#map-note").inner_text()
    assert f"logit {told['logit']:.2f}" in note
    grid = told["grid"]
    _, row, column = max((v, y, x) for y, line in enumerate(grid) for x, v in enumerate(line))
    colours = page.evaluate(
        """([x, y]) => {
          const map = document.getElementById("map");
          const at = (x, y) => [...map.getContext("2d").getImageData(x, y, 1, 1).data];
          const cell = map.width / 8;
          return at((x + 0.5) * cell, (y + 0.5) * cell);
        }""",
        [column, row],
    )
    assert colours[3] > 200
    assert colours[0] > colours[2]
    image, canvas = (page.locator(name).bounding_box() for name in ("#preview", "#map"))
    assert image == pytest.approx(canvas, abs=1)


def test_each_class_has_a_map_that_can_be_faded_and_hidden(page: Page) -> None:
    choose(page, SHIP)
    page.get_by_role("button", name="airplane").click()
    page.get_by_role("img", name="Activation map for airplane").wait_for()
    assert page.get_by_role("button", name="airplane").get_attribute("aria-pressed") == "true"
    page.get_by_role("slider", name="Opacity").fill("30")
    assert page.evaluate("document.getElementById('map').style.opacity") == "0.3"
    page.get_by_role("checkbox", name="Activation map").uncheck()
    assert not page.locator("#map").is_visible()
    page.get_by_role("checkbox", name="Activation map").check()
    page.get_by_role("img", name="Activation map for airplane").wait_for()


def test_a_model_without_maps_says_why_and_top_k_is_kept(page: Page) -> None:
    page.get_by_label("Classes shown").select_option("3")
    choose(page, SHIP)
    shown(page, "ship")
    assert page.locator("#predictions li").count() == 3
    page.get_by_label("Model").select_option("narrow")
    # No name of the service's own, such as "custom".
    assert page.locator("#about").inner_text().startswith("ResNet with 6 residual blocks, ")
    shown(page, "narrow has no activation map", "#results")
    assert page.locator("#predictions li").count() == 3
    assert page.locator("#predictions button").count() == 0
    assert not page.locator("#mapping").is_visible()


TRANSFER = """
([kind, files]) => {
  const data = new DataTransfer();
  for (const [name, type, content] of files) {
    const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
    data.items.add(new File([bytes], name, { type }));
  }
  const fields = { bubbles: true, cancelable: true };
  const event = kind === "paste"
    ? new ClipboardEvent(kind, { ...fields, clipboardData: data })
    : new DragEvent(kind, { ...fields, dataTransfer: data });
  return document.querySelector("h1").dispatchEvent(event);
}
"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_images_are_dropped_and_pasted(page: Page, kind: str) -> None:
    files = [["ship.png", "image/png", b64encode(SHIP.read_bytes()).decode()]]
    page.locator("#about:not(:empty)").wait_for()
    if kind == "drop":
        assert page.evaluate(TRANSFER, ["dragover", files]) is False
        assert "over" in (page.locator("#stage").get_attribute("class") or "")
        # Else the browser would leave the page and show the file.
        assert page.evaluate(TRANSFER, ["drop", files]) is False
    else:
        page.evaluate(TRANSFER, ["paste", files])
    shown(page, "ship")
    assert "over" not in (page.locator("#stage").get_attribute("class") or "")


def test_several_images_are_a_grid_and_a_bad_one_fails_alone(page: Page, tmp_path: Path) -> None:
    broken, other = tmp_path / "broken.png", tmp_path / "other.webp"
    broken.write_bytes(SHIP.read_bytes()[:2000])
    other.write_bytes(encoded("WEBP"))
    choose(page, broken, SHIP, other)
    page.get_by_text("3 images processed, 1 failed.").wait_for()
    cards = page.locator("#gallery button")
    assert [text.split("\n")[0] for text in cards.all_inner_texts()] == [
        "broken.png",
        "ship.png",
        "other.webp",
    ]
    refusal = page.get_by_role("alert").filter(has_text="This file cannot be read as an image.")
    assert refusal.is_visible()
    cards.nth(1).click()
    shown(page, "ship")
    assert refusal.count() == 0
    assert re.search(r"ship \d+\.\d\s%", cards.nth(1).inner_text())
    assert cards.nth(1).get_attribute("aria-pressed") == "true"


def test_a_picture_is_taken_with_the_camera(page: Page) -> None:
    page.get_by_role("button", name="Use camera").click()
    dialog = page.get_by_role("dialog", name="Camera")
    take = dialog.get_by_role("button", name="Take picture")
    take.click()  # Once it is enabled: there is a picture by then.
    dialog.wait_for(state="hidden")
    page.locator("#predictions li").first.wait_for()
    assert page.locator("#preview").get_attribute("alt") == "camera.jpg"
    assert page.evaluate("document.getElementById('video').srcObject") is None


def test_without_a_camera_of_the_browser_the_phone_takes_pictures(
    browser: Browser, keyed: Service
) -> None:
    """As where the page came over plain HTTP from another host."""
    phone = {"has_touch": True, "is_mobile": True, "viewport": {"width": 360, "height": 740}}
    with visiting(browser, keyed.url, STORED, **phone) as page:
        page.add_init_script("delete Navigator.prototype.mediaDevices")
        page.reload()
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Use camera").click()
        assert chooser.value.element.get_attribute("capture") == "environment"
        chooser.value.set_files(SHIP)
        shown(page, "ship")


FOCUSED = """
() => {
  const on = document.activeElement;
  const marked = on.name === "language" ? on.nextElementSibling : on;
  const name = on === document.body ? "" : on.id || on.value || on.innerText.split("\\n")[0];
  return [name, getComputedStyle(marked).outlineStyle];
}
"""


def test_the_keyboard_alone_reaches_all_and_is_never_caught(page: Page) -> None:
    page.locator("#about:not(:empty)").wait_for()
    first = []
    for _ in range(7):
        page.keyboard.press("Tab")
        first.append(page.evaluate(FOCUSED)[0])
    assert first == ["API reference", "theme", "model", "top-k", "choose", "camera", "example"]
    page.keyboard.press("Enter")
    page.get_by_role("img", name="Activation map for ship").wait_for()
    order = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(FOCUSED)
        if not name:
            break
        order.append(name)
        assert outline == "solid", name
    assert order[:5] == ["ship", "airplane", "truck", "automobile", "bird"]
    assert order[5:10] == ["map-on", "opacity", "curl", "copy", "snippet"]
    assert order[10:] == ["API reference", "OpenAPI", "Metrics"]
    page.locator("input[value=curl]").focus()
    page.keyboard.press("ArrowRight")
    assert "import httpx" in page.locator("#snippet").inner_text()
    page.get_by_role("button", name="truck").focus()
    page.keyboard.press("Space")
    page.get_by_role("img", name="Activation map for truck").wait_for()
    assert page.evaluate(FOCUSED)[0] == "truck"


def test_whatever_can_be_used_has_a_name(page: Page) -> None:
    choose(page, SHIP, SHIP)
    page.get_by_text("2 images processed").wait_for()
    page.get_by_role("img", name="Activation map for ship").wait_for()
    seen = page.locator("body").aria_snapshot()
    roles = r"button|combobox|checkbox|slider|radio|link|img|region|heading|group"
    nameless = re.findall(rf"^ *- (?:{roles})(?! \")[^\n]*", seen, re.MULTILINE)
    # The pictures of a card are named by its text.
    assert [line.strip() for line in nameless if "- text" not in line] == []
    for wanted in ('combobox "Model"', 'slider "Opacity"', 'region "Predictions"', "main", "term"):
        assert wanted in seen
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(each => each.tagName)")
    assert levels[0] == "H1"


CONTRASTS = """
() => {
  const channel = (value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const drawn = (...colours) => {
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].map((each) => each / 255);
  };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    const behind = [];
    for (let each = element; each; each = each.parentElement) {
      behind.unshift(getComputedStyle(each).backgroundColor);
    }
    const ink = light(drawn(...behind, getComputedStyle(element).color));
    const paper = light(drawn(...behind));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    found.push([ratio, walker.currentNode.data.trim()]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}
"""


TARGETS = """
() => [...document.querySelectorAll("button, select, #languages label")]
  .filter((each) => each.checkVisibility())
  .map((each) => Math.min(each.offsetWidth, each.offsetHeight))
"""


def test_text_can_be_read_and_touched_on_a_phone_by_day_and_by_night(
    browser: Browser, keyed: Service, tmp_path: Path
) -> None:
    broken = tmp_path / "a_very_long_name_without_any_place_to_break_it_of_a_broken_picture.png"
    broken.write_bytes(b"broken")
    phone = {"viewport": {"width": 360, "height": 740}, "reduced_motion": "reduce"}
    with visiting(browser, keyed.url, STORED, **phone) as page:
        choose(page, broken, SHIP)
        page.get_by_text("2 images processed").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.locator("#gallery button").nth(1).click()
        page.get_by_role("img", name="Activation map for ship").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        papers = []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            contrasts = page.evaluate(CONTRASTS)
            assert len(contrasts) > 40
            assert contrasts[0][0] >= 4.5, contrasts[0]
            papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(set(papers)) == 2
        targets = page.evaluate(TARGETS)
        assert len(targets) > 10
        assert min(targets) >= 38
        moving = "getComputedStyle(document.querySelector('.fill')).transitionDuration"
        assert page.evaluate(moving) == "0s"


def test_bars_are_seen_in_forced_colours(browser: Browser, keyed: Service) -> None:
    with visiting(browser, keyed.url, STORED, forced_colors="active") as page:
        choose(page, SHIP)
        shown(page, "ship")
        colour = "getComputedStyle(document.querySelector('{}')).backgroundColor"
        fill, track = (page.evaluate(colour.format(name)) for name in (".fill", ".track"))
        assert fill != track


def copied(page: Page, language: str) -> str:
    page.evaluate("navigator.clipboard.writeText('')")
    page.get_by_role("radio", name=language, exact=True).check()
    page.locator("#copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    while not (text := page.evaluate("navigator.clipboard.readText()")):
        pass
    return str(text)


def test_copied_requests_work(browser: Browser, keyed: Service, tmp_path: Path) -> None:
    name = "it's a $(touch hacked) ship.png"
    (tmp_path / name).write_bytes(SHIP.read_bytes())
    environment = os.environ | {"API_KEY": KEY}
    may = ["clipboard-read", "clipboard-write"]
    with visiting(browser, keyed.url, STORED, permissions=may) as page:
        page.get_by_label("Classes shown").select_option("3")
        choose(page, tmp_path / name)
        shown(page, "ship")
        texts = {
            each: copied(page, each) for each in ("curl", "Python", "Python client", "Response")
        }
    assert not any(KEY in text for text in texts.values())

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    answer = json.loads(run("bash", "-c", texts["curl"]))
    assert answer["predictions"] == json.loads(texts["Response"])["predictions"]
    assert len(answer["predictions"]) == 3
    programs = [texts["Python"]]
    if importlib.util.find_spec("service.client"):
        programs.append(texts["Python client"])
    for program in programs:
        lines = run(sys.executable, "-c", program).splitlines()
        assert len(lines) == 3
        assert re.fullmatch(r" *\d+\.\d%  ship", lines[0])
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_without_a_clipboard_text_is_copied_all_the_same(page: Page) -> None:
    """As where the page came over plain HTTP from another host."""
    page.locator("#about:not(:empty)").wait_for()
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.evaluate(
        """() => document.addEventListener("copy", () => {
          globalThis.selected = getSelection().toString();
        })"""
    )
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert "--data-binary @image.jpg" in page.evaluate("selected")


def test_the_page_asks_for_a_key_until_it_fits(browser: Browser, keyed: Service) -> None:
    with visiting(browser, keyed.url) as page:
        field = page.get_by_label("API key")
        page.get_by_role("heading", name="This service needs an API key").wait_for()
        shown(page, "API key needed", "#state")
        # Nothing to choose from is no choice, and there is no request to show.
        assert page.get_by_role("combobox").count() == 1  # the theme
        assert not page.locator("#code").is_visible()
        assert page.evaluate(FOCUSED)[0] == "key"
        page.get_by_role("button", name="Try an example").click()
        shown(page, "Enter the API key above; your image is then classified.", "#results")
        wrong_keys = {
            "": "Enter a key first.",
            "no key: \u00e9": "printable",
            "wrong-key-012345": "The service does not know this key.",
        }
        for wrong, told in wrong_keys.items():
            field.fill(wrong)
            page.keyboard.press("Enter")
            page.get_by_role("alert").filter(has_text=told).wait_for()
            assert field.get_attribute("aria-invalid") == "true"
            assert page.evaluate(FOCUSED)[0] == "key"
        field.fill(f" {KEY} ")
        page.get_by_role("button", name="Use key").click()
        page.get_by_role("status").filter(has_text="ready on CPU").wait_for()
        shown(page, "ship")
        assert not field.is_visible()
        assert KEY not in page.content()
        page.reload()  # It stays for as long as the tab.
        page.get_by_role("status").filter(has_text="ready on CPU").wait_for()
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_the_page_comes_again_when_it_was_told_to(page: Page, keyed: Service) -> None:
    page.locator("#about:not(:empty)").wait_for()
    refusals = [
        {
            "type": "urn:resnet-serve:problem:queue_full",
            "status": 429,
            "detail": "the queue is full",
        }
    ] * 2

    def answer(route: Route) -> None:
        if refusals:
            headers = {"Retry-After": "1", "Content-Type": "application/problem+json"}
            route.fulfill(status=429, headers=headers, body=json.dumps(refusals.pop()))
        else:
            route.continue_()

    page.route("**/v1/classify*", answer)
    choose(page, SHIP)
    page.get_by_text("Your image is sent again in 1 s.").wait_for()
    assert page.get_by_role("status").first.inner_text() == "Busy"
    assert "The service is busy." in page.locator("#error").inner_text()
    assert "the queue is full" in (page.locator("#detail").text_content() or "")
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Your image is sent again in").wait_for(state="hidden")
    page.get_by_role("button", name="Try again").click()
    page.get_by_text("Your image is sent again in 1 s.").wait_for()
    shown(page, "ship")
    assert page.locator("#error").text_content() == ""
    assert page.get_by_role("status").first.inner_text() == "Ready on CPU"
    page.unroute("**/v1/classify*")


def test_live_figures_follow_the_service_while_the_page_is_seen(
    browser: Browser, keyed: Service
) -> None:
    asked: list[str] = []
    with visiting(browser, keyed.url, STORED) as page:
        page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
        page.clock.install()
        page.reload()
        page.get_by_text("latencies over the last 10 s").wait_for()
        for _ in range(5):
            classified(keyed)
        page.clock.fast_forward(2000)
        page.locator("#live-p99").get_by_text("ms").wait_for()
        assert 0 < float(page.locator("#live-rate").inner_text()) <= 2.5
        assert re.fullmatch(r"[\d.]+ m?s", page.locator("#live-p50").inner_text())
        assert page.locator("#live-queue").inner_text() == "0 of 512"
        page.evaluate(
            """() => {
              Object.defineProperty(document, "hidden", { value: true });
              document.dispatchEvent(new Event("visibilitychange"));
            }"""
        )
        before = len(asked)
        page.clock.fast_forward(20_000)
        page.evaluate("fetch('health/live').then((answer) => answer.text())")
        assert asked[before:] == ["live"]


def test_the_api_has_its_page(page: Page) -> None:
    page.get_by_role("link", name="API reference").first.click()
    page.get_by_role("heading", name="POST /v1/classify/batch").wait_for()
