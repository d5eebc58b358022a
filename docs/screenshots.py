"""Makes docs/page.png and docs/page-phone-dark.png.

    resnet-serve serve --model builtin:resnet20-cifar10 &
    python docs/screenshots.py http://127.0.0.1:8000

Needs the test extra and an installed Chromium.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import ViewportSize, sync_playwright

DOCS = Path(__file__).parent
SHOTS: tuple[tuple[str, int, str], ...] = (
    ("page", 1120, "light"),
    ("page-phone-dark", 360, "dark"),
)
REQUESTS = 40  # so that the live figures show something


def main(url: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for name, width, scheme in SHOTS:
            page = browser.new_page(
                viewport=ViewportSize(width=width, height=800),
                color_scheme="dark" if scheme == "dark" else "light",
                reduced_motion="reduce",
            )
            page.goto(url)
            page.get_by_role("button", name="Try an example").click()
            page.locator("#predictions .figure").first.wait_for()
            image = (DOCS / "ship.png").read_bytes()
            for _ in range(REQUESTS):
                headers = {"Content-Type": "image/png"}
                page.request.post(f"{url}/v1/classify", data=image, headers=headers)
            page.locator("#live-p99").get_by_text("s").wait_for()
            page.screenshot(path=DOCS / f"{name}.png", full_page=True)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
