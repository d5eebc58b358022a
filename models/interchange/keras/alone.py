"""Names the layers of Keras weights that come without a description of their model.

The layers of `keras.applications` tell by their names what they are. Others are read in their
order: basic blocks with a 3x3 stem and SAME padding, activated after each addition.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from models.bundle import BundleError
from models.interchange.imported import natural
from models.interchange.keras.file import Arrays
from models.interchange.keras.graph import ADDITION

Layers = Mapping[str, Arrays]
STAGE = re.compile(r"conv(\d)_block(\d+)_(preact|\d)_(conv|bn)")
TOP = {"conv1_conv": "stem.conv", "conv1_bn": "stem.norm", "post_bn": "norm"}
BEFORE_2019 = re.compile(r"res\d[a-z]+\d*_branch")
WHOLE = "save the whole model (.keras or .h5)"


def is_dense(arrays: Arrays) -> bool:
    return "kernel" in arrays and arrays["kernel"].ndim == 2


def dense_names(layers: Layers) -> list[str]:
    """The dense layers: those of the head, in their order."""
    return _in_order(layers, "dense", is_dense)


def application_names(layers: Layers) -> dict[str, str]:
    """Our names of the layers of a `keras.applications` ResNet, without its head.

    Raises:
        BundleError: a layer is none of them.
    """
    preact = any("preact" in name for name in layers)
    return {
        name: _application_name(name, preact)
        for name, arrays in layers.items()
        if not is_dense(arrays)
    }


def _application_name(name: str, preact: bool) -> str:
    if name in TOP:
        return TOP[name]
    match = STAGE.fullmatch(name)
    if match is None:
        raise BundleError(f"layer {name} is not part of any keras.applications ResNet")
    stage, block, number, kind = match.groups()
    prefix = f"stages.{int(stage) - 2}.{int(block) - 1}"
    if number == "0":
        return f"{prefix}.shortcut.{kind}"
    if kind == "bn" and preact:
        # The first norm precedes the first convolution.
        number = "1" if number == "preact" else str(int(number) + 1)
    return f"{prefix}.{kind}{number}"


@dataclass
class _Block:
    """The layer names of a basic block under construction, and its channels."""

    main: list[str] = field(default_factory=list)
    shortcut: str | None = None
    channels: int = 0
    width: int = 0


def ordered_names(layers: Layers, order: list[str]) -> dict[str, str]:
    """Our names of layers that are recognised by their order: norms follow their convolutions.

    `order`: all layers of the file, those without weights too.

    Raises:
        BundleError: they are no such network, or not in an order that tells.
    """
    if old := next(filter(BEFORE_2019.match, layers), None):
        raise BundleError(
            f"has layers called {old}, as Keras before 2.3 had: its pooling differs; {WHOLE}"
        )
    convs = _in_order(layers, "conv2d", lambda arrays: arrays.get("kernel", np.empty(0)).ndim == 4)
    norms = _in_order(layers, "batch_normalization", lambda arrays: "moving_mean" in arrays)
    if not convs:
        raise BundleError("holds no convolutions: is this a ResNet?")
    stem, *rest = convs
    rows, columns, _, width = layers[stem]["kernel"].shape
    if (rows, columns) != (3, 3):
        raise BundleError(
            f"has a stem of {rows}x{columns}, and not the names that keras.applications gives"
        )
    named = _stages(_blocks(layers, rest, width), width)
    _check_order(layers, order)
    names = {stem: "stem.conv", **named}
    square = [name for name in convs if layers[name]["kernel"].shape[0] == 3]
    followed = convs if len(norms) == len(convs) else square
    if len(norms) != len(followed):
        raise BundleError(
            f"has {len(convs)} convolutions and {len(norms)} BatchNorms: which follows which is "
            f"unknown; {WHOLE}"
        )
    for conv, norm in zip(followed, norms, strict=True):
        if len(layers[norm]["moving_mean"]) != layers[conv]["kernel"].shape[3]:
            raise BundleError(f"layer {norm} does not follow {conv}: their channels differ")
        names[norm] = _norm_name(names[conv])
    return names


def _check_order(layers: Layers, order: list[str]) -> None:
    """Refuses pre-activation networks, which have a norm after the last addition."""
    added = [i for i, name in enumerate(order) if ADDITION.match(name)]
    if not added:
        raise BundleError(
            f"does not list its additions, so that it may activate before or after them: {WHOLE}"
        )
    if any("moving_mean" in layers.get(name, {}) for name in order[added[-1] :]):
        raise BundleError(
            f"normalises after its last addition: a pre-activation network, of which weights alone "
            f"do not tell what its shortcuts see; {WHOLE}"
        )


def _in_order(layers: Layers, kind: str, chosen: Callable[[Arrays], bool]) -> list[str]:
    """Names in the order of Keras's numbers, or else of the file."""
    names = [name for name, arrays in layers.items() if chosen(arrays)]
    if all(re.fullmatch(rf"{kind}(_\d+)?", name) for name in names):
        names.sort(key=natural)
    return names


def _blocks(layers: Layers, convs: list[str], channels: int) -> list[_Block]:
    """Blocks of two 3x3 convolutions; a 1x1 convolution is the shortcut of the block it fits."""
    blocks: list[_Block] = []
    opened = _Block()
    for name in convs:
        rows, columns, seen, width = layers[name]["kernel"].shape
        if (rows, columns) == (1, 1):
            last = blocks[-1] if blocks and not opened.main else None
            if last and last.shortcut is None and (last.channels, last.width) == (seen, width):
                last.shortcut = name
            elif opened.shortcut is None and seen == channels:
                opened.shortcut = name
            else:
                raise BundleError(f"layer {name} does not fit as a basic block's shortcut")
            continue
        if (rows, columns) != (3, 3):
            raise BundleError(
                f"layer {name} is a {rows}x{columns} convolution: not part of a basic block"
            )
        expected = opened.width if opened.main else channels
        if seen != expected:
            raise BundleError(
                f"layer {name} sees {seen} of {expected} channels: grouped convolutions, or blocks "
                "out of order"
            )
        opened.main.append(name)
        opened.width = width
        if len(opened.main) == 2:
            opened.channels, channels = channels, width
            blocks.append(opened)
            opened = _Block()
    if opened.main or opened.shortcut:
        raise BundleError("its convolutions are not two for each block")
    return blocks


def _stages(blocks: list[_Block], channels: int) -> dict[str, str]:
    """Our names of the blocks' convolutions; a stage begins where a block widens."""
    names: dict[str, str] = {}
    stage, index = -1, 0
    for block in blocks:
        widened = block.width != channels
        if block.shortcut and not widened:
            raise BundleError(
                f"layer {block.shortcut} projects without widening: where it strides is unknown"
            )
        stage, index = (stage + 1, 0) if widened or stage < 0 else (stage, index + 1)
        channels = block.width
        prefix = f"stages.{stage}.{index}"
        names |= {conv: f"{prefix}.conv{number}" for number, conv in enumerate(block.main, 1)}
        if block.shortcut:
            names[block.shortcut] = f"{prefix}.shortcut.conv"
    return names


def _norm_name(conv: str) -> str:
    if conv == "stem.conv":
        return "stem.norm"
    return re.sub(r"conv(\d?)$", r"bn\1", conv)
