"""What an importer finds in a file."""

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
    """Weights under our names, and what their format says of them.

    `layout`: the recognised form of the file. `tensors`: the network's state dict; counters that
    only training reads may be missing. `spec`: how its images are sized.
    `mean`, `std`: None where the file and its layout leave them open.
    `name`: what the file says that the model is called.
    `labels`: class names, where the file has them; `metrics`: published accuracy;
    `temperature` and `card`: as a `Bundle` has them, where the file says it was one of ours;
    `provenance`: what else it says of where the weights come from. `file`: where they lie, if the
    path that was given is a folder.
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
    """Whether a file's value is an array of real numbers, of so many dimensions if that is said."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype.kind in "fiu"
        and dimensions in (None, value.ndim)
    )


def natural(name: str) -> list[str | int]:
    """Sorts layer 10 behind layer 9, and one without a number before all that have one."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def float_tensor(array: NDArray[Any]) -> Tensor:
    """A contiguous float32 copy."""
    return torch.from_numpy(np.array(array, np.float32, order="C"))
