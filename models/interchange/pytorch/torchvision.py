"""Weights of torchvision's ResNets."""

from __future__ import annotations

from pathlib import Path

from models.bundle import BundleError
from models.interchange import torchvision_weights
from models.interchange.imported import EVERYTHING, Imported, Said
from models.interchange.pytorch.checkpoint import read_checkpoint
from models.interchange.pytorch.layout import (
    CHILDREN,
    TORCHVISION_BODY,
    TORCHVISION_RENAMES,
    Layout,
)
from models.interchange.pytorch.location import locate
from models.preprocess import IMAGENET

LAYOUT = Layout(
    name="torchvision",
    body=TORCHVISION_BODY,
    has=(r"conv1\.",),
    lacks=(r"linear\.",),
    renames=TORCHVISION_RENAMES,
)
LAYOUTS = (LAYOUT, CHILDREN)


def read(path: Path, said: Said) -> Imported:
    """The weights of `resnet*` or `wide_resnet*`, under our names.

    A file that torchvision publishes is recognised by its checksum and gets the published
    resolution and accuracy; for others those of `IMAGENET1K_V1` are assumed.

    Raises:
        BundleError: it cannot be read, or is something else.
    """
    located = locate(LAYOUTS, read_checkpoint(path, said), path, said, "not a torchvision ResNet")
    tensors, architecture, notes = located.to_ours(said)
    if architecture.stem != "imagenet":
        raise BundleError(
            f"{path}: has a stem for small images, which no torchvision network has; use --from "
            "cifar"
        )
    spec, normalised = located.prepared(IMAGENET)
    row = torchvision_weights.of_file(path)
    return Imported(
        layout=located.layout.name,
        tensors=tensors,
        architecture=architecture,
        spec=row.input if row else spec,
        said=EVERYTHING if row else normalised | {"padding", "stem_padding"},
        notes=notes,
        metrics=row.metrics if row else {},
        provenance={"weights": row.weights} if row else {},
    )
