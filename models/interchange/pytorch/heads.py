"""The layers behind the pooled features, as linear layers with ReLUs between them.

What has no tensors leaves no trace in a file but its place in an `nn.Sequential`: dropout,
flattening, activations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from models.bundle import BundleError
from models.interchange.imported import natural
from models.interchange.linear import Affine, head_tensors, normalisation

# The modules that libraries and people call their heads.
NAMES = re.compile(
    r"(?:fc|linear|classifier|heads?|last_linear|logits|outputs?|out|dense|cls)(?:_?\d+)?\.",
    re.ASCII,
)
WITHOUT = "--set num_classes=0 converts the network without a head"
UNIT = 1e-3
EPS = 1e-5  # nn.BatchNorm1d's; no file has it.


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer or a normalisation, and its name in the file."""

    path: str
    affine: Affine

    @property
    def is_norm(self) -> bool:
        return self.affine.is_scale


def read(tensors: Mapping[str, Tensor], features: int) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A head's tensors under our names, and what the user should know of them.

    `features`: how many values the head gets. Normalisation is folded into the linear layers,
    exactly, and so are linear layers directly behind one another.

    Raises:
        BundleError: it has other layers, or the layers do not fit one another.
    """
    layers, notes = _folded(_in_order(_layers(tensors), features))
    last = layers[-1].path
    if f"{last}.weight" in tensors and f"{last}.bias" not in tensors:
        notes = (*notes, f"{last} has no bias: a linear layer is assumed, not cosines (ArcFace)")
    if len(layers) > 1:
        what = f"the head has {len(layers)} linear layers; a ReLU between them is assumed"
        notes = (*notes, what)
    return head_tensors([layer.affine for layer in layers]), notes


def _layers(tensors: Mapping[str, Tensor]) -> list[Layer]:
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        path, _, leaf = name.rpartition(".")
        if leaf == "weight_g" or path.endswith(".parametrizations.weight"):
            layer = path.removesuffix(".parametrizations.weight")
            raise BundleError(
                f"its head's {layer} has a normalised weight (weight_norm); {WITHOUT}"
            )
        groups.setdefault(path, {})[leaf] = value
    return [_layer(path, group) for path, group in groups.items()]


def _layer(path: str, group: Mapping[str, Tensor]) -> Layer:
    weight, bias = group.get("weight"), group.get("bias")
    if "running_mean" in group and "running_var" in group:
        mean, variance = group["running_mean"].numpy(), group["running_var"].numpy()
        gain, offset = (1.0 if weight is None else weight), (0.0 if bias is None else bias)
        return Layer(path, normalisation(mean, variance, EPS, np.asarray(gain), np.asarray(offset)))
    if unknown := sorted(group.keys() - {"weight", "bias"}):
        raise BundleError(f"its head's {path} has {unknown[0]}: it is no linear layer; {WITHOUT}")
    if weight is not None and weight.ndim == 4 and weight.shape[2:] == (1, 1):
        weight = weight.flatten(1)
    if weight is None or weight.ndim != 2:
        shape = "no weight" if weight is None else f"a weight of {list(weight.shape)}"
        raise BundleError(f"its head's {path} has {shape}: it is no linear layer; {WITHOUT}")
    if not weight.numel():
        raise BundleError(f"its head's {path} is empty: a weight of {list(weight.shape)}")
    if bias is None:
        if len(weight) > 1 and (torch.linalg.vector_norm(weight, dim=1) - 1).abs().max() < UNIT:
            raise BundleError(
                f"its head's {path} has no bias and rows of length 1, as layers of cosines have "
                f"(ArcFace, CosFace), which no network here has; {WITHOUT}"
            )
        bias = torch.zeros(len(weight))
    if bias.shape != weight.shape[:1]:
        raise BundleError(
            f"its head's {path} has a weight of {list(weight.shape)} and a bias of "
            f"{list(bias.shape)}"
        )
    return Layer(path, Affine(weight.numpy(), bias.numpy()))


def _in_order(layers: list[Layer], features: int) -> list[Layer]:
    """The layers one behind the other: as numbered, or else as the file has them."""
    orders = [sorted(layers, key=lambda layer: natural(layer.path)), layers]
    for order in orders:
        if _fit(order, features):
            return order
    first = next((layer for layer in orders[0] if not layer.is_norm), orders[0][0])
    inputs = first.affine.inputs
    if inputs == 2 * features:
        raise BundleError(
            f"its head takes {inputs} values, twice the {features} features: those of an "
            "average pool and of a maximum pool, as in fastai; the networks here only average; "
            f"{WITHOUT}"
        )
    if inputs != features:
        raise BundleError(
            f"its head's {first.path} takes {inputs} values, and the network gives "
            f"{features} features; {WITHOUT}"
        )
    paths = ", ".join(layer.path for layer in orders[0])
    raise BundleError(f"its head's layers {paths} do not fit one behind the other; {WITHOUT}")


def _fit(layers: list[Layer], features: int) -> bool:
    width = features
    for layer in layers:
        if layer.affine.inputs != width:
            return False
        width = layer.affine.outputs
    return any(not layer.is_norm for layer in layers)


def _folded(layers: list[Layer]) -> tuple[list[Layer], tuple[str, ...]]:
    linear: list[Layer] = []
    norm: Layer | None = None  # Waits for the next linear layer.
    notes: list[str] = []
    for before, layer in pairwise([None, *layers]):
        assert layer is not None
        step = _step(before.path, layer.path) if before else None
        open_end = bool(linear) and norm is None
        if layer.is_norm:
            if open_end and step != "apart":
                if step is None and layer is not layers[-1]:
                    raise BundleError(
                        f"its head's {layer.path} is before or behind an activation, and names "
                        "without numbers do not say which; name the layers by their places, as in "
                        f"fc.0, fc.1, fc.3, or {WITHOUT}"
                    )
                linear[-1] = _after(linear[-1], layer)
            else:
                norm = _after(norm, layer) if norm else layer
            continue
        if norm is not None:
            if step == "apart":
                notes.append(f"dropout is assumed between the head's {norm.path} and {layer.path}")
            linear.append(_after(norm, layer))
            norm = None
        elif open_end and step == "direct":
            linear[-1] = _after(linear[-1], layer)
        else:
            linear.append(layer)
    if norm is not None:
        raise BundleError(
            f"its head ends in a normalisation ({norm.path}) that is not directly behind a linear "
            f"layer; {WITHOUT}"
        )
    return linear, tuple(notes)


def _step(path: str, to: str) -> str | None:
    """Whether two layers of one `nn.Sequential` follow each other directly, or something without
    tensors is between them; None where names do not say it."""
    (parent, _, number), (to_parent, _, to_number) = path.rpartition("."), to.rpartition(".")
    if parent != to_parent or not (number.isdigit() and to_number.isdigit()):
        return None
    return "direct" if int(to_number) == int(number) + 1 else "apart"


def _after(first: Layer, second: Layer) -> Layer:
    return Layer(second.path, first.affine.then(second.affine))
