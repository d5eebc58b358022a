"""Resizing and cropping equal Pillow's own, to the bit."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from models import preprocess
from models.classifier import Normalise
from models.preprocess import (
    CIFAR,
    IMAGENET,
    InputSpec,
    decode_at_scale,
    region,
    resize_and_crop,
    steps,
    upright,
    upright_rgb,
)
from tests.support import rounding

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Image, resize, size; then what torchvision's Resize and CenterCrop make of them: the longer
# side truncated, half a pixel rounded to the even one.
SIZES = [
    pytest.param((500, 375), 256, 224, (341, 256), (58, 16), id="landscape"),
    pytest.param((375, 500), 256, 224, (256, 341), (16, 58), id="portrait"),
    pytest.param((300, 300), 256, 224, (256, 256), (16, 16), id="square"),
    pytest.param((333, 250), 256, 224, (340, 256), (58, 16), id="longer side truncated"),
    pytest.param((301, 203), 233, 224, (345, 233), (60, 4), id="odd sizes"),
    pytest.param((31, 77), 256, 224, (256, 635), (16, 206), id="enlarged"),
    pytest.param((77, 31), 256, 224, (635, 256), (206, 16), id="half a pixel to the right"),
    pytest.param((1, 3), 8, 5, (8, 24), (2, 10), id="one pixel wide"),
    pytest.param((224, 227), 224, 224, (224, 227), (0, 2), id="only cropped"),
    pytest.param((224, 225), 224, 224, (224, 225), (0, 0), id="half a pixel over"),
    pytest.param((97, 97), 32, 32, (32, 32), (0, 0), id="only resized"),
    pytest.param((32, 32), 32, 32, (32, 32), (0, 0), id="as it is"),
]


def noise(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("interpolation", list(RESAMPLING))
@pytest.mark.parametrize(("image_size", "resize", "size", "resized", "corner"), SIZES)
def test_pixels_equal_pillows_own_resize_and_crop(
    image_size: tuple[int, int],
    resize: int,
    size: int,
    resized: tuple[int, int],
    corner: tuple[int, int],
    interpolation: Any,
) -> None:
    image = noise(*image_size)
    spec = replace(IMAGENET, size=size, resize=resize, interpolation=interpolation)
    left, top = corner
    expected = image if resized == image_size else image.resize(resized, RESAMPLING[interpolation])
    expected = expected.crop((left, top, left + size, top + size))
    pixels = resize_and_crop(image, spec)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(expected))


# Image, and the square of 7/8 of its shorter side.
SQUARES = [
    ((256, 256), (16, 16, 240, 240)),
    ((300, 257), (38, 17, 262, 241)),
    ((101, 640), (7, 276, 95, 364)),
    ((1, 9), (0, 4, 1, 5)),
]


@pytest.mark.parametrize("interpolation", list(RESAMPLING))
@pytest.mark.parametrize(("image_size", "box"), SQUARES)
def test_an_image_may_be_cropped_before_it_is_resized(
    image_size: tuple[int, int], box: tuple[int, int, int, int], interpolation: Any
) -> None:
    """Of the shorter side 7/8, in whole pixels; an odd one is left out before, not after."""
    image = noise(*image_size)
    spec = replace(IMAGENET, crop="before_resize", interpolation=interpolation)
    expected = image.crop(box).resize((224, 224), RESAMPLING[interpolation])
    assert np.array_equal(resize_and_crop(image, spec), np.asarray(expected))


@pytest.mark.parametrize("image_size", [(32, 32), (40, 32), (64, 64)])
def test_the_array_is_new_contiguous_and_writable(image_size: tuple[int, int]) -> None:
    image = noise(*image_size)
    before = image.tobytes()
    pixels = resize_and_crop(image, CIFAR)
    assert pixels.flags.c_contiguous
    pixels ^= 255
    assert image.tobytes() == before


def test_rows_are_rows_and_channels_are_red_green_blue() -> None:
    image = Image.new("RGB", (8, 8))
    image.putpixel((5, 2), (10, 20, 30))
    pixels = resize_and_crop(image, replace(CIFAR, size=8, resize=8))
    assert pixels[2, 5].tolist() == [10, 20, 30]
    assert pixels.sum() == 60


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"channels": "cmyk"}, "channels must be one of rgb, bgr, grey, rgba, not 'cmyk'"),
    ({"channels": "grey"}, "mean must be one number, not (0.4914, 0.4822, 0.4465)"),
    ({"size": (32, 0)}, "size must be a positive integer, or height and width, not (32, 0)"),
    ({"size": (1, 2, 3)}, "size must be a positive integer, or height and width, not (1, 2, 3)"),
    ({"size": (16, 33)}, "resize must be at least size ((16, 33)), not 32"),
    ({"size": 5000, "crop": "letterbox"}, "size and resize must be at most 4096, not 5000"),
    ({"fill": (1, 2, 3)}, "fill is only for the crop letterbox"),
    (
        {"fill": (1, 2), "crop": "letterbox"},
        "fill must be 3 integers from 0 to 255, or empty, not (1, 2)",
    ),
    (
        {"fill": (1, 2, 256), "crop": "letterbox"},
        "fill must be 3 integers from 0 to 255, or empty, not (1, 2, 256)",
    ),
    (
        {"size": (16, 32), "crop": "before_resize"},
        "crop before_resize needs a square size and resize",
    ),
    ({"size": 0}, "size must be a positive integer, or height and width, not 0"),
    ({"size": 32.0}, "size must be a positive integer, or height and width, not 32.0"),
    ({"size": True}, "size must be a positive integer, or height and width, not True"),
    ({"resize": "32"}, "resize must be a positive integer, or height and width, not '32'"),
    ({"resize": 4097}, "size and resize must be at most 4096, not 4097"),
    ({"resize": 31}, "resize must be at least size (32), not 31"),
    (
        {"crop": "corner"},
        "crop must be one of center, center_floor, center_truncate, before_resize, squash, "
        "letterbox, not 'corner'",
    ),
    (
        {"interpolation": "cubic"},
        "interpolation must be one of nearest, bilinear, bicubic, lanczos, not 'cubic'",
    ),
    ({"mean": (0.5, 0.5)}, "mean must be three numbers (red, green, blue), not (0.5, 0.5)"),
    (
        {"mean": (123.7, 116.8, 103.9)},
        "mean must be of values scaled to [0, 1], not (123.7, 116.8, 103.9): divide it and std by "
        "255 if they are of values to 255",
    ),
    ({"mean": 0.5}, "mean must be three numbers (red, green, blue), not 0.5"),
    ({"std": ("1", 1, 1)}, "std must be three numbers (red, green, blue), not ('1', 1, 1)"),
    ({"std": (1, 0, 1)}, "std must be above 0, not (1.0, 0.0, 1.0)"),
    ({"std": (1, 1, -1)}, "std must be above 0, not (1.0, 1.0, -1.0)"),
]


@pytest.mark.parametrize(
    ("changes", "message"), IMPOSSIBLE, ids=[str(changes) for changes, _ in IMPOSSIBLE]
)
def test_an_impossible_value_is_named_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        replace(CIFAR, **changes)
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["mean", "std"])
def test_means_and_deviations_are_finite(field: Any, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        InputSpec(**{**asdict(CIFAR), field: (0.5, value, 0.5)})


def test_lists_and_whole_numbers_become_tuples_of_floats() -> None:
    values: Any = {"mean": [0, 0.5, 1], "std": [1, 1, 1]}
    spec = InputSpec(size=1, resize=1, **values)
    assert spec.mean == (0.0, 0.5, 1.0)
    assert all(type(value) is float for value in (*spec.mean, *spec.std))
    assert hash(spec) == hash(replace(spec))


def test_decoding_processes_never_import_torch() -> None:
    code = "import sys, models, models.preprocess, models.labels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def zoo(image: Image.Image) -> Any:
    """The ONNX model zoo's images: float32 [3, 224, 224], step by step as it describes them."""
    ratio = 256 / min(image.size)
    if image.width > image.height:
        size = (round(ratio * image.width), 256)
    else:
        size = (256, round(ratio * image.height))
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    height, width, _ = pixels.shape
    left, top = width // 2 - 112, height // 2 - 112
    cut = pixels[top : top + 224, left : left + 224].transpose(2, 0, 1)
    mean, std = (np.array(each).reshape(3, 1, 1) for each in (IMAGENET.mean, IMAGENET.std))
    return ((cut / 255 - mean) / std).astype(np.float32)


