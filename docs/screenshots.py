"""Makes docs/page.png and docs/page-phone-dark.png, in about a minute.

    resnet-serve serve --model builtin:resnet20-cifar10 &
    python docs/screenshots.py http://127.0.0.1:8000

Needs the test extra and an installed Chromium.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import ViewportSize, sync_playwright

DOCS = Path(__file__).parent
Scheme = Literal["light", "dark"]
SHOTS: tuple[tuple[str, int, int, Scheme], ...] = (
    ("page", 1120, 1240, "light"),
    ("page-phone-dark", 360, 1566, "dark"),
)
# Images sent every two seconds, so that the live figures have something to show.
LOAD = (4, 9, 15, 12, 18, 24, 20, 26, 17, 22, 28, 25)


def main(url: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for name, width, height, scheme in SHOTS:
            page = browser.new_page(
                viewport=ViewportSize(width=width, height=height),
                color_scheme=scheme,
                reduced_motion="reduce",
            )
            page.goto(url)
            page.get_by_role("button", name="Try an example").click()
            page.get_by_role("img", name="Activation map").wait_for()
            page.mouse.move(0, 0)
            image = (DOCS / "ship.png").read_bytes()
            for images in LOAD:
                for _ in range(images):
                    headers = {"Content-Type": "image/png"}
                    page.request.post(f"{url}/v1/classify", data=image, headers=headers)
                page.wait_for_timeout(2000)
            shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            shot.save(DOCS / f"{name}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
