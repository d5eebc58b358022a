"""Random crops are those that a plain computation takes, and are drawn as the papers say."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from models.data.crops import RandomCrop


def photograph(width: int, height: int) -> Image.Image:
    """Smooth and asymmetric: where a crop comes from can be seen in it."""
    x, y = np.meshgrid(np.linspace(0, 250, width), np.linspace(0, 250, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=2).astype(np.uint8))


def reopened(image: Image.Image, format: str = "PNG", **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return Image.open(buffer)


def plain(image: Image.Image, crop: RandomCrop, seed: int) -> NDArray[np.uint8]:
    random = np.random.Generator(np.random.Philox(seed))
    box = crop.box(*image.size, random)
    mirrored = random.integers(2) == 1
    resized = image.crop(box).resize(crop.sides[::-1], Image.Resampling.BILINEAR)
    return np.asarray(ImageOps.mirror(resized) if mirrored and crop.flip else resized)


@pytest.mark.parametrize("crop", [RandomCrop(size=16), RandomCrop(size=16, shorter_side=(16, 40))])
def test_a_crop_is_cropped_resized_and_mirrored(crop: RandomCrop) -> None:
    image = photograph(60, 45)
    for seed in range(20):
        pixels = crop(reopened(image), seed)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (16, 16, 3)
        assert np.array_equal(pixels, plain(image, crop, seed))
        assert np.array_equal(pixels, crop(reopened(image), seed))


def test_half_of_the_crops_are_mirrored_unless_none_shall_be() -> None:
    image = photograph(40, 40)
    for flip, low, high in ((True, 40, 60), (False, 0, 0)):
        crop = RandomCrop(size=8, flip=flip)
        rising = [int(p[0, -1, 0]) > int(p[0, 0, 0]) for p in (crop(image, s) for s in range(100))]
        assert low <= rising.count(False) <= high


def test_boxes_have_the_area_and_the_ratio_that_were_asked_for() -> None:
    crop, random = RandomCrop(size=8, scale=(0.1, 0.5), ratio=(0.5, 2)), np.random.default_rng(0)
    areas, ratios = [], []
    for _ in range(2000):
        left, top, right, bottom = crop.box(1000, 800, random)
        assert 0 <= left < right <= 1000
        assert 0 <= top < bottom <= 800
        areas.append((right - left) * (bottom - top) / 800_000)
        ratios.append(math.log2((right - left) / (bottom - top)))
    assert 0.099 < min(areas) < 0.11 and 0.49 < max(areas) < 0.501  # noqa: PT018
    assert np.mean(areas) == pytest.approx(0.3, abs=0.02)
    assert -1.01 < min(ratios) < -0.95 and 0.95 < max(ratios) < 1.01  # noqa: PT018
    assert np.mean(ratios) == pytest.approx(0, abs=0.06)


@pytest.mark.parametrize(
    ("size", "box"), [((900, 3), (448, 0, 452, 3)), ((3, 900), (0, 448, 3, 452)), ((1, 1), None)]
)
def test_where_no_box_fits_the_middle_is_taken(
    size: tuple[int, int], box: tuple[int, int, int, int] | None
) -> None:
    crop = RandomCrop(size=8, scale=(0.9, 1.0))
    assert crop.box(*size, np.random.default_rng(0)) == (box or (0, 0, 1, 1))
    assert crop(photograph(*size), 0).shape == (8, 8, 3)


def test_the_shorter_sides_of_he_are_all_drawn() -> None:
    crop, random = RandomCrop(size=224, shorter_side=(256, 480)), np.random.default_rng(0)
    boxes = [crop.box(640, 480, random) for _ in range(1000)]
    sides = {right - left for left, _, right, _ in boxes}
    assert all(right - left == bottom - top for left, top, right, bottom in boxes)
    assert min(sides) in range(224, 227)
    assert max(sides) in range(417, 421)
    assert min(left for left, *_ in boxes) < 5
    assert max(right for _, _, right, _ in boxes) > 635


def test_a_large_jpeg_is_decoded_smaller_and_gives_nearly_the_same() -> None:
    image = photograph(640, 480)
    crop = RandomCrop(size=16, scale=(0.5, 1.0))
    for seed in range(5):
        jpeg = reopened(image, "JPEG", quality=95)
        pixels = crop(jpeg, seed)
        assert jpeg.size in {(160, 120), (80, 60)}
        # Boxes of the smaller image are whole pixels too.
        difference = np.abs(pixels.astype(int) - plain(image, crop, seed))
        assert difference.max() < 12
        assert difference.mean() < 3


def test_a_small_jpeg_is_decoded_whole() -> None:
    def jpeg() -> Image.Image:
        return reopened(photograph(60, 45), "JPEG", quality=95)

    crop = RandomCrop(size=16)
    assert np.array_equal(crop(jpeg(), 3), plain(jpeg(), crop, 3))


@pytest.mark.parametrize("size", [(60, 40), (600, 400)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photographs_are_cropped_upright(orientation: int, size: tuple[int, int]) -> None:
    image = photograph(*size)
    exif = image.getexif()
    exif[0x0112] = orientation
    turned = reopened(image, "JPEG", exif=exif, quality=95)
    upright = ImageOps.exif_transpose(reopened(image, "JPEG", exif=exif, quality=95))
    crop = RandomCrop(size=16, scale=(0.5, 1.0))
    difference = np.abs(crop(turned, 1).astype(int) - plain(upright, crop, 1))
    assert difference.max() < (1 if size == (60, 40) else 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": (0.0, 1.0)}, "scale must be a range above 0"),
        ({"scale": (0.5, 1.5)}, "scale"),
        ({"scale": (0.9, 0.8)}, "scale"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
        ({"ratio": (1.0, math.inf)}, "ratio"),
        ({"shorter_side": (15, 20)}, "shorter_side must be a range above 15"),
        ({"interpolation": "cubic"}, "interpolation must be one of nearest"),
    ],
)
def test_impossible_ranges_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomCrop(size=16, **change)  # type: ignore[arg-type]
