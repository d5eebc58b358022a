"""The named networks, without torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from models.architecture import Architecture, Block
from models.suggestions import hint, nearest

if TYPE_CHECKING:
    from models.preprocess import InputSpec

# Depth: block, blocks per stage.
IMAGENET_STAGES: dict[int, tuple[Block, tuple[int, ...]]] = {  # He 2015, table 1; 200: He 2016
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
    200: ("bottleneck", (3, 24, 36, 3)),
}
CIFAR_STAGES: dict[int, tuple[Block, tuple[int, ...]]] = {  # He 2015, 4.2; 164, 1001: He 2016
    20: ("basic", (3, 3, 3)),
    32: ("basic", (5, 5, 5)),
    44: ("basic", (7, 7, 7)),
    56: ("basic", (9, 9, 9)),
    110: ("basic", (18, 18, 18)),
    164: ("bottleneck", (18, 18, 18)),
    1001: ("bottleneck", (111, 111, 111)),
    1202: ("basic", (200, 200, 200)),
}
WIDE_STAGES: dict[int, tuple[Block, tuple[int, ...]]] = {  # Zagoruyko 2016, table 1: 6n + 4
    16: ("basic", (2, 2, 2)),
    22: ("basic", (3, 3, 3)),
    28: ("basic", (4, 4, 4)),
    40: ("basic", (6, 6, 6)),
}
IMAGENET_PLANES = (64, 128, 256, 512)
CIFAR_PLANES = (16, 32, 64)
WIDE_IMAGENET = ((50, 2), (101, 2))
WIDE_LISTED = {16: (1, 2, 4, 8, 10), 22: (2, 8, 10), 28: (1, 2, 4, 8, 10, 12), 40: (1, 2, 4, 8, 10)}

NAME = re.compile(
    r"(?P<preact>preact_)?(?P<wide>wide_)?resnet(?P<depth>[1-9][0-9]*)"
    r"(?:_(?P<width>[1-9][0-9]*))?(?P<small>_small)?"
)
PAPER_WIDE = re.compile(r"wrn_(?P<depth>[1-9][0-9]*)_(?P<width>[1-9][0-9]*)")


def names() -> Iterator[str]:
    """The named variants in the papers' order, with the usual widths of wide networks."""
    for family in ("", "preact_"):
        yield from (f"{family}resnet{depth}" for depth in IMAGENET_STAGES)
        yield from (f"{family}wide_resnet{depth}_{width}" for depth, width in WIDE_IMAGENET)
        yield from (f"{family}resnet{depth}_small" for depth in IMAGENET_STAGES)
        yield from (f"{family}resnet{depth}" for depth in CIFAR_STAGES)
        for depth, widths in WIDE_LISTED.items():
            yield from (f"{family}wide_resnet{depth}_{width}" for width in widths)


@dataclass(frozen=True, slots=True)
class Variant:
    """A name, the depth in that name, and the architecture it stands for."""

    name: str
    depth: int
    architecture: Architecture

    @property
    def input(self) -> InputSpec:
        """How its images are prepared: ImageNet's, or CIFAR's for a small stem."""
        # Shell completion reads the names above, and must not wait for NumPy.
        from models.preprocess import CIFAR, IMAGENET  # noqa: PLC0415

        return IMAGENET if self.architecture.stem == "imagenet" else CIFAR


def variant(name: str) -> Variant:
    """The variant called `name`; `wrn_28_10` and the like are the wide networks of the paper.

    Raises:
        ValueError: there is no such network; the message suggests the nearest names.
    """
    spelled = name
    if paper := PAPER_WIDE.fullmatch(name):
        spelled = f"preact_wide_resnet{paper['depth']}_{paper['width']}"
    row = _parse(spelled)
    if row is None:
        near = nearest(spelled, list(names()), 3)
        advice = f"nearest: {', '.join(near)}" if near else "`resnet-serve models` lists all"
        raise ValueError(f"no variant is called {name!r}; {advice}")
    return row


def _parse(name: str) -> Variant | None:
    match = NAME.fullmatch(name)
    if match is None:
        return None
    depth, wide, small = int(match["depth"]), bool(match["wide"]), bool(match["small"])
    width = int(match["width"] or 1)
    if wide != bool(match["width"]) or (wide and small):
        return None
    imagenet = depth in IMAGENET_STAGES and (not wide or (depth, width) in WIDE_IMAGENET)
    table = IMAGENET_STAGES if imagenet else WIDE_STAGES if wide else CIFAR_STAGES
    if depth not in table or (small and not imagenet):
        return None
    block, blocks = table[depth]
    large = imagenet and not small
    architecture = Architecture(
        block=block,
        blocks=blocks,
        planes=IMAGENET_PLANES if imagenet else CIFAR_PLANES,
        stem="imagenet" if large else "small",
        num_classes=1000 if large else 10,
        preact=bool(match["preact"]),
        width=width,
    )
    return Variant(name, depth, architecture)


def find(architecture: Architecture) -> Variant | None:
    """The variant of `architecture`, ignoring its classes, shortcuts, stride, dropout, and all
    that other libraries do differently."""
    naming = ("block", "blocks", "planes", "stem", "preact", "width")
    free = [field.name for field in fields(Architecture) if field.name not in naming]
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
        ValueError: a field does not exist or its value is invalid.
    """
    known = [field.name for field in fields(Architecture)]
    for key in changes:
        if key not in known:
            raise ValueError(f"an architecture has no field {key!r}; {hint(key, known)}")
    return replace(architecture, **changes)
