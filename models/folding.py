"""A network's operations with its normalisation folded away, for engines that fuse what is left.

Batch normalisation in evaluation mode is a scale and a shift of each channel. After a convolution
they are part of its weights and biases (Jacob 2017, arXiv:1712.05877, section 3.2). What remains of
a ResNet is mostly convolutions that end with the addition of a shortcut and a ReLU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from models.operations import Kind, Operation

StepKind = Literal[
    "input",
    "convolution",
    "affine",
    "relu",
    "max_pool",
    "average_pool",
    "pad",
    "add",
    "slice",
    "linear",
    "mean",
]


@dataclass(slots=True)
class Step:
    """One step of a folded network; its index in the list identifies its result.

    `kind`: as in `models.operations.Operation`; "affine" multiplies each channel by `weight` and
        adds `bias`.
    `inputs`: the indices of its operands. A convolution with two adds the second to its result.
    `weight`, `bias`: float32; of a convolution [O, C, h, w] and [O] or None, of "affine" [C].
    `relu`: whether the result is activated.
    `options`: as in `Operation`.
    """

    kind: StepKind
    inputs: tuple[int, ...]
    weight: Tensor | None = None
    bias: Tensor | None = None
    relu: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def fold(operations: Sequence[Operation]) -> list[Step]:
    """The steps from the images to the maps that a network's head averages; the last gives them.

    `operations`: from `models.operations.record`. The steps compute the same, up to rounding.

    Raises:
        NotImplementedError: blocks average too.
    """
    means = [index for index, operation in enumerate(operations) if operation.kind == "mean"]
    if len(means) != 1:
        raise NotImplementedError("only the last maps of a network may be averaged")
    (end,) = means
    folding = _Folding(operations[:end], operations[end].inputs[0])
    with torch.no_grad():
        for index, operation in enumerate(operations[:end]):
            folding.add(index, operation)
    return folding.steps


class _Folding:
    """The steps so far, and the step that computes each operation."""

    def __init__(self, operations: Sequence[Operation], result: int) -> None:
        self.steps: list[Step] = []
        self._places: dict[int, int] = {}
        self._uses = Counter(place for each in operations for place in each.inputs)
        self._uses[result] += 1
        self._operations = operations

    def add(self, index: int, operation: Operation) -> None:
        first = operation.inputs[0] if operation.inputs else 0
        if operation.kind == "batch_norm":
            place = self._normalise(first, operation)
        elif operation.kind == "relu":
            place = self._activate(first)
        elif operation.kind == "add":
            place = self._sum(*operation.inputs)
        elif operation.kind == "max_pool":
            place = self._pool(first, operation)
        else:
            weight, bias = (*operation.tensors, None, None)[:2]
            weight, bias = (None if part is None else part.float() for part in (weight, bias))
            inputs = tuple(self._places[place] for place in operation.inputs)
            kind = cast("StepKind", operation.kind)
            place = self._append(Step(kind, inputs, weight, bias, options=operation.options))
        self._places[index] = place

    def _append(self, step: Step) -> int:
        self.steps.append(step)
        return len(self.steps) - 1

    def _own(self, operation: int, *kinds: Kind | Literal["affine"]) -> Step | None:
        """The step that computes an operation, if nothing but one other operation uses its result,
        and it is one of `kinds` and not activated."""
        step = self.steps[self._places[operation]]
        sole = self._uses[operation] == 1 and not step.relu
        return step if sole and step.kind in kinds else None

    def _normalise(self, source: int, operation: Operation) -> int:
        mean, variance, gain, offset = (tensor.double() for tensor in operation.tensors)
        scale = gain / torch.sqrt(variance + operation.options["eps"])
        shift = offset - mean * scale
        step = self._own(source, "convolution")
        if step is None or len(step.inputs) > 1 or step.weight is None:
            inputs = (self._places[source],)
            return self._append(Step("affine", inputs, scale.float(), shift.float()))
        bias = 0.0 if step.bias is None else step.bias
        step.weight = (step.weight * scale[:, None, None, None]).float()
        step.bias = (bias * scale + shift).float()
        return self._places[source]

    def _activate(self, source: int) -> int:
        step = self._own(source, "convolution", "affine", "add")
        if step is None:
            return self._append(Step("relu", (self._places[source],)))
        step.relu = True
        return self._places[source]

    def _sum(self, *operands: int) -> int:
        """The addition becomes part of the later operand, if that is a convolution."""
        first, last = sorted(operands, key=lambda operand: self._places[operand])
        step = self._own(last, "convolution")
        if step is None or len(step.inputs) > 1:
            return self._append(Step("add", tuple(self._places[operand] for operand in operands)))
        other = self._own(first, "convolution")
        if other is not None and other.bias is not None:  # One addition of both biases is enough.
            step.bias = other.bias if step.bias is None else step.bias + other.bias
            other.bias = None
        step.inputs = (*step.inputs, self._places[first])
        return self._places[last]

    def _pool(self, source: int, operation: Operation) -> int:
        """A maximum commutes with adding a channel's bias, and with ReLU: both are cheaper after
        it, where a stem has a quarter of the pixels."""
        step = self.steps[self._places[source]]
        pool = Step("max_pool", (self._places[source],), options=operation.options)
        if self._uses[source] > 1 or step.kind != "convolution" or len(step.inputs) > 1:
            return self._append(pool)
        bias, relu = step.bias, step.relu
        step.bias, step.relu = None, False
        place = self._append(pool)
        if bias is None:
            return self._append(Step("relu", (place,))) if relu else place
        return self._append(Step("affine", (place,), torch.ones_like(bias), bias, relu=relu))
