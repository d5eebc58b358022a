"""A set that is unfit for training is refused or commented on; a fit one is not."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.data.advice import advice, check
from models.data.collection import Collection, find
from models.preprocess import CIFAR, IMAGENET, InputSpec

GREY = InputSpec(size=32, resize=32, mean=(0.5,), std=(0.5,), channels="grey")


def made(
    path: Path,
    sizes: dict[str, int],
    side: tuple[int, int] = (40, 32),
    *,
    grey: bool = False,
    same: bool = False,
) -> Collection:
    """Noise of so many images of each class."""
    generator = np.random.default_rng(0)
    for name, count in sizes.items():
        (path / name).mkdir(parents=True)
        for index in range(count):
            shape = (4, 4) if grey else (4, 4, 3)
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            if same:
                pixels[:] = 7, 80, 99
            Image.fromarray(pixels).resize(side).save(path / name / f"{index}.png")
    return find(path)


FIT = {"cat": 15, "dog": 12, "owl": 10}


def test_a_fit_set_needs_no_advice(tmp_path: Path) -> None:
    assert advice(made(tmp_path, FIT), CIFAR) == []


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"cat": 9, "dog": 9}, "18 images in all are too few to learn from; collect at least 20"),
        ({"cat": 20, "dog": 3, "owl": 1}, "a single image of 'owl', which leaves none for valida"),
        ({"cat": 30, "dog": 3}, "30 images of 'cat' but 3 of 'dog'; --balance loss or --bal"),
    ],
)
def test_what_is_lacking_is_said(tmp_path: Path, sizes: dict[str, int], words: str) -> None:
    said = advice(made(tmp_path, sizes), CIFAR)
    assert words in said[0]


def test_one_class_is_refused_and_so_are_several_labels(tmp_path: Path) -> None:
    one = made(tmp_path / "one", {"rose": 4})
    with pytest.raises(ValueError, match=r"one: training needs at least two .* 4 .* of 'rose'\Z"):
        advice(one, CIFAR)
    several = replace(one, targets=np.ones((4, 1), dtype=np.bool_))
    with pytest.raises(ValueError, match="training takes images with one label each"):
        check(several)


def test_classes_without_training_images_are_named(tmp_path: Path) -> None:
    collection = replace(made(tmp_path, FIT), classes=("cat", "dog", "owl", "rat"))
    assert advice(collection, CIFAR) == ["no training images of 'rat'"]


def test_other_sets_may_lack_classes_but_have_no_more(tmp_path: Path) -> None:
    training = made(tmp_path / "train", FIT)
    part = made(tmp_path / "val", {"dog": 2})
    assert advice(training, CIFAR, [part]) == [
        "val has no images of 'cat', 'owl'; accuracy is that of the other classes"
    ]
    assert part.relabelled(training.classes).targets.tolist() == [1, 1]
    more = made(tmp_path / "test", dict.fromkeys(["dog", "elk", "fox", *"abcde"], 1))
    said = r"test: classes 'a', 'b', 'c', 'd', 'e' and 2 more are not among the model's labels"
    with pytest.raises(ValueError, match=said):
        advice(training, CIFAR, [more])


@pytest.mark.parametrize(
    ("spec", "side", "words"),
    [
        (IMAGENET, (64, 48), "are 64 x 48 pixels (median) and are enlarged to 224 x 224; --size 4"),
        (CIFAR, (300, 200), "200 pixels (median) for an input of 32 x 32, and decoding them takes"),
    ],
)
def test_sizes_far_from_the_networks_are_said(
    tmp_path: Path, spec: InputSpec, side: tuple[int, int], words: str
) -> None:
    (said,) = advice(made(tmp_path, FIT, side), spec)
    assert words in said


def test_grey_and_equal_images_are_said(tmp_path: Path) -> None:
    grey = made(tmp_path / "grey", FIT, grey=True)
    assert advice(grey, CIFAR) == [
        "the images are grey, and the network sees rgb; --channels grey needs less"
    ]
    assert advice(grey, GREY) == []
    (said,) = advice(made(tmp_path / "same", FIT, same=True), CIFAR)
    assert said == "all of the 32 images looked at are the same picture"


def test_images_in_16_bits_are_not_taken_for_one_picture(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for index in range(24):
        folder = tmp_path / "ab"[index % 2]
        folder.mkdir(exist_ok=True)
        pixels = generator.integers(1000, 2**16, (32, 32), dtype=np.uint16)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    assert advice(find(tmp_path), GREY) == []
    assert advice(find(tmp_path), CIFAR) == [
        "the images are grey, and the network sees rgb; --channels grey needs less"
    ]


def test_unreadable_images_and_compressed_archives_are_looked_at_too(tmp_path: Path) -> None:
    made(tmp_path / "set", FIT)
    (tmp_path / "set" / "cat" / "0.png").write_bytes(b"")
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "set", "set")
    for name in ("set", "set.tar.gz"):
        assert "enlarged" in advice(find(tmp_path / name), IMAGENET)[0]


def test_what_was_noticed_while_listing_is_said(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    assert advice(made(tmp_path, FIT), CIFAR) == ["folders without images are no classes: ray"]
