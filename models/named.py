"""Which networks have names, as data that needs no torch; `models.variants` makes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from models.suggestions import nearest

if TYPE_CHECKING:
    from models.architecture import Block

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
    """The named variants in the papers' order; of the wide ones, the widths commonly used."""
    for family in ("", "preact_"):
        yield from (f"{family}resnet{depth}" for depth in IMAGENET_STAGES)
        yield from (f"{family}wide_resnet{depth}_{width}" for depth, width in WIDE_IMAGENET)
        yield from (f"{family}resnet{depth}_small" for depth in IMAGENET_STAGES)
        yield from (f"{family}resnet{depth}" for depth in CIFAR_STAGES)
        for depth, widths in WIDE_LISTED.items():
            yield from (f"{family}wide_resnet{depth}_{width}" for width in widths)


class Named(NamedTuple):
    """What a name says: `large` networks see ImageNet's images, others CIFAR's."""

    name: str
    depth: int
    block: Block
    blocks: tuple[int, ...]
    planes: tuple[int, ...]
    large: bool
    preact: bool
    width: int


def find(name: str) -> Named:
    """What `name` says; `wrn_28_10` and so on are short for the paper's own wide networks.

    Raises:
        ValueError: there is no such network; the message offers the nearest names.
    """
    asked = name
    if paper := PAPER_WIDE.fullmatch(name):
        name = f"preact_wide_resnet{paper['depth']}_{paper['width']}"
    found = _parse(name)
    if found is None:
        near = nearest(name, list(names()), 3)
        hint = f"nearest: {', '.join(near)}" if near else "`resnet-serve models` lists all"
        raise ValueError(f"no variant is called {asked!r}; {hint}")
    return found


def _parse(name: str) -> Named | None:
    match = NAME.fullmatch(name)
    if match is None:
        return None
    depth, wide, small = int(match["depth"]), bool(match["wide"]), bool(match["small"])
    width = int(match["width"] or 1)
    if wide != bool(match["width"]) or (wide and small):
        return None
    imagenet = depth in IMAGENET_STAGES and (not wide or (depth, width) in WIDE_IMAGENET)
    table = WIDE_STAGES if wide else CIFAR_STAGES
    planes: tuple[int, ...]
    if imagenet:
        (block, blocks), planes = IMAGENET_STAGES[depth], IMAGENET_PLANES
    elif depth in table and not small:
        (block, blocks), planes = table[depth], CIFAR_PLANES
    else:
        return None
    large = imagenet and not small
    return Named(name, depth, block, blocks, planes, large, bool(match["preact"]), width)
