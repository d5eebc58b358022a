"""What a graph does to its images before the first block becomes the bundle's input and stem."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from models.resnet import ResNet
from tests.support import rounding, tiny
from tests.support.onnx_files import (
    EXPORTERS,
    PLAIN,
    computed,
    converted,
    exported,
    logits_near,
    refusal,
    saved,
)


@pytest.fixture(autouse=True)
def same_every_time() -> None:
    torch.manual_seed(0)


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


# Channels and sides.


@EXPORTERS
@pytest.mark.parametrize(("count", "channels"), [(1, "grey"), (3, "rgb"), (4, "rgba")])
def test_images_may_have_one_three_or_four_channels(
    tmp_path: Path, count: int, channels: str, dynamo: bool
) -> None:
    batch = images(2, count, 8, 8)
    path = exported(tmp_path / "x.onnx", tiny.network(in_channels=count), batch, dynamo=dynamo)
    mean, std = (0.5,) * count, (0.25,) * count
    found = converted(path, mean=mean, std=std)
    logits_near(found, path, batch)
    assert (found.input.channels, found.input.mean, found.input.std) == (channels, mean, std)


def test_how_grey_images_are_normalised_is_asked_for(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.onnx", tiny.network(in_channels=1), images(2, 1, 8, 8))
    assert "does not say how images were normalised" in refusal(lambda: converted(path))


def test_two_channels_are_refused(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.onnx", tiny.network(in_channels=2), images(2, 2, 8, 8))
    message = refusal(lambda: converted(path, **PLAIN))
    assert "its images have 2 channels; supported are 1, 3 and 4" in message


@EXPORTERS
def test_images_need_not_be_square(tmp_path: Path, dynamo: bool) -> None:
    batch = images(2, 3, 16, 12)
    theirs = tiny.randomised(ResNet(tiny.architecture(stem="imagenet")))
    path = exported(tmp_path / "x.onnx", theirs, batch, dynamo=dynamo)
    found = converted(path, **PLAIN)
    logits_near(found, path, batch)
    assert (found.input.size, found.input.resize) == ((16, 12), (18, 14))
    assert "size" not in found.provenance["assumed"]
    assert {"resize", "crop", "channels"} <= found.provenance["assumed"].keys()


# What is inside of the graph.


class Prepared(nn.Module):
    """A network that prepares its images itself."""

    def __init__(self, kind: str, count: int = 3) -> None:
        super().__init__()
        self.net = tiny.network(in_channels=count)
        self.kind = kind
        shape = (1, count, 1, 1)
        self.mean = nn.Buffer(torch.tensor([0.5, 0.4, 0.3, 0.2][:count]).reshape(shape))
        self.std = nn.Buffer(torch.tensor([0.2, 0.3, 0.4, 0.5][:count]).reshape(shape))

    def reversed(self, x: Tensor) -> Tensor:
        if self.kind == "index":
            return x[:, [2, 1, 0]]
        if self.kind == "split":
            red, green, blue = torch.split(x, 1, 1)
            return torch.cat([blue, green, red], 1)
        if self.kind == "slices":
            return torch.cat([x[:, 2:3], x[:, 1:2], x[:, :1]], 1)
        if self.kind == "green first":
            return x[:, [1, 2, 0]]
        if self.kind in ("repeated", "dropped"):
            return x[:, [0, 0, 0]] if self.kind == "repeated" else x[:, :3]
        return x.flip(1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "last, reversed":
            x = x.flip(3).permute(0, 3, 1, 2)
        elif self.kind in ("normalised, then reversed", "both in turn"):
            x = (x - self.mean) / self.std
            x = x.flip(1)
            if self.kind == "both in turn":
                x = (x - self.mean) / self.std
        elif self.kind == "reversed, then normalised":
            x = (x.flip(1) - self.mean) / self.std
        elif self.kind == "unit":
            x = (x - self.mean) / self.std
        elif self.kind == "pixels":
            x = (x / 255 - self.mean) / self.std
        elif self.kind == "bytes":
            x = (x.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        elif self.kind == "resized":
            x = nn.functional.interpolate(x, (8, 8), mode="bilinear")
        elif self.kind == "cropped":
            x = x[:, :, 2:-2, 2:-2]
        else:
            x = self.reversed(x)
        return self.net(x)


@EXPORTERS
@pytest.mark.parametrize("kind", ["index", "flip", "split", "slices", "green first"])
def test_channels_in_another_order_reorder_the_stems_weights(
    tmp_path: Path, kind: str, dynamo: bool
) -> None:
    batch = images(2, 3, 8, 8)
    path = exported(tmp_path / "x.onnx", Prepared(kind), batch, dynamo=dynamo)
    found = converted(path, **PLAIN)
    logits_near(found, path, batch)
    assert found.input.channels == "rgb"  # What the file sees, not what is behind its reversal.
    assert "order of its input's channels" in found.provenance["notes"][0]
    assert converted(path, channels="bgr", **PLAIN).input.channels == "bgr"


def test_torchs_newer_exporter_reorders_channels_too(tmp_path: Path) -> None:
    batch = images(2, 3, 8, 12)
    path = exported(tmp_path / "x.onnx", Prepared("index"), batch, dynamo=True)
    found = converted(path, **PLAIN)
    logits_near(found, path, batch)
    assert found.input.size == (8, 12)


def test_images_with_the_channels_last_may_be_reversed(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.onnx", Prepared("last, reversed"), images(2, 8, 8, 3))
    batch = images(2, 3, 8, 8)
    theirs = computed(path, batch.permute(0, 2, 3, 1).contiguous())
    found = converted(path, **PLAIN)
    with torch.no_grad():
        rounding.assert_near(found.network()(batch), theirs, found.tensors)


@pytest.mark.parametrize(
    "kind", ["normalised, then reversed", "reversed, then normalised", "both in turn"]
)
def test_mean_and_std_are_in_the_order_of_the_input(tmp_path: Path, kind: str) -> None:
    batch = torch.rand(2, 3, 8, 8)
    path = exported(tmp_path / "x.onnx", Prepared(kind), batch)
    found = converted(path)
    mean, std = (
        torch.tensor(each).reshape(1, 3, 1, 1) for each in (found.input.mean, found.input.std)
    )
    with torch.no_grad():
        ours = found.network()((batch - mean) / std)
    rounding.assert_near(ours, computed(path, batch), found.tensors)


@pytest.mark.parametrize("kind", ["unit", "pixels", "bytes"])
@pytest.mark.parametrize(("count", "channels"), [(1, "grey"), (4, "rgba")])
def test_grey_and_transparent_images_are_normalised_too(
    tmp_path: Path, kind: str, count: int, channels: str
) -> None:
    pixels = torch.randint(256, (2, count, 8, 8), dtype=torch.uint8)
    theirs = {"unit": pixels / 255, "pixels": pixels.float()}.get(kind, pixels.permute(0, 2, 3, 1))
    path = exported(tmp_path / "x.onnx", Prepared(kind, count), theirs)
    found = converted(path)
    assert (found.input.channels, len(found.input.mean)) == (channels, count)
    assert not {"mean", "std", "size"} & found.provenance["assumed"].keys()
    with torch.no_grad():
        normalised = found.classifier().normalise(pixels.permute(0, 2, 3, 1))
        ours = found.network()(normalised)
    rounding.assert_near(ours, computed(path, theirs.contiguous()), found.tensors)


@pytest.mark.parametrize(
    ("kind", "count", "words"),
    [
        ("repeated", 3, "repeats or drops channels of the images"),
        ("dropped", 4, "repeats or drops channels of the images"),
        ("resized", 3, "(Resize): resizes images, which a bundle does before its network"),
        ("cropped", 3, "(Slice): takes a part of its input"),
    ],
)
def test_what_no_bundle_can_say_of_images_is_refused(
    tmp_path: Path, kind: str, count: int, words: str
) -> None:
    module = Prepared(kind, 3)
    path = exported(tmp_path / "x.onnx", module, images(2, count, 12, 12))
    assert words in refusal(lambda: converted(path, **PLAIN))


@pytest.mark.parametrize("kind", ["flip", "index", "split"])
def test_a_graph_that_leaves_its_channels_open_is_not_read_as_if_it_reordered_none(
    tmp_path: Path, kind: str
) -> None:
    path = exported(tmp_path / "x.onnx", Prepared(kind), images(2, 3, 8, 8))
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "c"
    onnx.save(model, path)
    refusal(lambda: converted(path, **PLAIN))


# Stems.

STEMS: dict[str, dict[str, Any]] = {
    "3x3 with a pool": {"stem": "small", "pool": "max"},
    "3x3 in steps of 2": {"stem": "small", "stem_stride": 2},
    "3x3 in steps of 2 with a pool": {"stem": "small", "stem_stride": 2, "pool": "max"},
    "7x7 without a pool": {"stem": "imagenet", "pool": "none"},
    "7x7 in steps of 1": {"stem": "imagenet", "stem_stride": 1},
    "7x7 in steps of 1 without a pool": {"stem": "imagenet", "stem_stride": 1, "pool": "none"},
    "pre-activated with a pool": {"stem": "small", "pool": "max", "preact": True},
    "pre-activated 7x7 without a pool": {"stem": "imagenet", "pool": "none", "preact": True},
}


@EXPORTERS
@pytest.mark.parametrize("name", list(STEMS))
def test_stems_stride_and_pool_as_the_graph_does(tmp_path: Path, name: str, dynamo: bool) -> None:
    theirs = tiny.network(**STEMS[name])
    batch = images(2, 3, 32, 32)
    path = exported(tmp_path / "x.onnx", theirs, batch, dynamo=dynamo)
    found = converted(path, **PLAIN)
    logits_near(found, path, batch)
    assert found.architecture == theirs.architecture
    assert not {"pool", "stem_stride", "padding"} & found.provenance["assumed"].keys()


# What tf2onnx and Keras write.


def weight(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).normal(size=shape, scale=0.4).astype(np.float32)


@pytest.mark.parametrize("padded", ["last", "first"])
def test_images_may_be_padded_before_they_are_transposed(tmp_path: Path, padded: str) -> None:
    node = helper.make_node
    before = node("Pad", ["x", "last"], ["p"]), node("Transpose", ["p"], ["t"], perm=[0, 3, 1, 2])
    after = node("Transpose", ["x"], ["p"], perm=[0, 3, 1, 2]), node("Pad", ["p", "first"], ["t"])
    nodes = [
        *(before if padded == "last" else after),
        node("Conv", ["t", "w0", "b"], ["c0"], strides=[2, 2]),
        node("Relu", ["c0"], ["r0"]),
        node("Transpose", ["r0"], ["n0"], perm=[0, 2, 3, 1]),
        node("Pad", ["n0", "pool"], ["n1"]),
        node("Transpose", ["n1"], ["q0"], perm=[0, 3, 1, 2]),
        node("MaxPool", ["q0"], ["m0"], kernel_shape=[3, 3], strides=[2, 2]),
        node("Conv", ["m0", "w1", "b"], ["c1"], pads=[1, 1, 1, 1]),
        node("Transpose", ["c1"], ["n2"], perm=[0, 2, 3, 1]),
        node("Relu", ["n2"], ["n3"]),
        node("Transpose", ["n3"], ["r1"], perm=[0, 3, 1, 2]),
        node("Conv", ["r1", "w2", "b"], ["c2"], pads=[1, 1, 1, 1]),
        node("Add", ["c2", "m0"], ["a"]),
        node("Relu", ["a"], ["r2"]),
        node("Transpose", ["r2"], ["n4"], perm=[0, 2, 3, 1]),
        node("ReduceMean", ["n4"], ["mean"], axes=[1, 2], keepdims=1),
        node("Squeeze", ["mean", "sides"], ["flat"]),
        node("MatMul", ["flat", "w3"], ["y"]),
    ]
    weights = {
        "last": np.array([0, 3, 3, 0, 0, 3, 3, 0]),
        "first": np.array([0, 0, 3, 3, 0, 0, 3, 3]),
        "pool": np.array([0, 1, 1, 0, 0, 1, 1, 0]),
        "sides": np.array([1, 2]),
        "w0": weight(4, 3, 7, 7),
        "w1": weight(4, 4, 3, 3),
        "w2": weight(4, 4, 3, 3),
        "b": weight(4),
        "w3": weight(4, 5),
    }
    path = saved(tmp_path / "x.onnx", nodes, weights, ("N", 32, 24, 3))
    found = converted(path, **PLAIN)
    batch = images(2, 3, 32, 24)
    theirs = computed(path, batch.permute(0, 2, 3, 1).contiguous())
    with torch.no_grad():
        rounding.assert_near(found.network()(batch), theirs, found.tensors)
    assert found.input.size == (32, 24)
    assert found.architecture.pool_padding == "symmetric"


def test_values_in_two_layouts_do_not_meet(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w0"], ["c0"], pads=[1, 1, 1, 1]),
        node("Relu", ["c0"], ["r0"]),
        node("Conv", ["r0", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w1"], ["c2"], pads=[1, 1, 1, 1]),
        node("Transpose", ["c2"], ["t"], perm=[0, 2, 3, 1]),
        node("Add", ["t", "r0"], ["a"], name="sum"),
        node("Relu", ["a"], ["r2"]),
        node("GlobalAveragePool", ["r2"], ["m"]),
        node("Flatten", ["m"], ["f"]),
        node("MatMul", ["f", "w2"], ["y"]),
    ]
    weights = {"w0": weight(4, 3, 3, 3), "w1": weight(4, 4, 3, 3), "w2": weight(4, 5)}
    path = saved(tmp_path / "x.onnx", nodes, weights, ("N", 3, 4, 4))
    message = refusal(lambda: converted(path, **PLAIN))
    assert "node sum (Add): its inputs have their channels in different places" in message


@pytest.mark.parametrize("mean", ["ReduceMean", "GlobalAveragePool"])
def test_features_of_all_images_are_not_taken_for_those_of_one(tmp_path: Path, mean: str) -> None:
    node = helper.make_node
    axes: dict[str, Any] = {"axes": [2, 3], "keepdims": 0} if mean == "ReduceMean" else {}
    turned = node("Transpose", ["r2" if axes else "m"], ["t"], perm=[1, 0, 2, 3])
    pooled = node(mean, ["t" if axes else "r2"], ["f" if axes else "m"], **axes)
    nodes = [
        node("Conv", ["x", "w0"], ["c0"], pads=[1, 1, 1, 1]),
        node("Relu", ["c0"], ["r0"]),
        node("Conv", ["r0", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w1"], ["c2"], pads=[1, 1, 1, 1]),
        node("Add", ["c2", "r0"], ["a"]),
        node("Relu", ["a"], ["r2"]),
        *((turned, pooled) if axes else (pooled, turned, node("Flatten", ["t"], ["f"]))),
        node("MatMul", ["f", "w2"], ["y"]),
    ]
    weights = {"w0": weight(4, 3, 3, 3), "w1": weight(4, 4, 3, 3), "w2": weight(4, 5)}
    path = saved(tmp_path / "x.onnx", nodes, weights, (4, 3, 4, 4))
    assert "features [C, N], not [N, C]" in refusal(lambda: converted(path, **PLAIN))


KERAS = """
import os, sys, warnings
os.environ["KERAS_BACKEND"] = "torch"
import keras, numpy as np
from keras import layers as L
warnings.simplefilter("ignore")
keras.utils.set_random_seed(0)

