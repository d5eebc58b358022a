"""Exports bundles to other PyTorch libraries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from models import files
from models.architecture import Architecture
from models.bundle import Bundle, BundleError
from models.interchange.pytorch.layout import Rename, rename

TO_TORCHVISION: tuple[Rename, ...] = (
    (r"^stem\.conv\.", "conv1."),
    (r"^stem\.norm\.", "bn1."),
    (r"^stages\.(\d+)\.", lambda match: f"layer{int(match[1]) + 1}."),
    (r"\.shortcut\.conv\.", ".downsample.0."),
    (r"\.shortcut\.bn\.", ".downsample.1."),
    (r"^head\.", "fc."),
)
TO_TIMM_V2: tuple[Rename, ...] = (
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.bn(\d)\.", r".norm\1."),
    (r"\.shortcut\.conv\.", ".downsample.conv."),
    (r"^head\.", "head.fc."),
)
PLANES = (64, 128, 256, 512)
# Fields that both libraries let vary; all others must have their defaults.
FREE = ("block", "blocks", "planes", "num_classes", "preact", "width", "in_channels")


def to_torchvision(bundle: Bundle, path: Path, options: Mapping[str, Any]) -> None:
    """Writes a state dict for torchvision's `ResNet`, as safetensors or a checkpoint by suffix.

    Raises:
        BundleError: torchvision has no such network.
    """
    _refuse_options("torchvision", options)
    if bundle.architecture.preact:
        raise BundleError("torchvision has no pre-activation networks; timm has")
    _check_plain(bundle, "torchvision")
    _write({rename(name, TO_TORCHVISION): value for name, value in bundle.tensors.items()}, path)


def to_timm(bundle: Bundle, path: Path, options: Mapping[str, Any]) -> None:
    """Writes a state dict for timm's `ResNet`, or `ResNetV2` for pre-activation networks.

    Raises:
        BundleError: timm has no such network.
    """
    _refuse_options("timm", options)
    _check_plain(bundle, "timm")
    if not bundle.architecture.preact:
        _write(
            {rename(name, TO_TORCHVISION): value for name, value in bundle.tensors.items()}, path
        )
        return
    if bundle.architecture.width != 1:
        raise BundleError(f"timm's resnetv2 has no width of {bundle.architecture.width}")
    renamed = {rename(name, TO_TIMM_V2): value for name, value in bundle.tensors.items()}
    if bundle.architecture.num_classes:  # Its head is a convolution.
        renamed["head.fc.weight"] = renamed["head.fc.weight"][:, :, None, None]
    _write(renamed, path)


def _check_plain(bundle: Bundle, library: str) -> None:
    architecture = bundle.architecture
    if bundle.own_code:
        raise BundleError(f"{library} has no {' and no '.join(bundle.own_code)}")
    if architecture.planes != PLANES:
        raise BundleError(f"{library}'s stages have {PLANES} planes, not {architecture.planes}")
    if architecture.width != 1 and architecture.block == "basic":
        raise BundleError(f"{library} widens bottlenecks only, not basic blocks")
    if architecture.dropout:
        raise BundleError(f"{library} has no dropout within blocks")
    for field in fields(Architecture):
        value = getattr(architecture, field.name)
        expected = "imagenet" if field.name == "stem" else field.default
        if field.name not in FREE and value != expected:
            raise BundleError(f"{library} has no network whose {field.name} is {value!r}")


def _refuse_options(library: str, options: Mapping[str, Any]) -> None:
    if options:
        raise BundleError(f"--to {library} has no option {next(iter(options))}")


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    try:
        with files.atomic(path) as file:
            if path.suffix == ".safetensors":
                safetensors.torch.save_file(tensors, file, {"format": "pt"})
            else:
                torch.save(tensors, file)
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise OSError(f"{path}: {error}") from None
