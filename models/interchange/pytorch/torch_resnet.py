"""Weights of the PyPI package torch-resnet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from models.interchange.imported import NORMALISATION, Imported, Said
from models.interchange.pytorch.checkpoint import read_checkpoint
from models.interchange.pytorch.layout import Layout
from models.interchange.pytorch.location import locate
from models.preprocess import CIFAR, IMAGENET

LAYOUT = Layout(
    name="torch-resnet",
    body=r"layers\.0\.0\.conv1\.weight",
    has=(r"init_layer\.",),
    renames=(
        (r"^init_layer\.(?:0\.)?(weight|bias)$", r"stem.conv.\1"),
        (r"^init_layer\.1\.", "stem.norm."),
        (r"^layers\.", "stages."),
        (r"\.shortcut\.0\.conv\.", ".shortcut.conv."),
        (r"\.shortcut\.1\.", ".shortcut.bn."),
    ),
    numerics={"shortcut_padding": "end"},
    # Those of its example, which trains on CIFAR only.
    normalised={
        10: ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        100: ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    },
)


def read(path: Path, said: Said) -> Imported:
    """The weights of a torch-resnet network, under our names; whether it drops out is training's.

    Raises:
        BundleError: the file cannot be read or is something else.
    """
    located = locate(
        [LAYOUT], read_checkpoint(path, said), path, said, "not a torch-resnet network"
    )
    tensors, architecture, notes = located.to_ours(said)
    small = architecture.stem == "small"
    known = LAYOUT.normalised.get(architecture.num_classes) if small else None
    spec = CIFAR if small else IMAGENET
    if known:
        spec = replace(spec, mean=known[0], std=known[1])
    spec, normalised = located.prepared(spec)
    return Imported(
        layout=LAYOUT.name,
        tensors=tensors,
        architecture=architecture,
        spec=spec,
        said=normalised
        | {"padding", "stem_padding", "stride_at", "stem_stride", "pool", "antialias", "dilation"},
        asked=frozenset() if known else NORMALISATION - normalised,
        notes=notes,
    )
