"""Blocks that dilate or blur where others stride are found in a graph, and nothing else is."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from models.bundle import BundleError
from models.resnet import ResNet
from tests.support import rounding, tiny
from tests.support.libraries import import_timm, import_torchvision, randomised
from tests.support.onnx_files import (
    EXPORTERS,
    PLAIN,
    computed,
    converted,
    exported,
    logits_near,
    refusal,
)

DEEP: dict[str, Any] = {"block": "bottleneck", "blocks": (1, 2, 2), "planes": (4, 8, 12)}
THREE: dict[str, Any] = {"blocks": (1, 2, 2), "planes": (4, 8, 12)}

NETWORKS: dict[str, dict[str, Any]] = {
    "dilated last stage": {**THREE, "dilation": (2,)},
    "dilated stages": {**THREE, "dilation": (1, 2)},
    "dilated, then striding": {**THREE, "dilation": (1,)},
    "dilated bottlenecks": {**DEEP, "dilation": (1, 2)},
    "dilated pre-activated": {**THREE, "dilation": (2,), "preact": True},
    "averages": {**THREE, "antialias": "average"},
    "averages behind a pool": {**THREE, "stem": "imagenet", "antialias": "average"},
    "averages in bottlenecks": {**DEEP, "stem": "imagenet", "antialias": "average"},
    "blur": {**THREE, "antialias": "blur"},
    "blur behind a pool": {**THREE, "stem": "imagenet", "antialias": "blur"},
    "blur in bottlenecks": {**DEEP, "stem": "imagenet", "antialias": "blur"},
    "blur behind a 3x3 with a pool": {**THREE, "pool": "max", "antialias": "blur"},
    "all stages stride": {**THREE, "stride_stages": "all"},
    "all stages of bottlenecks stride": {**DEEP, "stem": "imagenet", "stride_stages": "all"},
}


@pytest.fixture(autouse=True)
def same_every_time() -> None:
    torch.manual_seed(0)


def images(side: int = 64, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def theirs(name: str) -> ResNet:
    return tiny.network(**NETWORKS[name])


@EXPORTERS
@pytest.mark.parametrize("name", list(NETWORKS))
def test_structures_that_names_do_not_reveal_are_in_the_graph(
    tmp_path: Path, name: str, dynamo: bool
) -> None:
    network = theirs(name)
    path = exported(tmp_path / "x.onnx", network, images(), dynamo=dynamo)
    found = converted(path, **PLAIN)
    logits_near(found, path, images())
    assert found.architecture == network.architecture
    known = {"dilation", "antialias", "stride_at", "pool", "stem_stride", "padding", "head"}
    assert not known & found.provenance["assumed"].keys()


def test_torchs_newer_exporter_writes_blurs_that_are_found_too(tmp_path: Path) -> None:
    network = tiny.network(antialias="blur")
    path = exported(tmp_path / "x.onnx", network, images(16), dynamo=True)
    found = converted(path, **PLAIN)
    logits_near(found, path, images(16))
    assert found.architecture == network.architecture


@pytest.mark.parametrize("side", [40, 44])
def test_odd_maps_are_blurred_alike(tmp_path: Path, side: int) -> None:
    path = exported(tmp_path / "x.onnx", theirs("blur in bottlenecks"), images(side))
    logits_near(converted(path, **PLAIN), path, images(side))


@EXPORTERS
@pytest.mark.parametrize("layer", ["BlurPool2d", "AvgPool2d"])
@pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck"])
def test_timms_antialiased_networks_give_equal_logits(
    tmp_path: Path, block: str, layer: str, dynamo: bool
) -> None:
    timm = import_timm()
    resnet = timm.models.resnet
    kind = nn.AvgPool2d if layer == "AvgPool2d" else timm.layers.BlurPool2d
    network = resnet.ResNet(getattr(resnet, block), [1, 1, 1, 1], num_classes=5, aa_layer=kind)
    path = exported(tmp_path / "x.onnx", randomised(network, 64), images(), dynamo=dynamo)
    found = converted(path, **PLAIN)
    logits_near(found, path, images())
    assert found.architecture.antialias == ("average" if layer == "AvgPool2d" else "blur")


@EXPORTERS
@pytest.mark.parametrize("dilated", [(False, False, True), (False, True, True)])
def test_torchvisions_dilated_networks_give_equal_logits(
    tmp_path: Path, dilated: tuple[bool, ...], dynamo: bool
) -> None:
    resnet = import_torchvision().models.resnet
    network = resnet.ResNet(
        resnet.Bottleneck, [1, 1, 2, 2], 5, replace_stride_with_dilation=list(dilated)
    )
    path = exported(tmp_path / "x.onnx", randomised(network, 64), images(), dynamo=dynamo)
    found = converted(path, **PLAIN)
    logits_near(found, path, images())
    assert found.architecture.dilation == tuple(i for i, each in enumerate(dilated, 1) if each)


def changed(tmp_path: Path, name: str, op: str, index: int, **attributes: Any) -> Path:
    """One of `NETWORKS` with one node's attributes changed."""
    path = exported(tmp_path / "x.onnx", theirs(name), images())
    model = onnx.load(path)
    node = [each for each in model.graph.node if each.op_type == op][index]
    kept = [each for each in node.attribute if each.name not in attributes]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("name", "op", "index", "attributes", "words"),
    [
        (
            "dilated last stage",
            "Conv",
            -1,
            {"dilations": [3, 3], "pads": [3] * 4},
            "(Conv): dilates by 3, not 2",
        ),
        (
            "dilated last stage",
            "Conv",
            1,
            {"dilations": [2, 2], "pads": [2] * 4},
            "(Conv): dilates by 2, not 1",
        ),
        (
            "dilated last stage",
            "Conv",
            0,
            {"dilations": [2, 2], "pads": [2] * 4},
            "(Conv): a dilated stem, which no ResNet has",
        ),
        (
            "averages behind a pool",
            "AveragePool",
            0,
            {"kernel_shape": [3, 3], "pads": [1] * 4},
            "(AveragePool): an average pooling within the network",
        ),
        (
            "averages behind a pool",
            "AveragePool",
            1,
            {"ceil_mode": 1, "strides": [1, 1]},
            "(AveragePool): averages 2x2 pixels other than apart from each other",
        ),
        (
            "blur behind a pool",
            "MaxPool",
            0,
            {"strides": [2, 2]},
            "pools the stem unlike the blocks behind it",
        ),
        (
            "blur",
            "Pad",
            0,
            {"mode": "constant"},
            "(AveragePool): averages 2x2 pixels other than apart from each other",
        ),
        ("blur", "Pad", 0, {"mode": "edge"}, "(Pad): pads with something other than a constant"),
    ],
)
def test_what_dilates_or_blurs_otherwise_is_refused(
    tmp_path: Path, name: str, op: str, index: int, attributes: dict[str, Any], words: str
) -> None:
    path = changed(tmp_path, name, op, index, **attributes)
    assert words in refusal(lambda: converted(path, **PLAIN))


