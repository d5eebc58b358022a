"""A model that its file describes is read by its data flow, whatever its layers are called."""

from __future__ import annotations

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
PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_the_cifar_examples_second_version_is_read(tmp_path: Path, blocks: int, file: str) -> None:
    """Zeros fill up the inner channels of its first stage."""
    model = reference.second(blocks)
    bundle = converted(reference.save(model, tmp_path / file), **PLAIN)
    assert difference(bundle, model) <= 1
    architecture = bundle.architecture
    assert (architecture.preact, architecture.block) == (True, "bottleneck")
    assert architecture.blocks == (blocks,) * 3
    assert architecture.preact_stem == "activated_once"
    assert architecture.stride_at == "1x1"
    assert bundle.provenance["notes"] == [
        "the inner convolutions of stage 1 are 16 channels wide; zeros fill them up to 32, as wide "
        "as other stages are for their outputs"
    ]


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_preactivation_is_read(tmp_path: Path, file: str) -> None:
    model = reference.small((2, 1, 2), 8, preact=True)
    bundle = converted(reference.save(model, tmp_path / file), **PLAIN)
    assert difference(bundle, model) <= 1
    assert bundle.architecture.preact
    assert bundle.architecture.preact_shortcut == "raw"


def network(
    kernel: int = 7,
    strides: int = 2,
    *,
    pool: bool = True,
    padding: str = "same",
    stride_first: bool = False,
    bottleneck: bool = False,
    options: dict[str, Any] | None = None,
) -> Any:
    """A network of one's own, with other names and other stems than Keras's."""
    made = iter(range(1000))

    def conv(x: Any, width: int, side: int, step: int = 1) -> Any:
        if padding == "explicit" and side > 1:
            x = layers.ZeroPadding2D(side // 2)(x)
        kind = "valid" if padding == "explicit" else "same"
        name = f"part{next(made)}"
        return layers.Conv2D(width, side, step, padding=kind, use_bias=False, name=name)(x)

    def norm(x: Any, *, relu: bool = True) -> Any:
        x = layers.BatchNormalization(epsilon=1e-5)(x)
        return layers.ReLU()(x) if relu else x

    images = layers.Input((64, 64, 3))
    x = norm(conv(layers.Rescaling(1 / 255)(images), 8, kernel, strides))
    if pool and padding == "explicit":
        x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    elif pool:
        x = layers.MaxPooling2D(3, 2, padding="same")(x)
    for stage in range(3):
        for index in range(2):
            step, width = 2 if stage and not index else 1, 8 * 2**stage
            if bottleneck:
                y = norm(conv(x, width, 1, step if stride_first else 1))
                y = norm(conv(y, width, 3, 1 if stride_first else step))
                y = norm(conv(y, 4 * width, 1), relu=False)
            else:
                y = norm(conv(norm(conv(x, width, 3, step)), width, 3), relu=False)
            if x.shape != y.shape:
                x = norm(conv(x, y.shape[-1], 1, step), relu=False)
            x = layers.ReLU()(layers.add([y, x]))
    x = layers.GlobalAveragePooling2D()(x)
    return reference.random(keras.Model(images, layers.Dense(6)(x)))


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "same padding everywhere": (
        {},
        {"stem": "imagenet", "padding": "same", "stem_padding": "same", "pool_padding": "same"},
    ),
    "explicit padding, as in PyTorch": (
        {"padding": "explicit"},
        {"padding": "symmetric", "stem_padding": "symmetric", "pool_padding": "symmetric"},
    ),
    "3x3 stem with a pool": ({"kernel": 3, "strides": 1}, {"stem": "small", "pool": "max"}),
    "3x3 stem in steps of 2": (
        {"kernel": 3, "pool": False},
        {"stem_stride": 2, "stem_padding": "same"},
    ),
    "7x7 stem without a pool": ({"pool": False}, {"stem": "imagenet", "pool": "none"}),
    "bottlenecks": ({"bottleneck": True}, {"block": "bottleneck", "stride_at": "3x3"}),
    "bottlenecks that stride first": (
        {"bottleneck": True, "stride_first": True},
        {"block": "bottleneck", "stride_at": "1x1"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_networks_of_ones_own_give_equal_logits(tmp_path: Path, case: str) -> None:
    options, fields = CASES[case]
    model = network(**options)
    bundle = converted(reference.save(model, tmp_path / "model.keras"))
    assert difference(bundle, model, (64, 64)) <= 1
    for name, value in fields.items():
        assert getattr(bundle.architecture, name) == value
    structure = {"stride_at", "padding", "stem_stride", "pool", "antialias", "dilation", "head"}
    assert not structure & bundle.provenance["assumed"].keys()


def block(x: Any, width: int, *, strides: int = 1) -> Any:
    def unit(x: Any, strides: int) -> Any:
        x = layers.Conv2D(width, 3, strides, padding="same")(x)
        return layers.BatchNormalization()(x)

    y = unit(layers.ReLU()(unit(x, strides)), 1)
    if x.shape != y.shape:
        x = layers.BatchNormalization()(layers.Conv2D(width, 1, strides)(x))
    return layers.ReLU()(layers.add([x, y]))


def around(make: Any) -> Any:
    """A network with a layer or a function between its stem and its second block."""
    images = layers.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, padding="same")(layers.Rescaling(1 / 255)(images))
    x = block(layers.ReLU()(layers.BatchNormalization()(x)), 8)
    x = block(make(x), 8)
    x = layers.GlobalAveragePooling2D()(x)
    return reference.random(keras.Model(images, layers.Dense(6)(x)))


def gated(x: Any) -> Any:
    gate = layers.Dense(8, activation="sigmoid")(layers.GlobalAveragePooling2D()(x))
    return layers.multiply([x, layers.Reshape((1, 1, 8))(gate)])


REFUSED: dict[str, tuple[Any, str]] = {
    "a gate": (gated, "is a Multiply of 2 layers: no plain ResNet has one"),
    "a pool between blocks": (layers.AveragePooling2D(2), "pools [2, 2] pixels in steps of [2, 2]"),
    "a convolution between blocks": (
        lambda x: layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 1)(x))),
        "does not fit between residual blocks",
    ),
    "widening without striding": (
        lambda x: block(x, 16),
        "strides or widens where no stage of a ResNet begins or ends",
    ),
    "three branches": (
        lambda x: layers.add([x, layers.Conv2D(8, 1)(x), layers.Conv2D(8, 3, padding="same")(x)]),
        "is a Add of 3 layers: no plain ResNet has one",
    ),
    "an average where maps shrink": (
        lambda x: layers.add([layers.AveragePooling2D(2)(x), layers.MaxPooling2D(2)(x)]),
        "does not fit between residual blocks",
    ),
    "depthwise convolutions": (
        layers.DepthwiseConv2D(3, padding="same"),
        "is a DepthwiseConv2D: no plain ResNet has one",
    ),
    "a layer that is used twice": (
        lambda x: twice(layers.Conv2D(8, 3, padding="same"), x),
        "is applied 2 times",
    ),
}


