"""The tables of recipes and sources are true of the recipes."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from models.reports.overview import schedule
from models.training.recipe import DEFAULTS, has_effect, json_values
from models.training.recipes import RECIPES

GUIDE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text("utf-8")
# Recipes of our own have no source.
SOURCED = [name for name, recipe in RECIPES.items() if recipe.published] + [
    "torch_resnet_wide",
    "gluon",
]


def rows(first_line: str) -> dict[str, str]:
    """The second cells of the table that begins so, by the recipe."""
    text = GUIDE.partition(f"\n{first_line}\n")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.MULTILINE))


SOURCES, SCHEDULES, EQUAL, DIFFERENT = (
    rows(line)
    for line in (
        "| recipe | source |",
        "| recipe | learning rate |",
        "| recipe | fields |",
        "| recipe | |",
    )
)


def values(name: str) -> dict[str, Any]:
    pairs = re.findall(r"`(\w+)=([^`]+)`", EQUAL[name])
    assert EQUAL[name] == " ".join(f"`{field}={value}`" for field, value in pairs)
    return {field: eval(value, {}) for field, value in pairs}


@pytest.mark.parametrize("table", [SOURCES, SCHEDULES, EQUAL, DIFFERENT])
def test_every_recipe_with_a_source_is_in_every_table(table: dict[str, str]) -> None:
    assert sorted(table) == sorted(SOURCED)


@pytest.mark.parametrize("name", SOURCED)
def test_the_schedule_is_the_recipes(name: str) -> None:
    assert SCHEDULES[name] == schedule(RECIPES[name])


@pytest.mark.parametrize("name", SOURCED)
def test_the_fields_are_the_recipes(name: str) -> None:
    recipe, told = RECIPES[name], values(name)
    assert told == {field: asdict(recipe)[field] for field in told}
    recorded = json_values(recipe)
    own = {
        field
        for field, value in recorded.items()
        if field not in ("paper", "published", "unit", "phases")
        and has_effect(field, recorded)
        and value != DEFAULTS.get(field)
    }
    assert own <= told.keys(), "a field that is not the default is not compared"


def test_what_is_said_of_all_recipes_holds() -> None:
    assert all(RECIPES[name].momentum == 0.9 for name in SOURCED)
    assert all(RECIPES[name].optimizer == "sgd" for name in SOURCED)
    assert all(RECIPES[name].flip for name in SOURCED)
    assert (DEFAULTS["crop_padding"], DEFAULTS["padding_mode"]) == (4, "zeros")
    assert DEFAULTS["last_batch"] == "drop"
