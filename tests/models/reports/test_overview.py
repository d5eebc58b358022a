"""The recipes as `train --list-recipes` prints them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.reports.overview import augmentation, expected, overview, parameters, schedule
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
    assert augmentation(RECIPES["wide"]) == "crops behind 4 pixels of reflect, flips"
    assert augmentation(RECIPES["imagenet"]) == "random resized crops, flips"
    scaled = replace(RECIPES["imagenet"], crops="scaled", jitter=0.4, flip=False, cutmix=1.0)
    assert augmentation(scaled) == "crops at 256 to 480 pixels, jitter 0.4, cutmix 1"
    assert augmentation(replace(RECIPES["imagenet"], auto_augment="rand")).endswith("RandAugment")


@pytest.mark.parametrize(
    ("recipe", "variant", "data", "error", "millions"),
    [
        ("he2015", "resnet20", "CIFAR-10", 8.75, 0.27),
        ("he2015", "resnet56", "CIFAR-10", 6.97, 0.85),
        ("he2016", "preact_resnet164", "CIFAR-10", 5.46, 1.7),
        ("torch_resnet", "resnet20", "CIFAR-10", 8.64, 0.27),
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
