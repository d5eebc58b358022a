"""Augmented images are crops of the padded image, mirrored or not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.data.augment import (
    Augmentation,
    crop,
    draw_crops,
    grey,
    pack,
    unpack,
)
from models.data.choices import CropKind, PaddingMode
from models.preprocess import CIFAR, for_channels
from tests.support.augmented import crop_and_flip


def noise(count: int, height: int, width: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, height, width, channels), generator=generator).byte()


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
    with pytest.raises(ValueError, match="crop_padding must be less than the images' 4 pixels"):
        crop_and_flip(noise(1, 4, 9), 4, seeded(0), "reflect")


def test_a_ranks_crops_are_its_rows() -> None:
    images = noise(11, 6, 6)
    whole = crop_and_flip(images, 2, seeded(7))
    for rank in range(3):
        crops = draw_crops(11, 2, seeded(7)).part(rank, 3)
        part = unpack(crop(pack(images[rank::3]), crops, 2, "zeros"))
        assert torch.equal(part, whole[rank::3])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_unpacking_gives_what_was_packed(channels: int) -> None:
    images = noise(3, 4, 5, channels)
    packed = pack(images)
    assert packed.shape == (3, 4, 5)
    assert packed.dtype == (torch.uint8 if channels == 1 else torch.int32)
    assert torch.equal(unpack(packed, channels), images)
    part = unpack(packed[:, 1:, ::2], channels)
    assert torch.equal(part, images[:, 1:, ::2])
    assert part.is_contiguous()


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_the_channels_of_an_image_move_together(channels: int, mode: PaddingMode) -> None:
    images = noise(20, 5, 8, channels)
    moved = crop_and_flip(images, 2, seeded(3), mode)
    for channel in range(channels):
        alone = crop_and_flip(images[..., channel : channel + 1], 2, seeded(3), mode)
        assert torch.equal(moved[..., channel : channel + 1], alone)


def test_grey_is_the_mean_of_each_channel() -> None:
    assert grey(CIFAR) == (125, 123, 114)
    assert grey(for_channels(CIFAR, 1)) == (128,)
    assert grey(for_channels(CIFAR, 4)) == (128,) * 4
    assert grey(replace(CIFAR, channels="bgr", mean=CIFAR.mean[::-1])) == (114, 123, 125)


def test_a_record_has_what_affects_these_crops() -> None:
    padded, resized, scaled = (
        Augmentation(crops=crops, alternate_flip=True).applied() for crops in get_args(CropKind)
    )
    others = {
        "crops",
        "flip",
        "alternate_flip",
        "train_size",
        "jitter",
        "lighting",
        "auto_augment",
        "cutout",
        "erasing",
        "last_batch",
        "balance",
    }
    assert padded.keys() == others | {"crop_padding", "padding_mode"}
    assert resized.keys() == others | {"scale"}
    assert scaled.keys() == others | {"shorter_side"}
    unflipped = Augmentation(flip=False, alternate_flip=True).applied()
    assert unflipped["flip"] is False
    assert "alternate_flip" not in unflipped
    assert Augmentation(balance="loss").applied()["balance"] == "none"
    assert Augmentation(balance="sampling").applied()["balance"] == "sampling"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crops": "centre"}, "crops must be padded or resized or scaled, not 'centre'"),
        ({"auto_augment": "auto"}, "auto_augment must be none or rand or trivial"),
        ({"last_batch": "pad"}, "last_batch must be drop or keep"),
        ({"balance": "classes"}, "balance must be none or loss or sampling"),
        ({"jitter": -0.1}, "jitter must be at least 0"),
        ({"lighting": float("nan")}, "lighting must be at least 0"),
        ({"train_size": -1}, "train_size must be at least 0"),
        ({"erasing": 1.5}, "erasing must be a probability, not 1.5"),
    ],
)
def test_impossible_augmentation_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)


def test_a_fill_has_the_images_channels() -> None:
    assert Augmentation().colour(4).tolist() == [0, 0, 0, 0]
    assert Augmentation(fill=(7,)).colour(1).tolist() == [7]
    with pytest.raises(ValueError, match="fill must have 3 values, not 1"):
        Augmentation(fill=(7,)).colour(3)
