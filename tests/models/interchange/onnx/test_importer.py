"""ONNX graphs become networks that compute what onnxruntime computes of the very same file."""

from __future__ import annotations

import json
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from torch import Tensor, nn

from models import labels, variants
from models.bundle import BundleError
from models.extras import install
from models.interchange.onnx.importer import ZOO
from models.preprocess import IMAGENET
from models.resnet import ResNet
from tests.support import gluon, reference, rounding, tiny
from tests.support.networks import IMAGES, NETWORKS, network
from tests.support.onnx_files import (
    PLAIN,
    assert_equal_logits,
    computed,
    converted,
    exported,
    refusal,
)
from tests.support.shared import SHARED, needs_shared

SMALL = (8, 16, 32, 64)


@pytest.fixture(autouse=True)
def same_every_time() -> None:
    torch.manual_seed(0)


# The model zoo.


@pytest.mark.parametrize("name", list(gluon.PREFIXES))
def test_the_model_zoos_graphs_give_equal_logits(tmp_path: Path, name: str) -> None:
    # The shallow ones as wide as they are; all as deep.
    full = name.startswith("resnet18")
    zoo = gluon.Zoo(name, widths=gluon.WIDTHS if full else SMALL, size=64)
    path = tmp_path / f"{name}.onnx"
    onnx.checker.check_model(zoo.model)
    onnx.save(zoo.model, path)
    bundle = converted(path)
    assert_equal_logits(bundle, path, 64)
    found = bundle.architecture
    v2, deep = "-v2" in name, zoo.deep
    assert (found.preact, found.input_norm) == (v2, v2)
    assert found.stride_at == ("1x1" if deep and not v2 else "3x3")
    assert (found.biases, found.eps) == ((), 1e-5)
    assert found.preact_stem == ("activated" if v2 else "bare")
    assert (bundle.input.mean, bundle.input.std) == (IMAGENET.mean, IMAGENET.std)
    assert bundle.input.crop == ZOO.crop == "center_floor"
    assert bundle.labels == labels.read("imagenet1k")
    assert bundle.provenance["layout"] == "ONNX model zoo"
    if full:
        assert bundle.variant == ("preact_resnet18" if v2 else "resnet18")


def test_the_model_zoos_images_are_resized_to_256() -> None:
    assert (ZOO.size, ZOO.resize) == (224, 256)


@needs_shared
@pytest.mark.parametrize("name", list(gluon.PREFIXES))
def test_the_rebuilt_graphs_have_the_model_zoos_tensors(name: str) -> None:
    text = (SHARED / "reference" / "layouts.json").read_text("utf-8")
    published = json.loads(text)["layouts"]["onnx_zoo_reconstructed"][name]["tensors"]
    full = name.startswith("resnet18")
    zoo = gluon.Zoo(name, widths=gluon.WIDTHS if full else SMALL)
    ours = [[each.name, list(each.dims)] for each in zoo.weights]
    if not full:
        published, ours = ([each for each, _ in tensors] for tensors in (published, ours))
    assert sorted(ours) == sorted(published)


# What torch exports.


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "norms"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_what_torch_exports_is_found_again(tmp_path: Path, name: str, folded: bool) -> None:
    theirs = network(name)
    size = IMAGES[theirs.architecture.stem]
    path = tmp_path / "x.onnx"
    exported(path, theirs, torch.randn(2, 3, size, size), folded=folded)
    bundle = converted(path, **PLAIN)
    assert_equal_logits(bundle, path, size)
    ours, wanted = bundle.architecture, theirs.architecture
    # A norm takes in a bias before it; of a pre-activated block the last and the shortcut's stay.
    free = {"biases", "eps", "dropout"} if folded else {"biases", "dropout"}
    for field in type(ours).__dataclass_fields__.keys() - free:
        assert getattr(ours, field) == getattr(wanted, field), field


@pytest.mark.parametrize("opset", [11, 13, 18, 20])
def test_opsets_differ_only_in_how_they_say_it(tmp_path: Path, opset: int) -> None:
    for name in ("option A", "same", "zero-padded pool"):
        theirs = network(name)
        size = IMAGES[theirs.architecture.stem]
        path = tmp_path / f"{name}.onnx"
        exported(path, theirs, torch.randn(2, 3, size, size), opset=opset)
        bundle = converted(path, **PLAIN)
        assert_equal_logits(bundle, path, size)
        assert bundle.architecture.shortcut == theirs.architecture.shortcut


