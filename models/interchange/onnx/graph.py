"""Reads an ONNX graph as the few kinds of steps that residual networks consist of.

Only data flow matters, not names: constants are computed, operations without effect are left out,
and separate padding is merged into the layer that follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import BundleError

Array = NDArray[Any]
Shape = tuple[int, ...]

OPEN = -1  # A length that the graph does not fix.
EITHER = (64, 65)  # Examples of an open side: padding depends on whether it is even.
LARGEST = 2**28  # Elements; constants that a file computes must not fill the memory.
MOST = 50_000  # Nodes; ResNet-1202 has 6000.
FLOATS = (1, 10, 11, 16)  # ONNX's numbers of float32, float16, float64 and bfloat16.


@dataclass(frozen=True, slots=True)
class Step:
    """One value and how it is computed.

    `kind`: one of input, conv, norm, affine, relu, pool, pad, subsample, widen, add, mean,
        flatten, linear, softmax, transpose; `settings` depend on it.
    `sources`: the names of its operands. `label`: its node in messages. `shape`: may have `OPEN`
        lengths.
    """

    kind: str
    label: str
    sources: tuple[str, ...]
    shape: Shape
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Graph:
    """Every value that the output depends on, by name; `pixels`: the input is uint8."""

    steps: Mapping[str, Step]
    input: str
    output: str
    pixels: bool


@dataclass(frozen=True, slots=True)
class Node:
    """A node; its `inputs` are names in `Reader.steps` or `Reader.constants`, or "" if absent."""

    op: str
    label: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any]


def misfit(label: str, reason: str) -> BundleError:
    return BundleError(f"{label}: {reason}")


# Operations of unsupported networks; the first one in a graph is the best explanation.
FOREIGN = {
    **dict.fromkeys(
        (
            "QuantizeLinear",
            "DequantizeLinear",
            "DynamicQuantizeLinear",
            "QLinearConv",
            "QLinearMatMul",
            "QLinearAdd",
            "QLinearGlobalAveragePool",
            "ConvInteger",
            "MatMulInteger",
            "QGemm",
        ),
        "an 8-bit (quantised) network; convert the float32 one that it was made from",
    ),
    "GroupNormalization": "GroupNorm, where a ResNet here has BatchNorm",
    "InstanceNormalization": "GroupNorm or InstanceNorm, where a ResNet here has BatchNorm",
    "LayerNormalization": "LayerNorm, where a ResNet here has BatchNorm",
    **dict.fromkeys(
        ("Sigmoid", "HardSigmoid"), "a gate, as in squeeze-and-excitation; not a plain ResNet"
    ),
    **dict.fromkeys(
        ("LeakyRelu", "PRelu", "Elu", "Selu", "Gelu", "Erf", "HardSwish", "Swish", "Mish", "Tanh"),
        "an activation other than ReLU",
    ),
    **dict.fromkeys(("If", "Loop", "Scan"), "control flow, which no ResNet has"),
    "LRN": "local response normalisation, which no ResNet has",
}


class Reader:
    """Turns each node of a graph, in order, into a constant or a step.

    `batch`: the batch size that the graph fixes, else 1.
    """

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.opsets = model.opset_import
        graph = model.graph
        self.constants: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
        }
        self.steps: dict[str, Step] = {}
        self.same: dict[str, str] = {}
        self.computed = 0
        self.input, self.pixels = self._input(graph)
        self.output = _only([value.name for value in graph.output], "outputs")
        self.batch = max(self.steps[self.input].shape[0], 1)

    def _input(self, graph: Any) -> tuple[str, bool]:
        # Before IR version 4, initialisers were inputs too.
        images = [value for value in graph.input if value.name not in self.constants]
        name = _only([image.name for image in images], "inputs")
        kind = images[0].type.tensor_type
        shape = tuple(length.dim_value or OPEN for length in kind.shape.dim)
        label = f"input {_shown(name)}"
        if len(shape) != 4:
            raise misfit(label, f"has {len(shape)} dimensions; images have four")
        if kind.elem_type not in (*FLOATS, 2):
            raise misfit(label, "must be float or uint8")
        self.steps[name] = Step("input", label, (), shape)
        return name, kind.elem_type == 2

    def read(self, graph: Any) -> Graph:
        nodes = _needed(graph, self.output)
        if len(nodes) > MOST:
            raise BundleError(f"a graph of {len(nodes)} nodes, more than any ResNet has")
        for node in nodes:
            if node.op_type in FOREIGN:
                raise misfit(_label(node), FOREIGN[node.op_type])
        for node in nodes:
            self._node(node)
        output = self.same.get(self.output, self.output)
        if output not in self.steps:
            raise misfit(f"output {_shown(self.output)}", "does not depend on the images")
        return Graph(self.steps, self.input, output, self.pixels)

    def _node(self, proto: Any) -> None:
        from onnx import helper

        label = _label(proto)
        inputs = tuple(self.same.get(name, name) for name in proto.input)
        for name in filter(None, inputs):
            if name not in self.steps and name not in self.constants:
                raise misfit(label, f"its input {_shown(name)} is never computed")
        given = [name for name in inputs if name]
        for known in (self.steps, self.constants, self.same):
            if proto.output[0] in known:
                raise misfit(label, f"its output {_shown(proto.output[0])} is computed twice")
        # Shapes are known before values.
        if proto.op_type == "Shape" and given[0] in self.steps:
            self._shape(proto, given[0])
        elif all(name in self.constants for name in given):
            self.constants[proto.output[0]] = self._computed(proto, label, inputs)
        elif proto.op_type not in OPERATIONS or proto.domain not in ("", "ai.onnx"):
            raise misfit(label, "not an operation of a plain ResNet")
        else:
            attributes = {
                entry.name: helper.get_attribute_value(entry) for entry in proto.attribute
            }
            node = Node(proto.op_type, label, inputs, attributes)
            try:
                made = OPERATIONS[proto.op_type](self, node)
            except BundleError:
                raise
            # A damaged node may fail in any way.
            except Exception as error:  # noqa: BLE001
                raise misfit(label, f"cannot be read ({type(error).__name__})") from None
            if isinstance(made, str):
                self.same[proto.output[0]] = made
            else:
                self.steps[proto.output[0]] = made

    def _shape(self, proto: Any, name: str) -> None:
        shape = [self.batch, *self.steps[name].shape[1:]]
        if OPEN in shape:
            raise misfit(_label(proto), "asks for the size of images, which the graph leaves open")
        bounds = {attribute.name: attribute.i for attribute in proto.attribute}
        chosen = shape[bounds.get("start", 0) : bounds.get("end", len(shape))]
        self.constants[proto.output[0]] = np.array(chosen, np.int64)

    def _computed(self, proto: Any, label: str, inputs: Sequence[str]) -> Array:
        """The result of a node with constant inputs."""
        from onnx import helper
        from onnx.reference import ReferenceEvaluator

        if proto.op_type not in COMPUTABLE or proto.domain not in ("", "ai.onnx"):
            raise misfit(label, "not an operation that a plain ResNet needs on weights")
        values = [self.constants[name] for name in inputs if name]
        self.computed += max(_elements(proto.op_type, values), 0)
        if self.computed > LARGEST:
            raise misfit(label, "makes constants larger than any network's")
        feeds = {
            name: self.constants[new] for name, new in zip(proto.input, inputs, strict=True) if name
        }
        graph = helper.make_graph(
            [proto],
            "constant",
            [helper.make_empty_tensor_value_info(name) for name in feeds],
            [helper.make_empty_tensor_value_info(proto.output[0])],
        )
        model = helper.make_model(graph, opset_imports=self.opsets)
        try:
            (value,) = ReferenceEvaluator(model).run(None, feeds)
        # A damaged node may fail in any way.
        except Exception as error:  # noqa: BLE001
            raise misfit(label, f"cannot be computed ({type(error).__name__})") from None
        return np.asarray(value)

    def constant(self, node: Node, index: int, otherwise: str | None = None) -> Array:
        """A constant input of a node; `otherwise`: the message if it is not constant."""
        name = node.inputs[index] if index < len(node.inputs) else ""
        if name not in self.constants:
            raise misfit(node.label, otherwise or "its parameters are not constants")
        return self.constants[name]

    def optional(self, node: Node, index: int, attribute: str = "") -> Any:
        """A constant input, or the attribute of older graphs in its place; None if absent."""
        if index < len(node.inputs) and node.inputs[index]:
            return self.constant(node, index)
        return node.attributes.get(attribute)

    def images(self, node: Node) -> tuple[str, Step]:
        """A node's first input, which must be images or features [N, C, H, W]."""
        name = node.inputs[0]
        if name not in self.steps:
            raise misfit(node.label, "its first input is a constant")
        if len(self.steps[name].shape) != 4:
            raise misfit(node.label, "expects images [N, C, H, W]")
        return name, self.steps[name]

    def in_front(self, name: str) -> bool:
        """Whether the value precedes the first convolution."""
        step = self.steps[name]
        while step.kind in ("affine", "transpose", "pad"):
            step = self.steps[step.sources[0]]
        return step.kind == "input"


