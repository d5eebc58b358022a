"""The CIFAR weights that repositories publish, recognised by their checksums."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import files
from models.interchange.normalisations import OF_CIFAR10, OF_IMAGENET, Normalisation

CHENYAOFO_CIFAR100: Normalisation = ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))
AKAMASTER, CHENYAOFO = "akamaster/pytorch_resnet_cifar10", "chenyaofo/pytorch-cifar-models"


@dataclass(frozen=True, slots=True)
class PublishedCifar:
    """`sha256` is the beginning of the file's checksum, as its published name has it. `top1`: the
    repository's figure in percent, on the 10,000 test images; 0 if it has none."""

    repository: str
    name: str
    sha256: str
    labels: str
    top1: float
    normalisation: Normalisation

    @property
    def metrics(self) -> dict[str, Any]:
        if not self.top1:
            return {}
        figures = {"top1": round(self.top1 / 100, 4), "images": 10_000}
        return {f"{self.labels}-test": {**figures, "measured_by": self.repository}}


WEIGHTS = tuple(
    PublishedCifar(repository, f"resnet{depth}", sha256, labels, top1, normalisation)
    for repository, labels, normalisation, published in (
        (
            AKAMASTER,
            "cifar10",
            OF_IMAGENET,
            (
                (20, "12fca82f", 91.73),
                (32, "d509ac18", 92.63),
                (44, "014dd654", 93.10),
                (56, "4bfd9763", 93.39),
                (110, "1d1ed7c2", 93.68),
                (1202, "f3b1deed", 0),
            ),
        ),
        (
            CHENYAOFO,
            "cifar10",
            OF_CIFAR10,
            (
                (20, "4118986f", 92.60),
                (32, "ef93fc4d", 93.53),
                (44, "2a3cabcb", 94.01),
                (56, "187c023a", 94.37),
            ),
        ),
        (
            CHENYAOFO,
            "cifar100",
            CHENYAOFO_CIFAR100,
            (
                (20, "23dac2f1", 68.83),
                (32, "84213ce6", 70.16),
                (44, "ffe32858", 71.63),
                (56, "f2eff4c8", 72.63),
            ),
        ),
    )
    for depth, sha256, top1 in published
)


def of_file(path: Path) -> PublishedCifar | None:
    """The published weights in a file, recognised by its checksum."""
    digest = files.sha256(path)
    return next((row for row in WEIGHTS if digest.startswith(row.sha256)), None)
