"""Weights of the PyPI package torch-resnet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from models.bundle import BundleError
from models.interchange.imported import NORMALISATION, Imported, Said
from models.interchange.pytorch.checkpoint import read_checkpoint
from models.interchange.pytorch.layout import Layout, find, shown, to_ours
from models.preprocess import CIFAR, IMAGENET

LAYOUT = Layout(
    name="torch-resnet",
    has=(r"init_layer\.", r"layers\.0\.0\."),
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
    """The weights of a torch-resnet network with a linear head, under our names.

    Raises:
        BundleError: the file cannot be read or is something else. `set_head` was never called
            for a network without a head.
    """
    tensors = read_checkpoint(path, said)
    if find([LAYOUT], tensors) is None:
        raise BundleError(
            f"{path}: not a torch-resnet network; its first tensors: {shown(tensors)}"
        )
    renamed, architecture = to_ours(LAYOUT, tensors, path)
    small = architecture.stem == "small"
    known = LAYOUT.normalised.get(architecture.num_classes) if small else None
    spec = CIFAR if small else IMAGENET
    return Imported(
        layout=LAYOUT.name,
        tensors=renamed,
        architecture=architecture,
        spec=replace(spec, mean=known[0], std=known[1]) if known else spec,
        said=frozenset({"padding"}),
        asked=frozenset() if known else NORMALISATION,
    )