def _only(names: list[str], what: str) -> str:
    if len(names) != 1:
        raise BundleError(f"the graph has {len(names)} {what}; a classifier has one")
    return names[0]


def _label(proto: Any) -> str:
    name = proto.name or (proto.output[0] if proto.output else "")
    return f"node {_shown(name)} ({_shown(proto.op_type)})"


def _shown(name: str) -> str:
    """A name from a file, which may contain anything, on one line."""
    return name if name.isprintable() else ascii(name)


def _needed(graph: Any, output: str) -> list[Any]:
    """The nodes that the output depends on, in the graph's order, which is topological."""
    wanted, kept = {output}, []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


# Operations that exporters leave among weights and shapes.
ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Sqrt", "Reciprocal", "Neg", "Pow", "Where", "Equal")
COMPUTABLE = (
    *ELEMENTWISE,
    *("Constant", "ConstantOfShape", "Identity", "Cast", "CastLike", "Concat", "Reshape", "Slice"),
    *("Transpose", "Unsqueeze", "Squeeze", "Gather", "Expand", "Flatten", "Shape", "Size"),
    *("ReduceMean", "ReduceProd", "Range"),
)


def _elements(op: str, values: Sequence[Array]) -> int:
    """An upper bound of the result's number of elements."""
    if op in ELEMENTWISE:
        try:
            return _product(np.array(np.broadcast_shapes(*(value.shape for value in values))))
        except ValueError:
            return 0  # The shapes do not match; computing will raise the error.
    if op in SIZES:
        return SIZES[op](values)
    return sum(value.size for value in values)