@pytest.mark.parametrize(
    ("name", "opset"), [("option A", 18), pytest.param("bottleneck", 20, marks=pytest.mark.slow)]
)
def test_what_torchs_new_exporter_writes_is_found_again(
    tmp_path: Path, name: str, opset: int
) -> None:
    theirs = network(name)
    size = IMAGES[theirs.architecture.stem]
    path = tmp_path / "x.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            theirs,
            (torch.randn(2, 3, size, size),),
            path,
            dynamo=True,
            opset_version=opset,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("n")},),
        )
    assert path.with_suffix(".onnx.data").exists(), "weights lie in a file beside it"
    bundle = converted(path, **PLAIN)
    assert_equal_logits(bundle, path, size)
    assert bundle.architecture == theirs.architecture


class Wrapped(nn.Module):
    """A network as others end and begin theirs."""

    def __init__(self, front: str, end: str) -> None:
        super().__init__()
        block = reference.BasicBlock
        self.net = tiny.randomised(reference.Network("akamaster", block, (1, 1), 8, 5)).eval()
        self.front, self.end = front, end
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Conv2d(16, 5, 1)
        self.mean = nn.Buffer(torch.tensor([0.5, 0.4, 0.3]).reshape(1, 3, 1, 1))
        self.std = nn.Buffer(torch.tensor([0.2, 0.3, 0.4]).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.front == "unit":
            x = (x - self.mean) / self.std
        elif self.front == "pixels":
            x = (x / 255 - self.mean) / self.std
        elif self.front == "symmetric":
            x = x * 2 - 1
        elif self.front == "bytes":
            x = (x.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        elif self.front == "channels last":
            x = x.permute(0, 3, 1, 2)
        net = self.net
        x = net.get_submodule("bn1")(net.get_submodule("conv1")(x)).relu()
        for stage in range(net.stages):
            x = net.get_submodule(f"layer{stage + 1}")(x)
        linear = net.get_submodule("linear")
        if self.end == "conv":
            return cast("Tensor", self.head(self.pool(x)).flatten(1))
        if self.end == "view":
            pooled = self.pool(x)
            return cast("Tensor", linear(pooled.view(pooled.size(0), -1)))
        if self.end == "squeeze":
            return cast("Tensor", linear(self.pool(x).squeeze(3).squeeze(2)))
        if self.end == "average":
            return cast("Tensor", linear(nn.functional.avg_pool2d(x, 4).flatten(1)))
        if self.end == "matmul":
            weight, bias = linear.get_parameter("weight"), linear.get_parameter("bias")
            return cast("Tensor", self.pool(x).flatten(1) @ weight.T + bias)
        return cast("Tensor", linear(x.mean((2, 3)))).softmax(1)


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "norms"])
@pytest.mark.parametrize("end", ["conv", "view", "squeeze", "average", "matmul"])
def test_heads_are_written_in_many_ways(tmp_path: Path, end: str, folded: bool) -> None:
    path = exported(tmp_path / "x.onnx", Wrapped("", end), torch.randn(2, 3, 8, 8), folded=folded)
    bundle = converted(path, **PLAIN)
    assert_equal_logits(bundle, path, 8)
    assert (bundle.input.size, bundle.input.resize) == (8, 8)
    assert (bundle.architecture.shortcut, bundle.architecture.shortcut_padding) == ("A", "both")


