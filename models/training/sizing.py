"""Batches for the number of images that there are."""

from __future__ import annotations

from dataclasses import replace

from models.training.recipes import Recipe

# Steps of an epoch. With fewer, an epoch is too coarse a unit to warm up in or to choose from.
LEAST_STEPS = 8
# Images of a batch, by whose statistics it is normalised.
LEAST_BATCH = 8


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
    rate = recipe.learning_rate * batch_size / recipe.batch_size
    return replace(recipe, batch_size=batch_size, learning_rate=rate)
