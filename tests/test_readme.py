"""The README is true of what it can be checked against."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from models import variants
from service.cli.main import main
from service.config.settings import ModelSettings, Settings
from service.http.problems import STATUSES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()


def setting_rows() -> dict[str, str]:
    rows = re.findall(r"^\| `([a-z_]+)` \| (.*) \|$", SETTINGS, re.MULTILINE)
    return dict(rows)


def test_every_setting_is_documented_in_its_own_words() -> None:
    documented = setting_rows()
    for kind in (Settings, ModelSettings):
        for name, field in kind.model_fields.items():
            assert field.description is not None
            assert field.description in documented[name]
    assert set(documented) == set(Settings.model_fields) | set(ModelSettings.model_fields)


def test_every_status_of_a_refusal_is_documented() -> None:
    documented = {int(status) for status in re.findall(r"^\| (\d{3}) \|", README, re.MULTILINE)}
    assert documented == {int(status) for status in STATUSES.values()} - {499}


def test_every_command_is_shown() -> None:
    shown = set(re.findall(r"^resnet-serve ([a-z]+)", README, re.MULTILINE))
    assert shown | {"bench"} == set(main.commands)


@pytest.mark.parametrize("name", ["resnet200_small", "preact_wide_resnet22_7", "wrn_28_10"])
def test_the_families_exist(name: str) -> None:
    assert variants.variant(name)


def test_it_stays_short() -> None:
    assert len(README.splitlines()) < 200
