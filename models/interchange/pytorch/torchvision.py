"""Weights of torchvision's ResNets."""

from __future__ import annotations

from pathlib import Path

from models.bundle import BundleError
from models.interchange import torchvision_weights
from models.interchange.imported import DESCRIBED, INPUT, STRUCTURE, Imported, Said
from models.interchange.pytorch.checkpoint import read_checkpoint
from models.interchange.pytorch.layout import TORCHVISION_RENAMES, Layout, find, shown, to_ours
from models.preprocess import IMAGENET

LAYOUT = Layout(
    name="torchvision",
    has=(r"conv1\.", r"layer1\.0\.conv1\.weight"),
    lacks=(r"linear\.",),
    renames=TORCHVISION_RENAMES,
)


def read(path: Path, said: Said) -> Imported:
    """The weights of `resnet*` or `wide_resnet*`, under our names.

    A file that torchvision publishes is recognised by its checksum and gets the published
    resolution and accuracy; others get the resolution of `IMAGENET1K_V1`.

    Raises:
        BundleError: it cannot be read, or is something else.
    """
    tensors = read_checkpoint(path, said)
    if find([LAYOUT], tensors) is None:
        raise BundleError(f"{path}: not a torchvision ResNet; its first tensors: {shown(tensors)}")
    renamed, architecture = to_ours(LAYOUT, tensors, path)
    if architecture.stem != "imagenet":
        raise BundleError(f"{path}: has a stem for small images, which no torchvision network has")
    row = torchvision_weights.of_file(path)
    return Imported(
        layout=LAYOUT.name,
        tensors=renamed,
        architecture=architecture,
        spec=row.input if row else IMAGENET,
        said=frozenset((*INPUT, *DESCRIBED, *STRUCTURE) if row else {"padding"}),
        metrics=row.metrics if row else {},
        provenance={"weights": row.weights} if row else {},
    )
