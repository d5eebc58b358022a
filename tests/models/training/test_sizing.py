"""Batches and epochs for the number of images."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.training.recipes import RECIPES
from models.training.sizing import LEAST_RUN, fitting_batch, long_enough, with_batch


@pytest.mark.parametrize(
    ("images", "batch", "parts", "fitting"),
    [
        (50_000, 128, 1, 128),
        (1024, 128, 1, 128),
        (1023, 128, 1, 64),
        (73, 128, 1, 8),
        (58, 64, 1, 8),
        (6, 128, 1, 2),
        (1, 128, 1, 1),
        (10, 4, 1, 4),
        (58, 64, 3, 9),
    ],
)
def test_a_batch_leaves_several_steps_to_an_epoch(
    images: int, batch: int, parts: int, fitting: int
) -> None:
    assert fitting_batch(images, batch, parts) == fitting


def test_the_learning_rate_follows_the_batch() -> None:
    recipe = RECIPES["finetune"]
    assert with_batch(recipe, 16).learning_rate == pytest.approx(recipe.learning_rate / 4)
    assert with_batch(recipe, recipe.batch_size) is recipe


def test_a_run_on_few_images_is_longer_up_to_a_limit() -> None:
    recipe = replace(RECIPES["finetune"], batch_size=8)
    longer = long_enough(recipe, 80)
    assert longer.steps(10) >= LEAST_RUN > recipe.steps(10)
    assert longer.patience == round(recipe.patience * LEAST_RUN / recipe.steps(10))
    assert long_enough(recipe, 8).length == 3 * recipe.length
    assert long_enough(recipe, 8000) is recipe
