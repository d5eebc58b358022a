"""Keras's ResNets give what Keras gives, from each of its file formats."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from models import labels
from models.architecture import Architecture
from models.bundle import Bundle, BundleError
from models.variants import find
from tests.support import keras_reference as reference
from tests.support.keras_reference import converted, difference, keras, layers, ours, pixels
from tests.support.random_weights import far

pytestmark = [
    # Keras's own, when it saves tensors of torch.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
]

SIZES = [(64, 64), (65, 49), (32, 32)]
FILES = ["weights.h5", "model.h5", "model.weights.h5", "model.keras"]
PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(BundleError, match=r"\A[^\n]+\Z") as caught:
        action()
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "ResNet50",
        pytest.param("ResNet101", marks=pytest.mark.slow),
        pytest.param("ResNet152", marks=pytest.mark.slow),
        "ResNet50V2",
        pytest.param("ResNet101V2", marks=pytest.mark.slow),
        pytest.param("ResNet152V2", marks=pytest.mark.slow),
    ],
)
def test_the_applications_give_equal_logits_from_the_same_pixels(tmp_path: Path, name: str) -> None:
    model = reference.application(name)
    v2 = name.endswith("V2")
    bundle = converted(reference.save(model, tmp_path / FILES[0]))
    assert preprocessed_difference(bundle, model, SIZES[1], 2 if v2 else 1) <= 1
    depth = name.removeprefix("ResNet").removesuffix("V2")
    assert bundle.variant == f"preact_resnet{depth}" if v2 else f"resnet{depth}"
    assert bundle.labels == labels.read("imagenet1k")
    assert bundle.architecture.eps == 1.001e-5
    assert bundle.provenance["layout"] == f"keras.applications ResNet v{2 if v2 else 1}"
    assert bundle.architecture.biases == (
        ("stem", "conv3", "shortcut") if v2 else ("stem", "conv1", "conv2", "conv3", "shortcut")
    )


def preprocessed_difference(
    bundle: Bundle, model: Any, size: tuple[int, int], version: int
) -> float:
    """Of a network that is given what its own `preprocess_input` makes of pixels."""
    images = pixels((*size, 3))
    package = keras.applications.resnet if version == 1 else keras.applications.resnet_v2
    # It works in place.
    theirs = package.preprocess_input(images.astype(np.float32))
    return far(ours(bundle, images), reference.logits(model, theirs), bundle.network())


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("file", FILES)
def test_every_file_of_an_application_is_read(tmp_path: Path, file: str, version: int) -> None:
    model = reference.ending_in_logits(reference.narrow_body(version))
    bundle = converted(reference.save(model, tmp_path / file))
    for size in SIZES:
        assert preprocessed_difference(bundle, model, size, version) <= 1
    assert bundle.architecture.blocks == (2, 2, 2, 2)
    assert bundle.provenance["layout"] == f"keras.applications ResNet v{version}"


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("ResNet50", "stride_at", "3x3"),
        ("ResNet50V2", "stride_block", "first"),
        ("ResNet50V2", "pool_padding", "symmetric"),
        ("ResNet50V2", "preact_shortcut", "raw"),
    ],
)
def test_other_numerics_would_give_other_logits(
    tmp_path: Path, name: str, field: str, value: str
) -> None:
    model = reference.application(name, classes=10)
    path = reference.save(model, tmp_path / "weights.h5")
    try:
        bundle = converted(path, **PLAIN, channels="rgb", numerics={field: value})
    except BundleError:
        assert field == "stride_block", "then shortcuts have other shapes"
        return
    assert difference(bundle, model, (64, 64)) > 1


def test_fine_tuned_ones_need_a_normalisation(tmp_path: Path) -> None:
    path = reference.save(reference.application("ResNet50V2", 10), tmp_path / "weights.h5")
    assert "give --mean r,g,b and --std r,g,b" in refusal(lambda: converted(path))
    assert converted(path, **PLAIN, variant="preact_resnet50").architecture.num_classes == 10


def test_the_published_recipe_is_the_input_of_v1(tmp_path: Path) -> None:
    model = reference.ending_in_logits(reference.narrow_body(1))
    for file in FILES:
        bundle = converted(reference.save(model, tmp_path / file))
        assert bundle.input.channels == "bgr"
        assert bundle.input.mean == (103.939 / 255, 116.779 / 255, 123.68 / 255)
        assert bundle.input.std == (1 / 255,) * 3
        # A network of one's own may have 1000 classes too.
        assert {"channels", "mean", "std", "labels"} <= bundle.provenance["assumed"].keys()


@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("file", FILES)
def test_the_channel_order_of_ones_own_v1_is_asked_for(
    tmp_path: Path, file: str, classes: int
) -> None:
    """Of classes of one's own, and of 1000 with a normalisation of one's own."""
    model = reference.ending_in_logits(reference.narrow_body(1), classes)
    path = reference.save(model, tmp_path / file)
    message = "does not say the order of its channels; give --channels rgb or --channels bgr"
    assert message in refusal(lambda: converted(path, **PLAIN))
    if classes == 10:
        both = refusal(lambda: converted(path))
        assert "nor how images were normalised" in both
        assert "rgb or --channels bgr, with --mean r,g,b and --std r,g,b" in both
    bundle = converted(path, **PLAIN, channels="rgb")
    assert difference(bundle, model, (64, 64)) <= 1
    turned = converted(path, **PLAIN, channels="bgr")
    images = pixels((64, 64, 3))
    theirs = reference.logits(model, images[..., ::-1].astype(np.float32))
    assert far(ours(turned, images), theirs, turned.network()) <= 1
    assert far(ours(bundle, images), theirs, bundle.network()) > 1


@pytest.mark.parametrize("file", ["weights.h5", "model.h5", "model.keras"])
@pytest.mark.parametrize("normed", [False, True], ids=["bare shortcut", "normalised shortcut"])
def test_small_networks_are_read_by_their_order(tmp_path: Path, file: str, normed: bool) -> None:
    model = reference.small((2, 1, 2), 8, normed_shortcut=normed)
    bundle = converted(reference.save(model, tmp_path / file), **PLAIN)
    assert difference(bundle, model) <= 1
    assert bundle.architecture == Architecture(
        block="basic",
        blocks=(2, 1, 2),
        planes=(8, 16, 32),
        stem="small",
        num_classes=10,
        padding="same",
        biases=("stem", "conv1", "conv2", "shortcut"),
        shortcut_norm=normed,
        eps=1e-3,
    )
    assert bundle.provenance["layout"] == "Keras layers in order"


@pytest.mark.parametrize("blocks", [3, 5, 9])
def test_the_cifar_examples_depths_have_their_names(tmp_path: Path, blocks: int) -> None:
    model = reference.small((blocks,) * 3)
    path = reference.save(model, tmp_path / "model.h5")
    bundle = converted(path, **PLAIN, variant=f"resnet{6 * blocks + 2}")
    assert difference(bundle, model) <= 1
    assert find(bundle.architecture) is not None
    assert "give --mean r,g,b and --std r,g,b" in refusal(lambda: converted(path))


def test_small_networks_for_odd_sides_give_equal_logits(tmp_path: Path) -> None:
    model = reference.small((1, 2, 1), 8, side=33)
    bundle = converted(reference.save(model, tmp_path / "weights.h5"), **PLAIN)
    assert difference(bundle, model, (33, 33)) <= 1


def test_another_epsilon_is_read_from_a_whole_model_or_said(tmp_path: Path) -> None:
    model = reference.small((1, 1), 8)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.epsilon = 0.02
    whole = converted(reference.save(model, tmp_path / "model.keras"), **PLAIN)
    assert whole.architecture.eps == 0.02
    assert difference(whole, model) <= 1
    path = reference.save(model, tmp_path / "weights.h5")
    assert difference(converted(path, **PLAIN), model) > 1
    assert difference(converted(path, **PLAIN, numerics={"eps": 0.02}), model) <= 1


def test_mlperf_tinys_network_sees_pixels_as_they_are(tmp_path: Path) -> None:
    model = reference.small((1, 1, 1), 16)
    bundle = converted(reference.save(model, tmp_path / "pretrainedResnet.h5"))
    assert difference(bundle, model) <= 1
    assert bundle.provenance["layout"] == "MLPerf Tiny ResNet-8"
    assert bundle.name == "pretrainedResnet"
    assert bundle.labels == labels.read("cifar10")


def test_a_second_network_of_a_session_is_read_as_well(tmp_path: Path) -> None:
    """Its layers' numbers go on where the first one's ended, past 9 and 10."""
    for _ in range(2):
        model = reference.small((2, 2, 1), 8)
    assert "conv2d" not in {layer.name for layer in model.layers}
    bundle = converted(reference.save(model, tmp_path / "weights.h5"), **PLAIN)
    assert difference(bundle, model) <= 1


def test_named_layers_are_read_in_the_files_order(tmp_path: Path) -> None:
    model = reference.small((1, 2, 1), 8)
    for layer in model.layers:
        layer.name = layer.name[::-1] if "add" not in layer.name else layer.name
    bundle = converted(reference.save(model, tmp_path / "model.keras"), **PLAIN)
    assert difference(bundle, model) <= 1


def test_files_of_keras_2_are_read(tmp_path: Path) -> None:
    """Names in bytes, and with TensorFlow's number of an output."""
    model = reference.small((1, 2, 1), 8)
    path = reference.save(model, tmp_path / "model.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = np.bytes_(file.attrs["model_config"])
        group = file["model_weights"]
        for layer in group.values():
            names = [str(each) for each in layer.attrs["weight_names"]]
            for name in names:
                layer.move(name, f"{name}:0")
            layer.attrs["weight_names"] = np.array([f"{name}:0" for name in names], "S")
        # As where HDF5 has no room for all of them.
        layers_listed = np.array(list(group.attrs["layer_names"]), "S")
        del group.attrs["layer_names"]
        group.attrs["layer_names0"] = layers_listed[:7]
        group.attrs["layer_names1"] = layers_listed[7:]
    bundle = converted(path, **PLAIN)
    assert difference(bundle, model) <= 1


def test_files_of_early_keras_3_are_read_though_they_lack_names(tmp_path: Path) -> None:
    for _ in range(2):
        model = reference.small((1, 2, 1), 8)
    path = reference.save(model, tmp_path / "model.keras")
    weights = tmp_path / "inner.h5"
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json")
        weights.write_bytes(archive.read("model.weights.h5"))
    with h5py.File(weights, "r+") as file:
        for layer in file["layers"].values():
            layer["vars"].attrs.pop("name", None)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", weights.read_bytes())
    assert difference(converted(path, **PLAIN), model) <= 1


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    model = reference.small((1, 1, 1), 8)
    path = reference.save(model, tmp_path / "weights.h5")
    with h5py.File(path, "r+") as file:
        group = file["dense" if "dense" in file else model.layers[-1].name]
        (name,) = [each for each in group.attrs["weight_names"] if "kernel" in str(each)]
        half = group[name][...].astype(np.float16)
        del group[name]
        group[name] = half
    tensors = converted(path, **PLAIN).tensors
    assert np.array_equal(tensors["head.weight"].numpy(), half.T.astype(np.float32))


def test_a_model_within_a_model_is_read(tmp_path: Path) -> None:
    """As fine-tuning makes it, from the files that keep the inner layers' names."""
    body = reference.ending_in_logits(reference.narrow_body(2))
    inner = keras.Model(body.input, body.layers[-2].output, name="resnet50v2")
    images = layers.Input((64, 64, 3))
    model = reference.random(keras.Model(images, layers.Dense(10)(inner(images))))
    for file in ("weights.h5", "model.keras"):
        bundle = converted(reference.save(model, tmp_path / file), **PLAIN)
        assert difference(bundle, model, (64, 64)) <= 1


def layered(*added: Any) -> Any:
    """A small network with a layer before its head."""
    body = reference.small((1, 1), 8)
    x = body.layers[-2].output
    for layer in added:
        x = layer(x)
    return reference.random(keras.Model(body.input, layers.Dense(10)(x)))


def grouped() -> Any:
    images = layers.Input((32, 32, 3))
    x = layers.GroupNormalization(4)(layers.Conv2D(8, 3, padding="same")(images))
    y = layers.GroupNormalization(4)(layers.Conv2D(8, 3, padding="same")(x))
    y = layers.GroupNormalization(4)(layers.Conv2D(8, 3, padding="same")(y))
    x = layers.GlobalAveragePooling2D()(layers.add([x, y]))
    return keras.Model(images, layers.Dense(10)(x))


REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "another network": (
        lambda: keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3)),
        "weights.h5",
        r"layer block_1_expand does not fit as a basic block's shortcut",
    ),
    "pre-activation": (
        lambda: reference.small((1, 1), 8, preact=True),
        "weights.h5",
        r"normalises after its last addition: a pre-activation network, of which weights alone do "
        r"not tell what its shortcuts see; save the whole model \(\.keras or \.h5\)",
    ),
    "an order that is not told": (
        lambda: reference.small((1, 1), 8),
        "model.weights.h5",
        r"does not list its additions, so that it may activate before or after them: save the "
        r"whole model \(\.keras or \.h5\)",
    ),
    "GroupNorm": (
        grouped,
        "weights.h5",
        r"layer group_normalization\w* has no moving statistics: GroupNorm or LayerNorm, not "
        r"BatchNorm",
    ),
    "GroupNorm, of which only shapes tell": (
        grouped,
        "model.weights.h5",
        r"layer group_normalization\w* holds variable 0, variable 1: not a layer of a plain ResNet",
    ),
    "GroupNorm, in a whole model": (
        grouped,
        "model.keras",
        r"layer group_normalization\w* is a GroupNormalization: no plain ResNet has one",
    ),
    "dilation": (
        lambda: reference.small((1,), 8, dilation_rate=2),
        "model.h5",
        r"layer conv2d_\d+ has dilation_rate \[2, 2\]: not a plain ResNet's",
    ),
    "groups": (
        lambda: reference.small((1, 1), 8, groups=2),
        "model.keras",
        r"layer conv2d_\d+ has groups 2: not a plain ResNet's",
    ),
    "groups, of which only shapes tell": (
        lambda: reference.small((1, 1), 8, groups=2),
        "weights.h5",
        r"layer conv2d_\d+ sees 4 of 8 channels: grouped convolutions, or blocks out of order",
    ),
    "an activation in a convolution": (
        lambda: reference.small((1, 1), 8, activation="relu"),
        "model.keras",
        r"layer conv2d_\d+ activates what it gives: no normalisation follows it",
    ),
    "another activation": (
        lambda: layered(layers.Activation("gelu")),
        "model.h5",
        r"layer activation_?\d* activates by gelu, not ReLU",
    ),
    "a clipped ReLU": (
        lambda: layered(layers.ReLU(6)),
        "model.h5",
        r"layer re_lu_?\d* is not a plain ReLU",
    ),
    "pixels that the model scales": (
        lambda: layered(layers.Rescaling(2.0)),
        "model.keras",
        r"layer rescaling_?\d* is a Rescaling: no plain ResNet has one",
    ),
    "another kernel": (
        lambda: reference.small((1, 1), 8),
        "5x5",
        r"layer conv2d_\d+ is a 5x5 convolution: not part of a basic block",
    ),
    "an ImageNet stem without names": (
        lambda: reference.small((1, 1), 8),
        "7x7",
        r"has a stem of 7x7, and not the names that keras\.applications gives",
    ),
    "a missing norm": (
        lambda: reference.small((1, 1), 8),
        "one norm less",
        r"has 6 convolutions and 4 BatchNorms: which follows which is unknown; save the whole "
        r"model \(\.keras or \.h5\)",
    ),
    "other epsilons": (
        lambda: reference.small((1, 1), 8),
        "epsilons",
        r"its normalisations have different epsilons: 0\.001, 0\.5",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_such_resnet_is_refused_by_name(tmp_path: Path, case: str) -> None:
    make, file, message = REFUSED[case]
    model = make()
    if file == "epsilons":
        next(each for each in model.layers if hasattr(each, "epsilon")).epsilon = 0.5
        file = "model.keras"
    path = reference.save(model, tmp_path / (file if "." in file else "weights.h5"))
    if "." not in file:
        with h5py.File(path, "r+") as content:
            names = list(content.attrs["layer_names"])
            convs, norms = ([n for n in names if kind in n] for kind in ("conv2d", "batch"))
            if file in ("5x5", "7x7"):
                side = int(file[0])
                group = content[convs[2 if side == 5 else 0]]
                (kernel,) = [each for each in group.attrs["weight_names"] if "kernel" in each]
                del group[kernel]
                group[kernel] = np.zeros((side, side, 8, 8))
            else:
                content[norms[0]].attrs["weight_names"] = []
    with pytest.raises(BundleError) as caught:
        converted(path, **PLAIN)
    prefix, _, reason = str(caught.value).partition(": ")
    assert prefix == str(path)
    assert re.fullmatch(message, reason), reason


def test_dropout_is_no_part_of_what_a_network_computes(tmp_path: Path) -> None:
    model = layered(layers.Dropout(0.5))
    for file in ("weights.h5", "model.keras"):
        assert difference(converted(reference.save(model, tmp_path / file), **PLAIN), model) <= 1


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89HDF\r\n\x1a\n", b"PK\x05\x06" + bytes(18)]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.h5"
    path.write_bytes(content)
    assert refusal(lambda: converted(path)).startswith(f"{path}: ")


def test_hdf5_files_of_others_and_absent_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.h5"
    assert refusal(lambda: converted(path)) == f"{path}: No such file or directory"
    with h5py.File(path, "w") as file:
        file["data"] = np.ones(3)
    assert refusal(lambda: converted(path)) == f"{path}: not Keras weights: it lists no layers"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    why = "not a Keras file, or damaged; save the model again"
    assert refusal(lambda: converted(path)) == f"{path}: {why}"


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for name in ("weights.h5", "model.keras"):
        path = reference.save(reference.small((1, 1, 1), 8), tmp_path / name)
        whole = path.read_bytes()
        for length in range(0, len(whole), len(whole) // 20):
            path.write_bytes(whole[:length])
            assert refusal(partial(converted, path, **PLAIN)).startswith(f"{path}: ")


def test_a_damaged_description_is_refused(tmp_path: Path) -> None:
    path = reference.save(reference.small((1, 1), 8), tmp_path / "model.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = file.attrs["model_config"].replace('"epsilon"', '"eps"')
    assert refusal(lambda: converted(path, **PLAIN)) == (
        f"{path}: its description of the model is damaged (KeyError)"
    )


def test_the_names_of_early_keras_are_refused_as_such(tmp_path: Path) -> None:
    path = tmp_path / "resnet50_weights_tf_dim_ordering_tf_kernels.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["conv1", "res2a_branch2a"]
        for name in file.attrs["layer_names"]:
            file.create_group(name).attrs["weight_names"] = [f"{name}/kernel:0"]
            file[name][f"{name}/kernel:0"] = np.ones((1, 1, 4, 4))
    assert refusal(lambda: converted(path)) == (
        f"{path}: has layers called res2a_branch2a, as Keras before 2.3 had: its pooling differs; "
        "save the whole model (.keras or .h5)"
    )
