"""What is hidden of an image is a square or a rectangle, drawn as the papers say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.classifier import Normalise
from models.data.augment import Augmentation, grey
from models.data.hiding import (
    draw_centres,
    draw_erased,
    draw_hidden,
    rectangles,
    squares,
)
from models.preprocess import CIFAR
from tests.support.augmented import cutout


def noise(count: int, height: int, width: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, height, width, channels), generator=generator).byte()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def test_erased_rectangles_have_the_papers_area_and_ratio() -> None:
    boxes = draw_erased(4000, 100, 60, 0.25, seeded(0))
    top, left, bottom, right = boxes.unbind(1)
    assert (top >= 0).all() and (left >= 0).all()  # noqa: PT018
    assert (bottom <= 100).all() and (right <= 60).all()  # noqa: PT018
    erased = boxes[(bottom > top) & (right > left)]
    assert len(erased) == pytest.approx(1000, abs=150)
    down, across = erased[:, 2] - erased[:, 0], erased[:, 3] - erased[:, 1]
    share = down * across / 6000
    assert 0.018 < share.min() < 0.03
    assert 0.3 < share.max() < 0.345
    ratio = (down / across).log()
    assert -math.log(4) < ratio.min()
    assert ratio.max() < math.log(4)
    assert erased[:, 0].min() == erased[:, 1].min() == 0
    assert erased[:, 2].max() == 100
    assert erased[:, 3].max() == 60


@pytest.mark.parametrize(("probability", "erased"), [(0.0, 0), (1.0, 50)])
def test_the_probability_of_erasing_is_that_of_an_image(probability: float, erased: int) -> None:
    boxes = draw_erased(50, 32, 32, probability, seeded(1))
    assert int(rectangles(boxes, 32, 32).flatten(1).any(1).sum()) == erased


def test_a_rectangle_is_its_rows_and_columns() -> None:
    (inside,) = rectangles(torch.tensor([[1, 2, 3, 5]]), 4, 6)
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[1:3, 2:5] = True
    assert torch.equal(inside, expected)


def test_cutout_and_erasing_hide_together_and_ranks_agree() -> None:
    both = Augmentation(cutout=3, erasing=1.0)
    cpu = torch.device("cpu")
    whole = draw_hidden(both, (7, 8, 6), seeded(2), slice(None), cpu)
    assert whole is not None
    generator = seeded(2)
    cut = squares(draw_centres(7, 8, 6, generator), 3, 8, 6)
    erased = rectangles(draw_erased(7, 8, 6, 1.0, generator), 8, 6)
    assert torch.equal(whole, cut | erased)
    part = draw_hidden(both, (7, 8, 6), seeded(2), slice(1, None, 3), cpu)
    assert part is not None
    assert torch.equal(part, whole[1::3])
    assert draw_hidden(Augmentation(), (7, 8, 6), seeded(2), slice(None), cpu) is None
