"""The tensor names of PyTorch libraries' ResNets, as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.architecture import Architecture
from models.bundle import BundleError
from models.interchange.architecture import infer_architecture
from models.interchange.pytorch import heads, unsupported
from models.preprocess import PerChannel

Rename = tuple[str, str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One library's tensor names, and the properties of its networks that names do not reveal.

    `body`: matches the weight of the first block's first convolution; what precedes it in a file
        is the prefix of the network.
    `has`, `lacks`: a state dict has this layout if each pattern of `has` matches one of its
        names, and no pattern of `lacks` does.
    `renames`: patterns and replacements, applied in order to every name.
    `numerics`: see `infer_architecture`.
    `normalised`: the library's mean and deviation in training, by number of classes.
    """

    name: str
    body: str
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    renames: tuple[Rename, ...]
    numerics: Mapping[str, Any] = field(default_factory=dict)
    normalised: Mapping[int, tuple[PerChannel, PerChannel]] = field(default_factory=dict)


class Ours(NamedTuple):
    """Tensors under our names, their architecture, and what the user should know (see
    `Imported.notes`)."""

    tensors: dict[str, Tensor]
    architecture: Architecture
    notes: tuple[str, ...]


def stage(match: re.Match[str]) -> str:
    """Most libraries count stages from 1, we from 0."""
    return f"stages.{int(match[1]) - 1}."


TORCHVISION_BODY = r"layer1\.0\.conv1\.weight"
TORCHVISION_RENAMES: tuple[Rename, ...] = (
    (r"^conv1\.", "stem.conv."),
    (r"^bn1\.", "stem.norm."),
    (r"^layer(\d+)\.", stage),
    (r"\.(?:shortcut|downsample)\.0\.", ".shortcut.conv."),
    (r"\.(?:shortcut|downsample)\.1\.", ".shortcut.bn."),
    (r"^(?:linear|fc)\.", "head."),
)
# torchvision's modules in an `nn.Sequential`, as feature extractors and fastai have them. The
# max-pool is the fourth; what follows the stages is the head.
CHILDREN = Layout(
    name="torchvision modules in order",
    body=r"4\.0\.conv1\.weight",
    has=(r"0\.weight", r"1\.running_mean", r"4\.0\.conv1\.weight"),
    renames=(
        (r"^0\.", "stem.conv."),
        (r"^1\.", "stem.norm."),
        (r"^([4-7])\.", lambda match: f"stages.{int(match[1]) - 4}."),
        (r"\.downsample\.0\.", ".shortcut.conv."),
        (r"\.downsample\.1\.", ".shortcut.bn."),
        (r"^(\d+)\.", r"head.\1."),
    ),
    numerics={"pool": "max"},
)

# Tensor names that reveal unsupported networks, after renaming.
FOREIGN = (
    (r".*\.(?:bn|norm)\d?\.v$", "EvoNorm"),
    (
        r"stages\..*\.(?:se\w*|attn|eca|cbam|ca|sa|cam|sam|gc|context_block|non_?local\w*)\.",
        "attention within its blocks (SE, ECA, CBAM, non-local)",
    ),
    (r"stem\.conv\.?\d|(?:conv|bn)[23]\.", "a deep stem (ResNet-C, -D, -S or -T)"),
    (r"(?:stem|pool|maxpool)\.(?:\d|pool|reduce)", "a stem that pools otherwise"),
    (r".*downsample\.2\.", "shortcuts that average (ResNet-D)"),
    (r".*\.(?:_packed_params|zero_point)", "quantised weights"),
)
OURS = re.compile(r"(?:stem|stages|norm|input_norm)\.")
LONGEST_SHOWN = 80
NORM = re.compile(r"((?:.*\.)?(?:bn|norm)\d?)\.weight")