class OptionA(nn.Module):
    """A shortcut without weights, as different libraries write it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        pad = nn.functional.pad
        if self.kind == "max pool":
            return pad(nn.functional.max_pool2d(x, 1, 2), (0, 0, 0, 0, 0, 8))
        if self.kind == "average pool":
            return pad(nn.functional.avg_pool2d(x, 1, 2), (0, 0, 0, 0, 0, 8))
        if self.kind == "widened first":
            return pad(x, (0, 0, 0, 0, 0, 8))[:, :, ::2, ::2]
        x = x[:, :, ::2][..., ::2]
        zeros = x.new_zeros(x.shape[0], 8, *x.shape[2:])
        if self.kind == "both sides":
            return torch.cat([zeros[:, :4], x, zeros[:, 4:]], 1)
        return torch.cat([x, zeros], 1)


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "norms"])
@pytest.mark.parametrize(
    ("kind", "padding"),
    [
        ("max pool", "end"),
        ("average pool", "end"),
        ("widened first", "end"),
        ("at the end", "end"),
        ("both sides", "both"),
    ],
)
def test_option_a_is_written_in_many_ways(
    tmp_path: Path, kind: str, padding: str, folded: bool
) -> None:
    wrapped = Wrapped("", "view")
    cast("Any", wrapped.net).layer2[0].shortcut = OptionA(kind)
    path = exported(tmp_path / "x.onnx", wrapped, torch.randn(2, 3, 8, 8), folded=folded)
    bundle = converted(path, **PLAIN)
    assert_equal_logits(bundle, path, 8)
    found = bundle.architecture
    assert (found.shortcut, found.shortcut_padding) == ("A", padding)


def test_a_softmax_at_the_end_is_left_out_and_said(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.onnx", Wrapped("", "softmax"), torch.randn(2, 3, 8, 8))
    bundle = converted(path, **PLAIN)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        ours = bundle.network()(images).softmax(1)
    rounding.assert_probabilities_near(ours, computed(path, images), bundle.tensors)
    assert bundle.provenance["layout"] == "ONNX graph, without its softmax"


@pytest.mark.parametrize(
    ("front", "mean", "std"),
    [
        ("unit", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        ("pixels", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        ("bytes", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        ("symmetric", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ],
)
def test_a_normalisation_in_the_graph_becomes_the_bundles(
    tmp_path: Path, front: str, mean: Any, std: Any
) -> None:
    pixels = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    values = pixels.float() if front == "pixels" else pixels / 255
    theirs = pixels.permute(0, 2, 3, 1) if front == "bytes" else values
    path = exported(tmp_path / "x.onnx", Wrapped(front, "view"), theirs)
    bundle = converted(path)
    assert bundle.input.mean == pytest.approx(mean, rel=1e-6)
    assert bundle.input.std == pytest.approx(std, rel=1e-6)
    shape = (1, 3, 1, 1)
    means, stds = (torch.tensor(each).reshape(shape) for each in (mean, std))
    with torch.no_grad():
        ours = bundle.network()((pixels / 255 - means) / stds)
    rounding.assert_near(ours, computed(path, theirs), bundle.tensors)


def test_images_may_have_their_channels_last(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.onnx", Wrapped("channels last", "view"), torch.rand(2, 8, 8, 3))
    bundle = converted(path, **PLAIN)
    assert bundle.input.size == 8
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        ours = bundle.network()(images)
    theirs = computed(path, images.permute(0, 2, 3, 1).contiguous())
    rounding.assert_near(ours, theirs, bundle.tensors)


def test_without_a_normalisation_one_must_be_given(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.onnx", Wrapped("", "view"), torch.randn(2, 3, 8, 8))
    message = refusal(lambda: converted(path))
    assert message == (
        f"{path}: its layout (ONNX graph) does not say how images were normalised; "
        "give --mean r,g,b and --std r,g,b"
    )


# What TensorFlow's converters write.


def graph(nodes: list[Any], weights: dict[str, Any], *, size: int | None = 8) -> Any:
    """A model of `x` [N, 3, `size`, `size`] to `y`."""
    shape = ("N", 3, size or "h", size or "w")
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("size", [16, None], ids=["fixed", "open"])
def test_same_padding_may_be_left_to_the_runtime(tmp_path: Path, size: int | None) -> None:
    random = np.random.default_rng(0)

    def weight(*shape: int) -> NDArray[Any]:
        return random.normal(size=shape).astype(np.float32)

    node = helper.make_node
    same: dict[str, Any] = {"auto_pad": "SAME_UPPER"}
    twice: dict[str, Any] = {"strides": [2, 2], **same}
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], **twice),
        node("Relu", ["c0"], ["r0"]),
        node("MaxPool", ["r0"], ["p0"], kernel_shape=[3, 3], **twice),
        node("Conv", ["p0", "w1", "b0"], ["c1"], **same),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w1", "b0"], ["c2"], **same),
        node("Add", ["c2", "p0"], ["a2"]),
        node("Relu", ["a2"], ["r2"]),
        node("Conv", ["r2", "w3", "b3"], ["c3"], **twice),
        node("Relu", ["c3"], ["r3"]),
        node("Conv", ["r3", "w4", "b3"], ["c4"], **same),
        node("Conv", ["r2", "w5", "b3"], ["c5"], **twice),
        node("Add", ["c4", "c5"], ["a5"]),
        node("Relu", ["a5"], ["r5"]),
        node("ReduceMean", ["r5"], ["m"], axes=[2, 3], keepdims=0),
        node("MatMul", ["m", "w6"], ["y"]),
    ]
    weights = {
        "w0": weight(4, 3, 7, 7),
        "w1": weight(4, 4, 3, 3),
        "b0": weight(4),
        "w3": weight(8, 4, 3, 3),
        "w4": weight(8, 8, 3, 3),
        "w5": weight(8, 4, 1, 1),
        "b3": weight(8),
        "w6": weight(8, 5),
    }
    path = tmp_path / "x.onnx"
    onnx.save(graph(nodes, weights, size=size), path)
    bundle = converted(path, **PLAIN)
    found = bundle.architecture
    assert (found.padding, found.stem_padding, found.pool_padding) == ("same",) * 3
    for side in (16,) if size else (33, 40):
        assert_equal_logits(bundle, path, side)


def test_caffe2s_graphs_sum_and_pool_by_size(tmp_path: Path) -> None:
    zoo = gluon.Zoo("resnet50-v1-7", widths=SMALL, size=64, classes=10)
    for node in zoo.model.graph.node:
        if node.op_type == "Add":
            node.op_type = "Sum"
        elif node.op_type == "GlobalAveragePool":
            node.op_type = "AveragePool"
            node.attribute.append(helper.make_attribute("kernel_shape", [2, 2]))
        elif node.op_type == "Flatten":
            node.op_type = "Reshape"
            node.input.append("shape")
            del node.attribute[:]
    graph = zoo.model.graph
    graph.initializer.append(numpy_helper.from_array(np.array([1, 256]), "shape"))
    graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, (2,)))
    graph.node.append(helper.make_node("Softmax", [graph.output[0].name], ["gpu_0/softmax_1"]))
    graph.output[0].name = "gpu_0/softmax_1"
    for dim in (
        graph.input[0].type.tensor_type.shape.dim,
        graph.output[0].type.tensor_type.shape.dim,
    ):
        dim[0].dim_value = 1
    path = tmp_path / "x.onnx"
    onnx.save(zoo.model, path)
    bundle = converted(path, **PLAIN)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours = bundle.network()(images).softmax(1)
    rounding.assert_probabilities_near(ours, computed(path, images), bundle.tensors)
    assert bundle.architecture.stride_at == "1x1"


@pytest.mark.parametrize("op", ["Add", "Mul", "Sub", "Div"])
def test_arithmetic_on_channels_joins_the_norm_before_it(tmp_path: Path, op: str) -> None:
    """Norms that were taken apart, or followed by a scale."""

    def change(graph: Any) -> None:
        for index, wanted in ((2, "BatchNormalization"), (1, "Conv")):
            node = of(graph, wanted, index)
            width = 4
            value = np.linspace(0.5, 1.5, width, dtype=np.float32).reshape(width, 1, 1)
            name = f"{op}{wanted}"
            graph.initializer.append(numpy_helper.from_array(value, name))
            weight = helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
            graph.input.append(weight)
            place = list(graph.node).index(node) + 1
            output = node.output[0]
            node.output[0] = f"{output}_before"
            made = helper.make_node(op, [node.output[0], name], [output], name=f"{name}_node")
            graph.node.insert(place, made)

    path = changed(tmp_path, change)
    bundle = converted(path, **PLAIN)
    assert_equal_logits(bundle, path, 32)


# What is refused.


def changed(tmp_path: Path, change: Callable[[Any], None]) -> Path:
    """The model zoo's smallest with something changed."""
    model = gluon.Zoo("resnet18-v1-7", widths=(4, 8, 12, 16), size=32, classes=10).model
    change(model.graph)
    path = tmp_path / "x.onnx"
    onnx.save(model, path)
    return path


