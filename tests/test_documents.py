"""The index has every page, links lead somewhere, and what pages say in passing can be done."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.guides import checks
from tests.guides.blocks import Command

ROOT = Path(__file__).parents[1]
INDEX = ROOT / "docs/README.md"
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def links(text: str) -> list[str]:
    """What `text` links to, or shows, outside its blocks of code."""
    return re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text))


@cache
def anchors(text: str) -> set[str]:
    """The anchors of the headings of `text`, as GitHub names them."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE):
        shown = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.append(f"{anchor}-{found.count(anchor)}" if anchor in found else anchor)
    return set(found)


def test_links_lead_to_pages_and_headings() -> None:
    for page in PAGES:
        for link in links(page.read_text("utf-8")):
            if "://" in link or link.startswith("mailto:"):
                continue
            name, _, anchor = link.partition("#")
            there = page.parent / name if name else page
            assert there.exists(), f"{page}: {link}"
            if anchor:
                assert anchor in anchors(there.read_text("utf-8")), f"{page}: {link}"


def test_every_page_is_in_the_index() -> None:
    listed = {
        (INDEX.parent / link.partition("#")[0]).resolve()
        for link in links(INDEX.read_text("utf-8"))
        if "://" not in link
    }
    pages = {page.resolve() for page in (ROOT / "docs").rglob("*.md")} - {INDEX.resolve()}
    assert pages - listed == set()


def test_the_readme_leads_to_the_index() -> None:
    assert "docs/README.md" in links((ROOT / "README.md").read_text("utf-8"))


@pytest.mark.parametrize("name", ["cpu-host", "dashboard", "gpu-host", "kubernetes", "ray"])
def test_pages_on_what_was_not_run_say_so_and_lead_to_the_table(name: str) -> None:
    text = (ROOT / f"docs/guides/{name}.md").read_text("utf-8")
    assert "../README.md#what-has-been-run-and-where" in links(text)


def test_the_table_of_what_was_run_comes_first() -> None:
    headings = re.findall(r"^## (.+)$", INDEX.read_text("utf-8"), re.MULTILINE)
    assert headings[0] == "What has been run, and where"


def test_the_table_of_what_was_run_has_the_pinned_pytorch() -> None:
    pinned = re.search(r"^torch==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert f"\n| PyTorch | {pinned[1]}:" in INDEX.read_text("utf-8")


def test_headings_have_the_anchors_that_github_gives_them() -> None:
    text = "# A `b`, c?\n```sh\n# no heading\n```\n## `X-Y` & z\n## [link](page.md)\n## Link\n"
    assert anchors(text) == {"a-b-c", "x-y--z", "link", "link-1"}


def test_commands_of_compose_inside_a_sentence_are_right_too() -> None:
    for page in PAGES:
        text = FENCED.sub("", page.read_text("utf-8"))
        for line in re.findall(r"`((?:[A-Z_]+=\S* )*docker compose [^`]+)`", text):
            checks.CHECKS["docker"](Command(line))


def test_a_file_of_keys_ends_with_a_line_so_that_another_key_can_follow(tmp_path: Path) -> None:
    for number, page in enumerate(PAGES):
        folder = tmp_path / str(number)
        (folder / "config").mkdir(parents=True)
        text = page.read_text("utf-8")
        for line in re.findall(r"^.*> (?:config/)?api-keys$", text, re.MULTILINE):
            subprocess.run(["bash", "-ec", line], cwd=folder, check=True)
        for file in folder.rglob("api-keys"):
            assert file.read_text("utf-8").endswith("\n"), page
