"""Ten crops are where the papers have them, and their answers are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.evaluation.ten_crop import averaged, ten, whole
from models.preprocess import CIFAR, IMAGENET, InputSpec, resize_and_crop, upright


def numbered(height: int, width: int) -> NDArray[np.uint8]:
    """Each pixel tells its row and its column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, rows * 0], axis=-1).astype(np.uint8)


def test_the_crops_are_the_corners_the_centre_and_their_mirrors() -> None:
    views = ten(numbered(6, 8), 4, 4)
    assert {view.shape for view in views} == {(4, 4, 3)}
    corners = [tuple(view[0, 0, :2].tolist()) for view in views[:5]]
    assert corners == [(0, 0), (0, 4), (2, 0), (2, 4), (1, 2)]
    for view, mirrored in zip(views[:5], views[5:], strict=True):
        assert np.array_equal(mirrored, np.flip(view, axis=1))


@pytest.mark.parametrize("size", [(300, 256), (256, 341), (500, 375)])
def test_the_centre_is_what_is_served(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    read = resize_and_crop(image, whole(IMAGENET))
    assert read.shape == (256, 256, 3)
    assert np.array_equal(ten(read, 224, 224)[4], resize_and_crop(image, IMAGENET))


def test_answers_are_averaged_image_by_image() -> None:
    def corner(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        assert all(image.shape == (4, 4, 3) for image in images)
        first = np.array([[image[0, 0, 0], image[0, 0, 1]] for image in images])
        return first.astype(np.float32)

    image = numbered(6, 8)
    spec = replace(CIFAR, size=4, resize=6)
    found = averaged(corner, spec)([image, image + 10])
    assert found.dtype == np.float32
    # Columns: the views' left edges, and of the mirrors their right ones, three further on.
    row, column = (0 + 0 + 2 + 2 + 1) / 5, (0 + 4 + 0 + 4 + 2) / 5 + 3 / 2
    np.testing.assert_allclose(found, [[row, column], [row + 10, column + 10]], rtol=1e-6)


def test_images_read_at_the_networks_size_have_no_ten_crops() -> None:
    with pytest.raises(ValueError, match="more than the 32 pixels"):
        whole(CIFAR)
    spec = replace(IMAGENET, crop="before_resize")
    assert whole(spec) == replace(spec, size=256)
    with pytest.raises(ValueError, match="more than the 32 x 64 pixels"):
        whole(replace(CIFAR, size=(32, 64), resize=(32, 64)))
    with pytest.raises(ValueError, match="more than the 32 pixels"):
        whole(replace(CIFAR, size=32, resize=24, crop="letterbox"))


@pytest.mark.parametrize(
    "spec",
    [
        replace(IMAGENET, size=(20, 32), resize=(28, 40)),
        replace(IMAGENET, size=20, resize=24, crop="squash"),
        replace(IMAGENET, size=20, resize=24, channels="grey", mean=(0.5,), std=(0.5,)),
        replace(IMAGENET, size=20, resize=24, channels="bgr"),
    ],
)
def test_other_inputs_have_ten_crops_too(spec: InputSpec) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    image = upright(Image.fromarray(noise), spec.channels)
    views = ten(resize_and_crop(image, whole(spec)), spec.height, spec.width)
    assert {view.shape for view in views} == {spec.shape}
    assert np.array_equal(views[4], resize_and_crop(image, spec)), "the centre is what is served"
