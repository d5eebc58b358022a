"""Public CIFAR weights: the state dicts of widely copied PyTorch repositories."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from models.bundle import BundleError
from models.interchange.checkpoint import read_checkpoint
from models.interchange.infer import infer_architecture
from models.interchange.source import Source
from models.preprocess import CIFAR, IMAGENET, RGB
from models.resnet import ShortcutPadding


@dataclass(frozen=True)
class Layout:
    """How one repository names its tensors, and what its code does that names do not reveal.

    A state dict has this layout if every pattern of `has` matches one of its names and none of
    `lacks` does. `mean` and `std` are None where the layout does not fix them.
    """

    name: str
    has: tuple[str, ...]
    lacks: tuple[str, ...]
    shortcut_padding: ShortcutPadding | None
    mean: RGB | None
    std: RGB | None


# The mean of each image's deviation: not the data's, but what these repositories train with.
MEAN_OF_STDS = (0.2023, 0.1994, 0.2010)

LAYOUTS = (
    Layout(
        name="akamaster/pytorch_resnet_cifar10",
        has=(r"layer3\.", r"linear\.weight"),
        lacks=(r"layer4\.",),
        shortcut_padding="both",
        mean=IMAGENET.mean,
        std=IMAGENET.std,
    ),
    Layout(
        name="chenyaofo/pytorch-cifar-models",
        has=(r"layer3\.", r"layer\d\.0\.downsample\.0\.weight", r"fc\.weight"),
        lacks=(r"layer4\.",),
        shortcut_padding="both",
        mean=CIFAR.mean,
        std=MEAN_OF_STDS,
    ),
    Layout(
        name="kuangliu/pytorch-cifar",
        has=(r"layer4\.", r"linear\.weight"),
        lacks=(r"layer5\.",),
        shortcut_padding="both",
        mean=CIFAR.mean,
        std=MEAN_OF_STDS,
    ),
    Layout(
        name="torchvision names",
        has=(r"layer1\.", r"fc\.weight"),
        lacks=(),
        shortcut_padding=None,
        mean=None,
        std=None,
    ),
)

RENAMES = (
    (re.compile(r"^conv1\."), "stem.conv."),
    (re.compile(r"^bn1\."), "stem.norm."),
    (re.compile(r"^layer(\d+)\."), lambda match: f"stages.{int(match[1]) - 1}."),
    (re.compile(r"\.(?:shortcut|downsample)\.0\."), ".shortcut.conv."),
    (re.compile(r"\.(?:shortcut|downsample)\.1\."), ".shortcut.bn."),
    (re.compile(r"^(?:linear|fc)\."), "head."),
)


def read(path: Path) -> Source:
    """The weights in a checkpoint of one of `LAYOUTS`, under our names.

    Raises:
        BundleError: it cannot be read, or has none of the layouts.
    """
    tensors = read_checkpoint(path)
    layout = next((layout for layout in LAYOUTS if _matches(layout, tensors)), None)
    if layout is None:
        shown = ", ".join(list(tensors)[:3])
        raise BundleError(f"{path}: none of the known CIFAR layouts; its first tensors: {shown}")
    renamed = {_rename(name): value for name, value in tensors.items()}
    try:
        padding = layout.shortcut_padding or "both"
        architecture = infer_architecture(renamed, shortcut_padding=padding)
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from None
    if architecture.stem == "imagenet":
        raise BundleError(f"{path}: has a stem for ImageNet; the format cifar is for small images")
    if architecture.shortcut == "A" and layout.shortcut_padding is None:
        raise BundleError(f"{path}: option A, but its layout does not say on which side it pads")
    is_cifar10 = architecture.num_classes == 10
    return Source(
        layout=layout.name,
        tensors=renamed,
        architecture=architecture,
        spec=CIFAR,
        mean=layout.mean if is_cifar10 else None,
        std=layout.std if is_cifar10 else None,
    )


def _matches(layout: Layout, tensors: dict[str, Tensor]) -> bool:
    def found(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in tensors)

    return all(map(found, layout.has)) and not any(map(found, layout.lacks))


def _rename(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = pattern.sub(replacement, name)
    return name