def mutated(graph: Any, choose: random.Random) -> None:
    """Rewires, rescales or resizes one node."""
    nodes = list(graph.node)
    place = choose.randrange(1, len(nodes))
    node, kind = nodes[place], choose.choice(("wire", "window", "relu", "scale", "epsilon"))
    if kind == "wire":
        earlier = [each.output[0] for each in nodes[max(0, place - 8) : place]]
        node.input[choose.randrange(2 if node.op_type == "Add" else 1)] = choose.choice(earlier)
    elif kind == "window":
        for each in node.attribute:
            if each.name in ("pads", "strides", "kernel_shape") and choose.random() < 0.5:
                each.ints[:] = [choose.choice([0, 1, 2, 3])] * len(each.ints)
    elif kind == "relu":
        node.op_type = {"Relu": "Identity", "Identity": "Relu"}.get(node.op_type, node.op_type)
    elif kind == "epsilon":
        for each in node.attribute:
            if each.name == "epsilon":
                each.f = choose.choice([1e-3, 2e-5, 0.1])
    else:
        output = node.output[0]
        node.output[0] = f"{output}_before"
        value = np.full((1, 1, 1), choose.uniform(0.5, 2), np.float32)
        graph.initializer.append(numpy_helper.from_array(value, "factor"))
        graph.input.append(helper.make_tensor_value_info("factor", TensorProto.FLOAT, (1, 1, 1)))
        op = choose.choice(["Mul", "Add", "Sub", "Div"])
        graph.node.insert(place + 1, helper.make_node(op, [f"{output}_before", "factor"], [output]))


