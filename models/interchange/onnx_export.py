"""A bundle as an ONNX file, built operation by operation while its network's own forward runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.bundle import Bundle, BundleError
from models.classifier import Normalise
from models.interchange.onnx import MISSING
from models.resnet import ResNet

OPSET, IR_VERSION = 17, 8
BATCH = "N"


def write(bundle: Bundle, path: Path, options: Mapping[str, Any]) -> None:
    """Writes `bundle` for any batch size and images of its own size.

    The graph computes float32 logits [N, K] from normalised float32 images [N, 3, H, W]; with the
    option `with_preprocessing`, probabilities [N, K] from uint8 images [N, H, W, 3]. The bundle's
    temperature is within those probabilities; beside logits, which stay as they are, the file's
    metadata has it. Equal bundles give equal files.

    Raises:
        BundleError: the package onnx is not installed.
    """
    try:
        content = _serialised(bundle, with_preprocessing=bool(options.get("with_preprocessing")))
    except ImportError:
        raise BundleError(f"{path}: {MISSING}") from None
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _serialised(bundle: Bundle, *, with_preprocessing: bool) -> bytes:
    from onnx import TensorProto, helper

    network, size = bundle.network(), bundle.input.size
    builder = _Builder(network)
    images: Sequence[int | str]
    if with_preprocessing:
        images, kind = (BATCH, size, size, 3), TensorProto.UINT8
        normalise = Normalise(bundle.input)
        pixels = builder.node("Cast", ["images"], to=TensorProto.FLOAT)
        scaled = builder.node("Mul", [pixels, builder.array("scale", normalise.scale)])
        shifted = builder.node("Add", [scaled, builder.array("shift", normalise.shift)])
        first = builder.node("Transpose", [shifted], perm=[0, 3, 1, 2])
    else:
        images, kind, first = (BATCH, 3, size, size), TensorProto.FLOAT, "images"
    with torch.no_grad():
        last = network(_Traced(builder, first, (-1, 3, size, size))).name
    output = "probabilities" if with_preprocessing else "logits"
    described: dict[str, Any] = {"labels": list(bundle.labels), **asdict(bundle.input)}
    if bundle.temperature != 1.0:
        if with_preprocessing:
            # In the head's own operation: it stays a network that any reader knows.
            (head,) = [each for each in builder.nodes if each.op_type == "Gemm"]
            for name in ("alpha", "beta"):
                head.attribute.append(helper.make_attribute(name, 1 / bundle.temperature))
        else:
            described["temperature"] = bundle.temperature
    if bundle.card:
        described["card"] = bundle.card
    if with_preprocessing:
        builder.node("Softmax", [last], output, axis=1)
    else:
        builder.node("Identity", [last], output)
    graph = helper.make_graph(
        builder.nodes,
        bundle.variant or "resnet",
        [helper.make_tensor_value_info("images", kind, images)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, (BATCH, len(bundle.labels)))],
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


class _Builder:
    """Nodes and their constants, with names that depend on nothing but the network."""

    def __init__(self, network: ResNet) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.names = {id(value): name for name, value in network.state_dict(keep_vars=True).items()}
        self.counts: dict[str, int] = {}

    def node(self, op: str, inputs: Sequence[str], name: str = "", **attributes: Any) -> str:
        """Adds a node; the name of its output, which is its own."""
        from onnx import helper

        name = name or self._numbered(op.lower())
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def _numbered(self, name: str) -> str:
        self.counts[name] = number = self.counts.get(name, -1) + 1
        return f"{name}_{number}"

    def array(self, name: str, value: Tensor | NDArray[Any]) -> str:
        """Adds a constant; its name."""
        from onnx import numpy_helper

        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous().numpy()
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, tensor: Tensor) -> str:
        """Adds one of the network's own tensors under its name there."""
        return self.array(self.names[id(tensor)], tensor)

    def integers(self, name: str, values: Sequence[int]) -> str:
        return self.array(self._numbered(name), np.array(values, np.int64))


