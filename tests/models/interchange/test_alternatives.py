"""A network that differs from a pair is found again among those with the same tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models import bundling
from models.architecture import Architecture
from models.bundle import Bundle
from models.interchange import alternatives, comparison
from models.interchange.reference import Pair
from models.preprocess import CIFAR, IMAGENET, InputSpec, resize_and_crop, upright
from models.resnet import ResNet
from tests.support import tiny

WIDE = Architecture(
    block="bottleneck", blocks=(1, 2, 1), planes=(4, 8, 16), stem="imagenet", num_classes=6
)
SPEC = replace(IMAGENET, size=64, resize=72)


def made(architecture: Architecture, spec: InputSpec = SPEC, **described: Any) -> Bundle:
    network = tiny.randomised(ResNet(architecture))
    labels = [f"class {n}" for n in range(architecture.num_classes)]
    fields = {"name": "n", "input": spec, "labels": labels, "provenance": {"source": "a test"}}
    return bundling.from_network(network, **{**fields, **described})


def pair_of(of: Bundle, images: Any = None, count: int = 3) -> Pair:
    """What a bundle computes of images, as the network sees them if none are given."""
    if images is None:
        height, width, channels = of.input.shape
        shape = (count, channels, height, width)
        images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        seen = torch.from_numpy(images)
    else:
        pixels = images
        if isinstance(images, Image.Image):
            pixels = resize_and_crop(upright(images, of.input.channels), of.input)[None]
        elif of.input.channels == "bgr":
            pixels = images[..., ::-1].copy()
        seen = of.classifier().normalise(torch.from_numpy(pixels))
    with torch.no_grad():
        return Pair("a", images, of.network()(seen).numpy())


def as_assumed(of: Bundle, **fields: Any) -> Bundle:
    """The same tensors, in a network that the file does not contradict."""
    return replace(of, variant=None, **fields)


def found(of: Bundle, *pairs: Pair) -> alternatives.Search:
    assert not all(comparison.compare(of, pair).agrees for pair in pairs)
    return alternatives.search(of, pairs, comparison.TOLERANCE)


def options(search: alternatives.Search) -> list[str]:
    return [" ".join(fit.options) for fit in search.fits]


PREACT = replace(WIDE, preact=True)
BASIC = replace(WIDE, block="basic")
SMALL = replace(BASIC, stem="small")
STRUCTURES: list[tuple[Architecture, dict[str, Any], str]] = [
    (WIDE, {"stride_at": "1x1"}, "--set stride_at=1x1"),
    (WIDE, {"pool": "none"}, "--set pool=none"),
    (SMALL, {"pool": "max"}, "--set pool=max"),
    (WIDE, {"stem_stride": 1}, "--set stem_stride=1"),
    (SMALL, {"stem_stride": 2}, "--set stem_stride=2"),
    (WIDE, {"dilation": (2,)}, "--set 'dilation=[2]'"),
    (WIDE, {"dilation": (1, 2)}, "--set 'dilation=[1, 2]'"),
    (WIDE, {"antialias": "average"}, "--set antialias=average"),
    (BASIC, {"antialias": "blur"}, "--set antialias=blur"),
    (BASIC, {"padding": "same"}, "--set padding=same"),
    (BASIC, {"stem_padding": "same"}, "--set stem_padding=same"),
    (BASIC, {"pool_padding": "ceil"}, "--set pool_padding=ceil"),
    (PREACT, {"pool_padding": "same"}, "--set pool_padding=same"),
    (
        BASIC,
        dict.fromkeys(("padding", "stem_padding", "pool_padding"), "same"),
        "--set padding=same --set stem_padding=same --set pool_padding=same",
    ),
    (replace(SMALL, shortcut="A"), {"shortcut_padding": "end"}, "--set shortcut_padding=end"),
    (PREACT, {"preact_shortcut": "raw"}, "--set preact_shortcut=raw"),
    (WIDE, {"stride_stages": "all"}, "--set stride_stages=all"),
    (WIDE, {"eps": 1e-3}, "--set eps=0.001"),
]


@pytest.mark.parametrize(
    ("architecture", "structure", "option"), STRUCTURES, ids=[each[2] for each in STRUCTURES]
)
def test_another_structure_is_named_by_its_option(
    architecture: Architecture, structure: dict[str, Any], option: str
) -> None:
    theirs = made(replace(architecture, **structure))
    search = found(as_assumed(theirs, architecture=architecture), pair_of(theirs))
    assert option in options(search)
    assert search.fits[0].relative < comparison.TOLERANCE / 10
    # Nothing else is offered but what computes the same.
    assert len(search.fits) <= 2
    assert option in search.in_words()


def test_two_of_them_are_found_together() -> None:
    theirs = made(replace(WIDE, stride_at="1x1", pool="none"))
    search = found(as_assumed(theirs, architecture=WIDE), pair_of(theirs))
    assert options(search) == ["--set stride_at=1x1 --set pool=none"]


def test_other_weights_fit_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alternatives, "MOST_COMBINATIONS", 30)
    theirs = made(WIDE)
    other = made(WIDE)
    other.tensors["head.weight"] = torch.randn(other.tensors["head.weight"].shape)
    search = found(other, pair_of(theirs))
    assert search.fits == ()
    assert search.in_words() == f"none of {search.tried} known alternatives would fit"
    assert search.tried > 50


PIXELS = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
IMAGE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (81, 127, 3), np.uint8))
IMAGES: list[tuple[dict[str, Any], str]] = [
    ({"channels": "bgr"}, "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --channels bgr"),
    (
        {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        "--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5",
    ),
    ({"mean": CIFAR.mean, "std": CIFAR.std}, "--mean 0.4914,0.4822,0.4465 --std 0.247,0.2435,"),
    ({"mean": (0, 0, 0), "std": (1, 1, 1)}, "--mean 0,0,0 --std 1,1,1"),
    ({"mean": (0, 0, 0), "std": (1 / 255,) * 3}, "--mean 0,0,0 --std 0.00392156863,"),
]


@pytest.mark.parametrize(("fields", "option"), IMAGES, ids=str)
def test_another_normalisation_is_named(fields: dict[str, Any], option: str) -> None:
    theirs = made(WIDE, replace(SPEC, **fields))
    pair = pair_of(theirs, PIXELS)
    search = found(as_assumed(theirs, input=SPEC), pair)
    assert [option in each for each in options(search)] == [True]


def test_normalisation_is_found_from_values_up_to_1() -> None:
    theirs = made(WIDE, replace(SPEC, mean=(0.5,) * 3, std=(0.5,) * 3))
    pair = replace(pair_of(theirs, PIXELS), input=(PIXELS / 255).astype(np.float32))
    search = found(as_assumed(theirs, input=SPEC), pair)
    assert options(search) == ["--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5"]


def test_values_up_to_1_that_fit_as_they_are_may_mean_no_normalisation() -> None:
    theirs = made(WIDE, replace(SPEC, mean=(0,) * 3, std=(1,) * 3))
    pair = replace(pair_of(theirs, PIXELS), input=(PIXELS / 255).astype(np.float32))
    for spec, hinted in ((SPEC, True), (theirs.input, False)):
        compared = comparison.compare(as_assumed(theirs, input=spec), pair)
        assert compared.agrees
        assert any("--mean 0,0,0 --std 1,1,1" in note for note in compared.notes) == hinted


def test_the_reversed_channels_of_normalised_images_are_found() -> None:
    theirs = made(WIDE)
    pair = pair_of(theirs)
    assert isinstance(pair.input, np.ndarray)
    reversed_pair = replace(pair, input=pair.input[:, ::-1].copy())
    search = found(theirs, reversed_pair)
    assert all("--channels bgr" in each for each in options(search))
    assert search.fits


@pytest.mark.parametrize(
    ("fields", "option"),
    [
        ({"crop": "squash", "resize": 64}, "--resize 64 --crop squash"),
        ({"crop": "center", "resize": 64}, "--resize 64"),
        ({"interpolation": "bicubic"}, "--interpolation bicubic"),
        ({"crop": "letterbox", "resize": 64}, "--resize 64 --crop letterbox"),
    ],
    ids=str,
)
def test_another_way_to_crop_an_image_file_is_named(fields: dict[str, Any], option: str) -> None:
    theirs = made(WIDE, replace(SPEC, **fields))
    pair = pair_of(theirs, IMAGE)
    assert option in options(found(as_assumed(theirs, input=SPEC), pair))


def test_an_image_squashed_and_a_network_that_strides_elsewhere_are_found_together() -> None:
    theirs = made(replace(WIDE, stride_at="1x1"), replace(SPEC, crop="squash", resize=64))
    search = found(as_assumed(theirs, architecture=WIDE, input=SPEC), pair_of(theirs, IMAGE))
    assert "--set stride_at=1x1 --resize 64 --crop squash" in options(search)


def test_independent_outputs_are_found_by_their_probabilities() -> None:
    theirs = made(WIDE)
    pair = pair_of(theirs)
    pair = replace(pair, output=(1 / (1 + np.exp(-pair.output))).astype(np.float32))
    assert options(found(theirs, pair)) == ["--outputs independent"]


def test_what_fits_the_first_images_must_fit_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alternatives, "MOST_COMBINATIONS", 5)
    theirs = made(replace(WIDE, pool="none"))
    pair = pair_of(theirs)
    pair.output[2] += 1
    assert found(as_assumed(theirs, architecture=WIDE), pair).fits == ()


def test_every_pair_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alternatives, "MOST_COMBINATIONS", 5)
    theirs = made(replace(WIDE, pool="none"))
    assumed = as_assumed(theirs, architecture=WIDE)
    good, other = pair_of(theirs), pair_of(theirs)
    other.output[0] += 1
    assert options(found(assumed, good, good)) == ["--set pool=none"]
    assert found(assumed, good, other).fits == ()


def test_a_difference_of_rounding_is_not_explained_by_what_changes_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alternatives, "MOST_COMBINATIONS", 5)
    theirs = made(WIDE)
    pair = pair_of(theirs)
    noise = np.random.default_rng(0).normal(size=pair.output.shape).astype(np.float32)
    noisy = replace(pair, output=pair.output + noise * np.abs(pair.output).max() * 2e-4)
    assert found(theirs, noisy).fits == ()
