"""Infers an architecture from a state dict in our tensor names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from models.architecture import (
    BIASED,
    EXPANSION,
    Architecture,
    Block,
    PreactStem,
    Shortcut,
    head_names,
)
from models.bundle import BundleError

HEAD = re.compile(r"head\.(\d+\.)?weight")
BLOCK = re.compile(r"stages\.(\d+)\.(\d+)\.")
STEM, FIRST = "stem.conv.weight", "stages.0.0.conv1.weight"


def infer_architecture(tensors: Mapping[str, Tensor], **numerics: Any) -> Architecture:
    """The architecture with the names and shapes of `tensors`.

    `numerics` are fields of `Architecture` that names and shapes do not determine: where a layer
    strides, how it pads, its epsilon, what a pre-activation shortcut sees.

    Raises:
        BundleError: the tensors do not form a supported ResNet; the message names the reason.
    """
    blocks = _blocks(tensors)
    for needed in (STEM, FIRST):
        if needed not in tensors:
            raise BundleError(f"no tensor {needed} found: is this a ResNet?")
    block: Block = "bottleneck" if "stages.0.0.conv3.weight" in tensors else "basic"
    if tensors[STEM].ndim != 4:
        raise BundleError(f"{STEM} must have four dimensions")
    stem_width, stem_channels, _, kernel = tensors[STEM].shape
    if kernel not in (3, 7):
        raise BundleError(f"a stem of {kernel}x{kernel} is not a ResNet's: 7x7 or 3x3")
    inner = [_rows(tensors, f"stages.{stage}.0.conv1.weight") for stage in range(len(blocks))]
    outer = [
        _rows(tensors, f"stages.{stage}.0.conv{3 if block == 'bottleneck' else 2}.weight")
        for stage in range(len(blocks))
    ]
    width, planes = _widths(block, stem_width, inner, outer)
    *hidden, classes = _head(tensors)
    preact = _is_preact(tensors, len(blocks))
    described: dict[str, Any] = {
        "block": block,
        "blocks": tuple(blocks),
        "planes": planes,
        "stem": "imagenet" if kernel == 7 else "small",
        "num_classes": classes,
        "head": tuple(hidden),
        "stem_channels": 0 if stem_width == planes[0] else stem_width,
        "preact": preact,
        "width": width,
        "shortcut": _shortcut(tensors, outer),
        "in_channels": stem_channels,
        "biases": _biases(tensors),
        "input_norm": "input_norm.weight" in tensors,
    }
    shortcuts = {name.rpartition(".")[0] for name in tensors if ".shortcut." in name}
    if shortcuts and not preact:
        described["shortcut_norm"] = any(name.endswith(".bn") for name in shortcuts)
    if preact:
        described |= {"preact_stem": _stem(tensors), "final_norm": "norm.weight" in tensors}
    try:
        return Architecture(**(described | numerics))
    except ValueError as error:
        raise BundleError(str(error)) from None


def stem_fields(kernel: int, stride: int, *, pools: bool) -> dict[str, Any]:
    """The fields of `Architecture` for a stem whose convolution strides so, and that pools or
    does not; 0 and "usual" where it does what a stem of its kernel usually does."""
    small = kernel == 3
    return {
        "stem_stride": 0 if stride == (1 if small else 2) else stride,
        "pool": "usual" if pools != small else "max" if pools else "none",
    }


def places(starts: Sequence[int], blocks: int) -> list[tuple[int, int]]:
    """Of each of so many blocks its stage and its index in it; `starts`: the first block of each
    stage but the first."""
    bounds = [0, *starts, blocks]
    return [
        (stage, index - start)
        for stage, (start, end) in enumerate(pairwise(bounds))
        for index in range(start, end)
    ]


def _blocks(tensors: Mapping[str, Tensor]) -> list[int]:
    """Blocks per stage."""
    stages: dict[int, set[int]] = {}
    for name in tensors:
        if match := BLOCK.match(name):
            stages.setdefault(int(match[1]), set()).add(int(match[2]))
    if sorted(stages) != list(range(len(stages))) or not stages:
        raise BundleError("no residual stages found: is this a ResNet?")
    for stage, indices in stages.items():
        if sorted(indices) != list(range(len(indices))):
            missing = min(set(range(max(indices))) - indices)
            raise BundleError(f"block {missing} of stage {stage} is missing")
    return [len(stages[stage]) for stage in range(len(stages))]


def _rows(tensors: Mapping[str, Tensor], name: str) -> int:
    if name not in tensors:
        raise BundleError(f"no tensor {name} found: is this a ResNet?")
    if tensors[name].ndim < 2:
        raise BundleError(f"{name} must have at least two dimensions")
    if not tensors[name].shape[0]:
        raise BundleError(f"{name} is empty")
    return tensors[name].shape[0]


def _widths(
    block: Block, stem: int, inner: list[int], outer: list[int]
) -> tuple[float, tuple[int, ...]]:
    """The factor `width` and the planes of each stage.

    The output of a bottleneck has them. A basic block shows only their product, so the first
    planes are the stem's channels where that gives whole planes.
    """
    if block == "bottleneck":
        planes, rest = zip(*(divmod(channels, EXPANSION[block]) for channels in outer), strict=True)
        width = _ratio(inner[0], planes[0]) if planes[0] else 0
        if any(rest) or [each * width for each in planes] != inner:
            raise BundleError(f"bottlenecks {inner} wide within stages of {outer} fit no ResNet")
        return width, planes
    width = _ratio(inner[0], stem)
    if any(channels / width % 1 for channels in inner):
        return 1, tuple(inner)
    return width, tuple(int(channels / width) for channels in inner)


def _ratio(channels: int, of: int) -> float:
    return channels // of if channels % of == 0 else channels / of


def _head(tensors: Mapping[str, Tensor]) -> list[int]:
    """The outputs of the head's linear layers, one behind the other; [0] without a head."""
    layers = sum(1 for name in tensors if HEAD.fullmatch(name))
    return [_rows(tensors, f"{name}.weight") for name in head_names(layers)] or [0]