@pytest.mark.parametrize(
    "size",
    [
        (500, 375),
        (375, 500),
        (333, 250),
        (300, 300),
        (256, 256),
        (301, 203),
        (31, 77),
        (77, 31),
        (256, 257),
        (259, 256),
        (1000, 667),
        (640, 427),
    ],
    ids=str,
)
def test_the_model_zoos_images_are_ours_after_normalisation(size: tuple[int, int]) -> None:
    image = noise(*size)
    spec = replace(IMAGENET, crop="center_floor")
    pixels = torch.from_numpy(resize_and_crop(image, spec))[None]
    ours = Normalise(spec)(pixels)[0].numpy()
    # Each is a product and a sum, of factors that were rounded once; no term is larger than 5.
    np.testing.assert_allclose(ours, zoo(image), rtol=0, atol=5 * 8 * rounding.unit("fp32"))


def test_the_model_zoo_crops_where_torchvision_does_not() -> None:
    """An odd rest is halved downwards, and a longer side rounded."""
    for size in ((259, 256), (333, 250)):
        image = noise(*size)
        theirs = resize_and_crop(image, replace(IMAGENET, crop="center_floor"))
        assert not np.array_equal(theirs, resize_and_crop(image, IMAGENET))


@pytest.mark.parametrize(("image_size", "resize", "size", "resized", "corner"), SIZES)
def test_the_region_that_is_kept_is_that_of_the_crop(
    image_size: tuple[int, int],
    resize: int,
    size: int,
    resized: tuple[int, int],
    corner: tuple[int, int],
) -> None:
    (width, height), (left, top) = resized, corner
    found = region(*image_size, replace(IMAGENET, size=size, resize=resize))
    assert found == (left / width, top / height, size / width, size / height)


