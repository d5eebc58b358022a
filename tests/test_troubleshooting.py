"""docs/troubleshooting.md: each text is one of the code's, and each has what to do."""

from __future__ import annotations

import re

import pytest

from models.builtin import DEFAULT_SPEC
from service.errors import REFUSALS, ServiceError
from service.metrics import PHASES
from tests.support import troubleshooting
from tests.support.rooms import ROOT

SOURCES = "\n".join(path.read_text("utf-8") for path in ROOT.glob("service/**/*.py"))


def test_the_page_is_what_the_code_says() -> None:
    shown = troubleshooting.PAGE.read_text("utf-8")
    assert shown == troubleshooting.page(), "python -m tests.support.troubleshooting --write"


def test_every_refusal_has_a_remedy_of_its_own() -> None:
    remedies = [kind.remedy for kind in REFUSALS]
    assert len(set(remedies)) == len(remedies)
    assert ServiceError.remedy not in remedies


@pytest.mark.parametrize("table", troubleshooting.OTHERS)
def test_a_text_that_is_quoted_is_in_the_code(table: str) -> None:
    for text, _ in troubleshooting.OTHERS[table]:
        assert text.startswith("*") or text in SOURCES, text


def test_every_cause_that_stops_a_start_is_among_the_texts() -> None:
    page = troubleshooting.page()
    for text in (
        "needs gRPC",
        "is not the key of",
        "needs a password",
        "int8 needs a calibrated bundle",
        "fused needs a CUDA device",
        "is not available, torch sees",
        "no such file",
        "a PyTorch checkpoint (pickle), not a bundle",
        "is already in use",
        "contains no keys",
    ):
        assert text in page, text


def test_it_is_short() -> None:
    assert len(troubleshooting.page().splitlines()) < 140


def test_the_phases_of_a_request_have_their_names() -> None:
    (row,) = [line for line in troubleshooting.page().splitlines() if "Server-Timing" in line]
    assert set(re.findall(r"`(\w+)` (?:is )?the ", row)) < set(PHASES)
    assert "`inference` the network" in row


def test_an_example_in_a_text_is_shown_as_it_is() -> None:
    assert f"write a SPEC such as {DEFAULT_SPEC}, " in troubleshooting.page()
