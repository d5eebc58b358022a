"""What a check says is what the network computes, however the pair was saved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from models import bundling
from models.bundle import Bundle
from models.interchange import comparison
from models.interchange.comparison import compare
from models.interchange.reference import Pair, PairError
from models.preprocess import InputSpec, resize_and_crop, upright
from tests.support import rounding, tiny

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)


def made(*, temperature: float = 1.0, outputs: Any = "exclusive", **changes: Any) -> Bundle:
    network = tiny.network(**changes)
    spec = {1: grey(), 3: tiny.INPUT}[network.architecture.in_channels]
    described = tiny.described(input=spec, temperature=temperature, outputs=outputs)
    described["labels"] = [f"class {n}" for n in range(network.architecture.num_classes)]
    return bundling.from_network(network, **described)


def grey() -> InputSpec:
    return replace(tiny.INPUT, channels="grey", mean=(0.5,), std=(0.25,))


def seen(of: Bundle, pixels: NDArray[np.uint8] = PIXELS) -> NDArray[np.float32]:
    """Pixels as a network sees them, by the formula."""
    mean, std = np.array(of.input.mean), np.array(of.input.std)
    images = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)
    found: NDArray[np.float32] = images.astype(np.float32)
    return found


def logits(of: Bundle, images: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    with torch.no_grad():
        found: NDArray[np.float32] = of.network()(
            torch.from_numpy(seen(of) if images is None else images)
        ).numpy()
    return found


def softmax(values: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(values.astype(np.float64) - values.max(1, keepdims=True))
    found: NDArray[np.float32] = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    return found


def sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (1 / (1 + np.exp(-values.astype(np.float64)))).astype(np.float32)
    return found


@pytest.mark.parametrize(
    ("form", "reading"),
    [
        ("seen", "as the network sees them"),
        ("channels last", "as the network sees them"),
        ("pixels", "pixels"),
        ("pixels, channels first", "pixels"),
        ("0 to 1", "pixels as values from 0 to 1"),
        ("0 to 255", "pixels as values from 0 to 255"),
    ],
)
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_inputs_are_understood(form: str, reading: str, channels: Any) -> None:
    of = made()
    of.input = replace(of.input, channels=channels)
    network_sees = seen(of, PIXELS[..., ::-1] if channels == "bgr" else PIXELS)
    given: dict[str, Any] = {
        "seen": network_sees,
        "channels last": network_sees.transpose(0, 2, 3, 1),
        "pixels": PIXELS,
        "pixels, channels first": PIXELS.transpose(0, 3, 1, 2),
        "0 to 1": (PIXELS / 255).astype(np.float32),
        "0 to 255": PIXELS.astype(np.float32),
    }
    found = compare(of, Pair("a", given[form], logits(of, network_sees)))
    assert found.agrees
    assert found.input == reading
    assert (found.output, found.images, found.same_class) == ("logits", 3, 3)
    assert found.relative <= rounding.relative(of.network())
    # What the pair cannot tell is said.
    assert any("mean, std and the order" in note for note in found.notes) == (
        "pixels" not in reading
    )


def test_a_pair_of_a_network_that_sees_blue_first_may_be_red_first() -> None:
    of = made()
    of.input = replace(of.input, channels="bgr")
    images = seen(of)
    found = compare(of, Pair("a", images[:, ::-1].copy(), logits(of, images)))
    assert found.agrees
    assert found.input == "as the network sees them, but for red first"


@pytest.mark.parametrize("ending", [softmax, sigmoid])
def test_sure_probabilities_are_compared_by_their_logarithms(ending: Any) -> None:
    outputs = "independent" if ending is sigmoid else "exclusive"
    of = made(outputs=outputs)
    of.tensors["head.bias"] = torch.linspace(-40, 20 if outputs == "exclusive" else -30, 10)
    images = seen(of)
    exact = ending(logits(of, images))
    assert (exact * (1 - exact)).max() < 1e-3
    found = compare(of, Pair("a", images, exact))
    assert found.agrees
    assert found.output.endswith(", by their logarithms")
    # Other images, with which the probabilities are as sure, are told apart.
    others = compare(of, Pair("a", images * np.float32(0.5), exact))
    assert not others.agrees


@pytest.mark.parametrize("case", ["zeros", "constant", "an offset", "0 and 1"])
def test_outputs_that_any_image_has_are_no_agreement(case: str) -> None:
    of = made()
    head, bias = of.tensors["head.weight"], of.tensors["head.bias"]
    head *= {"an offset": 1, "0 and 1": 1e-3}.get(case, 0)
    bias *= 0
    bias += {"an offset": 1e6, "zeros": 0}.get(case, torch.arange(10) * 100.0)
    images = seen(of)
    output = logits(of, images)
    found = compare(of, Pair("a", images, softmax(output) if case == "0 and 1" else output))
    assert not found.agrees
    assert found.in_words().startswith("cannot be judged by a: other images would give that")


def test_half_precision_is_told_from_a_difference() -> None:
    of = made()
    images = seen(of)
    rounded = logits(of, images).astype(np.float16).astype(np.float32)
    found = compare(of, Pair("a", images, rounded), tolerance=1e-5)
    assert not found.agrees
    assert "a is in half precision; --tolerance 0.02 allows for it" in found.notes
    assert compare(of, Pair("a", images, rounded), tolerance=0.02).agrees


def test_grey_images_do_not_tell_the_order_of_channels() -> None:
    of = made()
    grey_pixels = PIXELS[..., :1].repeat(3, -1)
    found = compare(of, Pair("a", grey_pixels, logits(of, seen(of, grey_pixels))))
    assert found.notes == ("a shows only grey: it does not tell the order of the channels",)


def test_an_image_file_is_prepared_as_the_model_says() -> None:
    of = made()
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 31, 3), np.uint8))
    pixels = resize_and_crop(upright(image, "rgb"), of.input)[None]
    assert compare(of, Pair("a", image, logits(of, seen(of, pixels)))).agrees
    of.input = replace(of.input, interpolation="nearest")
    assert not compare(of, Pair("a", image, logits(of, seen(of, pixels)))).agrees


@pytest.mark.parametrize(
    ("outputs", "kind"),
    [
        ("exclusive", "probabilities (softmax)"),
        ("exclusive", "logarithms of probabilities"),
        ("independent", "probabilities (sigmoid)"),
        ("independent", "logits"),
    ],
)
def test_outputs_are_understood(outputs: Any, kind: str) -> None:
    of = made(outputs=outputs, temperature=2.5)
    values = logits(of)
    forms: dict[str, Any] = {
        "probabilities (softmax)": softmax,
        "logarithms of probabilities": lambda values: np.log(softmax(values)),
        "probabilities (sigmoid)": sigmoid,
        "logits": lambda values: values,
    }
    found = compare(of, Pair("a", seen(of), forms[kind](values)))
    assert (found.agrees, found.output) == (True, kind)
    assert any("temperature" in note for note in found.notes) == ("prob" in kind)


def test_probabilities_of_the_other_kind_differ() -> None:
    of = made()
    assert not compare(of, Pair("a", seen(of), sigmoid(logits(of)))).agrees
    of.outputs = "independent"
    assert not compare(of, Pair("a", seen(of), softmax(logits(of)))).agrees


@pytest.mark.parametrize("form", [lambda values: values, sigmoid])
def test_one_logit_is_the_second_of_two_classes(form: Any) -> None:
    of = made(num_classes=2)
    for name in ("head.weight", "head.bias"):
        of.tensors[name][0] = 0
    assert compare(of, Pair("a", seen(of), form(logits(of)[:, 1:]))).agrees
    alone = made(num_classes=1, outputs="independent")
    assert compare(alone, Pair("a", seen(alone), form(logits(alone)))).agrees


def test_a_network_without_a_head_is_compared_by_its_features() -> None:
    of = made(num_classes=0)
    with torch.no_grad():
        features = of.network().features(torch.from_numpy(seen(of))).numpy()
    found = compare(of, Pair("a", seen(of), features))
    assert (found.agrees, found.output) == (True, "features")


def test_grey_images_have_one_channel() -> None:
    of = made(in_channels=1)
    pixels = PIXELS[..., :1]
    assert compare(of, Pair("a", pixels, logits(of, seen(of, pixels)))).agrees


def test_a_small_difference_counts_by_the_tolerance() -> None:
    of = made()
    values = logits(of)
    moved = values.copy()
    moved[1, 2] += np.abs(values).max() / 1000
    found = compare(of, Pair("a", seen(of), moved))
    assert not found.agrees
    assert found.relative == pytest.approx(1e-3, rel=0.01)
    assert compare(of, Pair("a", seen(of), moved), tolerance=2e-3).agrees
    assert "differs from a: 3 images (as the network sees them), logits" in found.in_words()


def test_a_network_that_computes_no_numbers_differs() -> None:
    of = made()
    values = logits(of)
    of.tensors["head.bias"][0] = float("nan")
    found = compare(of, Pair("a", seen(of), values))
    assert not found.agrees
    assert found.difference == float("inf")


def test_another_size_than_the_models_is_said() -> None:
    of = made()
    images = np.random.default_rng(0).normal(size=(1, 3, 12, 8)).astype(np.float32)
    found = compare(of, Pair("a", images, logits(of, images)))
    assert found.agrees
    assert "a has 12x8 pixels, which is not the model's size" in found.notes


@pytest.mark.parametrize(
    ("images", "classes", "words"),
    [
        (np.zeros((1, 4, 8, 8), np.float32), 10, r"\[1, 4, 8, 8\]; the network takes 3 channels"),
        (np.zeros((1, 3, 8, 8), np.float32), 9, "9 values for each image, the model 10 classes"),
    ],
)
def test_a_pair_of_another_network_is_one_line(
    images: NDArray[Any], classes: int, words: str
) -> None:
    with pytest.raises(PairError, match=rf"\Aa: [^\n]*{words}\Z"):
        compare(made(), Pair("a", images, np.ones((1, classes), np.float32)))


def test_many_images_are_computed_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "BATCH", 2)
    of = made()
    assert compare(of, Pair("a", seen(of), logits(of))).agrees
