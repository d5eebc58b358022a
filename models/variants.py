"""Every named network: one row each, and `build` to make one."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from models import named
from models.architecture import Architecture
from models.named import CIFAR_PLANES, WIDE_STAGES, names
from models.preprocess import CIFAR, IMAGENET, InputSpec
from models.resnet import BlockFactory, ResNet
from models.suggestions import hint

__all__ = ["Variant", "build", "find", "names", "override", "variant"]


@dataclass(frozen=True, slots=True)
class Variant:
    """A name, the depth that the name carries, and what they stand for."""

    name: str
    depth: int
    architecture: Architecture
    input: InputSpec


def variant(name: str) -> Variant:
    """The row called `name`; `wrn_28_10` and so on are short for the paper's own wide networks.

    Raises:
        ValueError: there is no such network; the message offers the nearest names.
    """
    told = named.find(name)
    architecture = Architecture(
        block=told.block,
        blocks=told.blocks,
        planes=told.planes,
        stem="imagenet" if told.large else "small",
        num_classes=1000 if told.large else 10,
        preact=told.preact,
        width=told.width,
    )
    return Variant(told.name, told.depth, architecture, IMAGENET if told.large else CIFAR)


def find(architecture: Architecture) -> Variant | None:
    """The variant that `architecture` is, whatever its classes, shortcuts, stride or dropout, and
    wherever another library's network of that name differs."""
    telling = ("block", "blocks", "planes", "stem", "preact", "width")
    free = [field.name for field in fields(Architecture) if field.name not in telling]
    wanted = replace(architecture, **{name: _default(name) for name in free})
    candidates = list(names())
    if architecture.width % 1 == 0 and len(architecture.blocks) == len(CIFAR_PLANES):
        prefix = "preact_" if architecture.preact else ""
        candidates += [f"{prefix}wide_resnet{d}_{int(architecture.width)}" for d in WIDE_STAGES]
    for name in candidates:
        row = variant(name)
        if replace(row.architecture, num_classes=wanted.num_classes) == wanted:
            return row
    return None


def _default(field_name: str) -> Any:
    # num_classes has no default; any one value serves for a comparison.
    if field_name == "num_classes":
        return 0
    return next(field.default for field in fields(Architecture) if field.name == field_name)


def override(architecture: Architecture, **changes: Any) -> Architecture:
    """`architecture` with fields changed.

    Raises:
        ValueError: a field does not exist or its value is impossible.
    """
    known = [field.name for field in fields(Architecture)]
    for key in changes:
        if key not in known:
            raise ValueError(f"an architecture has no field {key!r}; {hint(key, known)}")
    return replace(architecture, **changes)


def build(
    name: str,
    *,
    block: BlockFactory | None = None,
    zero_init_residual: bool = False,
    **overrides: Any,
) -> ResNet:
    """A freshly initialised network: `build("resnet20", num_classes=100, shortcut="A")`.

    `overrides` are fields of `Architecture`; `block` and `zero_init_residual` as in `ResNet`.

    Raises:
        ValueError: the name or an override is unknown, or its value impossible.
    """
    architecture = override(variant(name).architecture, **overrides)
    return ResNet(architecture, block=block, zero_init_residual=zero_init_residual)
