"""The layers of a head as linear functions of features, which compose without loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.architecture import head_names
from models.interchange.imported import float_tensor

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Affine:
    """`weight` @ x + `bias`, with `weight` [O, I] and `bias` [O]; or `weight` * x + `bias` of each
    feature by itself, with both [C]."""

    weight: Array
    bias: Array

    @property
    def is_scale(self) -> bool:
        return self.weight.ndim == 1

    @property
    def inputs(self) -> int:
        return len(self.weight.T)

    @property
    def outputs(self) -> int:
        return len(self.weight)

    def then(self, other: Affine) -> Affine:
        """The function that applies this one and then `other`, in float64.

        Raises:
            ValueError: `other` takes another number of features.
        """
        weight, bias = self.weight.astype(np.float64), self.bias.astype(np.float64)
        after = other.weight.astype(np.float64)
        if not other.is_scale:
            product = after * weight if self.is_scale else after @ weight
            return Affine(product, after @ bias + other.bias)
        product = weight * (after if self.is_scale else after[:, None])
        return Affine(product, bias * after + other.bias)


def normalisation(mean: Array, variance: Array, eps: float, weight: Any, bias: Any) -> Affine:
    """Batch normalisation in evaluation mode, in float64; all [C], or `weight` and `bias` one
    number."""
    scale = weight / np.sqrt(variance.astype(np.float64) + eps)
    return Affine(scale, bias - mean * scale)


def head_tensors(layers: Sequence[Affine]) -> dict[str, Tensor]:
    """The state dict, float32, of `models.resnet.make_head` for layers with ReLUs between."""
    tensors: dict[str, Tensor] = {}
    for name, layer in zip(head_names(len(layers)), layers, strict=True):
        weight = np.diag(layer.weight) if layer.is_scale else layer.weight
        tensors |= {
            f"{name}.weight": float_tensor(weight),
            f"{name}.bias": float_tensor(layer.bias),
        }
    return tensors
