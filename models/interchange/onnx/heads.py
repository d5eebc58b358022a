"""Recognises what follows the pooled features of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from models.interchange.onnx.foreign import CHANGED
from models.interchange.onnx.graph import Array, Graph, Step, misfit

Ending = Literal["", "softmax", "sigmoid"]
Linear = tuple[Array, Array]


@dataclass(frozen=True, slots=True)
class Head:
    """`layers`: weight [O, I] and bias [O] of linear layers with ReLUs between; none where the
    output is the features. `ending`: what makes probabilities of their logits. `features`: the
    value that is pooled."""

    layers: tuple[Linear, ...]
    ending: Ending
    features: str


def read_head(graph: Graph) -> Head:
    """The head of a graph.

    Raises:
        BundleError: the graph ends otherwise; the message names the node.
    """
    steps = graph.steps
    ending: Ending = ""
    step = steps[graph.output]
    chain: list[Step] = []
    while step.kind in ("flatten", "softmax", "sigmoid"):
        if step.kind != "flatten":
            if ending:
                raise misfit(step.label, f"the graph ends in a {step.kind} and a {ending}")
            ending = "softmax" if step.kind == "softmax" else "sigmoid"
        step = steps[step.sources[0]]
    last = step
    while not _is_pooling(step):
        if step.kind in ("softmax", "sigmoid"):
            raise misfit(step.label, CHANGED)
        if not _is_of_head(step):
            raise misfit(step.label, _unexpected(last, step))
        chain.append(step)
        step = steps[step.sources[0]]
    features = steps[step.sources[0]]
    pointwise = features.kind == "conv" and features.settings["weight"].shape[2:] == (1, 1)
    if pointwise and features.settings["stride"] == 1:
        # A mean of linear functions of pixels is that function of their mean.
        chain.append(features)
        step, features = features, steps[features.sources[0]]
    layers = _layers(chain[::-1], activated=features.kind == "relu")
    if ending and not layers:
        raise misfit(last.label, f"ends in a {ending} of pooled features: the graph has no head")
    return Head(tuple(layers), ending, step.sources[0])


def _is_pooling(step: Step) -> bool:
    return step.kind == "mean" or (step.kind == "average" and step.shape[2:] == (1, 1))


def _is_of_head(step: Step) -> bool:
    if step.kind in ("flatten", "linear"):
        return True
    is_row = all(length == 1 for length in step.shape[2:])
    if step.kind == "conv":
        return is_row and step.settings["weight"].shape[2:] == (1, 1)
    return is_row and step.kind in ("affine", "norm", "relu")


def _unexpected(last: Step, step: Step) -> str:
    if step is not last:
        return "is where a ResNet has its global average pooling"
    if len(step.shape) == 4 and step.shape[2:] != (1, 1):
        return (
            "the graph ends in feature maps; export the network up to its pooled features or "
            "its logits"
        )
    return "is where a ResNet has its linear head"


def _layers(chain: Sequence[Step], *, activated: bool) -> list[Linear]:
    """The linear layers that `chain` computes of features, in the order of the data.

    Scales and shifts of single features, as of a normalisation, become part of a linear layer.
    """
    layers: list[Linear] = []
    layer = _Layer()
    for step in chain:
        if step.kind == "relu":
            if layer.is_nothing and (activated or layers):
                continue  # What a ReLU has activated, it leaves as it is.
            layers.append(layer.linear(step.shape[1]))
            layer = _Layer()
        elif step.kind in ("linear", "conv"):
            layer = layer.then_linear(*_linear(step.settings))
        elif step.kind in ("affine", "norm"):
            layer = layer.then_affine(*_affine(step))
    if layer.weight is not None:
        return [*layers, layer.linear(0)]
    if not layers and layer.is_nothing:
        return []
    label = chain[-1].label
    if layers:
        raise misfit(label, "the graph ends in what is no linear layer")
    raise misfit(
        label, "the graph ends in normalised features; export the network up to its pooling"
    )


def _linear(settings: Mapping[str, Array]) -> Linear:
    weight = settings["weight"].reshape(settings["weight"].shape[:2])
    bias = settings["bias"]
    return weight, np.zeros(len(weight), np.float32) if bias is None else bias


def _affine(step: Step) -> Linear:
    values = step.settings
    if step.kind == "affine":
        return values["scale"], values["shift"]
    scale = values["weight"] / np.sqrt(values["var"].astype(np.float64) + values["eps"])
    return scale, values["bias"] - values["mean"] * scale


@dataclass(frozen=True, slots=True)
class _Layer:
    """A linear function of features: `weight` @ x + `shift`, or without a weight `scale` * x +
    `shift`."""

    weight: Array | None = None
    scale: Any = None
    shift: Any = 0.0

    @property
    def is_nothing(self) -> bool:
        return self.weight is None and self.scale is None

    def then_linear(self, weight: Array, bias: Array) -> _Layer:
        if self.is_nothing:
            return _Layer(weight, shift=bias)
        exact = weight.astype(np.float64)
        product = exact * self.scale if self.weight is None else exact @ self.weight
        return _Layer(product, shift=exact @ self.shift + bias)

    def then_affine(self, scale: Array, shift: Array) -> _Layer:
        if self.weight is None:
            before = 1.0 if self.scale is None else self.scale
            return _Layer(scale=before * scale, shift=self.shift * scale + shift)
        return _Layer(self.weight * scale[:, None], shift=self.shift * scale + shift)

    def linear(self, width: int) -> Linear:
        """Weight and bias; `width` is that of the features where there is no weight."""
        if self.weight is not None:
            return self.weight, self.shift
        scale = np.ones(width) if self.scale is None else self.scale
        return np.diag(scale), np.broadcast_to(self.shift, width)
