"""Exports a bundle to ONNX, from the recorded operations of its network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models import files
from models.bundle import Bundle, BundleError
from models.classifier import Normalise
from models.extras import install
from models.operations import Operation, record
from models.resnet import ResNet

OPSET, IR_VERSION = 17, 8
BATCH = "N"


def write(bundle: Bundle, path: Path, options: Mapping[str, Any]) -> None:
    """Writes `bundle` as an ONNX graph for any batch size and the bundle's image size.

    The graph computes float32 logits [N, K] from normalised float32 images [N, C, H, W]; with the
    option `with_preprocessing`, probabilities [N, K] from uint8 images [N, H, W, C]. The channels
    have the order of the bundle's `input.channels`. Probabilities are the softmax of logits, or
    the sigmoid where the classes are independent, and include the bundle's temperature; logits do
    not, and the file's metadata has it. A network without a head gives its features [N, F]. The
    graph averages the bundle's views; no reader here takes a graph of mirrored ones. Equal bundles
    give equal files.

    Raises:
        BundleError: the package onnx is not installed, or a block or a head of one's own does more
            than `models.operations` knows.
    """
    try:
        content = _serialised(bundle, with_preprocessing=bool(options.get("with_preprocessing")))
    except ImportError:
        why = f"the package onnx is not installed: {install('interchange')}"
        raise BundleError(f"{path}: {why}") from None
    except NotImplementedError as error:  # of a block or a head of one's own
        raise BundleError(f"{bundle.name} cannot be written as ONNX: {error}") from None
    with files.atomic(path) as file:
        file.write_bytes(content)


def _serialised(bundle: Bundle, *, with_preprocessing: bool) -> bytes:
    from onnx import TensorProto, helper

    network, (height, width, channels) = bundle.network(), bundle.input.shape
    builder = _Builder(network)
    images: Sequence[int | str]
    if with_preprocessing:
        images, kind = (BATCH, height, width, channels), TensorProto.UINT8
        normalise = Normalise(bundle.input)
        pixels = builder.node("Cast", ["images"], to=TensorProto.FLOAT)
        scaled = builder.node("Mul", [pixels, builder.array("scale", normalise.scale)])
        shifted = builder.node("Add", [scaled, builder.array("shift", normalise.shift)])
        first = builder.node("Transpose", [shifted], perm=[0, 3, 1, 2])
    else:
        images, kind, first = (BATCH, channels, height, width), TensorProto.FLOAT, "images"
    mirrors = bundle.views == "mirrored"
    values = [_with_mirrored(builder, first) if mirrors else first]
    for operation in record(network, (channels, height, width))[1:]:
        inputs = [values[place] for place in operation.inputs]
        value = NODES[operation.kind](builder, operation, inputs)
        values.append(
            _mean_of_views(builder, value) if mirrors and operation.kind == "mean" else value
        )
    classes = network.architecture.num_classes
    described: dict[str, Any] = {"labels": list(bundle.labels), **asdict(bundle.input)}
    if bundle.temperature != 1.0:
        if with_preprocessing and classes:
            # Within the head's last operation: any reader still recognises the network.
            head = [node for node in builder.nodes if node.op_type == "Gemm"][-1]
            for name in ("alpha", "beta"):
                head.attribute.append(helper.make_attribute(name, 1 / bundle.temperature))
        else:
            described["temperature"] = bundle.temperature
    described |= {"outputs": bundle.outputs}
    if mirrors:
        described["views"] = bundle.views
    described |= {key: value for key in ("card", "metrics") if (value := getattr(bundle, key))}
    output = _ended(builder, bundle, values[-1], probable=with_preprocessing)
    width = classes or network.out_channels
    graph = helper.make_graph(
        builder.nodes,
        bundle.variant or "resnet",
        [helper.make_tensor_value_info("images", kind, images)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, (BATCH, width))],
        builder.initializers,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="resnet-serve",
    )
    helper.set_model_props(
        model,
        {"name": bundle.name}
        | {key: json.dumps(value, ensure_ascii=False) for key, value in described.items()},
    )
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _ended(builder: _Builder, bundle: Bundle, last: str, *, probable: bool) -> str:
    """Adds the graph's output and returns its name."""
    if not bundle.labels:
        return builder.node("Identity", [last], "features")
    if not probable:
        return builder.node("Identity", [last], "logits")
    if bundle.outputs == "independent":
        return builder.node("Sigmoid", [last], "probabilities")
    return builder.node("Softmax", [last], "probabilities", axis=1)


def _with_mirrored(to: _Builder, images: str) -> str:
    """The images, then their mirror images: [2N, C, H, W]."""
    numbers = [("starts", -1), ("ends", -(2**31)), ("axes", 3), ("steps", -1)]
    inputs = [images, *(to.integers(name, [number]) for name, number in numbers)]
    return to.node("Concat", [images, to.node("Slice", inputs)], axis=0)