class Blurs(nn.Module):
    """A network that blurs at one place only."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.net = tiny.network(**{**THREE, "stem": "imagenet"})
        other = tiny.network(**{**THREE, "stem": "imagenet", "antialias": "average"})
        if place == "stem":
            self.net.stem.pool = other.stem.pool
        elif place == "block":
            self.net.stages[1] = other.stages[1]
        else:
            net: Any = self.net
            net.stages[1][0].shortcut.conv.stride = (1, 1)
            net.stages[1][0].shortcut = nn.Sequential(nn.AvgPool2d(2), net.stages[1][0].shortcut)

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("stem", "strides by 2, not 1"),
        ("block", "pools the stem unlike the blocks behind it"),
        ("shortcut", "(AveragePool): does not fit on a shortcut"),
    ],
)
def test_networks_that_blur_here_and_there_are_refused(
    tmp_path: Path, place: str, words: str
) -> None:
    path = exported(tmp_path / "x.onnx", Blurs(place), images())
    assert words in refusal(lambda: converted(path, **PLAIN))


def test_whatever_is_accepted_computes_what_the_changed_graph_computes(tmp_path: Path) -> None:
    choose = random.Random(0)
    path = tmp_path / "x.onnx"
    models = [onnx.load(exported(path, theirs(name), images(32))) for name in NETWORKS]
    outcomes = {"equal": 0, "refused": 0}
    for _ in range(60):
        model = type(models[0])()
        model.CopyFrom(choose.choice(models))
        nodes = [node for node in model.graph.node if node.op_type.endswith(("Conv", "Pool"))]
        node = choose.choice(nodes)
        for each in node.attribute:
            chosen = each.name in ("pads", "strides", "kernel_shape", "dilations")
            if chosen and choose.random() < 0.4:
                each.ints[:] = [choose.choice([1, 1, 2, 3])] * len(each.ints)
        onnx.save(model, path)
        try:
            theirs_then = computed(path, images(32))
        except Exception:  # noqa: BLE001 - a graph that nobody can run
            continue
        try:
            found = converted(path, **PLAIN)
        except BundleError:
            outcomes["refused"] += 1
            continue
        with torch.no_grad():
            rounding.assert_near(found.network()(images(32)), theirs_then, found.tensors)
        outcomes["equal"] += 1
    assert min(outcomes.values()) > 5
