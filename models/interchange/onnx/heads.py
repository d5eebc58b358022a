"""Recognises what follows the pooled features of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.interchange.linear import Affine, normalisation
from models.interchange.onnx.foreign import CHANGED
from models.interchange.onnx.graph import Graph, Step, misfit

Ending = Literal["", "softmax", "sigmoid"]


@dataclass(frozen=True, slots=True)
class Head:
    """`layers`: linear layers with ReLUs between; none where the output is the features.
    `ending`: what makes probabilities of their logits. `features`: the value that is pooled."""

    layers: tuple[Affine, ...]
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


def _layers(chain: Sequence[Step], *, activated: bool) -> list[Affine]:
    """The linear layers that `chain` computes of features, in the order of the data.

    Scales and shifts of single features, as of a normalisation, become part of a linear layer.
    """
    layers: list[Affine] = []
    layer: Affine | None = None
    for step in chain:
        if step.kind == "relu":
            if layer is None and (activated or layers):
                continue  # What a ReLU has activated, it leaves as it is.
            layers.append(layer or _nothing(step.shape[1]))
            layer = None
        elif step.kind != "flatten":
            affine = _affine(step)
            layer = layer.then(affine) if layer else affine
    if layer is not None and not layer.is_scale:
        return [*layers, layer]
    if not layers and layer is None:
        return []
    label = chain[-1].label
    if layers:
        raise misfit(label, "the graph ends in what is no linear layer")
    raise misfit(
        label, "the graph ends in normalised features; export the network up to its pooling"
    )


def _nothing(width: int) -> Affine:
    return Affine(np.ones(width), np.zeros(width))


def _affine(step: Step) -> Affine:
    values = step.settings
    if step.kind == "affine":
        return Affine(values["scale"], values["shift"])
    if step.kind == "norm":
        names = ("mean", "var", "eps", "weight", "bias")
        return normalisation(*(values[name] for name in names))
    weight, bias = values["weight"], values["bias"]
    weight = weight.reshape(weight.shape[:2])
    return Affine(weight, np.zeros(len(weight), np.float32) if bias is None else bias)
