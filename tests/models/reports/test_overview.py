"""The recipes as `train --list-recipes` prints them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from models.data.choices import CropKind
from models.reports.overview import (
    augmentation,
    besides,
    expected,
    optimizer,
    overview,
    parameters,
    schedule,
)
from models.training.recipe import Phase, Recipe
from models.training.recipes import RECIPES


def test_every_recipe_is_told_with_its_paper() -> None:
    text = overview()
    for name, recipe in RECIPES.items():
        assert f"{name}: {recipe.paper}" in text
    assert max(map(len, text.splitlines())) <= 100


def test_schedules_in_words() -> None:
    assert schedule(RECIPES["he2015"]) == (
        "64,000 iterations: 0.01 until 400, 0.1 until 32,000, 0.01 until 48,000, 0.001 until 64,000"
    )
    assert schedule(RECIPES["quick"]) == (
        "15 epochs: linearly to 0.2 until 3, along a cosine to 0 until 15"
    )


def test_augmentation_in_words() -> None:
    assert augmentation(RECIPES["wide"]) == "crops behind 4 pixels of reflection, flips"
    assert augmentation(RECIPES["imagenet"]) == (
        "crops after resizing the shorter side to 256 to 480 pixels, flips, "
        "AlexNet's colour noise 0.1"
    )
    assert augmentation(RECIPES["torchvision_v2"]) == (
        "random resized crops of 8 to 100 % of the area, flips, images of 176 pixels, "
        "TrivialAugment, random erasing 0.1, mixup 0.2, CutMix 1"
    )


OTHER_VALUES: dict[str, Any] = {
    "unit": "iterations",
    "phases": (Phase(7, 0.5),),
    "batch_size": 7,
    "learning_rate": 0.7,
    "momentum": 0.7,
    "nesterov": False,
    "weight_decay": 0.7,
    "decays": "all",
    "label_smoothing": 0.7,
    "crops": "resized",
    "crop_padding": 7,
    "padding_mode": "reflect",
    "alternate_flip": True,
    "cutout": 7,
    "mixup": 0.7,
    "ema": 0.7,
    "dropout": 0.7,
    "shortcut": "C",
    "stride_at": "1x1",
    "flip": False,
    "scale": (0.07, 0.7),
    "shorter_side": (7, 77),
    "train_size": 7,
    "jitter": 0.7,
    "lighting": 0.7,
    "auto_augment": "rand",
    "erasing": 0.7,
    "cutmix": 0.7,
    "last_batch": "keep",
    "mean": (0.7,),
    "std": (0.7,),
    "optimizer": "adamw",
    "clip": 0.7,
    "body_rate": 0.7,
    "bias_rate": 7.0,
    "lookahead": 7,
    "freeze": "stage1",
    "norm": "frozen",
    "balance": "sampling",
    "keep": "best",
    "patience": 7,
    "stem_init": "whitened",
    "zero_init_residual": True,
}


@pytest.mark.parametrize(
    "name", [field.name for field in fields(Recipe) if field.name not in ("paper", "published")]
)
def test_every_field_is_told_in_words(name: str) -> None:
    crops: dict[str, CropKind] = {"scale": "resized", "shorter_side": "scaled"}
    recipe = replace(RECIPES["quick"], crops=crops.get(name, "padded"))

    def told(recipe: Recipe) -> str:
        return "; ".join(
            [schedule(recipe), optimizer(recipe), augmentation(recipe), *besides(recipe)]
        )

    other = told(replace(recipe, **{name: OTHER_VALUES[name]}))
    assert other != told(recipe)
    assert "None" not in other
    assert "_" not in other


@pytest.mark.parametrize(
    ("recipe", "variant", "data", "error", "millions"),
    [
        ("he2015", "resnet20", "CIFAR-10", 8.75, 0.27),
        ("he2015", "resnet56", "CIFAR-10", 6.97, 0.85),
        ("he2016", "preact_resnet164", "CIFAR-10", 5.46, 1.7),
        ("torch_resnet", "resnet20", "CIFAR-10", 8.64, 0.27),
        ("fb_resnet_torch", "resnet50", "ImageNet", 24.01, 25.5),
        ("torchvision", "resnet50", "ImageNet", 23.87, 25.5),
        ("torchvision_v2", "resnet50", "ImageNet", 19.142, 25.5),
        ("wide", "preact_wide_resnet28_10", "CIFAR-10", 4.0, 36.5),
        ("wide_dropout", "preact_wide_resnet28_10", "CIFAR-10", 3.89, 36.5),
        ("imagenet", "resnet50", "ImageNet", 24.7, 25.5),
    ],
)
def test_a_recipe_knows_the_errors_and_parameters_it_is_to_give(
    recipe: str, variant: str, data: str, error: float, millions: float
) -> None:
    found = [row for row in expected(RECIPES[recipe]) if (row.variant, row.data) == (variant, data)]
    assert error in [row.error for row in found]
    assert parameters(found[0]) / 1e6 == pytest.approx(millions, rel=0.02)


def test_a_recipe_without_published_results_promises_none() -> None:
    assert expected(RECIPES["quick"]) == []


def test_results_with_branches_that_begin_at_zero_are_expected_of_such_recipes_alone() -> None:
    recipe = replace(RECIPES["torch_resnet"], published="torch-resnet's README, on init")
    zeroed = replace(recipe, zero_init_residual=True)
    for each, error in ((recipe, 6.61), (zeroed, 6.46)):
        rows = [row for row in expected(each) if row.variant == "resnet110"]
        assert [row.error for row in rows if row.data == "CIFAR-10"] == [error]
