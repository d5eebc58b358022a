"""The result of an importer, and what importers share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.architecture import Architecture
from models.preprocess import RGB, InputSpec


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Weights under our tensor names, and what their file says about them.

    `layout`: the recognised form of the file.
    `tensors`: the network's state dict; counters that only training reads may be missing.
    `spec`: how its images are resized and cropped.
    `mean`, `std`: None if neither the file nor its layout determines them.
    `name`, `labels`: the model's and the classes' names, if the file has them.
    `metrics`: published accuracy.
    `temperature`, `card`: as in `Bundle`, if the file was exported from one.
    `provenance`: further information on the origin of the weights.
    `file`: the file with the weights, if the given path is a folder.
    """

    layout: str
    tensors: dict[str, Tensor]
    architecture: Architecture
    spec: InputSpec
    mean: RGB | None
    std: RGB | None
    name: str | None = None
    labels: tuple[str, ...] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None
    temperature: float = 1.0
    card: str = ""


def is_numbers(value: object, dimensions: int | None = None) -> bool:
    """Whether a value is an array of real numbers, with this number of dimensions if given."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype.kind in "fiu"
        and dimensions in (None, value.ndim)
    )


def natural(name: str) -> list[str | int]:
    """A sort key that puts layer 10 after layer 9, and names without a number first."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def float_tensor(array: NDArray[Any]) -> Tensor:
    """A contiguous float32 copy."""
    return torch.from_numpy(np.array(array, np.float32, order="C"))