def _product(shape: Array) -> int:
    return prod(int(length) for length in shape.reshape(-1))


def _steps(values: Sequence[Array]) -> int:
    start, end, step = (float(value.reshape(-1)[0]) for value in values)
    return int(abs((end - start) / step)) if step else LARGEST + 1


SIZES: dict[str, Callable[[Sequence[Array]], int]] = {
    "ConstantOfShape": lambda values: _product(values[0]),
    "Expand": lambda values: values[0].size * _product(values[1]),
    "Gather": lambda values: values[0].size * max(values[1].size, 1),
    "Range": _steps,
}


# A window on a side of n pixels: the padding before it, and the number of positions.
Fit = Callable[[int], tuple[int, int]]


def explicit(kernel: int, stride: int, before: int, after: int, *, ceil: bool = False) -> Fit:
    def fit(n: int) -> tuple[int, int]:
        span = n + before + after - kernel
        count = (-(-span // stride) if ceil else span // stride) + 1
        if ceil and (count - 1) * stride >= n + before:
            count -= 1  # No window may start in the padding at the end.
        return before, count

    return fit


def same(kernel: int, stride: int, *, lower: bool = False) -> Fit:
    def fit(n: int) -> tuple[int, int]:
        count = -(-n // stride)
        total = max((count - 1) * stride + kernel - n, 0)
        return (total - total // 2 if lower else total // 2), count

    return fit


def _fits(reader: Reader, node: Node, kernel: int, stride: int) -> tuple[str, Step, list[Fit]]:
    """A window's input before separate padding, and its fits in height and width."""
    name, step = reader.images(node)
    apart = (0, 0, 0, 0)
    if step.kind == "pad":
        apart = step.settings["pads"]
        (name,) = step.sources
    automatic = node.attributes.get("auto_pad", b"NOTSET").decode()
    pads = list(node.attributes.get("pads", (0, 0, 0, 0)))
    if automatic.startswith("SAME_"):
        if any(apart):
            raise misfit(node.label, "is padded twice")
        return name, step, [same(kernel, stride, lower=automatic == "SAME_LOWER")] * 2
    if automatic == "VALID":
        pads = [0, 0, 0, 0]
    ceil = bool(node.attributes.get("ceil_mode", 0))
    top, left, bottom, right = (a + b for a, b in zip(pads, apart, strict=True))
    return (
        name,
        step,
        [
            explicit(kernel, stride, top, bottom, ceil=ceil),
            explicit(kernel, stride, left, right, ceil=ceil),
        ],
    )


def _matching(
    fits: Sequence[Fit], sides: Sequence[int], known: Mapping[str, Fit]
) -> tuple[str, ...]:
    """The names of `known` with the same windows as `fits`."""

    def equal(other: Fit) -> bool:
        return all(
            fit(n) == other(n)
            for fit, side in zip(fits, sides, strict=True)
            for n in (EITHER if side == OPEN else (side,))
        )

    return tuple(name for name, other in known.items() if equal(other))


def _outputs(fits: Sequence[Fit], sides: Sequence[int]) -> Shape:
    return tuple(n if n == OPEN else fit(n)[1] for fit, n in zip(fits, sides, strict=True))


def _square(node: Node, values: Sequence[int] | None, default: int, what: str) -> int:
    height, width = values or (default, default)
    if height != width:
        raise misfit(node.label, f"its {what} is {height}x{width}, not square")
    return int(height)


def _conv(reader: Reader, node: Node) -> Step:
    weight = reader.constant(node, 1, "its weights are computed: weight standardisation?")
    groups = node.attributes.get("group", 1)
    if groups != 1:
        raise misfit(
            node.label, f"a grouped convolution ({groups} groups), as in ResNeXt or blur pooling"
        )
    if weight.ndim != 4:
        raise misfit(node.label, f"a convolution of {weight.ndim - 2} dimensions, not two")
    kernel = _square(node, weight.shape[2:], 1, "kernel")
    stride = _square(node, node.attributes.get("strides"), 1, "stride")
    if any(length != 1 for length in node.attributes.get("dilations", ())):
        raise misfit(node.label, "a dilated convolution")
    name, step, fits = _fits(reader, node, kernel, stride)
    if step.kind == "pad" and step.settings["value"] != 0:
        raise misfit(step.label, "pads a convolution with something other than zeros")
    sides = reader.steps[name].shape[2:]
    half = kernel // 2
    known = {"symmetric": explicit(kernel, stride, half, half), "same": same(kernel, stride)}
    paddings = _matching(fits, sides, known)
    if not paddings:
        raise misfit(
            node.label, f"pads a {kernel}x{kernel} convolution neither symmetrically nor as SAME"
        )
    bias = reader.optional(node, 2)
    if reader.steps[name].shape[1] not in (OPEN, weight.shape[1]):
        raise misfit(node.label, "its weights do not fit its input")
    settings = {"weight": weight, "bias": bias, "stride": stride, "paddings": paddings}
    shape = (step.shape[0], weight.shape[0], *_outputs(fits, sides))
    return Step("conv", node.label, (name,), shape, settings)


def _pool(reader: Reader, node: Node) -> Step:
    kernel = _square(node, node.attributes.get("kernel_shape"), 1, "kernel")
    stride = _square(node, node.attributes.get("strides"), 1, "stride")
    name, step, fits = _fits(reader, node, kernel, stride)
    sides = reader.steps[name].shape[2:]
    shape = (*step.shape[:2], *_outputs(fits, sides))
    if kernel == 1 and step.kind != "pad" and _matching(fits, sides, {"": same(1, stride)}):
        return Step("subsample", node.label, (name,), shape, {"strides": (stride, stride)})
    if (kernel, stride) != (3, 2):
        raise misfit(
            node.label, f"pools {kernel}x{kernel} in steps of {stride}; a ResNet 3x3 in steps of 2"
        )
    known = {"symmetric": explicit(3, 2, 1, 1), "same": same(3, 2)}
    rounded = {"ceil": explicit(3, 2, 0, 0, ceil=True)}
    if step.kind == "pad" and step.settings["value"] > -1e30:
        # After a ReLU, zeros act like minus infinity: they never exceed a pixel.
        if step.settings["value"] != 0:
            raise misfit(step.label, "pads a pooling with something other than zeros")
        if reader.steps[name].kind != "relu":
            known, rounded = {"zero": known["symmetric"]}, {}
    known = rounded | known if node.attributes.get("ceil_mode") else known | rounded
    paddings = _matching(fits, sides, known)
    if not paddings:
        raise misfit(node.label, "pads its 3x3 pooling unlike any ResNet")
    return Step("pool", node.label, (name,), shape, {"paddings": paddings})


def _average(reader: Reader, node: Node) -> Step:
    name, step = reader.images(node)
    sides = step.shape[2:]
    kernel = tuple(node.attributes.get("kernel_shape", ()))
    pads = any(node.attributes.get("pads", ()))
    if step.kind != "pad" and not pads and kernel == sides:
        return Step("mean", node.label, (name,), (*step.shape[:2], 1, 1))
    if kernel == (1, 1):
        return _pool(reader, node)
    raise misfit(
        node.label, "an average pooling within the network, as in ResNet-D or anti-aliasing"
    )


def _global_average(reader: Reader, node: Node) -> Step:
    name, step = reader.images(node)
    return Step("mean", node.label, (name,), (*step.shape[:2], 1, 1))


def _reduce_mean(reader: Reader, node: Node) -> Step:
    name, step = reader.images(node)
    axes = reader.optional(node, 1, "axes")
    if axes is None or sorted(int(axis) % 4 for axis in axes) != [2, 3]:
        raise misfit(node.label, "a mean over something other than an image's height and width")
    kept = (1, 1) if node.attributes.get("keepdims", 1) else ()
    return Step("mean", node.label, (name,), (*step.shape[:2], *kept))


def _norm(reader: Reader, node: Node) -> Step:
    name, step = reader.images(node)
    inferring = node.attributes.get("is_test", 1) and node.attributes.get("spatial", 1)
    if node.attributes.get("training_mode", 0) or not inferring:
        raise misfit(node.label, "a BatchNorm in training mode, or one for each pixel")
    weight, bias, mean, var = (reader.constant(node, index) for index in range(1, 5))
    # The file has the nearest float32 of 1e-5.
    eps = float(str(np.float32(node.attributes.get("epsilon", 1e-5))))
    settings = {"weight": weight, "bias": bias, "mean": mean, "var": var, "eps": eps}
    if any(array.shape != (step.shape[1],) for array in (weight, bias, mean, var)):
        raise misfit(node.label, "its statistics do not fit its input")
    if step.kind == "norm":
        scale = weight / np.sqrt(var.astype(np.float64) + eps)
        return _rescaled(step, node, scale, bias - mean * scale)
    return Step("norm", node.label, (name,), step.shape, settings)


def _rescaled(norm: Step, node: Node, scale: Any, shift: Any) -> Step:
    """A norm combined with a scale and a shift of its result."""
    old = norm.settings
    changed = {"weight": old["weight"] * scale, "bias": old["bias"] * scale + shift}
    return Step("norm", node.label, norm.sources, norm.shape, {**old, **changed})


def _relu(reader: Reader, node: Node) -> Step | str:
    name, step = reader.images(node)
    before = reader.steps[step.sources[0]] if step.kind == "pool" else step
    if before.kind == "relu":
        return name  # A second ReLU has no effect.
    return Step("relu", node.label, (name,), step.shape)


def _clip(reader: Reader, node: Node) -> Step | str:
    low, high = reader.optional(node, 1, "min"), reader.optional(node, 2, "max")
    if low is None or float(low) != 0 or (high is not None and float(high) < 1e30):
        raise misfit(node.label, "an activation other than ReLU")
    return _relu(reader, node)


def _arithmetic(reader: Reader, node: Node) -> Step:
    """Add, Sub, Mul, Div and Sum, of two branches or of one with a constant."""
    if len(node.inputs) != 2:
        raise misfit(node.label, f"has {len(node.inputs)} operands, not two")
    branches = [name for name in node.inputs if name in reader.steps]
    if len(branches) == 2:
        if node.op not in ("Add", "Sum"):
            raise misfit(
                node.label, "two branches meet other than in a sum: squeeze-and-excitation?"
            )
        left, right = (reader.steps[name] for name in branches)
        if left.shape[1:] != right.shape[1:] or len(left.shape) != 4:
            raise misfit(node.label, "adds branches of unequal shapes")
        return Step("add", node.label, node.inputs, left.shape)
    (name,) = branches
    step = reader.steps[name]
    (other,) = (reader.constants[operand] for operand in node.inputs if operand != name)
    first = node.inputs[0] == name
    if node.attributes.get("broadcast", 0):  # Before opset 7, broadcasting began at an axis.
        behind = len(step.shape) - node.attributes.get("axis", len(step.shape)) - other.ndim
        other = other.reshape(other.shape + (1,) * max(behind, 0))
    axis, vector = _per_channel(node, other.astype(np.float64), len(step.shape))
    scale, shift = np.float64(1), np.float64(0)
    if node.op in ("Add", "Sum"):
        shift = vector
    elif node.op == "Sub":
        scale, shift = (np.float64(1), -vector) if first else (np.float64(-1), vector)
    elif node.op == "Mul":
        scale = vector
    elif first:
        scale = 1 / vector
    else:
        raise misfit(node.label, "divides by features")
    return _affine(reader, node, name, axis, scale, shift)


def _per_channel(node: Node, value: Array, rank: int) -> tuple[int | None, Any]:
    """A constant's only axis, or None for a single number, and its values."""
    shape = (1,) * (rank - value.ndim) + value.shape
    axes = [axis for axis, length in enumerate(shape) if length != 1]
    if len(shape) > rank or len(axes) > 1 or axes == [0]:
        raise misfit(node.label, "computes with a constant that is not one number a channel")
    return (axes[0] if axes else None), value.reshape(-1) if axes else value.reshape(-1)[0]


def _affine(
    reader: Reader, node: Node, name: str, axis: int | None, scale: Any, shift: Any
) -> Step:
    step = reader.steps[name]
    if axis is not None and step.shape[axis] not in (OPEN, *np.shape(scale), *np.shape(shift)):
        raise misfit(node.label, "its constant does not fit its input")
    if len(step.shape) == 2:
        if step.kind != "linear":
            raise misfit(node.label, "computes with features between pooling and head")
        weight, bias = step.settings["weight"], step.settings["bias"]
        rows = np.broadcast_to(scale, bias.shape)
        settings = {"weight": weight * rows[:, None], "bias": bias * rows + shift}
        return Step("linear", node.label, step.sources, step.shape, settings)
    if reader.in_front(name) and step.kind != "pad":
        settings = {"axis": axis, "scale": scale, "shift": shift}
        return Step("affine", node.label, (name,), step.shape, settings)
    if axis not in (None, 1):
        raise misfit(node.label, "computes with a constant that is not one number a channel")
    channels = step.shape[1]
    scale, shift = np.broadcast_to(scale, channels), np.broadcast_to(shift, channels)
    if step.kind == "norm":
        return _rescaled(step, node, scale, shift)
    eps = 1e-5
    settings = {
        "weight": scale,
        "bias": shift,
        "mean": np.zeros(channels),
        "var": np.full(channels, 1 - eps),
        "eps": eps,
    }
    return Step("norm", node.label, (name,), step.shape, settings)


def _pad(reader: Reader, node: Node) -> Step | str:
    name, step = reader.images(node)
    if node.attributes.get("mode", b"constant") != b"constant":
        raise misfit(node.label, "pads with something other than a constant")
    given = reader.optional(node, 1, "pads")
    if given is None:
        given = node.attributes.get("paddings", ())
    value = reader.optional(node, 2, "value")
    axes = reader.optional(node, 3)
    chosen = range(4) if axes is None else [int(axis) % 4 for axis in axes]
    pads = [0] * 8
    if len(given) != 2 * len(chosen):
        raise misfit(node.label, "its pads do not fit its axes")
    for index, axis in enumerate(chosen):
        pads[axis], pads[4 + axis] = int(given[index]), int(given[len(chosen) + index])
    before, after = pads[:4], pads[4:]
    if not any(pads):
        return name
    channels, images = any((before[1], after[1])), any((*before[2:], *after[2:]))
    if min(pads) < 0 or before[0] or after[0] or (channels and images):
        raise misfit(node.label, "pads images and channels at once, or crops")
    number = 0.0 if value is None else float(np.asarray(value).reshape(-1)[0])
    shape = tuple(
        n if n == OPEN else n + b + a for n, b, a in zip(step.shape, before, after, strict=True)
    )
    if channels:
        if number:
            raise misfit(node.label, "widens with something other than zeros")
        return Step("widen", node.label, (name,), shape, {"pads": (before[1], after[1])})
    if step.kind == "pad":
        raise misfit(node.label, "pads what is padded")
    settings = {"pads": (*before[2:], *after[2:]), "value": number}
    return Step("pad", node.label, (name,), shape, settings)


def _concat(reader: Reader, node: Node) -> Step:
    """Features concatenated with zeros: option A."""
    branches = [name for name in node.inputs if name in reader.steps]
    if len(branches) != 1 or node.attributes["axis"] not in (1, -3):
        raise misfit(node.label, "joins branches, which a ResNet adds")
    place = node.inputs.index(branches[0])
    others = [reader.constants[name] for name in node.inputs if name != branches[0]]
    if any(other.any() or other.ndim != 4 for other in others):
        raise misfit(node.label, "widens with something other than zeros")
    step = reader.steps[branches[0]]
    before, after = (
        sum(other.shape[1] for other in part) for part in (others[:place], others[place:])
    )
    shape = (step.shape[0], step.shape[1] + before + after, *step.shape[2:])
    return Step("widen", node.label, (branches[0],), shape, {"pads": (before, after)})


def _slice(reader: Reader, node: Node) -> Step | str:
    """A slice that takes every second pixel, or everything."""
    name, step = reader.images(node)
    starts = reader.optional(node, 1, "starts")
    ends = reader.optional(node, 2, "ends")
    axes = reader.optional(node, 3, "axes")
    steps = reader.optional(node, 4)
    strides, shape = [1] * 4, list(step.shape)
    count = len(starts)
    for index in range(count):
        axis = index if axes is None else int(axes[index]) % 4
        stride = 1 if steps is None else int(steps[index])
        length, end = step.shape[axis], int(ends[index])
        if length == OPEN:
            whole = end >= 2**31 - 1
        else:
            whole = stride > 0 and -(-min(end, length) // stride) == -(-length // stride)
        if int(starts[index]) != 0 or not whole or (stride != 1 and axis < 2) or stride < 1:
            raise misfit(node.label, "takes a part of its input other than every second pixel")
        strides[axis] *= stride
        shape[axis] = OPEN if length == OPEN else -(-length // stride)
    if strides == [1] * 4:
        return name
    down, across = strides[2:]
    if step.kind == "subsample":  # One axis after the other.
        (name,) = step.sources
        down, across = (a * b for a, b in zip(strides[2:], step.settings["strides"], strict=True))
    return Step("subsample", node.label, (name,), tuple(shape), {"strides": (down, across)})


def _flatten(reader: Reader, node: Node) -> Step:
    """Flatten, Reshape, Squeeze and Unsqueeze, of pooled features."""
    name = node.inputs[0]
    if name not in reader.steps:
        raise misfit(node.label, "reshapes a constant")
    step = reader.steps[name]
    channels = step.shape[1]
    if any(length != 1 for length in step.shape[2:]):
        raise misfit(node.label, "reshapes images, which no ResNet does before its pooling")
    if node.op == "Flatten":
        shape: Shape = (OPEN, channels) if node.attributes.get("axis", 1) == 1 else ()
    elif node.op == "Reshape":
        wanted = [int(length) for length in reader.optional(node, 1, "shape")]
        first = (0, reader.batch) if wanted[1:2] == [OPEN] else (OPEN, 0, reader.batch)
        fits = len(wanted) >= 2 and wanted[0] in first and wanted[1] in (OPEN, 0, channels)
        shape = (OPEN, channels, *wanted[2:]) if fits and set(wanted[2:]) <= {1} else ()
    else:
        shape = _squeezed(step.shape, reader.optional(node, 1, "axes"), node.op == "Unsqueeze")
    if not shape:
        raise misfit(node.label, "reshapes features to something other than one row an image")
    return Step("flatten", node.label, (name,), shape)


def _squeezed(shape: Shape, axes: Sequence[int] | None, added: bool) -> Shape:
    """`shape` after adding or removing lengths of 1; () if the first two axes change."""
    count = 0 if axes is None else len(axes)
    rank = len(shape) + (count if added else 0)
    if axes is None or any(int(axis) % rank < 2 for axis in axes):
        return ()
    return shape + (1,) * count if added else shape[: rank - count]


def _linear(reader: Reader, node: Node) -> Step:
    """Gemm and MatMul."""
    name = node.inputs[0]
    if name not in reader.steps or len(reader.steps[name].shape) != 2:
        raise misfit(node.label, "expects features [N, C]")
    matrix = np.asarray(reader.constant(node, 1))
    attributes = node.attributes
    if attributes.get("transA", 0) or matrix.ndim != 2:
        raise misfit(node.label, "not a linear layer")
    weight = matrix if attributes.get("transB", 0) else matrix.T
    weight = weight * np.float32(attributes.get("alpha", 1.0))
    given = reader.optional(node, 2)
    bias = np.zeros(len(weight), np.float32)
    if given is not None:
        bias = bias + given.reshape(-1) * np.float32(attributes.get("beta", 1.0))
    if weight.shape[1] != reader.steps[name].shape[1] or len(bias) != len(weight):
        raise misfit(node.label, "its weights do not fit its input")
    settings = {"weight": weight, "bias": bias}
    return Step("linear", node.label, (name,), (OPEN, len(weight)), settings)


def _softmax(reader: Reader, node: Node) -> Step:
    name = node.inputs[0]
    shape = reader.steps[name].shape
    if len(shape) != 2 or node.attributes.get("axis", -1) not in (1, -1):
        raise misfit(node.label, "a softmax of something other than logits [N, K]")
    return Step("softmax", node.label, (name,), shape)


def _transpose(reader: Reader, node: Node) -> Step:
    name, step = reader.images(node)
    if list(node.attributes.get("perm", ())) != [0, 3, 1, 2] or not reader.in_front(name):
        raise misfit(
            node.label, "transposes features; only images [N, H, W, C] are, before the network"
        )
    batch, height, width, channels = step.shape
    return Step("transpose", node.label, (name,), (batch, channels, height, width))


def _cast(reader: Reader, node: Node) -> str:
    if node.attributes["to"] not in FLOATS:
        raise misfit(node.label, "casts to something other than floats")
    return node.inputs[0]


def _dropout(reader: Reader, node: Node) -> str:
    training = reader.optional(node, 2)
    if training is not None and bool(training):
        raise misfit(node.label, "a dropout in training mode")
    return node.inputs[0]


OPERATIONS: dict[str, Callable[[Reader, Node], Step | str]] = {
    "Conv": _conv,
    "BatchNormalization": _norm,
    "Relu": _relu,
    "Clip": _clip,
    "MaxPool": _pool,
    "AveragePool": _average,
    "GlobalAveragePool": _global_average,
    "ReduceMean": _reduce_mean,
    **dict.fromkeys(("Add", "Sum", "Sub", "Mul", "Div"), _arithmetic),
    "Pad": _pad,
    "Concat": _concat,
    "Slice": _slice,
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _flatten),
    **dict.fromkeys(("Gemm", "MatMul"), _linear),
    "Softmax": _softmax,
    "Transpose": _transpose,
    "Cast": _cast,
    "Dropout": _dropout,
    "Identity": lambda _, node: node.inputs[0],
}
