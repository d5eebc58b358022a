"""Augmented images are crops of the padded image, mirrored or not."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.classifier import Normalise
from models.data.augment import (
    PaddingMode,
    crop,
    crop_and_flip,
    cutout,
    draw_centres,
    draw_crops,
    grey,
    mixup,
    pack,
    unpack,
)
from models.preprocess import CIFAR


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


@pytest.mark.parametrize(("height", "width", "padding"), [(6, 6, 2), (5, 8, 4), (4, 4, 0)])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_crops_are_those_of_a_loop_over_padded_images(
    height: int, width: int, padding: int, mode: PaddingMode
) -> None:
    images = noise(30, height, width)
    crops = draw_crops(30, padding, seeded(5))
    cropped = unpack(crop(pack(images), crops, padding, mode))
    for row, image in enumerate(images):
        planes = image.permute(2, 0, 1).float()
        padded = F.pad(planes, (padding,) * 4, mode="constant" if mode == "zeros" else "reflect")
        top, left = int(crops.top[row]), int(crops.left[row])
        expected = padded[:, top : top + height, left : left + width]
        expected = expected.flip(2) if crops.mirrored[row] else expected
        assert torch.equal(cropped[row], expected.permute(1, 2, 0).byte())


def test_an_image_is_not_reflected_beyond_itself() -> None:
    with pytest.raises(ValueError, match="4 pixels of 4 x 9 images cannot be reflected"):
        crop_and_flip(noise(1, 4, 9), 4, seeded(0), "reflect")


def test_a_ranks_crops_are_its_rows() -> None:
    images = noise(11, 6, 6)
    whole = crop_and_flip(images, 2, seeded(7))
    for rank in range(3):
        crops = draw_crops(11, 2, seeded(7)).part(rank, 3)
        part = unpack(crop(pack(images[rank::3]), crops, 2, "zeros"))
        assert torch.equal(part, whole[rank::3])


def test_unpacking_gives_what_was_packed() -> None:
    images = noise(3, 4, 5)
    assert pack(images).dtype == torch.int32
    assert torch.equal(unpack(pack(images)), images)
    assert torch.equal(unpack(pack(images)[:, 1:, ::2]), images[:, 1:, ::2])


@pytest.mark.parametrize("side", [1, 3, 4, 20])
def test_cutout_is_a_square_around_a_pixel_of_the_image(side: int) -> None:
    images = noise(200, 6, 9)
    result = cutout(images, side, seeded(1), fill=(0, 0, 0))
    centres = draw_centres(200, 6, 9, seeded(1))
    seen = set()
    for image, cut, (row, column) in zip(images, result, centres.tolist(), strict=True):
        expected = image.clone()
        top, left = row - side // 2, column - side // 2
        expected[max(top, 0) : top + side, max(left, 0) : left + side] = 0
        assert torch.equal(cut, expected)
        seen.add((row, column))
    assert len(seen) > 45  # Of 54, also those at the borders.
    assert {row for row, _ in seen} == set(range(6))
    assert {column for _, column in seen} == set(range(9))


def test_cutouts_grey_is_what_normalisation_makes_zero() -> None:
    result = cutout(noise(1, 4, 4), 20, seeded(0), fill=grey(CIFAR))
    normalised = Normalise(CIFAR)(result)
    assert normalised.abs().max() < 0.5 / 255 / min(CIFAR.std)


def test_mixup_is_each_image_and_another_in_one_proportion() -> None:
    images = torch.randn(16, 3, 4, 4, generator=seeded(0))
    targets = torch.arange(16)
    mixed = mixup(images, targets, 0.7, seeded(3))
    assert 0 <= mixed.weight <= 1
    assert torch.equal(mixed.targets, targets)
    assert sorted(mixed.others.tolist()) == targets.tolist()
    expected = mixed.weight * images + (1 - mixed.weight) * images[mixed.others]
    assert torch.allclose(mixed.images, expected, atol=1e-6)
    again = mixup(images, targets, 0.7, seeded(3))
    assert torch.equal(again.images, mixed.images)
    assert mixup(images, targets, 0.7, seeded(4)).weight != mixed.weight


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_mixups_weight_is_beta_distributed(alpha: float) -> None:
    generator, images = seeded(0), torch.zeros(2, 1)
    weights = torch.tensor([mixup(images, images, alpha, generator).weight for _ in range(2000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert weights.mean() == pytest.approx(0.5, abs=5 * (variance / 2000) ** 0.5)
    assert weights.var() == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be above 0"):
        mixup(torch.zeros(2, 1), torch.zeros(2), alpha, seeded(0))


def test_mixup_does_not_take_bytes() -> None:
    with pytest.raises(ValueError, match=r"normalised images, not torch\.uint8"):
        mixup(noise(2, 4, 4), torch.zeros(2), 1.0, seeded(0))