def test_whatever_is_accepted_computes_what_the_changed_graph_computes(tmp_path: Path) -> None:
    names = ("resnet18-v1-7", "resnet50-v1-7", "resnet18-v2-7")
    models = [gluon.Zoo(each, widths=(4, 8, 12, 16), size=32, classes=5).model for each in names]
    path, choose = tmp_path / "x.onnx", random.Random(0)
    images = torch.randn(1, 3, 32, 32)
    outcomes = {"equal": 0, "refused": 0}
    for _ in range(50):
        model = type(models[0])()
        model.CopyFrom(choose.choice(models))
        mutated(model.graph, choose)
        onnx.save(model, path)
        try:
            bundle = converted(path, **PLAIN)
        except BundleError:
            outcomes["refused"] += 1
            continue
        try:
            theirs = computed(path, images)
        except (Fail, InvalidArgument, InvalidGraph):
            continue  # A graph that nobody can run.
        with torch.no_grad():
            rounding.assert_near(bundle.network()(images), theirs, bundle.tensors)
        outcomes["equal"] += 1
    assert min(outcomes.values()) > 10


def of(graph: Any, op: str, index: int = 0) -> Any:
    return [node for node in graph.node if node.op_type == op][index]


def becomes(op: str, new: str, index: int = 0) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        node = of(graph, op, index)
        node.op_type = new
        del node.attribute[:]

    return change


def attribute(op: str, index: int, name: str, value: Any) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        node = of(graph, op, index)
        kept = [each for each in node.attribute if each.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def second_output(graph: Any) -> None:
    graph.output.add().name = of(graph, "Flatten").output[0]


def second_input(graph: Any) -> None:
    graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, 3, 8, 8)))


def computed_weight(graph: Any) -> None:
    node = of(graph, "Conv", 1)
    node.input[1] = node.input[0]


def dangling(graph: Any) -> None:
    of(graph, "Conv", 1).input[0] = "nowhere"


def circle(graph: Any) -> None:
    """Two nodes that each compute what the other is computed from."""
    norm, relu, pool = (of(graph, op) for op in ("BatchNormalization", "Relu", "MaxPool"))
    pool.input[0] = norm.output[0]
    graph.node.insert(3, helper.make_node("Relu", [relu.output[0]], [norm.output[0]]))


def moved_sum(graph: Any) -> None:
    """A shortcut over two blocks."""
    last = of(graph, "Add", 1)
    last.input[0] = of(graph, "MaxPool").output[0]


def untrue_shape(graph: Any) -> None:
    del graph.input[0].type.tensor_type.shape.dim[3:]


