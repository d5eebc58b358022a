"""docs/peers.md claims nothing without a page that says it, or a test of ours that shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/peers.md").read_text("utf-8")
LINKS = dict(re.findall(r"^\[(\w+)\]: (https://\S+)$", TEXT, re.MULTILINE))
PEERS = ["LitServe", "BentoML", "Ray Serve", "Triton", "TorchServe", "MLServer"]
CLAIM = re.compile(r"\[(?:yes|no|partly)(?:: [^]]+)?\]\[(\w+)\]")


def rows(text: str, columns: int) -> list[list[str]]:
    """The cells of every row of the tables with so many columns."""
    found = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    return [cells for cells in found if len(cells) == columns]


HEADER, *FEATURES = rows(TEXT, 9)


def test_every_peer_has_a_column_and_a_version_with_its_date() -> None:
    assert HEADER[2:8] == PEERS
    versions = {name: (version, date) for name, version, date in rows(TEXT, 3) if name}
    assert set(versions) == set(PEERS)
    assert all(re.fullmatch(r"\d{4}-\d{2}-\d{2}", date) for _, date in versions.values())


@pytest.mark.parametrize("cells", FEATURES, ids=lambda cells: cells[0])
def test_a_claim_about_a_peer_has_its_source(cells: list[str]) -> None:
    for cell in cells[2:8]:
        match = CLAIM.fullmatch(cell)
        assert cell == "-" or (match and match[1] in LINKS), cell


@pytest.mark.parametrize("cells", FEATURES, ids=lambda cells: cells[0])
def test_a_claim_about_us_has_its_test(cells: list[str]) -> None:
    ours, shown = cells[1], cells[8]
    assert re.match(r"(yes|no|partly)\b", ours)
    if ours.startswith("no"):
        assert not shown
        return
    file, _, name = shown.strip("`").partition("::")
    assert file.startswith("tests/")
    source = (ROOT / file).read_text("utf-8")
    if name:
        assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE)


def test_every_source_is_used() -> None:
    used = {match[1] for cells in FEATURES for cell in cells[2:8] if (match := CLAIM.match(cell))}
    assert used == set(LINKS)


def test_it_says_where_others_are_better() -> None:
    assert len([cells for cells in FEATURES if cells[1].startswith("no")]) >= 5


def test_the_readme_agrees() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    full = {
        cells[0]: [re.sub(r"\[([^]]+)\]\[\w+\]", r"\1", cell) for cell in cells[1:8]]
        for cells in FEATURES
    }
    header, *short = rows(readme, 8)
    assert header[2:] == PEERS
    assert 10 <= len(short) <= 12
    for feature, *cells in short:
        assert cells == [cell.partition(":")[0] for cell in full[feature]], feature