def conv(x, *args, act=True, **options):
    y = L.BatchNormalization(beta_initializer="random_normal")(L.Conv2D(*args, **options)(x))
    return L.ReLU()(y) if act else y

x = images = keras.Input((32, 32, 3))
x = L.Rescaling(1 / 127.5, -1)(x)
x = conv(L.ZeroPadding2D(3)(x), 8, 7, strides=2)
x = L.MaxPooling2D(3, 2)(L.ZeroPadding2D(1)(x))
y = conv(conv(x, 8, 3, padding="same"), 8, 3, padding="same", act=False)
x = L.ReLU()(L.Add()([x, y]))
y = conv(conv(x, 16, 3, strides=2, padding="same"), 16, 3, padding="same", act=False)
x = L.Activation("relu")(L.Add()([y, conv(x, 16, 1, strides=2, act=False)]))
x = L.Dropout(0.2)(L.GlobalAveragePooling2D()(x))
model = keras.Model(images, L.Dense(5, activation="softmax")(x))
model(np.zeros((1, 32, 32, 3), "float32"))
model.export(sys.argv[1], format="onnx", verbose=False)
"""


@pytest.mark.skipif(find_spec("keras") is None, reason="needs keras")
def test_what_keras_exports_by_torch_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    # Keras chooses its backend once in a process.
    done = subprocess.run(
        [sys.executable, "-c", KERAS, str(path)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = converted(path)
    assert found.input.mean == found.input.std == pytest.approx((0.5, 0.5, 0.5))
    assert (found.outputs, found.architecture.padding) == ("exclusive", "same")
    pixels = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        ours = found.classifier()(pixels)
    rounding.assert_probabilities_near(ours, computed(path, pixels.float()), found.tensors)


def test_what_the_graph_determines_is_not_assumed(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.onnx", Prepared("pixels"), images(2, 3, 8, 8))
    assumed = converted(path).provenance["assumed"]
    assert set(assumed) == {"resize", "crop", "interpolation", "channels", "labels", "outputs"}
