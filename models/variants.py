"""The named networks, without torch."""

from __future__ import annotations

import fnmatch
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
IMAGENET_PLANES = (64, 128, 256, 512)
CIFAR_PLANES = (16, 32, 64)
# Zagoruyko 2016, table 7, has WRN-18-k and WRN-34-k of several widths, and one WRN-50-2.
WIDE_IMAGENET = ((18, 2), (34, 2), (50, 2), (101, 2))
OF_ANY_WIDTH = (18, 34)
WIDE_LISTED = {16: (1, 2, 4, 8, 10), 22: (2, 8, 10), 28: (1, 2, 4, 8, 10, 12), 40: (1, 2, 4, 8, 10)}

# Words for groups of networks.
FAMILIES = ("imagenet", "cifar", "small", "wide", "preact")

NAME = re.compile(
    r"(?P<preact>preact_)?(?P<wide>wide_)?resnet(?P<depth>[1-9][0-9]{0,6})"
    r"(?:_(?P<width>[1-9][0-9]{0,6}(?:\.[0-9]{0,6}[1-9])?))?(?P<end>_small|_cifar)?"
)
PAPER_WIDE = re.compile(r"wrn_(?P<depth>[1-9][0-9]*)_(?P<width>[1-9][0-9]*)")
# What other libraries and papers call the networks, in lower case and with underscores.
ELSEWHERE = re.compile(
    r"(?:tv_|gluon_)?(?P<preact>pre_?act(?:ivation)?_?)?(?:(?P<wide>wide_?)?res_?net|(?P<wrn>wrn))_?"
    r"(?P<v2>v2_?)?(?P<depth>[1-9][0-9]{0,6})(?:[_x](?P<width>[1-9][0-9.]{0,6}))?"
    r"(?:_?v(?P<version>1(?:\.5)?|2)(?:_[0-9]+)?)?(?P<end>_small)?"
)

# Arguments that other libraries take, and what to use here instead.
OTHER_WORDS = {
    "pretrained": "a SPEC such as torchvision:resnet50 names trained weights",
    "weights": "a SPEC such as torchvision:resnet50 names trained weights",
    "device": "network.to(device) moves a network",
    "output_stride": "did you mean dilation?",
    "replace_stride_with_dilation": "did you mean dilation?",
}


def names(pattern: str = "*", *, family: str | None = None) -> list[str]:
    """The named variants in the papers' order, with the usual widths of wide networks.

    `pattern`: as of files, in any case: `names("wide_resnet28_*")`. `family`: one of FAMILIES.

    Raises:
        ValueError: there is no such family.
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(f"no family is called {family!r}; {hint(family, FAMILIES)}")
    return [
        name
        for name in fnmatch.filter(_listed(), pattern.lower())
        if family is None or family in families(name)
    ]


def families(name: str) -> list[str]:
    """The FAMILIES of a variant; the first one says what images it is for."""
    row = variant(name)
    small = "small" if name.endswith("_small") else "cifar"
    return [
        "imagenet" if row.architecture.stem == "imagenet" else small,
        *["wide"] * ("wide" in row.name),
        *["preact"] * row.architecture.preact,
    ]


def _listed() -> Iterator[str]:
    for prefix in ("", "preact_"):
        yield from (f"{prefix}resnet{depth}" for depth in IMAGENET_STAGES)
        yield from (f"{prefix}wide_resnet{depth}_{width}" for depth, width in WIDE_IMAGENET)
        yield from (f"{prefix}resnet{depth}_small" for depth in IMAGENET_STAGES)
        yield from (f"{prefix}resnet{depth}" for depth in CIFAR_STAGES)
        for depth, widths in WIDE_LISTED.items():
            yield from (f"{prefix}wide_resnet{depth}_{width}" for width in widths)


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
    if not isinstance(name, str):
        raise TypeError(f"a variant's name is text, not {name!r}")
    try:
        row = _parse(_spelled(name))
    except ValueError as error:
        advice = f"; for CIFAR: {name}_cifar" if _exists(f"{name}_cifar") else ""
        raise ValueError(f"{name}: {error}{advice}") from None
    if row is None:
        near = meant(name) or nearest(_spelled(name), names(), 3)
        advice = f"nearest: {', '.join(near)}" if near else "`resnet-serve models` lists all"
        raise ValueError(f"no variant is called {name!r}; {advice}")
    return row


def _exists(name: str) -> bool:
    try:
        return _parse(_spelled(name)) is not None
    except ValueError:
        return False


def _spelled(name: str) -> str:
    """The name that the paper's own one, such as `wrn_28_10`, stands for."""
    paper = PAPER_WIDE.fullmatch(name)
    if paper is None:
        return name
    end = "_cifar" if int(paper["depth"]) in OF_ANY_WIDTH else ""
    return f"preact_wide_resnet{paper['depth']}_{paper['width']}{end}"