def find(layouts: Iterable[Layout], names: Iterable[str]) -> Layout | None:
    """The first layout that fits the names, or None."""
    names = list(names)

    def found(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in names)

    for layout in layouts:
        if all(map(found, (layout.body, *layout.has))) and not any(map(found, layout.lacks)):
            return layout
    return None


def to_ours(layout: Layout, tensors: Mapping[str, Tensor], path: Path, **numerics: Any) -> Ours:
    """`tensors` under our names, and their architecture.

    `numerics` from the file take precedence over those of the layout.

    Raises:
        BundleError: the tensors do not form a supported ResNet; the message names the reason.
    """
    ours: dict[str, Tensor] = {}
    for name, value in tensors.items():
        renamed = rename(name, layout.renames)
        if renamed in ours:
            raise BundleError(f"{path}: two of its tensors stand for {renamed}")
        ours[renamed] = value
    _add_affine(ours)
    head = {name: ours.pop(name) for name in list(ours) if heads.NAMES.match(name)}
    try:
        _refuse_foreign(ours | head)
        unsupported.refuse_values(tensors)
        _refuse_unknown(ours)
        architecture = infer_architecture(ours, **{**layout.numerics, **numerics})
        if not head:
            return Ours(ours, architecture, ())
        named, notes = heads.read(head, architecture.out_channels)
        *hidden, classes = (len(value) for name, value in named.items() if name.endswith("bias"))
        architecture = replace(architecture, num_classes=classes, head=tuple(hidden))
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from None
    return Ours(ours | named, architecture, notes)


def shown(names: Iterable[str]) -> str:
    """The first names, for messages about unknown ones."""
    return ", ".join(map(printable, list(names)[:3]))


def printable(name: str) -> str:
    """A tensor's name on one line of a terminal."""
    kept = name if name.isprintable() else name.encode("unicode_escape").decode()
    return kept if len(kept) <= LONGEST_SHOWN else f"{kept[:LONGEST_SHOWN]}..."


def rename(name: str, renames: Iterable[Rename]) -> str:
    """`name` after all renames in order."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def _add_affine(ours: dict[str, Tensor]) -> None:
    """Gives norms that were built with `affine=False` the scale 1 and the shift 0."""
    for name in list(ours):
        norm, _, leaf = name.rpartition(".")
        if leaf == "running_mean" and OURS.match(name):
            missing = {f"{norm}.weight", f"{norm}.bias"} - ours.keys()
            if len(missing) == 2:
                ours[f"{norm}.weight"] = torch.ones_like(ours[name])
                ours[f"{norm}.bias"] = torch.zeros_like(ours[name])


def _refuse_unknown(ours: Mapping[str, Tensor]) -> None:
    for name in ours:
        if not OURS.match(name):
            raise BundleError(
                f"has {printable(name)}, which is no part of a ResNet; if the answer does not "
                f"depend on it, delete it from the state dict: del state[{name!r}]"
            )


def _refuse_foreign(ours: Mapping[str, Tensor]) -> None:
    unsupported.refuse(ours)
    for pattern, what in FOREIGN:
        if any(re.match(pattern, name) for name in ours):
            raise BundleError(f"has {what}, which no network here has")
    if any(map(NORM.fullmatch, ours)) and not any(name.endswith(".running_mean") for name in ours):
        raise BundleError(
            "its norms have no running statistics: either it has GroupNorm (as BiT, whose "
            "convolutions are standardised besides), which no network here has, or only "
            "parameters were saved; then save the whole model.state_dict()"
        )
    for name, value in ours.items():
        if name.endswith(".conv2.weight") and value.ndim == 4:
            before = ours.get(name.replace(".conv2.", ".conv1."))
            if before is None or before.ndim != 4 or not value.shape[1]:
                continue
            groups, rest = divmod(before.shape[0], value.shape[1])
            if groups > 1 and not rest:
                raise BundleError(
                    f"{name.removesuffix('.weight')} has {groups} groups (ResNeXt); no network "
                    "here has grouped convolutions"
                )