REFUSED: list[tuple[Any, str]] = [
    (becomes("Relu", "Sigmoid", 1), "(Sigmoid): a gate, as in squeeze-and-excitation"),
    (becomes("Relu", "LeakyRelu", 1), "(LeakyRelu): an activation other than ReLU"),
    (becomes("Relu", "QuantizeLinear", 1), "(QuantizeLinear): an 8-bit (quantised) network"),
    (becomes("Conv", "QLinearConv"), "(QLinearConv): an 8-bit (quantised) network"),
    (
        becomes("BatchNormalization", "InstanceNormalization"),
        "(InstanceNormalization): GroupNorm or InstanceNorm",
    ),
    (becomes("BatchNormalization", "GroupNormalization"), "GroupNorm, where a ResNet here has"),
    (becomes("Relu", "NonZero"), "(NonZero): not an operation of a plain ResNet"),
    (attribute("Conv", 1, "group", 2), "(Conv): a grouped convolution (2 groups)"),
    (attribute("Conv", 1, "pads", [0, 0, 0, 0]), "neither symmetrically nor as SAME"),
    (attribute("Conv", 0, "strides", [3, 3]), "a stem of 7x7 in steps of 3"),
    (attribute("Conv", 0, "strides", [2, 1]), "its stride is 2x1, not square"),
    (attribute("MaxPool", 0, "kernel_shape", [2, 2]), "pools 2x2 in steps of 2"),
    (attribute("MaxPool", 0, "pads", [2, 2, 2, 2]), "pads its 3x3 pooling unlike any ResNet"),
    (second_output, "the graph has 2 outputs"),
    (second_input, "the graph has 2 inputs"),
    (computed_weight, "its weights are computed: weight standardisation?"),
    (dangling, "its input nowhere is never computed"),
    (moved_sum, "(Add): adds branches that do not start at one value"),
    (circle, "its output resnetv15_batchnorm0_fwd is computed twice"),
    (untrue_shape, "has 3 dimensions; images have four"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_is_no_plain_resnet_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    path = changed(tmp_path, change)
    message = refusal(lambda: converted(path))
    assert message.startswith(f"{path}: ")
    assert words in message


class Deep(nn.Module):
    """ResNet-D: a deep stem."""

    def __init__(self) -> None:
        super().__init__()
        theirs = network("bottleneck")
        self.stem = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 1, 1), nn.ReLU()
        )
        self.pool, self.stages, self.head = theirs.stem.pool, theirs.stages, theirs.head

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        for stage in self.stages:
            x = stage(x)
        return cast("Tensor", self.head(x.mean((2, 3))))


class Strange(nn.Module):
    """Networks that are no ResNets."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 4, 3, 1, 1)
        self.norm = nn.GroupNorm(2, 4)
        self.inner = nn.Conv2d(4, 4, 3, 1, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        if self.kind == "group norm":
            x = (x + self.norm(self.inner(x))).relu()
        elif self.kind == "gate":
            x = (x + self.inner(x) * x.mean((2, 3), keepdim=True).sigmoid()).relu()
        elif self.kind == "dense":
            return cast("Tensor", self.head(torch.cat([x, self.inner(x)], 1)[:, :4].mean((2, 3))))
        elif self.kind == "one convolution":
            x = (x + self.inner(x)).relu()
        return cast("Tensor", self.head(x.mean((2, 3))))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Strange("group norm"), "(InstanceNormalization): GroupNorm"),
        (Strange("gate"), "squeeze-and-excitation"),
        (Strange("dense"), "(Concat): joins branches, which a ResNet adds"),
        (Strange("one convolution"), "adds branches of 1 and 0 convolutions"),
        (Strange("plain"), "there is no residual block before it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_networks_are_refused(tmp_path: Path, module: nn.Module, words: str) -> None:
    path = exported(tmp_path / "x.onnx", module, torch.randn(2, 3, 8, 8))
    assert words in refusal(lambda: converted(path, **PLAIN))


class Twice(nn.Module):
    """A pre-activation network whose second block activates before it parts, and again after."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, 1, 1), nn.Linear(4, 2)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, 1, 1) for _ in range(4))
        self.norms = nn.ModuleList(tiny.randomised(nn.BatchNorm2d(4), i) for i in range(6))

    def forward(self, x: Tensor) -> Tensor:
        def activated(x: Tensor, index: int) -> Tensor:
            return cast("Tensor", self.norms[index](x).relu())

        x = self.stem(x)
        y = self.convs[0](activated(x, 0))
        x = x + self.convs[1](activated(y, 1))
        x = activated(x, 2)
        y = self.convs[2](activated(x, 3))
        x = x + self.convs[3](activated(y, 4))
        return cast("Tensor", self.head(activated(x, 5).mean((2, 3))))