class _Traced:
    """Stands for a tensor in a network's forward: the name of a value that ONNX computes.

    `op` is the operation that computes it, `shape` is [-1, C, H, W] or [-1, K].
    """

    def __init__(self, builder: _Builder, name: str, shape: tuple[int, ...], op: str = "") -> None:
        self.builder = builder
        self.name = name
        self.shape = shape
        self.op = op

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> _Traced:
        if function not in FUNCTIONS:
            name = getattr(function, "__name__", function)
            raise NotImplementedError(f"the export to ONNX is not told how to compute {name}")
        x: _Traced = args[0]
        return FUNCTIONS[function](x, *args[1:], **(kwargs or {}))

    def then(
        self,
        op: str,
        *inputs: str,
        shape: tuple[int, ...] | None = None,
        name: str = "",
        **attributes: Any,
    ) -> _Traced:
        made = self.builder.node(op, [self.name, *inputs], name, **attributes)
        return _Traced(self.builder, made, shape or self.shape, op)

    def dim(self) -> int:
        return len(self.shape)

    def __add__(self, other: _Traced) -> _Traced:
        return self.then("Add", other.name)

    def __getitem__(self, index: tuple[slice, ...]) -> _Traced:
        """Whole axes in steps, as the shortcut of option A takes them."""
        steps = {axis: each.step for axis, each in enumerate(index) if each.step not in (None, 1)}
        if not steps:
            return self
        values = (
            ("starts", [0] * len(steps)),
            ("ends", [2**31 - 1] * len(steps)),
            ("axes", list(steps)),
            ("steps", list(steps.values())),
        )
        shape = tuple(
            -(-n // steps.get(axis, 1)) if n > 0 else n for axis, n in enumerate(self.shape)
        )
        inputs = [self.builder.integers(name, each) for name, each in values]
        return self.then("Slice", *inputs, shape=shape)

    def mean(self, axes: tuple[int, ...]) -> _Traced:
        if axes != (2, 3):
            raise NotImplementedError("the export to ONNX knows means over images only")
        shape = self.shape[:2]
        return self.then("GlobalAveragePool", shape=(*shape, 1, 1)).then("Flatten", shape=shape)


def _windows(
    x: _Traced, kernel: Any, stride: Any, padding: Any, *, ceil: bool = False
) -> tuple[int, ...]:
    """Height and width behind a window."""
    spans = [
        n + 2 * pad - extent
        for n, extent, pad in zip(x.shape[2:], _pair(kernel), _pair(padding), strict=True)
    ]
    steps = _pair(stride)
    return tuple(
        (-(-span // step) if ceil else span // step) + 1
        for span, step in zip(spans, steps, strict=True)
    )


def _convolution(
    x: _Traced,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Traced:
    if groups != 1 or _pair(dilation) != (1, 1) or isinstance(padding, str):
        raise NotImplementedError("the export to ONNX knows plain convolutions only")
    kernel = tuple(weight.shape[2:])
    inputs = [x.builder.weight(each) for each in (weight, bias) if each is not None]
    return x.then(
        "Conv",
        *inputs,
        shape=(-1, weight.shape[0], *_windows(x, kernel, stride, padding)),
        name=x.builder.names[id(weight)].removesuffix(".weight"),
        kernel_shape=list(kernel),
        strides=list(_pair(stride)),
        pads=list(_pair(padding) * 2),
    )


def _linear(x: _Traced, weight: Tensor, bias: Tensor | None = None) -> _Traced:
    inputs = [x.builder.weight(each) for each in (weight, bias) if each is not None]
    name = x.builder.names[id(weight)].removesuffix(".weight")
    return x.then("Gemm", *inputs, shape=(-1, weight.shape[0]), name=name, transB=1)


def _batch_norm(
    x: _Traced,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Traced:
    if training:
        raise NotImplementedError("the network must be in evaluation mode")
    inputs = [x.builder.weight(each) for each in (weight, bias, mean, variance)]
    name = x.builder.names[id(weight)].removesuffix(".weight")
    return x.then("BatchNormalization", *inputs, name=name, epsilon=eps)


def _max_pool(
    x: _Traced,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    **_: Any,
) -> _Traced:
    steps = stride or kernel_size
    # onnxruntime would join zeros that were padded before to `pads`, which are minus infinity.
    apart = x.op == "Pad"
    pads = {"auto_pad": "VALID"} if apart else {"pads": list(_pair(padding) * 2)}
    return x.then(
        "MaxPool",
        shape=(*x.shape[:2], *_windows(x, kernel_size, steps, padding, ceil=ceil_mode)),
        kernel_shape=list(_pair(kernel_size)),
        strides=list(_pair(steps)),
        ceil_mode=int(ceil_mode),
        **pads,
    )


def _pad(
    x: _Traced, padding: tuple[int, ...], mode: str = "constant", value: float | None = None
) -> _Traced:
    """Constants around the last axes, which torch names from the last to the first."""
    if not any(padding):
        return x
    before, after = padding[-2::-2], padding[::-2]
    leading = (0,) * (4 - len(before))
    pads = (*leading, *before, *leading, *after)
    shape = tuple(
        n if n < 0 else n + b + a for n, b, a in zip(x.shape, pads[:4], pads[4:], strict=True)
    )
    inputs = [x.builder.integers("pads", pads)]
    if value:
        name = f"value_{len(x.builder.nodes)}"
        inputs.append(x.builder.array(name, np.array(value, np.float32)))
    return x.then("Pad", *inputs, shape=shape, mode=mode)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


FUNCTIONS: dict[Any, Callable[..., _Traced]] = {
    torch.conv2d: _convolution,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.relu: lambda x, inplace=False: x.then("Relu"),
    F.max_pool2d: _max_pool,
    torch.max_pool2d: _max_pool,
    F.dropout: lambda x, p=0.5, training=False, inplace=False: x,
    F.pad: _pad,
}
