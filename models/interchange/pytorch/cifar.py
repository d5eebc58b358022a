"""CIFAR weights in the layouts of widely copied PyTorch repositories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from models.bundle import BundleError
from models.interchange.imported import (
    EVERYTHING,
    NORMALISATION,
    NOTHING,
    Imported,
    Said,
)
from models.interchange.normalisations import OF_CIFAR10, OF_IMAGENET, Normalisation
from models.interchange.pytorch import cifar_weights
from models.interchange.pytorch.checkpoint import read_checkpoint
from models.interchange.pytorch.layout import (
    TORCHVISION_BODY,
    TORCHVISION_RENAMES,
    Layout,
    Rename,
    stage,
)
from models.interchange.pytorch.location import locate
from models.preprocess import CIFAR

CIFAR100: Normalisation = (
    (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
    (0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
)
# The authors of wide networks use these for both data sets, rounded in [0, 255].
WIDE: Normalisation = (
    (125.3 / 255, 123.0 / 255, 113.9 / 255),
    (63.0 / 255, 62.1 / 255, 66.7 / 255),
)

WEIAICUNZAI_HEAD: Rename = (r"^(?:fc|linear)\.", "head.")

LAYOUTS = (
    Layout(
        name="names as in akamaster/pytorch_resnet_cifar10",
        body=TORCHVISION_BODY,
        has=(r"layer3\.", r"linear\."),
        lacks=(r"layer4\.",),
        renames=TORCHVISION_RENAMES,
        numerics={"shortcut_padding": "both"},
        normalised={10: OF_IMAGENET},
    ),
    Layout(
        name="names as in chenyaofo/pytorch-cifar-models",
        body=TORCHVISION_BODY,
        has=(r"layer3\.", r"layer\d\.0\.downsample\.0\.weight", r"fc\."),
        lacks=(r"layer4\.",),
        renames=TORCHVISION_RENAMES,
        normalised={10: OF_CIFAR10},
    ),
    # Its pre-activation networks too: no norm behind the stem, nor after the last block.
    Layout(
        name="names as in kuangliu/pytorch-cifar",
        body=TORCHVISION_BODY,
        has=(r"layer4\.", r"linear\."),
        lacks=(r"layer5\.",),
        renames=TORCHVISION_RENAMES,
        normalised={10: OF_CIFAR10},
    ),
    Layout(
        name="weiaicunzai/pytorch-cifar100",
        body=r"conv2_x\.0\.residual_function\.0\.weight",
        renames=(
            (r"^conv1\.0\.", "stem.conv."),
            (r"^conv1\.1\.", "stem.norm."),
            (r"^conv(\d+)_x\.", lambda match: f"stages.{int(match[1]) - 2}."),
            (r"\.residual_function\.([036])\.", lambda m: f".conv{int(m[1]) // 3 + 1}."),
            (r"\.residual_function\.([147])\.", lambda m: f".bn{int(m[1]) // 3 + 1}."),
            (r"\.shortcut\.0\.", ".shortcut.conv."),
            (r"\.shortcut\.1\.", ".shortcut.bn."),
            WEIAICUNZAI_HEAD,
        ),
        normalised={100: CIFAR100},
    ),
    Layout(
        name="weiaicunzai/pytorch-cifar100 (pre-activation)",
        body=r"stage1\.0\.residual\.2\.weight",
        has=(r"pre\.0\.weight",),
        renames=(
            (r"^pre\.0\.", "stem.conv."),
            (r"^pre\.1\.", "stem.norm."),
            (r"^stage(\d+)\.", stage),
            (r"\.residual\.([036])\.", lambda match: f".bn{int(match[1]) // 3 + 1}."),
            (r"\.residual\.([258])\.", lambda match: f".conv{int(match[1]) // 3 + 1}."),
            (r"\.shortcut\.", ".shortcut.conv."),
            WEIAICUNZAI_HEAD,
        ),
        numerics={"preact_shortcut": "raw", "stride_at": "1x1"},
        normalised={100: CIFAR100},
    ),
    Layout(
        name="weiaicunzai/pytorch-cifar100 (wide)",
        body=r"conv2\.0\.residual\.6\.weight",
        has=(r"init_conv\.weight",),
        renames=(
            (r"^init_conv\.", "stem.conv."),
            (r"^conv(\d+)\.", lambda match: f"stages.{int(match[1]) - 2}."),
            (r"\.residual\.0\.", ".bn1."),
            (r"\.residual\.2\.", ".conv1."),
            (r"\.residual\.3\.", ".bn2."),
            (r"\.residual\.6\.", ".conv2."),
            (r"\.shortcut\.0\.", ".shortcut.conv."),
            (r"^bn\.", "norm."),
            WEIAICUNZAI_HEAD,
        ),
        numerics={"preact_shortcut": "raw"},
        normalised={100: CIFAR100},
    ),
    Layout(
        name="xternalz/WideResNet-pytorch",
        body=r"block1\.layer\.0\.conv1\.weight",
        renames=(
            (r"^conv1\.", "stem.conv."),
            (r"^bn1\.", "norm."),
            (r"^block(\d+)\.layer\.", stage),
            (r"\.convShortcut\.", ".shortcut.conv."),
            (r"^fc\.", "head."),
        ),
        normalised={10: WIDE, 100: WIDE},
    ),
    Layout(
        name="szagoruyko/wide-residual-networks",
        body=r"group0\.block0\.conv0$",
        has=(r"conv0$",),
        renames=(
            (r"^conv0$", "stem.conv.weight"),
            (r"^group(\d+)\.block(\d+)\.", r"stages.\1.\2."),
            (r"\.bn([01])\.", lambda match: f".bn{int(match[1]) + 1}."),
            (r"\.conv([01])$", lambda match: f".conv{int(match[1]) + 1}.weight"),
            (r"\.convdim$", ".shortcut.conv.weight"),
            (r"^bn\.", "norm."),
            (r"^fc\.", "head."),
        ),
        normalised={10: WIDE, 100: WIDE},
    ),
    Layout(
        name="torchvision names",
        body=TORCHVISION_BODY,
        renames=TORCHVISION_RENAMES,
    ),
)


def read(path: Path, said: Said = NOTHING) -> Imported:
    """The weights in a checkpoint of one of `LAYOUTS`, under our names.

    Several repositories share a layout. The normalisation of the one that it is named after is
    assumed, unless the file is one that a repository publishes.

    Raises:
        BundleError: it cannot be read, has none of the layouts, or is for large images.
    """
    checkpoint = read_checkpoint(path, said)
    located = locate(LAYOUTS, checkpoint, path, said, "none of the known CIFAR layouts")
    layout = located.layout
    tensors, architecture, notes = located.to_ours(said)
    if architecture.stem == "imagenet":
        raise BundleError(f"{path}: has a stem for ImageNet; the format cifar is for small images")
    published = cifar_weights.of_file(path)
    known = layout.normalised.get(architecture.num_classes)
    if published is not None:
        known = published.normalisation
    spec = replace(CIFAR, mean=known[0], std=known[1]) if known else CIFAR
    spec, normalised = located.prepared(spec)
    return Imported(
        layout=layout.name,
        tensors=tensors,
        architecture=architecture,
        spec=spec,
        said=EVERYTHING if published else normalised | {"padding", "stem_padding"},
        asked=frozenset() if known else NORMALISATION - normalised,
        notes=notes,
        metrics=published.metrics if published else {},
        provenance={"weights": f"{published.repository} {published.name}"} if published else {},
    )
