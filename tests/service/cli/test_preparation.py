"""Options that say how images are prepared."""

from __future__ import annotations

import pytest

from models.preprocess import CIFAR, IMAGENET
from service.cli.preparation import changed


def test_images_are_resized_in_the_same_proportion_to_another_size() -> None:
    assert changed(CIFAR, {"size": 64}).resize == 64
    assert changed(IMAGENET, {"size": 112}).resize == 128
    assert changed(IMAGENET, {"size": (112, 224)}).resize == (128, 256)
    assert changed(IMAGENET, {"size": 112, "resize": 120}).resize == 120


def test_other_channels_have_the_statistics_of_the_colours() -> None:
    grey, blue = changed(CIFAR, {"channels": "grey"}), changed(CIFAR, {"channels": "bgr"})
    assert grey.mean == pytest.approx((sum(CIFAR.mean) / 3,))
    assert blue.mean == CIFAR.mean[::-1]
    assert changed(CIFAR, {"channels": "rgba"}).mean == (*CIFAR.mean, 0.5)
    assert changed(grey, {"channels": "rgb"}).std == grey.std * 3
    assert changed(CIFAR, {"channels": "grey", "mean": (0.1,)}).mean == (0.1,)


def test_nothing_given_changes_nothing() -> None:
    assert changed(CIFAR, {"size": None, "mean": None, "std": "auto"}) == CIFAR
