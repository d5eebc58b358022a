"""RELIABILITY.md names no test that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "RELIABILITY.md").read_text()
# As pytest names them: a file, and a test in it.
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)))
ROWS = [line for line in TEXT.splitlines() if re.match(r"\| (?!fault |load |-)", line)]


def test_the_matrix_has_a_test_in_every_row() -> None:
    matrix = TEXT.partition("## Overload")[0]
    rows = [line for line in ROWS if line in matrix]
    assert len(rows) >= 15
    for row in rows:
        *_, last, _ = row.split("|")
        assert "`tests/" in last, row


def test_every_test_that_it_names_exists() -> None:
    for file, name in TESTS:
        source = (ROOT / file).read_text()
        assert not name or re.search(rf"^def {name}\(", source, re.MULTILINE), f"{file}::{name}"
