"""Turns the operations that pad, join and slice images, or that change nothing, into steps."""

from __future__ import annotations

import numpy as np

from models.interchange.onnx.channel_nodes import joined_channels, of_channels
from models.interchange.onnx.graph import (
    FLOATS,
    OPEN,
    Node,
    Operation,
    Step,
    Values,
    as_numbers,
    misfit,
)

PART = "takes a part of its input other than every second pixel"


def _pad(values: Values, node: Node) -> Step | str:
    name, step = values.any_layout(node)
    mode = node.attributes.get("mode", b"constant")
    if mode not in (b"constant", b"reflect"):
        raise misfit(node.label, "pads with something other than a constant")
    before, after = _pads(values, node)
    if not any((*before, *after)):
        return name
    channels, images = any((before[1], after[1])), any((*before[2:], *after[2:]))
    if min(*before, *after) < 0 or before[0] or after[0] or (channels and images):
        raise misfit(node.label, "pads images and channels at once, or crops")
    value = values.optional(node, 2, "value")
    number = 0.0 if value is None else float(np.asarray(value).reshape(-1)[0])
    shape = tuple(
        n if n == OPEN else n + b + a for n, b, a in zip(step.shape, before, after, strict=True)
    )
    if channels:
        if number or mode == b"reflect":
            raise misfit(node.label, "widens with something other than zeros")
        return Step("widen", node.label, (name,), shape, {"pads": (before[1], after[1])})
    if step.kind == "pad":
        raise misfit(node.label, "pads what is padded")
    settings = {
        "pads": (*before[2:], *after[2:]),
        "value": number,
        "reflects": mode == b"reflect",
    }
    return Step("pad", node.label, (name,), shape, settings)


def _pads(values: Values, node: Node) -> tuple[list[int], list[int]]:
    """How much a Pad adds before and after N, C, H and W."""
    given = values.optional(node, 1, "pads")
    if given is None:
        given = node.attributes.get("paddings", ())
    given = as_numbers(given)
    axes = values.optional(node, 3)
    chosen = list(map(node.axis, range(4) if axes is None else as_numbers(axes)))
    if len(given) != 2 * len(chosen):
        raise misfit(node.label, "its pads do not fit its axes")
    before, after = [0] * 4, [0] * 4
    for index, axis in enumerate(chosen):
        before[axis], after[axis] = given[index], given[len(chosen) + index]
    return before, after


def _concat(values: Values, node: Node) -> Step | str:
    """Features concatenated with zeros: option A; or channels of the images in another order."""
    branches = [name for name in node.inputs if name in values.steps]
    if node.axis(node.attributes["axis"]) != 1:
        raise misfit(node.label, "joins branches, which a ResNet adds")
    if len(branches) == len(node.inputs) and all(map(values.in_front, branches)):
        return joined_channels(values, node, branches)
    if len(branches) != 1:
        raise misfit(node.label, "joins branches, which a ResNet adds")
    place = node.inputs.index(branches[0])
    others = [values.constants[name] for name in node.inputs if name != branches[0]]
    if any(other.any() or other.ndim != 4 for other in others):
        raise misfit(node.label, "widens with something other than zeros")
    step, axis = values.steps[branches[0]], node.layout.index(1)
    before, after = (
        sum(other.shape[axis] for other in part) for part in (others[:place], others[place:])
    )
    shape = (step.shape[0], step.shape[1] + before + after, *step.shape[2:])
    return Step("widen", node.label, (branches[0],), shape, {"pads": (before, after)})


def _slice(values: Values, node: Node) -> Step | str:
    """A slice that takes every second pixel, or everything; before the network, channels."""
    name, step = values.any_layout(node)
    starts = as_numbers(values.optional(node, 1, "starts"))
    ends = as_numbers(values.optional(node, 2, "ends"))
    axes = values.optional(node, 3, "axes")
    steps = values.optional(node, 4)
    strides, shape = [1] * 4, list(step.shape)
    order = list(range(max(step.shape[1], 0)))
    for index in range(len(starts)):
        axis = node.axis(index if axes is None else as_numbers(axes)[index])
        stride = 1 if steps is None else as_numbers(steps)[index]
        length, start, end = step.shape[axis], starts[index], ends[index]
        reorders = axis == 1 and length != OPEN and stride and step.kind != "pad"
        if reorders and values.in_front(name):
            order = order[_bounds(start, end, stride, length)]
            continue
        if length == OPEN:
            whole = end >= 2**31 - 1
        else:
            whole = stride > 0 and -(-min(end, length) // stride) == -(-length // stride)
        if start != 0 or not whole or (stride != 1 and axis < 2) or stride < 1:
            raise misfit(node.label, PART)
        strides[axis] *= stride
        shape[axis] = OPEN if length == OPEN else -(-length // stride)
    if order != list(range(max(step.shape[1], 0))):
        if strides != [1] * 4 or not order:
            raise misfit(node.label, PART)
        return of_channels(values, node, name, order, step.shape[1])
    if strides == [1] * 4:
        return name
    down, across = strides[2:]
    if step.kind == "subsample":  # One axis after the other.
        (name,) = step.sources
        down, across = (a * b for a, b in zip(strides[2:], step.settings["strides"], strict=True))
    return Step("subsample", node.label, (name,), tuple(shape), {"strides": (down, across)})


def _bounds(start: int, end: int, stride: int, length: int) -> slice:
    """ONNX's slice as Python's; going backwards, an end before the first is none."""
    if stride < 0 and end < -length:
        return slice(start, None, stride)
    return slice(start, end, stride)


def _transpose(values: Values, node: Node) -> str:
    """The same images; the reader keeps where their channels are."""
    name, _ = values.any_layout(node)
    if sorted(node.attributes.get("perm", ())) != [0, 1, 2, 3]:
        raise misfit(node.label, "does not transpose images [N, C, H, W]")
    return name


def _cast(values: Values, node: Node) -> str:
    if node.attributes["to"] not in FLOATS:
        raise misfit(node.label, "casts to something other than floats")
    return node.inputs[0]


def _dropout(values: Values, node: Node) -> str:
    training = values.optional(node, 2)
    if training is not None and bool(training):
        raise misfit(node.label, "a dropout in training mode")
    return node.inputs[0]


OPERATIONS: dict[str, Operation] = {
    "Pad": _pad,
    "Concat": _concat,
    "Slice": _slice,
    "Transpose": _transpose,
    "Cast": _cast,
    "Dropout": _dropout,
    "Identity": lambda _, node: node.inputs[0],
}