def test_a_second_activation_is_not_dropped(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.onnx", Twice(), torch.randn(2, 3, 8, 8), folded=False)
    assert "a second norm before" in refusal(lambda: converted(path, **PLAIN))


def test_a_deep_stem_is_refused(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.onnx", Deep(), torch.randn(2, 3, 32, 32))
    assert "a deep stem" in refusal(lambda: converted(path, **PLAIN))


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Two batches of noise."""

    def __init__(self) -> None:
        self.batches = iter([{"x": np.random.rand(1, 3, 8, 8).astype(np.float32)}] * 2)

    def get_next(self) -> Any:
        return next(self.batches, None)


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=str)
def test_what_onnxruntime_quantised_is_refused(tmp_path: Path, form: Any) -> None:
    whole, small = tmp_path / "x.onnx", tmp_path / "int8.onnx"
    exported(whole, Wrapped("", "view"), torch.randn(1, 3, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(whole, small, Calibration(), quant_format=form)
    assert "an 8-bit (quantised) network" in refusal(lambda: converted(small, **PLAIN))


# Files are data, and may be damaged or hostile.


def small_file(tmp_path: Path) -> Path:
    return changed(tmp_path, lambda graph: None)


def test_files_that_are_no_graphs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    assert refusal(lambda: converted(path)) == f"{path}: No such file or directory"
    for content in (b"", b"hello world\n", b"\x08\x08", b"PK\x03\x04", b"{}", b"\xff" * 64):
        path.write_bytes(content)
        assert "not an ONNX file" in refusal(lambda: converted(path))


def test_a_file_cut_or_changed_anywhere_is_read_or_refused(tmp_path: Path) -> None:
    path = small_file(tmp_path)
    model = onnx.load(path)
    for each in model.graph.initializer:  # So that damage meets the structure.
        if len(each.dims) == 4:
            each.CopyFrom(numpy_helper.from_array(np.zeros(list(each.dims), np.float32), each.name))
    whole = model.SerializeToString()
    choose = random.Random(0)
    header = [i for i in range(len(whole)) if whole[i]]
    for offset in choose.sample(header, 150):
        damaged = bytes([whole[offset] ^ (1 << choose.randrange(8))])
        for content in (whole[:offset], whole[:offset] + damaged + whole[offset + 1 :]):
            path.write_bytes(content)
            try:
                converted(path, **PLAIN)
            except BundleError:
                refusal(lambda: converted(path, **PLAIN))


def test_external_data_stays_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "x.onnx"
    model = onnx.load(small_file(tmp_path))
    onnx.save(model, path, save_as_external_data=True, location="x.data", size_threshold=0)
    expected = converted(small_file(tmp_path)).tensors
    assert tiny.same_bits(converted(path).tensors, expected)

    for where in ("../x.data", "/etc/passwd", "", "gone"):
        theirs = onnx.load(path, load_external_data=False)
        entry = theirs.graph.initializer[0].external_data
        next(each for each in entry if each.key == "location").value = where
        path.write_bytes(theirs.SerializeToString())
        message = refusal(lambda: converted(path))
        assert "its external data" in message
    (path.parent / "link").symlink_to("/etc/passwd")
    next(each for each in entry if each.key == "location").value = "link"
    path.write_bytes(theirs.SerializeToString())
    assert "outside of its folder" in refusal(lambda: converted(path))


def test_names_in_a_file_stay_on_one_line(tmp_path: Path) -> None:
    def change(graph: Any) -> None:
        node = of(graph, "Relu")
        node.op_type, node.name = "Sigmoid", "two\nlines\x1b[31m"

    message = refusal(lambda: converted(changed(tmp_path, change)))
    assert "two\\nlines" in message
    assert message.isprintable()


def test_a_constant_larger_than_memory_is_refused(tmp_path: Path) -> None:
    def change(graph: Any) -> None:
        huge = numpy_helper.from_array(np.array([2**20, 2**20]), "huge")
        graph.initializer.append(huge)
        graph.node.insert(0, helper.make_node("ConstantOfShape", ["huge"], ["zeros"]))
        of(graph, "Gemm").input[1] = "zeros"

    path = changed(tmp_path, change)
    assert "makes constants larger than any network's" in refusal(lambda: converted(path))


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_file(tmp_path)
    for name in [each for each in sys.modules if each.partition(".")[0] == "onnx"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert install("interchange") in refusal(lambda: converted(path))


def test_networks_are_named_whatever_their_tensors_are_called(tmp_path: Path) -> None:
    theirs = tiny.randomised(ResNet(variants.variant("resnet20").architecture)).eval()
    path = exported(tmp_path / "x.onnx", theirs, torch.randn(1, 3, 32, 32))
    assert converted(path, variant="resnet20", **PLAIN).variant == "resnet20"