def meant(name: str) -> list[str]:
    """`name`, if there is such a network; else the names of what another library or paper calls so:
    `ResNet50`, `resnetv2_50`, `WRN-28-10`, `resnet50.a1_in1k`."""
    if _exists(name):
        return [name]
    text = re.sub(r"\.[a-z].*", "", name.rpartition("/")[2].lower())
    match = ELSEWHERE.fullmatch(re.sub(r"[\s_-]+", "_", text))
    if match is None:
        return []
    depth, width, end = match["depth"], match["width"], match["end"] or ""
    preact = "preact_" * bool(match["preact"] or match["v2"] or match["version"] == "2")
    if width is None:
        candidates = [f"{preact}resnet{depth}{end}"]
    elif not match["wrn"]:
        candidates = [f"{preact}wide_resnet{depth}_{width}"]
    else:
        candidates = [f"wrn_{depth}_{width}", f"wide_resnet{depth}_{width}"]
        if _wide_stages(int(depth)) is None:
            # Those for ImageNet do not activate first.
            candidates = [candidates[1], f"preact_{candidates[1]}"]
    return [each for each in candidates if each != name and _exists(each)]


def _for_imagenet(depth: int, width: str) -> bool:
    return depth in OF_ANY_WIDTH or (str(depth), width) in {
        (str(d), str(w)) for d, w in WIDE_IMAGENET
    }


def _parse(name: str) -> Variant | None:
    match = NAME.fullmatch(name)
    if match is None:
        return None
    depth, wide, width, end = int(match["depth"]), match["wide"], match["width"], match["end"]
    if bool(wide) != bool(width):
        return None
    imagenet = depth in IMAGENET_STAGES and end != "_cifar"
    if wide:
        imagenet &= _for_imagenet(depth, width)
        # Only where both data have a network of that depth does its name say which.
        if (end and (end, depth) != ("_cifar", 34)) or ("." in width and not imagenet):
            return None
        stages = IMAGENET_STAGES.get(depth) if imagenet else _wide_stages(depth)
    else:
        if end == "_cifar" or (end and not imagenet):
            return None
        stages = (IMAGENET_STAGES if imagenet else CIFAR_STAGES).get(depth)
    if stages is None:
        return None
    block, blocks = stages
    large = imagenet and not end
    architecture = Architecture(
        block=block,
        blocks=blocks,
        planes=IMAGENET_PLANES if imagenet else CIFAR_PLANES,
        stem="imagenet" if large else "small",
        num_classes=1000 if large else 10,
        preact=bool(match["preact"]),
        width=1 if not width else float(width) if "." in width else int(width),
    )
    return Variant(name, depth, architecture)


def _wide_stages(depth: int) -> tuple[Block, tuple[int, ...]] | None:
    """The wide networks for CIFAR have 6n + 4 layers (Zagoruyko 2016, table 1)."""
    count, rest = divmod(depth - 4, 6)
    return ("basic", (count,) * 3) if count > 0 and rest == 0 else None


def find(architecture: Architecture) -> Variant | None:
    """The variant of `architecture`, ignoring its classes, shortcuts, stride, dropout, and all
    that other libraries do differently."""
    naming = ("block", "blocks", "planes", "stem", "preact", "width")
    free = [field.name for field in fields(Architecture) if field.name not in naming]
    wanted = replace(architecture, **{name: _default(name) for name in free})
    for name in (*names(), *_wide_names(architecture)):
        row = _parse(name)
        if row and replace(row.architecture, num_classes=wanted.num_classes) == wanted:
            return row
    return None


def _wide_names(architecture: Architecture) -> Iterator[str]:
    """The wide networks that `architecture` may be, beside those that `names` lists."""
    width: float = architecture.width
    if width % 1 == 0:
        width = int(width)
    prefix = "preact_wide_resnet" if architecture.preact else "wide_resnet"
    if len(architecture.blocks) == len(CIFAR_PLANES):
        depth = 6 * architecture.blocks[0] + 4
        yield f"{prefix}{depth}_{width}{'_cifar' if depth in OF_ANY_WIDTH else ''}"
    yield from (f"{prefix}{depth}_{width}" for depth in OF_ANY_WIDTH)


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
            advice = OTHER_WORDS.get(key) or hint(key, known)
            raise ValueError(f"an architecture has no field {key!r}; {advice}")
    return replace(architecture, **changes)
