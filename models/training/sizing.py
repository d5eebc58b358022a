"""Batches and epochs for the number of images that there are."""

from __future__ import annotations

import math
from dataclasses import replace

from models.training.recipe import Recipe

# Steps of an epoch. With fewer, an epoch is too coarse a unit to warm up in or to choose from.
LEAST_STEPS = 8
# Images of a batch, by whose statistics it is normalised.
LEAST_BATCH = 8
# Steps of a whole run of fine-tuning, and how much longer than the recipe it may get for them.
LEAST_RUN, MOST_STRETCHED = 150, 3.0


def fitting_batch(images: int, batch_size: int, parts: int = 1) -> int:
    """`batch_size`, or the largest power of two that makes at least `LEAST_STEPS` steps an epoch,
    but at least `LEAST_BATCH` images, or half of all; in any case a multiple of `parts`."""
    if images >= LEAST_STEPS * batch_size:
        return batch_size
    most = max(1, images // LEAST_STEPS, min(LEAST_BATCH, images // 2))
    fitting = min(batch_size, 1 << (most.bit_length() - 1))
    return -(-fitting // parts) * parts


def with_batch(recipe: Recipe, batch_size: int) -> Recipe:
    """The recipe with batches of another size, and a learning rate in proportion (Goyal et al.,
    arXiv:1706.02677, section 2.1)."""
    if batch_size == recipe.batch_size:
        return recipe
    rate = recipe.learning_rate * batch_size / recipe.batch_size
    return replace(recipe, batch_size=batch_size, learning_rate=rate)


def long_enough(recipe: Recipe, images: int) -> Recipe:
    """The recipe for so many images, stretched if it has fewer than `LEAST_RUN` steps, but at most
    by `MOST_STRETCHED`; with its patience."""
    steps = recipe.steps(max(1, images // recipe.batch_size))
    if recipe.unit == "iterations" or steps >= LEAST_RUN:
        return recipe
    stretch = min(MOST_STRETCHED, LEAST_RUN / steps)
    stretched = recipe.lasting("epochs", math.ceil(stretch * recipe.length))
    return replace(stretched, patience=round(recipe.patience * stretch))
