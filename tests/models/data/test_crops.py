"""Random crops are those that a plain computation takes, and are drawn as the papers say."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps

from models.data.augment import Augmentation
from models.data.choices import PaddingMode
from models.data.collection import Centre
from models.data.crops import RandomCrop, ShiftedCrop, crop_for, trained_at
from models.preprocess import CHANNELS, IMAGENET, Channels, InputSpec


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


@pytest.mark.parametrize(
    "crop",
    [
        RandomCrop(size=16),
        RandomCrop(size=16, shorter_side=(16, 40)),
        RandomCrop(size=(12, 20)),
        RandomCrop(size=(20, 12), shorter_side=(20, 40)),
        RandomCrop(size=16, squash=True),
    ],
)
def test_a_crop_is_cropped_resized_and_mirrored(crop: RandomCrop) -> None:
    image = photograph(60, 45)
    for seed in range(20):
        pixels = crop(reopened(image), seed)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (*crop.sides, 3)
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


def test_a_crops_ratio_is_that_of_the_networks_input_or_of_the_image() -> None:
    random = np.random.default_rng(0)
    for crop, shape in (
        (RandomCrop(size=(80, 160), ratio=(0.9, 1.1)), 2.0),
        (RandomCrop(size=80, squash=True, ratio=(0.9, 1.1)), 1000 / 400),
    ):
        for _ in range(200):
            left, top, right, bottom = crop.box(1000, 400, random)
            assert 0.85 * shape < (right - left) / (bottom - top) < 1.15 * shape


def test_a_scaled_crop_is_never_larger_than_the_image() -> None:
    crop, random = RandomCrop(size=(10, 30), shorter_side=(30, 30)), np.random.default_rng(0)
    for width, height in ((40, 40), (20, 90), (1, 1)):
        left, top, right, bottom = crop.box(width, height, random)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


@pytest.mark.parametrize("channels", ["grey", "bgr", "rgba"])
def test_the_channels_of_a_crop_are_the_networks(channels: Channels) -> None:
    image = photograph(60, 45)
    rgb = RandomCrop(size=16)(reopened(image), 1)
    found = RandomCrop(size=16, channels=channels)(reopened(image), 1)
    assert found.shape == (16, 16, CHANNELS[channels])
    assert found.flags.c_contiguous
    if channels == "bgr":
        assert np.array_equal(found, rgb[:, :, ::-1])
    elif channels == "rgba":
        assert np.array_equal(found[..., :3], rgb)
        assert (found[..., 3] == 255).all()
    else:
        luma = rgb @ [0.299, 0.587, 0.114]
        assert np.abs(found[..., 0] - luma).max() < 2


SPEC = InputSpec(size=(8, 10), resize=(10, 12), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_a_shifted_crop_is_the_served_image_behind_a_border(mode: PaddingMode) -> None:
    image, crop = photograph(30, 25), ShiftedCrop(spec=SPEC, padding=2, mode=mode)
    served = torch.from_numpy(Centre(SPEC)(image)).permute(2, 0, 1).float()
    padded = F.pad(served, (2,) * 4, mode="constant" if mode == "zeros" else "reflect")
    allowed = {
        (flip, top, left): (cut.flip(2) if flip else cut).permute(1, 2, 0).byte().numpy().tobytes()
        for top in range(5)
        for left in range(5)
        for cut in [padded[:, top : top + 8, left : left + 10]]
        for flip in (False, True)
    }
    seen = {crop(image, seed).tobytes() for seed in range(300)}
    assert seen == set(allowed.values())
    assert crop(image, 3).tobytes() == crop(image, 3).tobytes()
    still = ShiftedCrop(spec=SPEC, padding=0, mode=mode, flip=False)
    assert np.array_equal(still(image, 0), Centre(SPEC)(image))


def test_an_image_is_not_shifted_behind_more_than_itself() -> None:
    with pytest.raises(ValueError, match="crop_padding must be less than the images' 8 pixels"):
        ShiftedCrop(spec=SPEC, padding=8, mode="reflect")
    ShiftedCrop(spec=SPEC, padding=8)


def test_the_recipes_choice_of_crop_is_made() -> None:
    padded = crop_for(Augmentation(crop_padding=3, padding_mode="reflect"), SPEC)
    assert padded == ShiftedCrop(spec=SPEC, padding=3, mode="reflect")
    resized = crop_for(Augmentation(crops="resized", scale=(0.2, 0.9), flip=False), SPEC)
    assert resized == RandomCrop(size=(8, 10), scale=(0.2, 0.9), flip=False)
    scaled = crop_for(Augmentation(crops="scaled", shorter_side=(12, 20)), SPEC)
    assert scaled == RandomCrop(size=(8, 10), shorter_side=(12, 20))
    squashed = crop_for(Augmentation(crops="resized"), replace(SPEC, crop="squash"))
    assert squashed == RandomCrop(size=(8, 10), squash=True)
    alternating = crop_for(Augmentation(alternate_flip=True), SPEC)
    assert alternating.flip is False, "it is alternated afterwards"
    with pytest.raises(ValueError, match="shorter_side must be a range above 9, not 4 to 20"):
        crop_for(Augmentation(crops="scaled", shorter_side=(4, 20)), SPEC)


def test_another_size_of_training_keeps_the_proportions() -> None:
    assert trained_at(IMAGENET, 0) is IMAGENET
    smaller = trained_at(IMAGENET, 176)
    assert (smaller.size, smaller.resize) == (176, 201)
    wide = trained_at(replace(IMAGENET, size=(224, 160), resize=(256, 183)), 80)
    assert (wide.size, wide.box) == ((112, 80), (128, 92))
