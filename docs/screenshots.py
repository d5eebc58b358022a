"""Pictures of the web page, in a minute or two; needs the test extra and an installed Chromium.

    python -m docs.screenshots            docs/page.png and docs/page-phone-dark.png
    python -m docs.screenshots FOLDER     every state of the page, at three widths, by day and night
    python -m docs.screenshots FOLDER answer several       these states only

It starts a service with the built-in model, on port 8000 or another one, and stops it.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, Route, ViewportSize, sync_playwright

from tests.conftest import CHROMIUM, CHROMIUM_FLAGS, started

DOCS = Path(__file__).parent
Scheme = Literal["light", "dark"]
SHOTS: tuple[tuple[str, int, int, Scheme], ...] = (
    ("page", 1280, 1250, "light"),
    ("page-phone-dark", 390, 1475, "dark"),
)
# Images sent every two seconds, so that the live figures have something to show.
LOAD = (4, 9, 15, 12, 18, 24, 20, 26, 17, 22, 28, 25)
SIZES = ((390, 844), (1280, 800), (2560, 1440))
SCHEMES: tuple[Scheme, ...] = ("light", "dark")


def ship() -> bytes:
    return (DOCS / "ship.png").read_bytes()


def file(name: str, content: bytes) -> FilePayload:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def photo(width: int, height: int) -> bytes:
    """The ship as if it came from a camera."""
    buffer = io.BytesIO()
    image = Image.open(DOCS / "ship.png").convert("RGB")
    image.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def choose(page: Page, *files: FilePayload) -> None:
    page.locator("#file").set_input_files(list(files))


def answer(page: Page) -> None:
    choose(page, file("ship.png", ship()))
    page.get_by_role("img", name="Activation map").wait_for()


def wide(page: Page) -> None:
    choose(page, file("holiday.png", photo(1200, 800)))
    page.get_by_role("img", name="Activation map").wait_for()


def several(page: Page) -> None:
    photos = [file(f"photo-{side}.png", photo(side, 400)) for side in (300, 400, 500, 600, 700)]
    choose(page, file("ship.png", ship()), file("broken.png", ship()[:2000]), *photos)
    page.get_by_text("7 images processed").wait_for()
    page.get_by_role("img", name="Activation map").wait_for()


def refused(page: Page) -> None:
    choose(page, file("notes.txt", b"no image"))
    page.locator("#notice").wait_for()


def told(page: Page, path: str, status: int, body: Any, **headers: str) -> None:
    """Answers a path in the place of the service."""

    def fulfill(route: Route) -> None:
        route.fulfill(
            status=status,
            headers={"Content-Type": "application/json", **headers},
            body=json.dumps(body),
        )

    page.route(f"**/{path}", fulfill)


def problem(status: int, reason: str, detail: str) -> dict[str, Any]:
    return {"type": f"urn:resnet-serve:problem:{reason}", "status": status, "detail": detail}


def key_needed(page: Page) -> None:
    detail = "a key is required; send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
    told(page, "v1/models", 401, problem(401, "unauthorized", detail))
    page.reload()
    page.get_by_label("API key").wait_for()


def wrong_key(page: Page) -> None:
    key_needed(page)
    page.get_by_label("API key").fill("not-this-one")
    page.get_by_role("button", name="Use key").click()
    page.get_by_text("does not know this key").wait_for()


def gone(page: Page) -> None:
    answer(page)
    page.route("**/*", lambda route: route.abort())
    page.locator("#outage").wait_for()
    choose(page, file("ship.png", ship()))
    page.get_by_role("button", name="Try again").wait_for()


def overloaded(page: Page) -> None:
    busy = problem(429, "queue_full", "the queue is full (512 images waiting)")
    told(page, "v1/classify*", 429, busy, **{"Retry-After": "8"})
    choose(page, file("ship.png", ship()))
    page.get_by_text("Your image is sent again in").first.wait_for()


def unready(page: Page, reason: str) -> None:
    models = page.evaluate("fetch('v1/models').then((response) => response.json())")
    for model in models["models"]:
        model |= {"state": "loading", "reason": reason, "engine": None}
    reasons = {model["name"]: reason for model in models["models"]}
    told(page, "health/ready", 503, {"status": "not ready", "reasons": reasons})
    told(page, "v1/models", 200, models)
    page.reload()


def loading(page: Page) -> None:
    unready(page, "loading")
    page.locator("#state").get_by_text("Loading\u2026").wait_for()


def draining(page: Page) -> None:
    unready(page, "the service is shutting down")
    page.locator("#state").get_by_text("Shutting down").wait_for()


def docs(page: Page) -> None:
    page.goto(f"{page.url}docs")
    page.locator("#classify .command").wait_for()


STATES: dict[str, Callable[[Page], None]] = {
    "waiting": lambda page: page.locator("#about:not(:empty)").wait_for(),
    "answer": answer,
    "cropped": wide,
    "several": several,
    "refused": refused,
    "key": key_needed,
    "wrong-key": wrong_key,
    "gone": gone,
    "overloaded": overloaded,
    "loading": loading,
    "draining": draining,
    "docs": docs,
}


def visited(browser: Browser, url: str, width: int, height: int, scheme: Scheme) -> Page:
    page = browser.new_page(
        viewport=ViewportSize(width=width, height=height),
        color_scheme=scheme,
        reduced_motion="reduce",
    )
    page.goto(url)
    return page


def all_states(browser: Browser, url: str, folder: Path, only: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in only or STATES:
        for width, height in SIZES:
            page = visited(browser, url, width, height, "light")
            STATES[name](page)
            for scheme in SCHEMES:
                page.emulate_media(color_scheme=scheme)
                page.screenshot(path=folder / f"{name}-{width}-{scheme}.png")
            page.close()


def of_the_documents(browser: Browser, url: str) -> None:
    for name, width, height, scheme in SHOTS:
        page = visited(browser, url, width, height, scheme)
        page.get_by_role("button", name="Try an example").click()
        page.get_by_role("img", name="Activation map").wait_for()
        page.mouse.move(0, 0)
        for images in LOAD:
            for _ in range(images):
                headers = {"Content-Type": "image/png"}
                page.request.post(f"{url}/v1/classify", data=ship(), headers=headers)
            page.wait_for_timeout(2000)
        shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        shot.save(DOCS / f"{name}.png", optimize=True)
        page.close()


def main(folder: str = "", *only: str) -> None:
    # As in the guides: a port of its own would be in the picture.
    port = () if folder else ("--port", "8000")
    with started(*port) as service, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        if folder:
            all_states(browser, service.url, Path(folder), list(only))
        else:
            of_the_documents(browser, service.url)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
