"""What a model's own layers say of its images' preparation is what the bundle does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import BundleError
from models.interchange.keras.graph import NOTHING
from tests.support import keras_reference as reference
from tests.support.keras_reference import converted, difference, keras, layers

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
    pytest.mark.filterwarnings("ignore:This model usually expects 1 or 3 input channels"),
]
ops = keras.ops
Shape = tuple[int | None, int | None, int]
Made = tuple[list[Any], int, Shape, Mapping[str, Any]]
PIXELS = np.ones((64, 64, 3))
OPEN: Shape = (None, None, 3)
CAFFE = {"channels": "bgr", "mean": (0.4076, 0.458, 0.485), "std": (1 / 255,) * 3}
UNIT = {"channels": "rgb", "mean": (0.0,) * 3, "std": (1.0,) * 3}


def adapted() -> Any:
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)).astype(np.float32))
    return layer


# The layers in front, the version of the body, the shape of the model's images, and what the
# bundle then says.
READ: dict[str, Callable[[], Made]] = {
    "0 to 1": lambda: ([layers.Rescaling(1 / 255)], 1, (64, 64, 3), UNIT),
    "-1 to 1": lambda: (
        [layers.Rescaling(1 / 127.5, -1)],
        2,
        (64, 64, 3),
        {"mean": (0.5,) * 3, "std": (0.5,) * 3},
    ),
    "scaled by channel": lambda: (
        [layers.Rescaling([0.01, 0.02, 0.03], [-1.0, -0.5, -2.0])],
        1,
        (64, 64, 3),
        {"std": (1 / 2.55, 1 / 5.1, 1 / 7.65)},
    ),
    "mean and variance": lambda: (
        [
            layers.Rescaling(1 / 255),
            layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.04, 0.09, 0.01]),
        ],
        1,
        (64, 64, 3),
        {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.1)},
    ),
    "one mean for all": lambda: (
        [layers.Normalization(axis=None, mean=127.5, variance=255.0**2)],
        1,
        (64, 64, 3),
        {"mean": (0.5,) * 3, "std": (1.0,) * 3},
    ),
    "statistics of images": lambda: ([adapted()], 1, (64, 64, 3), {"channels": "rgb"}),
    "preprocess_input of v1": lambda: (
        [keras.applications.resnet.preprocess_input],
        1,
        (64, 64, 3),
        CAFFE,
    ),
    "preprocess_input of v2": lambda: (
        [keras.applications.resnet_v2.preprocess_input],
        2,
        (64, 64, 3),
        {"mean": (0.5,) * 3, "std": (0.5,) * 3},
    ),
    "channels turned round, of integers": lambda: (
        [
            lambda x: ops.flip(ops.cast(x, "float32"), axis=-1) * np.float32(0.01),
            layers.RandomFlip(),
        ],
        1,
        (64, 64, 3),
        {"channels": "bgr", "std": (1 / 2.55,) * 3},
    ),
    "channels turned round twice": lambda: (
        [lambda x: ops.flip(ops.flip(x, axis=-1), axis=-1), layers.Rescaling(1 / 255)],
        1,
        (64, 64, 3),
        UNIT,
    ),
    "augmentation first": lambda: (
        [layers.RandomFlip(), layers.RandomRotation(0.1), layers.Rescaling(1 / 255)],
        1,
        (64, 64, 3),
        UNIT,
    ),
    "augmentation as a model": lambda: (
        [
            keras.Sequential([layers.RandomZoom(0.1), layers.RandomContrast(0.2)]),
            keras.Sequential([layers.Rescaling(1 / 255), layers.GaussianNoise(0.1)]),
        ],
        1,
        (64, 64, 3),
        UNIT,
    ),
    "a learnt norm of images": lambda: (
        [layers.Rescaling(1 / 255), layers.BatchNormalization()],
        2,
        (64, 64, 3),
        UNIT,
    ),
    "not square": lambda: (
        [layers.Rescaling(1 / 255)],
        1,
        (64, 96, 3),
        {"size": (64, 96), "resize": (73, 109)},
    ),
    "squashed": lambda: (
        [layers.Resizing(48, 64), layers.Rescaling(1 / 255)],
        1,
        OPEN,
        {"size": (48, 64), "resize": (48, 64), "crop": "squash"},
    ),
    "squashed, as it was": lambda: (
        [layers.Resizing(64, 64), layers.Rescaling(1 / 255)],
        1,
        (64, 64, 3),
        {"size": 64, "resize": 73, "crop": "center"},
    ),
    "cropped to a square": lambda: (
        [layers.Resizing(64, 64, crop_to_aspect_ratio=True), layers.Rescaling(1 / 255)],
        1,
        OPEN,
        {"size": 64, "resize": 64, "crop": "before_resize"},
    ),
    "cropped as it was": lambda: (
        [layers.RandomCrop(64, 64), layers.Rescaling(1 / 255)],
        1,
        (64, 64, 3),
        {"size": 64},
    ),
}


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
@pytest.mark.parametrize("case", READ)
def test_layers_in_front_are_the_preparation(tmp_path: Path, case: str, file: str) -> None:
    front, version, shape, expected = READ[case]()
    body = reference.narrow_body(version)
    model = reference.transfer(front, body, [layers.Dense(7)], shape)
    bundle = converted(reference.save(model, tmp_path / file))
    assert difference(bundle, model, (bundle.input.height, bundle.input.width)) <= 1
    for name, value in expected.items():
        found = getattr(bundle.input, name)
        if name in ("mean", "std"):
            assert found == pytest.approx(value, rel=1e-3)
        else:
            assert found == value
    assert not {"mean", "std", "stride_at", "padding"} & bundle.provenance["assumed"].keys()


def test_a_slice_that_turns_channels_round_is_read_as_a_flip(tmp_path: Path) -> None:
    """Keras computes it with other backends than torch."""
    body, head = reference.narrow_body(1), layers.Dense(7)
    made = {
        "flip": reference.transfer([lambda x: ops.flip(x, axis=-1) * 0.01], body, [head]),
        "slice": reference.transfer([lambda x: x[..., ::-1] * 0.01], body, [head]),
    }
    flipped, sliced = (
        converted(reference.save(model, tmp_path / f"{name}.keras")) for name, model in made.items()
    )
    assert sliced.input == flipped.input
    assert sliced.input.channels == "bgr"
    assert difference(sliced, made["flip"], (64, 64)) <= 1


@pytest.mark.parametrize(("channels", "name"), [(1, "grey"), (4, "rgba")])
def test_one_and_four_channels_are_read(tmp_path: Path, channels: int, name: str) -> None:
    body = reference.narrow_body(1, channels)
    front = [layers.Rescaling(1 / 255)]
    model = reference.transfer(front, body, [layers.Dense(7)], (64, 64, channels))
    bundle = converted(reference.save(model, tmp_path / "model.keras"))
    assert bundle.input.channels == name
    assert difference(bundle, model, (64, 64)) <= 1


def test_channels_that_come_first_are_read(tmp_path: Path) -> None:
    keras.config.set_image_data_format("channels_first")
    try:
        x = images = layers.Input((3, 64, 48))
        x = layers.Rescaling(1 / 255)(x)
        x = layers.Conv2D(8, 3, padding="same")(x)
        x = layers.ReLU()(layers.BatchNormalization(axis=1)(x))
        y = layers.ReLU()(layers.BatchNormalization(axis=1)(layers.Conv2D(8, 3, padding="same")(x)))
        y = layers.BatchNormalization(axis=1)(layers.Conv2D(8, 3, padding="same")(y))
        x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.add([x, y])))
        model = reference.random(keras.Model(images, layers.Dense(5)(x)))
        bundle = converted(reference.save(model, tmp_path / "model.keras"))
        batch = reference.pixels((64, 48, 3))
        first = batch.transpose(0, 3, 1, 2).astype(np.float32)
        theirs = reference.logits(model, first)
    finally:
        keras.config.set_image_data_format("channels_last")
    assert bundle.input.size == (64, 48)
    assert np.abs(reference.ours(bundle, batch) - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_cutting_the_middle_out_is_a_crop(tmp_path: Path) -> None:
    front = [layers.Resizing(96, 96), layers.CenterCrop(64, 64), layers.Rescaling(1 / 255)]
    model = reference.transfer(front, reference.narrow_body(1), [layers.Dense(7)], OPEN)
    bundle = converted(reference.save(model, tmp_path / "model.keras"))
    spec = bundle.input
    assert (spec.resize, spec.size, spec.crop) == (96, 64, "squash")
    images = reference.pixels((96, 96, 3))
    theirs = reference.logits(model, images.astype(np.float32))
    found = reference.ours(bundle, images[:, 16:80, 16:80])
    assert np.abs(found - theirs).max() <= 1e-5 * np.abs(theirs).max()
    assert "interpolation" in bundle.provenance["assumed"]
    assert "shrinks images without averaging" in bundle.provenance["notes"][0]


def test_values_from_0_to_1_are_told_by_their_size_and_said_to_be(tmp_path: Path) -> None:
    front = [layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.04, 0.09, 0.01])]
    model = reference.transfer(front, reference.narrow_body(1), [layers.Dense(7)])
    bundle = converted(reference.save(model, tmp_path / "model.keras"))
    assert bundle.input.std == pytest.approx((0.2, 0.3, 0.1))
    assert {"mean", "std"} <= bundle.provenance["assumed"].keys()
    assert "values from 0 to 1" in bundle.provenance["notes"][0]


def test_the_front_says_as_much_as_strict_wants_of_normalisation(tmp_path: Path) -> None:
    front = [keras.applications.resnet.preprocess_input]
    model = reference.transfer(front, reference.narrow_body(1), [layers.Dense(7)])
    with pytest.raises(BundleError) as caught:
        converted(reference.save(model, tmp_path / "model.keras"), strict=True)
    assert (
        "as in --outputs exclusive --labels FILE (class 0 to class 6) --resize 73 --crop center"
        in str(caught.value)
    )


def own_function(x: Any) -> Any:
    return x / 255


REFUSED: dict[str, tuple[Callable[[], list[Any]], Shape, str]] = {
    "code": (
        lambda: [layers.Lambda(own_function)],
        (64, 64, 3),
        "is a Lambda: it holds Python code, which is not executed; save the model without it, and "
        "give --mean, --std and --channels in its place",
    ),
    "resized twice": (
        lambda: [layers.Resizing(64, 64)],
        (96, 96, 3),
        "resizes images of 96x96 pixels, which were resized to that before: a bundle resizes once",
    ),
    "padded to its proportions": (
        lambda: [layers.Resizing(64, 64, pad_to_aspect_ratio=True)],
        OPEN,
        "pads images before it resizes them (pad_to_aspect_ratio)",
    ),
    "cropped to other proportions": (
        lambda: [layers.Resizing(64, 96, crop_to_aspect_ratio=True)],
        OPEN,
        "only squares can be said",
    ),
    "another interpolation": (
        lambda: [layers.Resizing(64, 64, interpolation="lanczos5")],
        OPEN,
        "interpolates by lanczos5, which is not known",
    ),
    "a corner between pixels": (
        lambda: [layers.CenterCrop(63, 63)],
        (66, 66, 3),
        "cuts 63x63 out of 66x66: its corner lies between pixels",
    ),
    "a random crop of larger images": (
        lambda: [layers.RandomCrop(64, 64)],
        (96, 96, 3),
        "is a RandomCrop, and what it does at inference differs from one version of Keras",
    ),
    "a part of the image": (
        lambda: [lambda x: x[:, ::2]],
        (64, 64, 3),
        "takes a part of its images",
    ),
    "an image turned over": (
        lambda: [lambda x: ops.flip(x, axis=1)],
        (64, 64, 3),
        "turns its images over",
    ),
    "negatives": (
        lambda: [layers.Rescaling(-1 / 255, 1.0)],
        (64, 64, 3),
        "scales its images by nothing, or by negative numbers",
    ),
    "channels in another order": (
        lambda: [lambda x: ops.stack([x[..., 1], x[..., 0], x[..., 2]], axis=-1)],
        (64, 64, 3),
        "takes the channels [1, 0, 2] of its images",
    ),
    "statistics of each pixel": (
        lambda: [layers.Normalization(axis=(1, 2, 3), mean=PIXELS, variance=PIXELS)],
        (64, 64, 3),
        "normalises something other than channels",
    ),
    "another layer": (
        lambda: [layers.LayerNormalization()],
        (64, 64, 3),
        "no plain ResNet has one",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_preparations_that_no_bundle_can_say_are_refused(tmp_path: Path, case: str) -> None:
    make, shape, message = REFUSED[case]
    model = reference.transfer(make(), reference.narrow_body(1), [layers.Dense(7)], shape)
    with pytest.raises(BundleError, match=r"\A[^\n]+\Z") as caught:
        converted(reference.save(model, tmp_path / "model.keras"))
    assert message in str(caught.value)


@pytest.mark.parametrize("name", sorted(NOTHING))
def test_what_counts_as_nothing_is_nothing_at_inference(name: str) -> None:
    kind = getattr(layers, name, None)
    if kind is None:
        assert name in ("RandomHeight", "RandomWidth"), "layers that only Keras 2 had"
        return
    needed = [
        parameter
        for parameter in inspect.signature(kind).parameters.values()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    value = 4 if name == "RandomPosterization" else 0.2
    layer = kind(*[value] * len(needed))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.float32)
    found = keras.ops.convert_to_numpy(layer(images, training=False))
    assert np.array_equal(found, images)


def test_weights_alone_do_not_hide_that_layers_prepare_images(tmp_path: Path) -> None:
    """Of a network whose published recipe would be taken else."""
    body = reference.narrow_body(1)
    made = {
        "rescaling": [layers.Rescaling(1 / 255)],
        "normalization": [layers.Rescaling(1 / 255), adapted()],
    }
    for name, front in made.items():
        model = reference.transfer(front, body, [layers.Dense(1000)])
        for file in ("model.weights.h5", "weights.h5"):
            with pytest.raises(BundleError) as caught:
                converted(reference.save(model, tmp_path / file))
            expected = (
                "does not say the order of its channels"
                if name == "rescaling"
                else "normalises images"
            )
            assert expected in str(caught.value)
