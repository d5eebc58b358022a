"""Augmented images are crops of the padded image, mirrored or not."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from models.training.augment import crop_and_flip


def noise(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, height, width, 3), generator=generator).byte()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def choices(image: Tensor, augmented: Tensor, padding: int) -> list[tuple[int, int, bool]]:
    """Every row, column and flip that turns `image` into `augmented`."""
    height, width, _ = image.shape
    padded = torch.zeros(height + 2 * padding, width + 2 * padding, 3, dtype=torch.uint8)
    padded[padding : padding + height, padding : padding + width] = image
    return [
        (top, left, flip)
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
        for flip in (False, True)
        if torch.equal(
            padded[top : top + height, left : left + width].flip(1 if flip else ()), augmented
        )
    ]


@pytest.mark.parametrize(("height", "width", "padding"), [(6, 6, 2), (5, 8, 1), (4, 4, 4)])
def test_every_image_is_a_crop_or_a_mirrored_crop_of_its_own(
    height: int, width: int, padding: int
) -> None:
    images = noise(50, height, width)
    augmented = crop_and_flip(images, padding, seeded(0))
    assert augmented.shape == images.shape
    assert augmented.dtype == torch.uint8
    for image, result in zip(images, augmented, strict=True):
        found = choices(image, result, padding)
        # Only a crop that is all padding can be several.
        assert len(found) == 1 or not result.any()


def test_every_offset_and_both_flips_are_drawn_evenly_and_apart() -> None:
    padding, count = 1, 1800
    images = noise(1, 4, 4).expand(count, 4, 4, 3)
    drawn = Counter(
        choices(images[0], result, padding)[0]
        for result in crop_and_flip(images, padding, seeded(0))
    )
    assert len(drawn) == 3 * 3 * 2
    assert all(60 < times < 140 for times in drawn.values())


def test_no_padding_leaves_only_the_flips() -> None:
    images = noise(40, 5, 5)
    augmented = crop_and_flip(images, 0, seeded(0))
    same = [torch.equal(a, b) for a, b in zip(augmented, images, strict=True)]
    mirrored = [torch.equal(a, b.flip(1)) for a, b in zip(augmented, images, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 10 < sum(same) < 30


def test_equal_seeds_give_equal_crops_and_the_images_stay() -> None:
    images = noise(20, 8, 8)
    before = images.clone()
    torch.manual_seed(1)
    first = crop_and_flip(images, 4, seeded(3))
    torch.manual_seed(2)
    assert torch.equal(crop_and_flip(images, 4, seeded(3)), first)
    assert not torch.equal(crop_and_flip(images, 4, seeded(4)), first)
    assert torch.equal(images, before)
