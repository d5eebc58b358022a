"""Turns the operations that reorder the channels of images into steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.interchange.onnx.graph import OPEN, Node, Operation, Step, Values, as_numbers, misfit


def of_channels(
    values: Values, node: Node, name: str, order: Sequence[int], whole: int
) -> Step | str:
    """The channels `order` of images with `whole` channels."""
    step = values.steps[name]
    if step.kind == "channels":
        order = [step.settings["order"][index] for index in order]
        (name,) = step.sources
        whole = values.steps[name].shape[1]
    if list(order) == list(range(whole)):
        return name
    shape = (step.shape[0], len(order), *step.shape[2:])
    return Step("channels", node.label, (name,), shape, {"order": tuple(order)})


def joined_channels(values: Values, node: Node, branches: Sequence[str]) -> Step | str:
    order: list[int] = []
    sources: set[str] = set()
    for name in branches:
        step = values.steps[name]
        chosen = step.kind == "channels"
        sources.add(step.sources[0] if chosen else name)
        order += step.settings["order"] if chosen else range(step.shape[1])
    if len(sources) != 1:
        raise misfit(node.label, "joins channels that were computed apart")
    (source,) = sources
    return of_channels(values, node, source, order, values.steps[source].shape[1])


def _gather(values: Values, node: Node) -> Step | str:
    """Gather and GatherND: channels of the images, in another order."""
    name, step = values.any_layout(node)
    indices, rank = values.constant(node, 1), 1
    if node.op == "GatherND":  # Along the first axis; each index is a row.
        indices, rank = (indices[:, 0], 1) if indices.shape[1:] == (1,) else (indices, 0)
        rank -= node.attributes.get("batch_dims", 0)
    axis = node.axis(node.attributes.get("axis", 0))
    open_ = step.shape[1] == OPEN or step.kind == "pad"
    if axis != 1 or indices.ndim != 1 or rank != 1 or open_ or not values.in_front(name):
        raise misfit(node.label, "takes a part of its input")
    order = [index % step.shape[1] for index in as_numbers(indices)]
    return of_channels(values, node, name, order, step.shape[1])


def _split(values: Values, node: Node) -> list[Step | str]:
    name, step = values.any_layout(node)
    if node.axis(node.attributes.get("axis", 0)) != 1 or not values.in_front(name):
        raise misfit(node.label, "takes its input apart")
    sizes = values.optional(node, 1, "split")
    count = node.results
    lengths = [step.shape[1] // count] * count if sizes is None else as_numbers(sizes)
    if sum(lengths) != step.shape[1] or len(lengths) != count:
        raise misfit(node.label, "its parts do not fit its input")
    ends = np.cumsum(lengths)
    return [
        of_channels(values, node, name, range(end - length, end), step.shape[1])
        for length, end in zip(lengths, ends, strict=True)
    ]


OPERATIONS: dict[str, Operation] = {
    **dict.fromkeys(("Gather", "GatherND"), _gather),
    "Split": _split,
}