def _is_preact(tensors: Mapping[str, Tensor], stages: int) -> bool:
    """Whether a block's first norm has the width of its input, not of its first convolution."""
    for stage in range(stages):
        norm = tensors.get(f"stages.{stage}.0.bn1.weight")
        convolution = tensors[f"stages.{stage}.0.conv1.weight"]
        if norm is not None and convolution.shape[0] != convolution.shape[1]:
            return len(norm) == convolution.shape[1]
    return "norm.weight" in tensors


def _stem(tensors: Mapping[str, Tensor]) -> PreactStem:
    if "stages.0.0.bn1.weight" not in tensors:
        return "activated_once"
    return "activated" if "stem.norm.weight" in tensors else "bare"


def _shortcut(tensors: Mapping[str, Tensor], outer: list[int]) -> Shortcut:
    kernels = {
        name: tensor.shape
        for name, tensor in tensors.items()
        if name.endswith("shortcut.conv.weight")
    }
    if not kernels:
        widens = outer[0] != tensors[STEM].shape[0] or len(set(outer)) > 1
        return "A" if widens else "B"
    for name, (rows, columns, *_) in kernels.items():
        match = BLOCK.match(name)
        if match and (int(match[2]) > 0 or (match[1] == "0" and rows == columns)):
            return "C"
    return "conv" if any(shape[-1] == 3 for shape in kernels.values()) else "B"


def _biases(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    names = {
        "stem": r"stem\.conv\.bias",
        "shortcut": r".*\.shortcut\.conv\.bias",
        **{role: rf"stages\.\d+\.\d+\.{role}\.bias" for role in BIASED if role[-1].isdigit()},
    }
    return tuple(
        role for role in BIASED if any(re.fullmatch(names[role], name) for name in tensors)
    )