def _mean_of_views(to: _Builder, features: str) -> str:
    """[N, F] from [2N, F]: pooled maps need not be mirrored back."""
    straight, mirrored = to.halves(features)
    return to.node("Mean", [straight, mirrored])


class _Builder:
    """Nodes and constants, with names that depend only on the network."""

    def __init__(self, network: ResNet) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.names = {id(value): name for name, value in network.state_dict(keep_vars=True).items()}
        self.counts: dict[str, int] = {}

    def node(self, op: str, inputs: Sequence[str], name: str = "", **attributes: Any) -> str:
        """Adds a node and returns its name, which is also that of its output."""
        from onnx import helper

        name = name or self._numbered(op.lower())
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def halves(self, value: str) -> tuple[str, str]:
        """The names of both halves along the first axis."""
        from onnx import helper

        name = self._numbered("split")
        outputs = (f"{name}.first", f"{name}.second")
        self.nodes.append(helper.make_node("Split", [value], outputs, name=name, axis=0))
        return outputs

    def _numbered(self, name: str) -> str:
        self.counts[name] = number = self.counts.get(name, -1) + 1
        return f"{name}_{number}"

    def array(self, name: str, value: Tensor | NDArray[Any]) -> str:
        """Adds a constant and returns its name."""
        from onnx import numpy_helper

        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous().numpy()
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def layer(
        self, op: str, inputs: list[str], tensors: Sequence[Tensor], **attributes: Any
    ) -> str:
        """Adds a node with tensors of the network, under the network's names."""
        added = [self.array(self.names[id(tensor)], tensor) for tensor in tensors]
        name = self.names[id(tensors[0])].rpartition(".")[0]
        return self.node(op, [*inputs, *added], name, **attributes)

    def integers(self, name: str, values: Sequence[int]) -> str:
        return self.array(self._numbered(name), np.array(values, np.int64))


def _convolution(to: _Builder, it: Operation, inputs: list[str]) -> str:
    dilated = it.options["dilations"] != (1, 1)
    return to.layer(
        "Conv",
        inputs,
        it.tensors,
        kernel_shape=list(it.tensors[0].shape[2:]),
        strides=list(it.options["strides"]),
        pads=list(it.options["pads"] * 2),
        **({"dilations": list(it.options["dilations"])} if dilated else {}),
    )


def _batch_norm(to: _Builder, it: Operation, inputs: list[str]) -> str:
    mean, variance, weight, bias = it.tensors
    tensors = (weight, bias, mean, variance)
    return to.layer("BatchNormalization", inputs, tensors, epsilon=it.options["eps"])


def _max_pool(to: _Builder, it: Operation, inputs: list[str]) -> str:
    # onnxruntime would merge padding with zeros into `pads`, which pad with minus infinity.
    apart = any(node.op_type == "Pad" and node.name == inputs[0] for node in to.nodes)
    pads = {"auto_pad": "VALID"} if apart else {"pads": list(it.options["pads"] * 2)}
    return to.node(
        "MaxPool",
        inputs,
        kernel_shape=list(it.options["kernel"]),
        strides=list(it.options["strides"]),
        ceil_mode=int(it.options["ceil"]),
        **pads,
    )


def _average_pool(to: _Builder, it: Operation, inputs: list[str]) -> str:
    kernel, strides = list(it.options["kernel"]), list(it.options["strides"])
    return to.node("AveragePool", inputs, kernel_shape=kernel, strides=strides)


def _pad(to: _Builder, it: Operation, inputs: list[str]) -> str:
    inputs = [*inputs, to.integers("pads", it.options["before"] + it.options["after"])]
    if it.options["value"]:
        value = np.array(it.options["value"], np.float32)
        inputs.append(to.array(f"value_{len(to.nodes)}", value))
    return to.node("Pad", inputs, mode=it.options["mode"])


def _slice(to: _Builder, it: Operation, inputs: list[str]) -> str:
    steps = it.options["steps"]
    values = (
        ("starts", [0] * len(steps)),
        ("ends", [2**31 - 1] * len(steps)),
        ("axes", list(steps)),
        ("steps", list(steps.values())),
    )
    return to.node("Slice", [*inputs, *(to.integers(name, numbers) for name, numbers in values)])


# Adds an operation on the named values and returns the name of its result.
NODES: dict[str, Callable[[_Builder, Operation, list[str]], str]] = {
    "convolution": _convolution,
    "linear": lambda to, it, inputs: to.layer("Gemm", inputs, it.tensors, transB=1),
    "batch_norm": _batch_norm,
    "relu": lambda to, it, inputs: to.node("Relu", inputs),
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "pad": _pad,
    "add": lambda to, it, inputs: to.node("Add", inputs),
    "slice": _slice,
    "mean": lambda to, it, inputs: to.node("Flatten", [to.node("GlobalAveragePool", inputs)]),
}