@pytest.mark.parametrize(("image_size", "box"), SQUARES)
def test_the_region_that_is_kept_is_that_of_the_square(
    image_size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    (width, height), (left, top, right, lower) = image_size, box
    found = region(width, height, replace(IMAGENET, crop="before_resize"))
    assert found == (left / width, top / height, (right - left) / width, (lower - top) / height)


def test_the_region_of_the_model_zoo_is_of_a_rounded_side() -> None:
    """333 to 250 pixels become 340.99 to 256."""
    spec = replace(IMAGENET, crop="center_floor")
    assert region(333, 250, spec) == (58 / 341, 16 / 256, 224 / 341, 224 / 256)
    assert region(250, 333, spec) == (16 / 256, 58 / 341, 224 / 256, 224 / 341)


def test_the_model_zoo_crops_an_odd_size_at_a_whole_pixel() -> None:
    spec = replace(IMAGENET, crop="center_floor", size=7, resize=8)
    assert region(8, 11, spec) == (1 / 8, 2 / 11, 7 / 8, 7 / 11)
    image = noise(8, 11)
    assert np.array_equal(resize_and_crop(image, spec), np.asarray(image.crop((1, 2, 8, 9))))


@pytest.mark.parametrize(
    ("size", "decoded", "why"),
    [
        ((128, 128), (64, 64), "of half the size there is twice as much as is resized to"),
        ((127, 127), (127, 127), "of half of it there is not"),
        ((127, 600), (127, 600), "the shorter side counts"),
        ((600, 127), (600, 127), "the shorter side counts"),
        ((256, 300), (64, 75), "a quarter"),
        ((255, 300), (128, 150), "a quarter is not enough"),
        ((512, 528), (64, 66), "an eighth"),
        ((1040, 1048), (130, 131), "an eighth is the least"),
    ],
)
def test_a_jpeg_is_decoded_at_the_scale_that_resizing_needs(
    size: tuple[int, int], decoded: tuple[int, int], why: str
) -> None:
    for kind, expected in (("JPEG", decoded), ("PNG", size)):
        buffer = io.BytesIO()
        noise(*size).save(buffer, kind)
        with Image.open(buffer) as image:
            decode_at_scale(image, CIFAR)
            image.load()
            assert (image.size, image.mode) == (expected, "RGB"), why


@pytest.mark.parametrize("channels", get_args(preprocess.Channels))
def test_sixteen_bits_are_cut_to_eight_for_all_channels(channels: Any) -> None:
    values = np.array([[0, 255, 256, 32_768, 65_535]], dtype=np.uint16)
    pixels = np.asarray(upright(Image.fromarray(values), channels)).reshape(5, -1)
    colours = pixels[:, :3]
    assert (colours == np.array([[0], [0], [1], [128], [255]])).all()
    assert (pixels[:, 3:] == 255).all()


@pytest.mark.parametrize("exif", [b"Exif\0\0" + b"\xff" * 40, b"Exif\0\0MM", b"\0"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_image_with_broken_exif_stands_as_it_is(kind: str, exif: bytes) -> None:
    buffer, options = io.BytesIO(), {"lossless": True} if kind == "WEBP" else {}
    noise(9, 7).save(buffer, kind, exif=exif, **options)
    with Image.open(buffer) as image:
        assert np.array_equal(np.asarray(upright_rgb(image)), np.asarray(noise(9, 7)))


@pytest.mark.parametrize("orientation", [0, 1, 9, 65_535])
def test_an_orientation_that_means_nothing_turns_nothing(orientation: int) -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    noise(9, 7).save(buffer, "PNG", exif=exif)
    with Image.open(buffer) as image:
        assert np.array_equal(np.asarray(upright_rgb(image)), np.asarray(noise(9, 7)))


@pytest.mark.parametrize("size", [(9, 7), (10, 2), (20, 3), (21, 1), (30, 3)])
def test_a_large_image_is_converted_in_bands_of_at_least_a_row(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "BAND_PIXELS", 20)
    image = noise(*size).convert("CMYK")
    assert np.array_equal(np.asarray(upright_rgb(image)), np.asarray(image.convert("RGB")))


COVERED = [
    # Image, size and resize as height and width; then what it is resized to, and the corner.
    pytest.param((500, 375), (160, 224), 256, (341, 256), (58, 48), id="shorter side given"),
    pytest.param((500, 375), (160, 224), (183, 256), (256, 192), (16, 16), id="width binds"),
    pytest.param((800, 375), (160, 224), (183, 256), (390, 183), (83, 12), id="height binds"),
    pytest.param((256, 183), (160, 224), (183, 256), (256, 183), (16, 12), id="only cropped"),
]


@pytest.mark.parametrize(("image_size", "size", "resize", "resized", "corner"), COVERED)
def test_an_image_is_resized_to_cover_a_box_that_is_no_square(
    image_size: tuple[int, int],
    size: tuple[int, int],
    resize: Any,
    resized: tuple[int, int],
    corner: tuple[int, int],
) -> None:
    spec = replace(IMAGENET, size=size, resize=resize)
    assert steps(*image_size, spec)[1:] == (resized, corner)
    image = noise(*image_size)
    left, top = corner
    whole = image.resize(resized, Image.Resampling.BILINEAR)
    expected = whole.crop((left, top, left + size[1], top + size[0]))
    assert np.array_equal(resize_and_crop(image, spec), np.array(expected))
    assert resize_and_crop(image, spec).shape == spec.shape == (*size, 3)


@pytest.mark.parametrize("image_size", [(500, 375), (31, 77), (48, 32)])
def test_a_squashed_image_loses_its_proportions(image_size: tuple[int, int]) -> None:
    """As `Resize((h, w))` of torchvision does."""
    spec = replace(CIFAR, size=(32, 48), resize=(32, 48), crop="squash")
    image = noise(*image_size)
    expected = image.resize((48, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(resize_and_crop(image, spec), np.array(expected))
    cropped = replace(CIFAR, size=32, resize=40, crop="squash")
    expected = image.resize((40, 40), Image.Resampling.BILINEAR).crop((4, 4, 36, 36))
    assert np.array_equal(resize_and_crop(image, cropped), np.array(expected))
    assert region(*image_size, spec) == (0, 0, 1, 1)


@pytest.mark.parametrize("fill", [(), (10, 20, 30)])
@pytest.mark.parametrize(
    ("image_size", "resized"),
    [((500, 375), (32, 24)), ((31, 77), (13, 32)), ((9, 9), (32, 32)), ((1, 400), (1, 32))],
)
def test_a_letterboxed_image_is_whole_on_its_background(
    image_size: tuple[int, int], resized: tuple[int, int], fill: tuple[int, ...]
) -> None:
    """As `ImageOps.pad` of Pillow does, but for the half pixel."""
    spec = replace(CIFAR, crop="letterbox", fill=fill)
    image = noise(*image_size)
    expected = Image.new("RGB", (32, 32), fill or (0, 0, 0))
    corner = (32 - resized[0]) // 2, (32 - resized[1]) // 2
    expected.paste(image.resize(resized, Image.Resampling.BILINEAR), corner)
    assert np.array_equal(resize_and_crop(image, spec), np.array(expected))
    left, top, width, height = region(*image_size, spec)
    assert (left, top) == (-corner[0] / resized[0], -corner[1] / resized[1])
    assert (width, height) == (32 / resized[0], 32 / resized[1])


def test_channels_come_in_the_order_that_the_network_sees() -> None:
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    bgr = replace(CIFAR, size=8, resize=8, channels="bgr")
    assert resize_and_crop(upright(image, "bgr"), bgr)[0, 0].tolist() == [50, 100, 200]
    assert resize_and_crop(upright(image, "bgr"), bgr).flags.c_contiguous
    grey = replace(CIFAR, size=8, resize=8, channels="grey", mean=(0.5,), std=(0.5,))
    luma = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert resize_and_crop(upright(image, "grey"), grey).tolist() == [[[luma]] * 8] * 8
    rgba = replace(CIFAR, size=8, resize=8, channels="rgba", mean=(0.5,) * 4, std=(0.5,) * 4)
    assert resize_and_crop(upright(image, "rgba"), rgba)[0, 0].tolist() == [200, 100, 50, 255]


def test_what_is_transparent_is_white_for_a_network_that_sees_no_alpha() -> None:
    image = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    assert upright(image, "grey").getpixel((0, 0)) == 255
    assert upright(image, "rgb").getpixel((0, 0)) == (255, 255, 255)
    assert upright(image, "rgba").getpixel((0, 0)) == (200, 100, 50, 0)


@pytest.mark.parametrize("channels", get_args(preprocess.Channels))
def test_every_kind_of_image_stands_upright(channels: Any) -> None:
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[preprocess.ORIENTATION] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    assert upright(Image.open(file), channels).size == (2, 4)


@pytest.mark.parametrize("crop", ["center", "squash", "letterbox"])
def test_a_jpeg_keeps_twice_the_pixels_of_the_longer_side_of_a_box(crop: Any) -> None:
    file = io.BytesIO()
    noise(800, 400).save(file, "JPEG")
    size = (25, 100) if crop != "center" else (25, 50)
    opened = Image.open(file)
    decode_at_scale(opened, replace(IMAGENET, size=size, resize=size, crop=crop))
    assert opened.size == ((400, 200) if size[1] == 100 else (200, 100))


@pytest.mark.parametrize(("size", "kept"), [([32, 32], 32), ((32, 32), 32), ([16, 32], (16, 32))])
def test_two_numbers_that_are_equal_are_one(size: Any, kept: Any) -> None:
    assert replace(CIFAR, size=size).size == kept


@pytest.mark.parametrize("size", [(547, 673), (135, 160), (301, 691), (158, 124)])
def test_transformers_truncates_the_side_and_the_corner(size: tuple[int, int]) -> None:
    width, height = size
    spec = replace(IMAGENET, crop="center_truncate")
    longer = int(256 * max(size) / min(size))
    resized = (256, longer) if width < height else (longer, 256)
    made = steps(width, height, spec)
    assert made.resized == resized
    assert made.corner == ((resized[0] - 224) // 2, (resized[1] - 224) // 2)


def test_a_box_that_is_no_square_is_covered_by_rounded_sides() -> None:
    spec = replace(IMAGENET, size=(160, 224), resize=(177, 248))
    # Both ratios: the height covers the box, then the width.
    assert steps(400, 215, spec).resized == (round(400 * 177 / 215), 177)
    assert steps(301, 500, spec).resized == (248, round(500 * 248 / 301))
    assert steps(301, 500, spec).resized != (248, int(500 * 248 / 301))