def twice(layer: Any, x: Any) -> Any:
    return layer(layer(x))


@pytest.mark.parametrize("case", REFUSED)
def test_other_networks_are_refused_by_the_layer(tmp_path: Path, case: str) -> None:
    make, message = REFUSED[case]
    model = around(make)
    with pytest.raises(BundleError, match=r"\A[^\n]+\Z") as caught:
        converted(reference.save(model, tmp_path / "model.keras"))
    assert message in str(caught.value)


class Own(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.dense(x)


def test_a_class_of_ones_own_is_refused_as_such(tmp_path: Path) -> None:
    model = Own()
    model(np.zeros((1, 4), np.float32))
    with pytest.raises(BundleError) as caught:
        converted(reference.save(model, tmp_path / "model.keras"), **PLAIN)
    assert "a model of a class of its own (Own), whose structure is code" in str(caught.value)


def test_two_answers_are_refused(tmp_path: Path) -> None:
    images = layers.Input((32, 32, 3))
    x = block(layers.Conv2D(8, 3, padding="same")(images), 8)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, [layers.Dense(3)(x), layers.Dense(4)(x)])
    with pytest.raises(BundleError) as caught:
        converted(reference.save(model, tmp_path / "model.keras"), **PLAIN)
    assert "has 1 inputs and 2 outputs; a classifier has one of each" in str(caught.value)
