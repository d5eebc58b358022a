"""The guides for those who come from other servers name settings, metrics and routes that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.config.settings import ModelSettings, Settings
from service.metrics import Metrics

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs/guides").glob("from-*.md"))
TEXTS = {path.stem: path.read_text("utf-8") for path in GUIDES}
SETTINGS = {*Settings.model_fields, *ModelSettings.model_fields}
PARTS = ["The model", "Settings", "Clients", "Metrics", "Not here"]


def rows(text: str, part: str) -> list[list[str]]:
    """The cells of the table in a part of a guide, without its header."""
    section = text.partition(f"\n## {part}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [line.strip("| ").split(" | ") for line in lines[2:]]


@pytest.fixture(scope="module")
def metrics() -> set[str]:
    described = Metrics().render().decode()
    return set(re.findall(r"^# TYPE (resnet_serve_\w+)", described, re.MULTILINE))


@pytest.mark.parametrize("name", TEXTS)
def test_each_has_the_same_parts(name: str) -> None:
    assert re.findall(r"^## (.+)$", TEXTS[name], re.MULTILINE) == PARTS


@pytest.mark.parametrize("name", TEXTS)
def test_our_settings_exist(name: str) -> None:
    table = rows(TEXTS[name], "Settings")
    assert len(table) >= 8
    named = {word for _, ours in table for word in re.findall(r"`([a-z_]+)`", ours)}
    assert named <= SETTINGS


@pytest.mark.parametrize("name", TEXTS)
def test_our_metrics_exist(name: str, metrics: set[str]) -> None:
    named = set(re.findall(r"\bresnet_serve_\w+", TEXTS[name]))
    assert len(named) >= 2
    assert named <= metrics


def test_there_is_one_for_each_server() -> None:
    assert set(TEXTS) == {"from-litserve", "from-tf-serving", "from-torchserve", "from-triton"}
