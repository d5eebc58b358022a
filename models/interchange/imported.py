"""The result of an importer, and what importers share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.architecture import Architecture
from models.classifier import Outputs
from models.preprocess import InputSpec

if TYPE_CHECKING:
    from models.interchange.reference import Pair

# What a file may leave open although the network's answers depend on it, in the order in which
# `convert` lists it, the likeliest to be wrong first: fields of `Bundle`, of `InputSpec`, and of
# `Architecture`.
NORMALISATION = frozenset(("mean", "std"))
DESCRIBED = ("outputs", "labels")
INPUT = ("channels", "mean", "std", "size", "resize", "crop", "interpolation")
BODY = ("pool", "stem_stride", "stride_at", "padding", "stem_padding", "antialias", "dilation")
STRUCTURE = (*BODY, "head")
EVERYTHING = frozenset((*DESCRIBED, *INPUT, *STRUCTURE))


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the user says of a file: it takes precedence over what the file says.

    `name`, `labels`, `outputs`: as in `Bundle`; `labels` is what `models.labels.read` takes.
    `variant`: only checked; names and shapes determine the network.
    `input`: fields of `InputSpec`.
    `numerics`: fields of `Architecture` that names and shapes do not reveal, such as `stride_at`.
    `key`: the entry of a checkpoint that holds the weights, where it has several.
    `prefix`: what the names of the network's tensors begin with.
    `strict`: refuse what neither the file nor the user says, rather than assume it.
    """

    name: str | None = None
    variant: str | None = None
    labels: str | None = None
    outputs: Outputs | None = None
    input: Mapping[str, Any] = field(default_factory=dict)
    numerics: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    prefix: str | None = None
    strict: bool = False


NOTHING = Said()


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Weights under our tensor names, and what their file says about them.

    `layout`: the recognised form of the file.
    `tensors`: the network's state dict; counters that only training reads may be missing.
    `spec`: how its images are prepared.
    `said`: which of `INPUT`, `DESCRIBED` and `STRUCTURE` the file or its format determines; the
        others are assumed and listed, or asked for.
    `asked`: those of `INPUT` for which there is no likely value: without the user's, the file is
        refused.
    `notes`: what else the user should know: which of several weights were taken, what was left.
    `name`, `labels`, `outputs`: as in `Bundle`, if the file has them.
    `metrics`: published accuracy.
    `temperature`, `card`: as in `Bundle`, if the file was exported from one.
    `provenance`: further information on the origin of the weights.
    `file`: the file with the weights, if the given path is a folder.
    `pairs`: inputs and outputs that came with the file; the bundle must agree with them.
    """

    layout: str
    tensors: dict[str, Tensor]
    architecture: Architecture
    spec: InputSpec
    said: frozenset[str] = frozenset()
    asked: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    name: str | None = None
    labels: tuple[str, ...] | None = None
    outputs: Outputs = "exclusive"
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None
    temperature: float = 1.0
    card: str = ""
    pairs: tuple[Pair, ...] = ()


def is_numbers(value: object, dimensions: int | None = None) -> bool:
    """Whether a value is an array of real numbers, with this number of dimensions if given."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype.kind in "fiu"
        and dimensions in (None, value.ndim)
    )


def natural(name: str) -> list[str | int]:
    """A sort key that puts layer 10 after layer 9, and names without a number first."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def float_tensor(array: NDArray[Any]) -> Tensor:
    """A contiguous float32 copy: arrays of a file may be read-only, transposed ones are spread."""
    return torch.from_numpy(np.array(array, np.float32, order="C"))
