"""Names that a URL's path can hold as they are."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from models import builtin, variants
from models.bundle import check_name, name_from

REFUSED = [
    "",
    "a/b",
    "a\\b",
    "what?",
    "#1",
    "100%",
    "two words",
    "a\tb",
    "a\nb",
    "a\x00",
    "a\x7f",
    "no\u00a0break",
    "\ud800",
    ".",
    "..",
    "x" * 101,
]


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_path_cannot_hold_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=r"\Aname must [^\n]+\Z"):
        check_name(name)


@pytest.mark.parametrize(
    "name", [*variants.names(), *builtin.names(), "resnet18.a_tag", "Größe-2", "x" * 100]
)
def test_usual_names_are_names(name: str) -> None:
    assert check_name(name) == name
    assert name_from(name) == name
    assert PurePosixPath("/v1/models", name).name == name


@pytest.mark.parametrize("text", REFUSED)
def test_any_text_becomes_a_name(text: str) -> None:
    assert check_name(name_from(text))


def test_words_are_kept() -> None:
    assert name_from(" my net/v2 (best) ") == "my-net-v2-(best)"
