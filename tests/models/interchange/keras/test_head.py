"""Every usual head of a Keras model answers as it does there, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import BundleError
from tests.support import keras_reference as reference
from tests.support.keras_reference import converted, difference, keras, layers

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
]


def model_with(head: list[Any], pooling: str | None = "avg") -> Any:
    body = reference.narrow_body(2, pooling=pooling)
    return reference.transfer([layers.Rescaling(1 / 255)], body, head)


# The head, how the body pools, and the widths of the hidden layers.
LINEAR: dict[str, tuple[Callable[[], list[Any]], str | None, tuple[int, ...]]] = {
    "dense": (lambda: [layers.Dropout(0.2), layers.Dense(7)], "avg", ()),
    "dense without bias": (lambda: [layers.Dense(7, use_bias=False)], "avg", ()),
    "hidden": (
        lambda: [layers.Dense(12, activation="relu"), layers.Dropout(0.5), layers.Dense(7)],
        "avg",
        (12,),
    ),
    "hidden with norms": (
        lambda: [
            layers.BatchNormalization(),
            layers.Dense(12),
            layers.BatchNormalization(scale=False),
            layers.ReLU(),
            layers.BatchNormalization(center=False),
            layers.Dense(9, activation="relu"),
            layers.Dense(7),
        ],
        "avg",
        (12, 9),
    ),
    "a norm that is activated": (
        lambda: [layers.BatchNormalization(), layers.ReLU(), layers.Dense(7)],
        "avg",
        (128,),
    ),
    "linear layers in a row": (lambda: [layers.Dense(12), layers.Dense(7)], "avg", ()),
    "pooled and flattened": (
        lambda: [layers.GlobalAveragePooling2D(), layers.Flatten(), layers.Dense(7)],
        None,
        (),
    ),
    "pooled by its size": (
        lambda: [layers.AveragePooling2D(2), layers.Flatten(), layers.Dense(7)],
        None,
        (),
    ),
    "convolution": (
        lambda: [
            layers.GlobalAveragePooling2D(keepdims=True),
            layers.Conv2D(7, 1),
            layers.Reshape((7,)),
        ],
        None,
        (),
    ),
    "convolution before pooling": (
        lambda: [layers.Conv2D(7, 1), layers.GlobalAveragePooling2D()],
        None,
        (),
    ),
    "pooled by an operation": (
        lambda: [lambda x: keras.ops.mean(x, axis=(1, 2)), layers.Dense(7)],
        None,
        (),
    ),
    "a model within": (lambda: [keras.Sequential([layers.Dense(7)])], "avg", ()),
}


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
@pytest.mark.parametrize("case", LINEAR)
def test_heads_give_equal_logits(tmp_path: Path, case: str, file: str) -> None:
    make, pooling, hidden = LINEAR[case]
    model = model_with(make(), pooling)
    bundle = converted(reference.save(model, tmp_path / file))
    assert difference(bundle, model, (64, 64)) <= 1
    assert bundle.architecture.head == hidden
    assert "outputs" in bundle.provenance["assumed"], "nothing says softmax or sigmoid"
    assert "head" not in bundle.provenance["assumed"]


@pytest.mark.parametrize(
    ("make", "outputs"),
    [
        (lambda: [layers.Dense(5, activation="softmax")], "exclusive"),
        (lambda: [layers.Dense(5), layers.Activation("softmax")], "exclusive"),
        (lambda: [layers.Dense(5), layers.Softmax()], "exclusive"),
        (lambda: [layers.Dense(5, activation="sigmoid")], "independent"),
        (lambda: [layers.Dense(5), layers.Activation("sigmoid")], "independent"),
    ],
)
def test_what_a_model_ends_in_says_what_its_classes_are(
    tmp_path: Path, make: Callable[[], list[Any]], outputs: str
) -> None:
    model = model_with(make())
    bundle = converted(reference.save(model, tmp_path / "model.keras"))
    assert bundle.outputs == outputs
    assert "outputs" not in bundle.provenance["assumed"]
    images = reference.pixels((64, 64, 3))
    theirs = reference.logits(model, images.astype(np.float32))
    logits = reference.ours(bundle, images)
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    found = shifted / shifted.sum(1, keepdims=True) if outputs == "exclusive" else sigmoid(logits)
    assert np.abs(found - theirs).max() < 1e-5


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def test_one_sigmoid_is_the_second_of_two_classes(tmp_path: Path) -> None:
    model = model_with([layers.Dense(1, activation="sigmoid")])
    bundle = converted(reference.save(model, tmp_path / "model.keras"))
    images = reference.pixels((64, 64, 3))
    theirs = reference.logits(model, images.astype(np.float32))
    logits = reference.ours(bundle, images)
    assert bundle.outputs == "exclusive"
    assert not logits[:, 0].any()
    assert np.abs(sigmoid(logits[:, 1:]) - theirs).max() < 1e-5


@pytest.mark.parametrize(("pooling", "note"), [("avg", "no head"), (None, "does not pool")])
def test_without_a_head_features_are_equal(tmp_path: Path, pooling: str | None, note: str) -> None:
    model = model_with([], pooling)
    bundle = converted(reference.save(model, tmp_path / "model.keras"))
    assert bundle.architecture.num_classes == 0
    assert bundle.labels == ()
    images = reference.pixels((64, 64, 3))
    theirs = reference.logits(model, images.astype(np.float32))
    theirs = theirs.mean((1, 2)) if pooling is None else theirs
    assert np.abs(reference.ours(bundle, images) - theirs).max() <= 1e-5 * np.abs(theirs).max()
    assert note in bundle.provenance["notes"][-1]


@pytest.mark.parametrize("file", ["weights.h5", "model.weights.h5"])
def test_weights_alone_keep_hidden_layers_and_say_what_is_assumed(
    tmp_path: Path, file: str
) -> None:
    head = [layers.Dense(12, activation="relu"), layers.Dense(7)]
    body = reference.narrow_body(2)
    model = reference.transfer([], body, head)
    options = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    bundle = converted(reference.save(model, tmp_path / file), **options)
    assert difference(bundle, model, (64, 64)) <= 1
    assert bundle.provenance["assumed"]["head"] == [12]


REFUSED: dict[str, tuple[Callable[[], list[Any]], str | None, str]] = {
    "maps": (
        lambda: [layers.Flatten(), layers.Dense(7)],
        None,
        "its head takes the maps without averaging them: a ResNet's head follows a global average",
    ),
    "a part of the maps": (
        lambda: [layers.AveragePooling2D(2), layers.Flatten(), layers.Dense(7)],
        "96",
        "averages 2x2 pixels of maps of 3x3: a ResNet averages all",
    ),
    "the largest": (
        lambda: [layers.GlobalMaxPooling2D(), layers.Dense(7)],
        None,
        "is a GlobalMaxPooling2D: no plain ResNet has one",
    ),
    "one class": (
        lambda: [layers.Dense(1, activation="softmax")],
        "avg",
        "is a softmax over one class, which is 1 for every image",
    ),
    "another activation": (
        lambda: [layers.Dense(9, activation="tanh"), layers.Dense(7)],
        "avg",
        "activates by tanh, not ReLU",
    ),
    "sigmoid between": (
        lambda: [layers.Dense(9, activation="sigmoid"), layers.Dense(7)],
        "avg",
        "follows the softmax or sigmoid of the output",
    ),
    "ReLU at the end": (
        lambda: [layers.Dense(7, activation="relu")],
        "avg",
        "its last layer activates by ReLU: it gives features, not classes",
    ),
    "classes of pixels": (
        lambda: [layers.Conv2D(7, 1)],
        None,
        "classifies each pixel: its head follows no average pooling",
    ),
    "a norm of another kind": (
        lambda: [layers.LayerNormalization(), layers.Dense(7)],
        "avg",
        "is a LayerNormalization: no plain ResNet has one",
    ),
    "two poolings": (
        lambda: [
            lambda x: layers.concatenate(
                [layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)]
            ),
            layers.Dense(7),
        ],
        None,
        "no plain ResNet has one",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_heads_are_refused_by_name(tmp_path: Path, case: str) -> None:
    make, pooling, message = REFUSED[case]
    side = 96 if pooling == "96" else 64
    body = reference.narrow_body(2, pooling="avg" if pooling == "avg" else None)
    front = [layers.Rescaling(1 / 255)]
    model = reference.transfer(front, body, make(), (side, side, 3))
    with pytest.raises(BundleError, match=r"\A[^\n]+\Z") as caught:
        converted(reference.save(model, tmp_path / "model.keras"))
    assert message in str(caught.value)
