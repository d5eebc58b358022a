"""An ONNX graph as the few kinds of steps that residual networks consist of, and what the
operations that make them need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import BundleError

Array = NDArray[Any]
Shape = tuple[int, ...]
# For each axis of a value, which of N, C, H and W it is, counted from 0.
Layout = tuple[int, ...]

OPEN = -1  # A length that the graph does not fix.
FLOATS = (1, 10, 11, 16)  # ONNX's numbers of float32, float16, float64 and bfloat16.
CHANNELS_FIRST: Layout = (0, 1, 2, 3)
CHANNELS_LAST: Layout = (0, 2, 3, 1)


@dataclass(frozen=True, slots=True)
class Step:
    """One value and how it is computed.

    `kind`: one of input, channels, affine, conv, norm, relu, pool, average, blur, pad, subsample,
        widen, add, mean, flatten, linear, softmax, sigmoid; `settings` depend on it.
    `sources`: the names of its operands. `label`: its node in messages. `shape`: N, C, H and W,
        in whatever layout the graph has them, or N and K; may have `OPEN` lengths.
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
    """A node; its `inputs` are names in `Values.steps` or `Values.constants`, or "" if absent.

    `layout`: of its inputs with four dimensions. `results`: how many values it gives.
    """

    op: str
    label: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    layout: Layout = CHANNELS_FIRST
    results: int = 1

    def axis(self, number: int) -> int:
        """Which of N, C, H and W an axis of an input is; it may count from the end."""
        return self.layout[number % 4]


def misfit(label: str, reason: str) -> BundleError:
    return BundleError(f"{label}: {reason}")


def shown(name: str) -> str:
    """A name from a file, which may contain anything, on one line."""
    return name if name.isprintable() else ascii(name)


def label_of(proto: Any) -> str:
    """A node of a file in messages."""
    name = proto.name or (proto.output[0] if proto.output else "")
    return f"node {shown(name)} ({shown(proto.op_type)})"


class Values:
    """The constants and steps of a graph so far, by name.

    `same`: names of values that equal others. `layouts`: those that have their channels elsewhere
    than behind the first axis. `batch`: the batch size that the graph fixes, else 1.
    """

    def __init__(self) -> None:
        self.constants: dict[str, Array] = {}
        self.steps: dict[str, Step] = {}
        self.same: dict[str, str] = {}
        self.layouts: dict[str, Layout] = {}
        self.batch = 1

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

    def any_layout(self, node: Node) -> tuple[str, Step]:
        """A node's first input, which must be images or features with four dimensions."""
        name = node.inputs[0]
        if name not in self.steps:
            raise misfit(node.label, "its first input is a constant")
        if len(self.steps[name].shape) != 4:
            raise misfit(node.label, "expects images [N, C, H, W]")
        return name, self.steps[name]

    def images(self, node: Node) -> tuple[str, Step]:
        """The same, which must be laid out as [N, C, H, W]."""
        name, step = self.any_layout(node)
        if node.layout != CHANNELS_FIRST:
            raise misfit(node.label, "takes transposed images for [N, C, H, W]")
        return name, step

    def in_front(self, name: str) -> bool:
        """Whether the value precedes the first convolution."""
        step = self.steps[name]
        while step.kind in ("affine", "channels", "pad"):
            step = self.steps[step.sources[0]]
        return step.kind == "input"


def as_numbers(values: Any) -> list[int]:
    """A constant or an attribute as integers."""
    return [int(value) for value in np.asarray(values).reshape(-1)]


# Results that equal an earlier value are its name; a node with several results gives a list.
Operation = Callable[[Values, Node], Step | str | list[Step | str]]
