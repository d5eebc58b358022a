"""Reads the nodes of an ONNX graph into steps.

Only data flow matters, not names and not the order of nodes: constants are computed, operations
without effect are left out, and separate padding is merged into the layer that follows.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import numpy as np

from models.bundle import BundleError
from models.interchange.onnx import channel_nodes, head_nodes, image_nodes, shape_nodes
from models.interchange.onnx.foreign import RESHAPES, refuse_foreign
from models.interchange.onnx.graph import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    FLOATS,
    OPEN,
    Array,
    Graph,
    Layout,
    Node,
    Step,
    Values,
    label_of,
    misfit,
    shown,
)

OPERATIONS = (
    image_nodes.OPERATIONS
    | shape_nodes.OPERATIONS
    | channel_nodes.OPERATIONS
    | head_nodes.OPERATIONS
)
LARGEST = 2**28  # Elements; constants that a file computes must not fill the memory.
MOST = 50_000  # Nodes; ResNet-1202 has 6000.


def read(model: Any, output: str | None = None) -> Graph:
    """The steps of a `ModelProto`; `output` is the one to take where there are several.

    Raises:
        BundleError: an operation is none of a ResNet's; the message names the node.
    """
    return _Reader(model, output).read(model.graph)


class _Reader(Values):
    """Turns each node of a graph, in the order of the data, into a constant or a step."""

    def __init__(self, model: Any, output: str | None) -> None:
        from onnx import numpy_helper

        super().__init__()
        self.opsets = model.opset_import
        graph = model.graph
        self.constants = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
        }
        self.computed = 0
        self.output = _chosen([value.name for value in graph.output], output)
        self.nodes = ordered(graph, self.output)
        self.input, self.pixels = self._input(graph)
        self.batch = max(self.steps[self.input].shape[0], 1)

    def _input(self, graph: Any) -> tuple[str, bool]:
        # Before IR version 4, initialisers were inputs too.
        images = [value for value in graph.input if value.name not in self.constants]
        if len(images) != 1:
            raise BundleError(f"the graph has {len(images)} inputs; a classifier has one")
        name, kind = images[0].name, images[0].type.tensor_type
        shape = tuple(length.dim_value or OPEN for length in kind.shape.dim)
        label = f"input {shown(name)}"
        if len(shape) != 4:
            raise misfit(label, f"has {len(shape)} dimensions; images have four")
        if kind.elem_type not in (*FLOATS, 2):
            raise misfit(label, "must be float or uint8")
        if _are_last(self.nodes, name):
            self.layouts[name] = CHANNELS_LAST
            shape = shape[0], shape[3], shape[1], shape[2]
        self.steps[name] = Step("input", label, (), shape)
        return name, kind.elem_type == 2

    def read(self, graph: Any) -> Graph:
        if len(self.nodes) > MOST:
            raise BundleError(f"a graph of {len(self.nodes)} nodes, more than any ResNet has")
        refuse_foreign(self.nodes, self.output)
        for node in self.nodes:
            self._node(node)
        output = self.same.get(self.output, self.output)
        if output not in self.steps:
            raise misfit(f"output {shown(self.output)}", "does not depend on the images")
        return Graph(self.steps, self.input, output, self.pixels)

    def _node(self, proto: Any) -> None:
        from onnx import helper

        label = label_of(proto)
        inputs = tuple(self.same.get(name, name) for name in proto.input)
        for name in filter(None, inputs):
            if name not in self.steps and name not in self.constants:
                raise misfit(label, f"its input {shown(name)} is never computed")
        given = [name for name in inputs if name]
        for known in (self.steps, self.constants, self.same):
            if proto.output[0] in known:
                raise misfit(label, f"its output {shown(proto.output[0])} is computed twice")
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
            layout = self._layout(proto, label)
            node = Node(proto.op_type, label, inputs, attributes, layout, len(proto.output))
            try:
                made = OPERATIONS[proto.op_type](self, node)
            except BundleError:
                raise
            # A damaged node may fail in any way.
            except Exception:  # noqa: BLE001
                raise misfit(label, "damaged: it cannot be read") from None
            self._keep(proto, node, made)

    def _keep(self, proto: Any, node: Node, made: Step | str | list[Step | str]) -> None:
        results = made if isinstance(made, list) else [made]
        layout = node.layout
        if node.op == "Transpose":
            layout = tuple(node.axis(number) for number in node.attributes["perm"])
        for name, result in zip(proto.output, results, strict=False):
            if isinstance(result, str):
                self.same[name] = result
            else:
                self.steps[name] = result
            if layout != CHANNELS_FIRST and node.op not in RESHAPES:
                self.layouts[name] = layout

    def _layout(self, proto: Any, label: str) -> Layout:
        layouts = {
            self.layouts.get(name, CHANNELS_FIRST)
            for name in proto.input
            if self.same.get(name, name) in self.steps
            and len(self.steps[self.same.get(name, name)].shape) == 4
        }
        if len(layouts) > 1:
            raise misfit(label, "its inputs have their channels in different places")
        return layouts.pop() if layouts else CHANNELS_FIRST

    def _shape(self, proto: Any, name: str) -> None:
        shape = [self.batch, *self.steps[name].shape[1:]]
        if len(shape) == 4:
            shape = [shape[axis] for axis in self.layouts.get(proto.input[0], CHANNELS_FIRST)]
        if OPEN in shape:
            raise misfit(label_of(proto), "asks for the size of its images, which it leaves open")
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
        except Exception:  # noqa: BLE001
            raise misfit(label, "damaged: it cannot be computed") from None
        return np.asarray(value)


def _chosen(outputs: list[str], wanted: str | None) -> str:
    if wanted in outputs:
        return str(wanted)
    names = ", ".join(map(shown, outputs))
    if wanted is not None:
        raise BundleError(f"the graph has no output {wanted!r}; its outputs: {names}")
    if len(outputs) != 1:
        raise BundleError(
            f"the graph has {len(outputs)} outputs ({names}); --key NAME takes the one with the "
            "logits or probabilities"
        )
    return outputs[0]


def ordered(graph: Any, output: str) -> list[Any]:
    """The nodes that a graph's output depends on, each behind those that it needs.

    Some converters append nodes without sorting. Nodes of a graph that is sorted keep their order.

    Raises:
        BundleError: a value is computed twice, or from itself.
    """
    makers: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in makers:
                raise misfit(label_of(node), f"its output {shown(name)} is computed twice")
            makers[name] = index
    sources: dict[int, set[int]] = {}
    waiting = [makers[output]] if output in makers else []
    while waiting:
        index = waiting.pop()
        if index not in sources:
            names = (*graph.node[index].input, *_captured(graph.node[index]))
            sources[index] = {makers[name] for name in names if name in makers}
            waiting.extend(sources[index])
    users: defaultdict[int, list[int]] = defaultdict(list)
    for index, needed in sources.items():
        for source in needed:
            users[source].append(index)
    counts = {index: len(needed) for index, needed in sources.items()}
    ready = [index for index, count in counts.items() if not count]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))
        for user in users[order[-1]]:
            counts[user] -= 1
            if not counts[user]:
                heapq.heappush(ready, user)
    if len(order) < len(sources):
        label = label_of(graph.node[min(set(sources) - set(order))])
        raise misfit(label, "is computed from its own result")
    return [graph.node[index] for index in order]


def _captured(node: Any) -> Iterable[str]:
    """What a node's subgraphs read of the graph around them."""
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from inner.input


def _are_last(nodes: Sequence[Any], images: str) -> bool:
    """Whether a graph takes images [N, H, W, C]: its first layer sees them transposed."""
    axes = {images: [0, 1, 2, 3]}  # For each axis of a value, which of the images' it is.
    for node in nodes:
        known = next((axes[name] for name in node.input if name in axes), None)
        if known is None:
            continue
        if node.op_type in ("Conv", "BatchNormalization", "MaxPool", "AveragePool"):
            return known == [0, 3, 1, 2]
        order = next((list(each.ints) for each in node.attribute if each.name == "perm"), [])
        if node.op_type == "Transpose" and sorted(order) == [0, 1, 2, 3]:
            known = [known[axis] for axis in order]
        axes |= dict.fromkeys(node.output, known)
    return False


# Operations that exporters leave among weights and shapes.
ELEMENTWISE = (
    *("Add", "Sub", "Mul", "Div", "Mod", "Sqrt", "Reciprocal", "Neg", "Pow", "Where", "Equal"),
)
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
