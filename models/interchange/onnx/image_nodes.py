"""Turns the operations that compute on images and feature maps into steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.interchange.linear import normalisation
from models.interchange.onnx.graph import (
    OPEN,
    Array,
    Node,
    Operation,
    Step,
    Values,
    as_numbers,
    misfit,
)
from models.interchange.onnx.windows import (
    explicit,
    fits_of,
    matching,
    outputs,
    same,
    square,
)

# 1-2-1 both ways (Zhang 2019, arXiv:1904.11486).
BINOMIAL = np.outer((1, 2, 1), (1, 2, 1)) / 16


def _conv(values: Values, node: Node) -> Step:
    weight = values.constant(node, 1, "its weights are computed: weight standardisation?")
    groups = node.attributes.get("group", 1)
    if groups != 1:
        return _blur(values, node, weight)
    if weight.ndim != 4:
        raise misfit(node.label, f"a convolution of {weight.ndim - 2} dimensions, not two")
    kernel = square(node, weight.shape[2:], 1, "kernel")
    stride = square(node, node.attributes.get("strides"), 1, "stride")
    dilation = square(node, node.attributes.get("dilations"), 1, "dilation") if kernel > 1 else 1
    span = dilation * (kernel - 1) + 1
    name, step, fits = fits_of(values, node, span, stride)
    if step.kind == "pad" and step.settings["value"] != 0:
        raise misfit(step.label, "pads a convolution with something other than zeros")
    sides = values.steps[name].shape[2:]
    half = span // 2
    known = {"symmetric": explicit(span, stride, half, half), "same": same(span, stride)}
    paddings = matching(fits, sides, known)
    if not paddings:
        raise misfit(
            node.label, f"pads a {kernel}x{kernel} convolution neither symmetrically nor as SAME"
        )
    bias = values.optional(node, 2)
    if values.steps[name].shape[1] not in (OPEN, weight.shape[1]):
        raise misfit(node.label, "its weights do not fit its input")
    settings = {
        "weight": weight,
        "bias": bias,
        "stride": stride,
        "dilation": dilation,
        "paddings": paddings,
    }
    shape = (step.shape[0], weight.shape[0], *outputs(fits, sides))
    return Step("conv", node.label, (name,), shape, settings)


def _blur(values: Values, node: Node, weight: Array) -> Step:
    """A convolution of each channel with the binomial kernel, behind a reflection."""
    _, step = values.images(node)
    channels, groups = step.shape[1], node.attributes["group"]
    plain = (
        weight.shape == (channels, 1, 3, 3)
        and groups == channels
        and np.allclose(weight, BINOMIAL, rtol=1e-3)
        and values.optional(node, 2) is None
    )
    if not plain:
        raise misfit(node.label, f"a grouped convolution ({groups} groups), as in ResNeXt")
    unpadded = not any(node.attributes.get("pads", ()))
    if not (step.kind == "pad" and _reflects_one(step) and unpadded):
        raise misfit(node.label, "blurs without a reflection by one pixel before it")
    if square(node, node.attributes.get("strides"), 1, "stride") != 2:
        raise misfit(node.label, "blurs without subsampling by 2")
    return _blurred(node, step)


def _reflects_one(pad: Step) -> bool:
    return bool(pad.settings["reflects"]) and tuple(pad.settings["pads"]) == (1, 1, 1, 1)


def _blurred(node: Node, pad: Step) -> Step:
    sides = tuple(n if n == OPEN else (n - 3) // 2 + 1 for n in pad.shape[2:])
    return Step("blur", node.label, pad.sources, (*pad.shape[:2], *sides), {"stride": 2})


def _pool(values: Values, node: Node) -> Step:
    kernel = square(node, node.attributes.get("kernel_shape"), 1, "kernel")
    stride = square(node, node.attributes.get("strides"), 1, "stride")
    if any(length != 1 for length in node.attributes.get("dilations", ())):
        raise misfit(node.label, "a dilated pooling")
    name, step, fits = fits_of(values, node, kernel, stride)
    sides = values.steps[name].shape[2:]
    shape = (*step.shape[:2], *outputs(fits, sides))
    if kernel == 1 and step.kind != "pad" and matching(fits, sides, {"": same(1, stride)}):
        return Step("subsample", node.label, (name,), shape, {"strides": (stride, stride)})
    if kernel != 3 or stride not in (1, 2):
        raise misfit(
            node.label, f"pools {kernel}x{kernel} in steps of {stride}; a ResNet 3x3 in steps of 2"
        )
    known = {"symmetric": explicit(3, stride, 1, 1), "same": same(3, stride)}
    rounded = {"ceil": explicit(3, stride, 0, 0, ceil=True)}
    if step.kind == "pad" and step.settings["value"] > -1e30:
        # After a ReLU, zeros act like minus infinity: they never exceed a pixel.
        if step.settings["value"] != 0:
            raise misfit(step.label, "pads a pooling with something other than zeros")
        if values.steps[name].kind != "relu":
            known, rounded = {"zero": known["symmetric"]}, {}
    known = rounded | known if node.attributes.get("ceil_mode") else known | rounded
    paddings = matching(fits, sides, known)
    if not paddings:
        raise misfit(node.label, "pads its 3x3 pooling unlike any ResNet")
    settings = {"paddings": paddings, "stride": stride}
    return Step("pool", node.label, (name,), shape, settings)


def _average(values: Values, node: Node) -> Step:
    name, step = values.images(node)
    sides = step.shape[2:]
    kernel = tuple(node.attributes.get("kernel_shape", ()))
    if kernel == (1, 1):
        return _pool(values, node)
    if kernel == (2, 2):
        return _average_of_four(values, node)
    if step.kind != "pad" and not any(node.attributes.get("pads", ())) and kernel == sides:
        return Step("mean", node.label, (name,), (*step.shape[:2], 1, 1))
    raise misfit(node.label, "an average pooling within the network, as in ResNet-D")


def _average_of_four(values: Values, node: Node) -> Step:
    """Averages of 2x2 pixels; two of them in turn, behind a reflection, are a blur."""
    name, step = values.images(node)
    stride = square(node, node.attributes.get("strides"), 1, "stride")
    if step.kind == "pad" and _reflects_one(step):
        automatic = node.attributes.get("auto_pad", b"NOTSET")
        padded = any(node.attributes.get("pads", ())) or automatic.startswith(b"SAME")
        if stride != 1 or padded:
            raise misfit(node.label, "averages what is reflected, but is no blur")
        sides = tuple(n if n == OPEN else n - 1 for n in step.shape[2:])
        return Step("smooth", node.label, step.sources, (*step.shape[:2], *sides))
    before, _, fits = fits_of(values, node, 2, stride)
    sides = values.steps[before].shape[2:]
    shape = (*step.shape[:2], *outputs(fits, sides))
    known = {"apart": explicit(2, 2, 0, 0)} | {"once": explicit(2, stride, 0, 0)}
    found = matching(fits, sides, known)
    if before != name or not ("apart" in found or (found and shape[2:] == (1, 1))):
        raise misfit(node.label, "averages 2x2 pixels other than apart from each other")
    blurs = step.kind == "smooth"
    sources = step.sources if blurs else (name,)
    return Step("blur" if blurs else "average", node.label, sources, shape, {"stride": 2})


def _global_average(values: Values, node: Node) -> Step:
    name, step = values.images(node)
    return Step("mean", node.label, (name,), (*step.shape[:2], 1, 1))


def _reduce_mean(values: Values, node: Node) -> Step:
    name, step = values.any_layout(node)
    axes = values.optional(node, 1, "axes")
    if axes is None or sorted(map(node.axis, as_numbers(axes))) != [2, 3]:
        raise misfit(node.label, "a mean over something other than an image's height and width")
    kept = (1, 1) if node.attributes.get("keepdims", 1) else ()
    if not kept and node.layout.index(0) > node.layout.index(1):
        raise misfit(node.label, "gives features [C, N], not [N, C]")
    return Step("mean", node.label, (name,), (*step.shape[:2], *kept))


def _norm(values: Values, node: Node) -> Step:
    name = node.inputs[0]
    step = values.steps[name]
    if len(step.shape) == 4:
        values.images(node)
    inferring = node.attributes.get("is_test", 1) and node.attributes.get("spatial", 1)
    if node.attributes.get("training_mode", 0) or not inferring:
        raise misfit(node.label, "a BatchNorm in training mode, or one for each pixel")
    weight, bias, mean, var = (values.constant(node, index) for index in range(1, 5))
    # The file has the nearest float32 of 1e-5.
    eps = float(str(np.float32(node.attributes.get("epsilon", 1e-5))))
    settings = {"weight": weight, "bias": bias, "mean": mean, "var": var, "eps": eps}
    if any(array.shape != (step.shape[1],) for array in (weight, bias, mean, var)):
        raise misfit(node.label, "its statistics do not fit its input")
    if len(step.shape) != 4 or step.kind == "norm":
        affine = normalisation(mean, var, eps, weight, bias)
        if step.kind == "norm":
            return _rescaled(step, node, affine.weight, affine.bias)
        changes = {"scale": affine.weight, "shift": affine.bias}
        return Step("affine", node.label, (name,), step.shape, changes)
    return Step("norm", node.label, (name,), step.shape, settings)


def _rescaled(norm: Step, node: Node, scale: Any, shift: Any) -> Step:
    """A norm combined with a scale and a shift of its result."""
    old = norm.settings
    changed = {"weight": old["weight"] * scale, "bias": old["bias"] * scale + shift}
    return Step("norm", node.label, norm.sources, norm.shape, {**old, **changed})


def _relu(values: Values, node: Node) -> Step | str:
    name = node.inputs[0]
    step = values.steps[name]
    before = values.steps[step.sources[0]] if step.kind == "pool" else step
    if before.kind == "relu":
        return name  # A second ReLU has no effect.
    return Step("relu", node.label, (name,), step.shape)


def _clip(values: Values, node: Node) -> Step | str:
    low, high = values.optional(node, 1, "min"), values.optional(node, 2, "max")
    if low is None or float(low) != 0 or (high is not None and float(high) < 1e30):
        raise misfit(node.label, "an activation other than ReLU")
    return _relu(values, node)


def _arithmetic(values: Values, node: Node) -> Step:
    """Add, Sub, Mul, Div and Sum, of two branches or of one with a constant."""
    if len(node.inputs) != 2:
        raise misfit(node.label, f"has {len(node.inputs)} operands, not two")
    branches = [name for name in node.inputs if name in values.steps]
    if len(branches) == 2:
        if node.op not in ("Add", "Sum"):
            raise misfit(
                node.label, "two branches meet other than in a sum: squeeze-and-excitation?"
            )
        left, right = (values.steps[name] for name in branches)
        if left.shape[1:] != right.shape[1:] or len(left.shape) != 4:
            raise misfit(node.label, "adds branches of unequal shapes")
        return Step("add", node.label, node.inputs, left.shape)
    (name,) = branches
    step = values.steps[name]
    (other,) = (values.constants[operand] for operand in node.inputs if operand != name)
    first = node.inputs[0] == name
    if node.attributes.get("broadcast", 0):  # Before opset 7, broadcasting began at an axis.
        behind = len(step.shape) - node.attributes.get("axis", len(step.shape)) - other.ndim
        other = other.reshape(other.shape + (1,) * max(behind, 0))
    axis, vector = _per_channel(node, other.astype(np.float64), len(step.shape))
    if axis is not None and len(step.shape) == 4:
        axis = node.axis(axis)
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
    return _affine(values, node, name, axis, scale, shift)


def _per_channel(node: Node, value: Array, rank: int) -> tuple[int | None, Any]:
    """A constant's only axis, or None for a single number, and its values."""
    shape = (1,) * (rank - value.ndim) + value.shape
    axes = [axis for axis, length in enumerate(shape) if length != 1]
    if len(shape) > rank or len(axes) > 1 or axes == [0]:
        raise misfit(node.label, "computes with a constant that is not one number a channel")
    return (axes[0] if axes else None), value.reshape(-1) if axes else value.reshape(-1)[0]


def _affine(
    values: Values, node: Node, name: str, axis: int | None, scale: Any, shift: Any
) -> Step:
    step = values.steps[name]
    if axis is not None and step.shape[axis] not in (OPEN, *np.shape(scale), *np.shape(shift)):
        raise misfit(node.label, "its constant does not fit its input")
    if axis not in (None, 1):
        raise misfit(node.label, "computes with a constant that is not one number a channel")
    channels = step.shape[1]
    if len(step.shape) != 4 or (values.in_front(name) and step.kind != "pad"):
        width = channels if channels != OPEN else max(np.size(scale), np.size(shift))
        scale, shift = np.broadcast_to(scale, width), np.broadcast_to(shift, width)
        return Step("affine", node.label, (name,), step.shape, {"scale": scale, "shift": shift})
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


OPERATIONS: dict[str, Operation] = {
    "Conv": _conv,
    "BatchNormalization": _norm,
    "Relu": _relu,
    "Clip": _clip,
    "MaxPool": _pool,
    "AveragePool": _average,
    "GlobalAveragePool": _global_average,
    "ReduceMean": _reduce_mean,
    **dict.fromkeys(("Add", "Sum", "Sub", "Mul", "Div"), _arithmetic),
}
