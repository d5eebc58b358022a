"""Turns the operations on pooled features into steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.interchange.onnx.graph import (
    OPEN,
    Node,
    Operation,
    Shape,
    Step,
    Values,
    as_numbers,
    misfit,
)


def _flatten(values: Values, node: Node) -> Step:
    """Flatten, Reshape, Squeeze and Unsqueeze, of pooled features."""
    name = node.inputs[0]
    if name not in values.steps:
        raise misfit(node.label, "reshapes a constant")
    step = values.steps[name]
    channels = step.shape[1]
    if any(length != 1 for length in step.shape[2:]):
        raise misfit(node.label, "reshapes images, which no ResNet does before its pooling")
    if node.layout[0] != 0:
        raise misfit(node.label, "reshapes features [C, N], not [N, C]")
    if channels == 1 and _is_vector(values, node, len(step.shape)):
        return Step("flatten", node.label, (name,), (OPEN, 1))  # A number an image.
    if node.op == "Flatten":
        shape: Shape = (OPEN, channels) if node.attributes.get("axis", 1) == 1 else ()
    elif node.op == "Reshape":
        wanted = as_numbers(values.optional(node, 1, "shape"))
        first = (0, values.batch) if wanted[1:2] == [OPEN] else (OPEN, 0, values.batch)
        fits = len(wanted) >= 2 and wanted[0] in first and wanted[1] in (OPEN, 0, channels)
        shape = (OPEN, channels, *wanted[2:]) if fits and set(wanted[2:]) <= {1} else ()
    else:
        shape = _squeezed(node, step.shape, values.optional(node, 1, "axes"))
    if not shape:
        raise misfit(node.label, "reshapes features to something other than one row an image")
    return Step("flatten", node.label, (name,), shape)


def _is_vector(values: Values, node: Node, rank: int) -> bool:
    """Whether the result of reshaping [N, 1] is [N]."""
    if rank != 2 or node.op not in ("Reshape", "Squeeze"):
        return False
    given = values.optional(node, 1, "shape" if node.op == "Reshape" else "axes")
    if given is None:
        return False  # A batch of one would lose its axis too.
    numbers = as_numbers(given)
    if node.op == "Reshape":
        return numbers in ([OPEN], [0], [values.batch])
    return numbers in ([1], [OPEN])


def _squeezed(node: Node, shape: Shape, axes: Sequence[int] | None) -> Shape:
    """`shape` after adding or removing lengths of 1; () if the first two axes change."""
    if axes is None:
        return ()
    added = node.op == "Unsqueeze"
    rank = len(shape) + (len(axes) if added else 0)
    chosen = [int(axis) % rank for axis in axes]
    if not added and rank == 4:
        chosen = list(map(node.axis, chosen))
    if any(axis < 2 for axis in chosen):
        return ()
    return shape + (1,) * len(axes) if added else shape[: rank - len(axes)]


def _linear(values: Values, node: Node) -> Step:
    """Gemm and MatMul."""
    name = node.inputs[0]
    if name not in values.steps or len(values.steps[name].shape) != 2:
        raise misfit(node.label, "expects features [N, C]")
    matrix = np.asarray(values.constant(node, 1))
    attributes = node.attributes
    if attributes.get("transA", 0) or matrix.ndim != 2:
        raise misfit(node.label, "not a linear layer")
    weight = matrix if attributes.get("transB", 0) else matrix.T
    weight = weight * np.float32(attributes.get("alpha", 1.0))
    given = values.optional(node, 2)
    bias = np.zeros(len(weight), np.float32)
    if given is not None:
        bias = bias + given.reshape(-1) * np.float32(attributes.get("beta", 1.0))
    if weight.shape[1] != values.steps[name].shape[1] or len(bias) != len(weight):
        raise misfit(node.label, "its weights do not fit its input")
    settings = {"weight": weight, "bias": bias}
    return Step("linear", node.label, (name,), (OPEN, len(weight)), settings)


def _softmax(values: Values, node: Node) -> Step:
    """Softmax and LogSoftmax: their logits differ by a number that is equal for all classes."""
    name = node.inputs[0]
    step = values.steps[name]
    axis = node.attributes.get("axis", -1)
    axis = node.axis(axis) if len(step.shape) == 4 else axis % len(step.shape)
    if axis != 1 or any(length != 1 for length in step.shape[2:]):
        raise misfit(node.label, "a softmax of something other than logits [N, K]")
    if step.shape[1] == 1:
        raise misfit(node.label, "a softmax over one class, which is 1 for every image")
    return Step("softmax", node.label, (name,), step.shape)


def _sigmoid(values: Values, node: Node) -> Step:
    name = node.inputs[0]
    step = values.steps[name]
    if any(length != 1 for length in step.shape[2:]):
        raise misfit(node.label, "a sigmoid of something other than logits [N, K]")
    return Step("sigmoid", node.label, (name,), step.shape)


OPERATIONS: dict[str, Operation] = {
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _flatten),
    **dict.fromkeys(("Gemm", "MatMul"), _linear),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    "Sigmoid": _sigmoid,
}
