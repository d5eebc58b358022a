"""Mixed images and classes have the same weight, drawn as the papers say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.data.mixing import cutmix, mixup


def noise(count: int, height: int, width: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, height, width, channels), generator=generator).byte()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def test_cutmix_pastes_one_rectangle_and_weighs_by_what_remains() -> None:
    images, targets = noise(5, 12, 10), torch.arange(5)
    seen = set()
    for seed in range(40):
        mixed = cutmix(images, targets, 1.0, seeded(seed))
        others = images[mixed.others]
        pasted = (mixed.images != images).any(3) | (images == others).all(3)
        changed = (mixed.images != images).any(3).any(0)
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        if not len(rows):
            continue
        top, bottom = int(rows.min()), int(rows.max()) + 1
        left, right = int(columns.min()), int(columns.max()) + 1
        expected = images.clone()
        expected[:, top:bottom, left:right] = others[:, top:bottom, left:right]
        assert torch.equal(mixed.images, expected)
        assert pasted[:, top:bottom, left:right].all()
        assert mixed.weight == pytest.approx(1 - (bottom - top) * (right - left) / 120)
        assert torch.equal(mixed.targets, targets)
        seen.add((top, left))
    assert len(seen) > 15


def test_cutmix_takes_pixels_of_any_type_and_repeats_itself() -> None:
    images, targets = noise(4, 8, 8, 1), torch.arange(4)
    first, again = (cutmix(images, targets, 1.0, seeded(1)) for _ in range(2))
    assert first.images.dtype == torch.uint8
    assert torch.equal(first.images, again.images)
    floats = cutmix(images.float(), targets, 1.0, seeded(1))
    assert torch.equal(floats.images, first.images.float())
    assert torch.equal(images, noise(4, 8, 8, 1)), "the batch stays as it was"
    with pytest.raises(ValueError, match="cutmix's alpha must be above 0"):
        cutmix(images, targets, 0.0, seeded(0))
