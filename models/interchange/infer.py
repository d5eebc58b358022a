"""The architecture that a state dict in our own names has, read off its names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from models.bundle import BundleError
from models.resnet import EXPANSION, Architecture, Block, Shortcut, ShortcutPadding

BLOCK = re.compile(r"stages\.(\d+)\.(\d+)\.")


def infer_architecture(
    tensors: Mapping[str, Tensor], *, shortcut_padding: ShortcutPadding
) -> Architecture:
    """What names and shapes determine; they never reveal on which side option A pads.

    Raises:
        BundleError: the tensors are no ResNet's of ours; the message names what is missing.
    """
    blocks: dict[int, int] = {}
    for name in tensors:
        if match := BLOCK.match(name):
            stage, index = int(match[1]), int(match[2])
            blocks[stage] = max(blocks.get(stage, 0), index + 1)
    if sorted(blocks) != list(range(len(blocks))) or not blocks:
        raise BundleError("no residual stages found: is this a ResNet?")
    for needed in ("stem.conv.weight", "stages.0.0.conv1.weight", "head.weight"):
        if needed not in tensors:
            raise BundleError(f"no tensor {needed} found: is this a ResNet with its head?")
    block: Block = "bottleneck" if "stages.0.0.conv3.weight" in tensors else "basic"
    last = "conv3" if block == "bottleneck" else "conv2"
    first_planes, stem_channels, _, kernel = tensors["stem.conv.weight"].shape
    outputs = [_rows(tensors, f"stages.{stage}.0.{last}.weight") for stage in sorted(blocks)]
    inner = [_rows(tensors, f"stages.{stage}.0.conv1.weight") for stage in sorted(blocks)]
    # The stem is never widened, and every later stage doubles the planes.
    planes = [first_planes * 2**stage for stage in sorted(blocks)]
    if block == "bottleneck" and [p * EXPANSION[block] for p in planes] != outputs:
        raise BundleError(f"stages {outputs} wide behind a stem of {first_planes} are no ResNet's")
    return Architecture(
        block=block,
        blocks=tuple(blocks[stage] for stage in sorted(blocks)),
        planes=tuple(planes),
        stem="imagenet" if kernel == 7 else "small",
        num_classes=_rows(tensors, "head.weight"),
        preact="norm.weight" in tensors,
        width=inner[0] / first_planes if inner[0] % first_planes else inner[0] // first_planes,
        shortcut=_shortcut(tensors),
        shortcut_padding=shortcut_padding,
        in_channels=stem_channels,
    )


def _rows(tensors: Mapping[str, Tensor], name: str) -> int:
    if name not in tensors:
        raise BundleError(f"no tensor {name} found: is this a ResNet?")
    if tensors[name].ndim < 2:
        raise BundleError(f"{name} must have at least two dimensions")
    return tensors[name].shape[0]


def _shortcut(tensors: Mapping[str, Tensor]) -> Shortcut:
    kernels = {
        name: tensor.shape[-1]
        for name, tensor in tensors.items()
        if name.endswith("shortcut.conv.weight")
    }
    if not kernels:
        return "A"
    if "stages.0.1.shortcut.conv.weight" in kernels:
        return "C"
    return "conv" if 3 in kernels.values() else "B"
