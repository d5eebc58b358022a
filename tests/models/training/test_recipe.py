"""A recipe's schedule, record and limits."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from models.training.recipe import Phase, Recipe, completed
from models.training.recipes import RECIPES

PER_EPOCH = 390


def test_a_schedule_can_be_stretched() -> None:
    short = RECIPES["he2015"].lasting("epochs", 16)
    assert short.unit == "epochs"
    assert short.steps(100) == 1600
    assert [phase.until for phase in short.phases] == pytest.approx([0.1, 8, 12, 16])
    assert short.factor(0.4999) == 1
    assert RECIPES["quick"].lasting("iterations", 7).steps(PER_EPOCH) == 7


def test_one_cycle_rises_in_a_line_and_falls_along_a_cosine() -> None:
    phases = (Phase(2, 1.0, "linear"), Phase(10, 0.0, "cosine"))
    recipe = replace(RECIPES["quick"], phases=phases)
    expected = [(0, 0), (0.1, 0.5), (0.2, 1), (0.4, 0.5 + 0.5**1.5), (0.6, 0.5), (1, 0)]
    for done, factor in expected:
        assert recipe.factor(done) == pytest.approx(factor, abs=1e-12)


def test_a_recipe_survives_json() -> None:
    for recipe in RECIPES.values():
        assert Recipe(**json.loads(json.dumps(asdict(recipe)))) == recipe


def test_a_record_is_the_whole_recipe_once_defaults_are_filled_in() -> None:
    for recipe in RECIPES.values():
        record = json.loads(json.dumps(recipe.record()))
        assert record == recipe.record()
        assert Recipe(**record).record() == record
        assert completed(record).keys() == asdict(recipe).keys()


def test_a_record_leaves_out_what_has_no_effect() -> None:
    recipe = RECIPES["wide"]
    recorded = {
        crops: replace(recipe, crops=crops).record().keys()
        for crops in ("padded", "resized", "scaled")
    }
    own = {"crop_padding", "padding_mode", "scale", "shorter_side"}
    assert recorded["padded"] & own == {"crop_padding", "padding_mode"}
    assert recorded["resized"] & own == {"scale"}
    assert recorded["scaled"] & own == {"shorter_side"}
    assert "nesterov" in recorded["padded"]
    assert "nesterov" not in replace(recipe, optimizer="adamw").record()
    upright = replace(recipe, flip=False, alternate_flip=True).record()
    assert upright["flip"] is False
    assert "alternate_flip" not in upright


def test_a_record_leaves_out_what_the_recipe_leaves_out() -> None:
    record = RECIPES["quick"].record()
    assert not record.keys() & {"cutmix", "lookahead", "mean", "dropout", "freeze", "published"}
    assert record["optimizer"] == "sgd"
    assert record["momentum"] == 0.9
    assert replace(RECIPES["quick"], cutmix=1.0).record()["cutmix"] == 1.0


def test_what_was_changed_is_told() -> None:
    recipe = RECIPES["quick"]
    changed = replace(recipe, cutout=8, learning_rate=0.1)
    assert recipe.differences(changed) == {"cutout": 8, "learning_rate": 0.1}
    assert recipe.differences(recipe) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be from 1"),
        ({"momentum": 1.0}, "momentum must be from 0.0 to below 1"),
        ({"ema": 1.0}, "ema must be"),
        ({"label_smoothing": -0.1}, "label_smoothing must be"),
        ({"learning_rate": float("nan")}, "learning_rate must be"),
        ({"decays": "none"}, "decays must be one of weights, all, not 'none'"),
        ({"crops": "centre"}, "crops must be one of padded, resized"),
        ({"phases": ()}, "phases must end in increasing order"),
        ({"phases": (Phase(2, 1), Phase(2, 0.1))}, "phases must end in increasing order"),
    ],
)
def test_an_impossible_recipe_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RECIPES["quick"], **change)
