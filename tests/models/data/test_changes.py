"""Colours and light change as fb.resnet.torch changes them, by a seed for each image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from models.data.augment import Augmentation
from models.data.changes import (
    EIGENVALUES,
    EIGENVECTORS,
    Changed,
    Changes,
    changes_for,
    jittered,
    lit,
)
from models.data.crops import RandomCrop
from models.preprocess import CIFAR, Channels, for_channels
from tests.support.libraries import import_torchvision


def noise(channels: int, height: int = 6, width: int = 5) -> NDArray[np.uint8]:
    random = np.random.default_rng(0)
    return random.integers(60, 190, (height, width, channels), dtype=np.uint8)


def test_jitter_is_torchvisions_by_the_same_factors_in_the_same_order() -> None:
    import_torchvision()
    from torchvision.transforms import functional

    adjust = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
    )
    image, orders = Image.fromarray(noise(3)), set()
    for seed in range(30):
        random = np.random.default_rng(seed)
        order = tuple(random.permutation(3).tolist())
        expected = image
        for number in order:
            expected = adjust[number](expected, random.uniform(0.6, 1.4))
        assert jittered(image, 0.4, np.random.default_rng(seed)).tobytes() == expected.tobytes()
        orders.add(order)
    assert len(orders) == 6


def test_a_strength_above_one_never_inverts() -> None:
    image = Image.fromarray(noise(3))

    class Lowest(np.random.Generator):
        def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
            assert (low, high) == (0.0, 3.0)
            return low

    assert not np.asarray(jittered(image, 2.0, Lowest(np.random.PCG64(0)))).any()


def test_light_moves_all_pixels_along_the_components() -> None:
    pixels = noise(3)
    shares = np.array([0.1, -0.2, 0.05])
    moved = np.asarray(lit(Image.fromarray(pixels), shares)).astype(int) - pixels
    expected = 255 * sum(
        EIGENVECTORS[:, each] * EIGENVALUES[each] * shares[each] for each in range(3)
    )
    assert np.abs(moved - expected).max() <= 0.5
    assert np.abs(moved - moved[0, 0]).max() == 0
    # The components are orthogonal and of unit length, to the digits that were published.
    assert np.allclose(EIGENVECTORS.T @ EIGENVECTORS, np.eye(3), atol=2e-4)


def test_light_stays_within_a_byte_and_leaves_alpha() -> None:
    pixels = np.concatenate([np.full((2, 2, 3), 254), np.full((2, 2, 1), 9)], axis=2)
    lighter = np.asarray(lit(Image.fromarray(pixels.astype(np.uint8)), np.array([-3.0, 0, 0])))
    assert (lighter == [255, 255, 255, 9]).all()


@pytest.mark.parametrize(("channels", "count"), [("rgb", 3), ("bgr", 3), ("grey", 1), ("rgba", 4)])
@pytest.mark.parametrize("auto", ["none", "rand", "trivial"])
def test_an_image_keeps_its_shape_and_its_seed_decides(
    channels: Channels, count: int, auto: Any
) -> None:
    spec = replace(for_channels(CIFAR, count), channels=channels)
    changes = changes_for(Augmentation(jitter=0.4, auto_augment=auto), spec)
    assert changes is not None
    first, again = changes(noise(count), 1), changes(noise(count), 1)
    assert first.shape == (6, 5, count)
    assert first.dtype == np.uint8
    assert first.flags.c_contiguous
    assert np.array_equal(first, again)
    results = {changes(noise(count), seed).tobytes() for seed in range(8)}
    assert len(results) > 4


def test_bgr_changes_as_rgb() -> None:
    rgb, bgr = Changes("rgb", jitter=0.4, lighting=0.1), Changes("bgr", jitter=0.4, lighting=0.1)
    pixels = noise(3)
    swapped = np.ascontiguousarray(pixels[:, :, ::-1])
    for seed in range(5):
        assert np.array_equal(bgr(swapped, seed)[:, :, ::-1], rgb(pixels, seed))


def test_the_alpha_of_an_image_does_not_jitter() -> None:
    changed = Changes("rgba", jitter=0.9)(noise(4), 3)
    assert np.array_equal(changed[..., 3], noise(4)[..., 3])
    assert not np.array_equal(changed, noise(4))


def test_images_one_pixel_wide_are_images_still() -> None:
    assert Changes("grey", jitter=0.4)(noise(1, 1, 4), 0).shape == (1, 4, 1)


def test_grey_images_have_no_lighting() -> None:
    with pytest.raises(ValueError, match="grey images have none: leave it out"):
        changes_for(Augmentation(lighting=0.1), for_channels(CIFAR, 1))


def test_nothing_asked_for_is_no_change() -> None:
    assert changes_for(Augmentation(cutout=8, erasing=0.5), CIFAR) is None


def test_a_batch_changes_as_its_images_do() -> None:
    changes = Changes("rgb", jitter=0.4)
    images = torch.from_numpy(np.stack([noise(3)] * 5))
    with ThreadPoolExecutor(2) as threads:
        batch = changes.of_batch(images, list(range(5)), threads)
    for seed, image in enumerate(batch):
        assert np.array_equal(image.numpy(), changes(noise(3), seed))
    assert (images == images[0]).all(), "the images stay as they were"


def test_an_opened_image_is_cropped_and_then_changed() -> None:
    crop, changes = RandomCrop(size=8), Changes("rgb", jitter=0.4)
    image = Image.fromarray(noise(3, 20, 30))
    assert np.array_equal(Changed(crop, changes)(image, 5), changes(crop(image, 5), 5))
