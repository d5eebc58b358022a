"""What an importer finds in a file."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.preprocess import RGB, InputSpec
from models.resnet import Architecture


@dataclass(frozen=True, kw_only=True)
class Source:
    """Weights under our names, and what their format says of them.

    `layout`: the recognised form of the file. `spec`: how its images are sized.
    `mean`, `std`: None where the file and its layout leave them open.
    """

    layout: str
    tensors: dict[str, Tensor]
    architecture: Architecture
    spec: InputSpec
    mean: RGB | None
    std: RGB | None
