"""The weights that torchvision publishes for its ResNets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models import files
from models.preprocess import IMAGENET, InputSpec
from models.suggestions import hint

URL = "https://download.pytorch.org/models"


@dataclass(frozen=True, slots=True)
class Published:
    """`sha256` is the beginning of the file's checksum. `top1`, `top5`: torchvision's figures in
    percent, on ImageNet's validation images."""

    variant: str
    weights: str
    sha256: str
    resize: int
    top1: float
    top5: float

    @property
    def file(self) -> str:
        return f"{self.variant}-{self.sha256}.pth"

    @property
    def input(self) -> InputSpec:
        return replace(IMAGENET, resize=self.resize)

    @property
    def metrics(self) -> dict[str, Any]:
        figures = {"top1": round(self.top1 / 100, 5), "top5": round(self.top5 / 100, 5)}
        return {"imagenet1k-val": {**figures, "images": 50_000, "measured_by": "torchvision"}}


WEIGHTS = (
    Published("resnet18", "IMAGENET1K_V1", "f37072fd", 256, 69.758, 89.078),
    Published("resnet34", "IMAGENET1K_V1", "b627a593", 256, 73.314, 91.420),
    Published("resnet50", "IMAGENET1K_V1", "0676ba61", 256, 76.130, 92.862),
    Published("resnet50", "IMAGENET1K_V2", "11ad3fa6", 232, 80.858, 95.434),
    Published("resnet101", "IMAGENET1K_V1", "63fe2227", 256, 77.374, 93.546),
    Published("resnet101", "IMAGENET1K_V2", "cd907fc2", 232, 81.886, 95.780),
    Published("resnet152", "IMAGENET1K_V1", "394f9c45", 256, 78.312, 94.046),
    Published("resnet152", "IMAGENET1K_V2", "f82ba261", 232, 82.284, 96.002),
    Published("wide_resnet50_2", "IMAGENET1K_V1", "95faca4d", 256, 78.468, 94.086),
    Published("wide_resnet50_2", "IMAGENET1K_V2", "9ba9bcbe", 232, 81.602, 95.758),
    Published("wide_resnet101_2", "IMAGENET1K_V1", "32ee1156", 256, 78.848, 94.284),
    Published("wide_resnet101_2", "IMAGENET1K_V2", "d733dc28", 232, 82.510, 96.020),
)


def of_file(path: Path) -> Published | None:
    """The published weights in a file, recognised by its checksum."""
    digest = files.sha256(path)
    return next((row for row in WEIGHTS if digest.startswith(row.sha256)), None)


def find(variant: str, weights: str = "") -> Published:
    """The weights called `IMAGENET1K_V1` or `V1`; by default the latest.

    Raises:
        ValueError: there are no such weights; the message lists the available ones.
    """
    rows = [row for row in WEIGHTS if row.variant == variant]
    if not rows:
        names = list(dict.fromkeys(row.variant for row in WEIGHTS))
        raise ValueError(
            f"torchvision publishes no weights for {variant!r}; {hint(variant, names)}"
        )
    if weights in ("", "DEFAULT"):
        return rows[-1]
    for row in rows:
        if weights in (row.weights, row.weights.removeprefix("IMAGENET1K_")):
            return row
    choices = hint(weights, [row.weights for row in rows])
    raise ValueError(f"torchvision's {variant} has no weights {weights!r}; {choices}")
