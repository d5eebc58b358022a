"""Residual networks as in the papers; an `Architecture` determines every layer.

The papers are cited as in `models.architecture`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import variants
from models.architecture import Architecture, Block
from models.blocks import BLOCKS, BlockFactory
from models.stage import Stage
from models.stem import ImageStem

HeadFactory = Callable[[int, int], nn.Module]
"""From `(channels, num_classes)` to a module that takes features [N, channels] to logits
[N, num_classes]."""


class ResNet(nn.Module):
    """The network of an `Architecture`, freshly initialised (He initialisation, fan-out).

    `block` and `head` replace the built-in ones; a bundle can hold such a network if Python can
    import them by name, see `models.own_code`. `zero_init_residual` starts every residual branch
    at zero.

    `stage_channels`, `stage_strides`: what `features` gives for each stage, the stem first: the
        channels of its map, and how many pixels of the image lie between two of the map's.
        Stages that dilate do not stride.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        block: BlockFactory | None = None,
        head: HeadFactory | None = None,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(architecture, Architecture):
            kind = type(architecture).__name__
            raise TypeError(f"a ResNet takes an Architecture, not a {kind}; build takes a name")
        self.architecture = architecture
        self.block = block
        make_block = block or BLOCKS[architecture.block, architecture.preact]
        channels = architecture.stem_width
        self.input_norm = (
            nn.BatchNorm2d(architecture.in_channels, architecture.eps)
            if architecture.input_norm
            else nn.Identity()
        )
        self.stem = ImageStem(architecture)
        self.stages = nn.ModuleList()
        widths, factors = [channels], [architecture.stride_of_stem]
        dilated = 1
        for stage, (count, planes) in enumerate(
            zip(architecture.blocks, architecture.planes, strict=True)
        ):
            stack = Stage()
            strided, dilation = _strided_block(architecture, stage, count), dilated
            if stage in architecture.dilation:
                strided, dilated = None, 2 * dilated
            for index in range(count):
                described = architecture
                if architecture.preact_shortcut == "entry" and index == 0:
                    described = replace(architecture, preact_shortcut="activated")
                # The first block of a dilated stage sees its input as the stage before did.
                dilations = ((dilation if index == 0 else dilated, dilated),) * (dilated > 1)
                made = make_block(
                    channels, planes, 2 if index == strided else 1, described, *dilations
                )
                channels = made.out_channels
                stack.append(cast("nn.Module", made))
            self.stages.append(stack)
            pools = stage == 0 and architecture.has_pool
            widths.append(channels)
            factors.append((1 if strided is None else 2) * (2 if pools else 1))
        self.stage_channels = tuple(widths)
        self.stage_strides = tuple(accumulate(factors, operator.mul))
        if architecture.preact and architecture.preact_stem == "activated_once" and not block:
            # The input is already activated; activating it again changes nothing.
            cast("Any", self.stages[0])[0].bn1 = nn.Identity()
        self.activates = architecture.preact and architecture.final_norm
        self.norm = nn.BatchNorm2d(channels, architecture.eps) if self.activates else nn.Identity()
        self.out_channels = channels
        self.set_head(
            head(channels, architecture.num_classes) if head else make_head(channels, architecture)
        )
        initialise(self, zero_init_residual=zero_init_residual)

    def maps(self, x: Tensor) -> Tensor:
        """Float [N, `out_channels`, H, W] before pooling, from float images [N, C, H, W]."""
        x = self.stem(self.input_norm(x))
        for stage in self.stages:
            x = stage(x)
        x = self.norm(x)
        return F.relu(x) if self.activates else x

    @overload
    def features(self, images: Tensor) -> Tensor: ...

    @overload
    def features(self, images: Tensor, stages: Sequence[int]) -> list[Tensor]: ...

    def features(
        self, images: Tensor, stages: Sequence[int] | None = None
    ) -> Tensor | list[Tensor]:
        """The features of float images [N, C, H, W].

        Without `stages`: float [N, `out_channels`], what the head takes. With them: the maps
        float [N, C, H, W] after each stage named, in that order. Stages count from 1; 0 is the
        stem before its pooling. No stage behind the last one named is computed.

        A pre-activation network's maps are the sums that its next block would normalise and
        activate, also the last one, as in timm; `maps` gives that one normalised and activated.

        Raises:
            ValueError: there is no such stage.
        """
        if stages is None:
            return self.maps(images).mean((2, 3))
        for number in stages:
            if number not in range(len(self.stages) + 1):
                raise ValueError(
                    f"stages must be from 0 (the stem) to {len(self.stages)}, not {number!r}"
                )
        x = self.stem.before_pool(self.input_norm(images))
        found = [x]
        for number in range(1, max(stages, default=0) + 1):
            x = self.stages[number - 1](self.stem.pool(x) if number == 1 else x)
            found.append(x)
        return [found[number] for number in stages]

    if TYPE_CHECKING:  # To torch's Module, the result of a call is anything.

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.maps(x).mean((2, 3)))
        return logits

    def checkpoint_blocks(self, enabled: bool = True) -> None:
        """Whether training keeps only the blocks' inputs, and computes the rest again for the
        gradients: less memory for about a third more time (Chen 2016, arXiv:1604.06174).

        Gradients and running statistics stay the same.
        """
        for stage in self.stages:
            cast("Stage", stage).checkpoints = enabled

    def set_head(self, head: nn.Module) -> None:
        """Replaces the head by one that takes features [N, `out_channels`]; not initialised.

        Raises:
            TypeError: `head` is not a module.
        """
        if not isinstance(head, nn.Module):
            raise TypeError(
                f"a head is a torch.nn.Module, such as Linear({self.out_channels}, 10), "
                f"not {head!r}"
            )
        self.head = head


def make_head(channels: int, architecture: Architecture) -> nn.Module:
    """Linear layers with ReLUs between; see `Architecture.head`."""
    if not architecture.num_classes:
        return nn.Identity()
    last = nn.Linear((channels, *architecture.head)[-1], architecture.num_classes)
    hidden: list[nn.Module] = []
    for inputs, outputs in pairwise((channels, *architecture.head)):
        hidden += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*hidden, last) if hidden else last


def _strided_block(architecture: Architecture, stage: int, count: int) -> int | None:
    """The index of the block in a stage that halves the resolution."""
    every = architecture.stride_stages == "all"
    if architecture.stride_block == "last":
        return count - 1 if every or stage < len(architecture.blocks) - 1 else None
    return 0 if every or stage > 0 else None


def initialise(network: ResNet, *, zero_init_residual: bool = False) -> None:
    """Initialises convolutions with He-normal values by fan-out; norms start as the identity."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if zero_init_residual:
        for stage in network.stages:
            for block in cast("nn.Sequential", stage):
                nn.init.zeros_(cast("Any", block).residual_end.weight)


def build(
    name: str,
    *,
    block: BlockFactory | Block | None = None,
    zero_init_residual: bool = False,
    **overrides: Any,
) -> ResNet:
    """A freshly initialised network: `build("resnet20", num_classes=100, shortcut="A")`.

    `overrides` are fields of `Architecture`; for `zero_init_residual` see `ResNet`. `block` is the
    field if it is text, else as for `ResNet`.

    Raises:
        ValueError: the name or an override is unknown, or its value is invalid.
    """
    if isinstance(name, str) and (":" in name or name.endswith(".safetensors")):
        raise ValueError(f"{name!r} names weights, and build makes new ones; models.load reads it")
    if isinstance(block, str):
        overrides, block = {**overrides, "block": block}, None
    architecture = variants.override(variants.variant(name).architecture, **overrides)
    return ResNet(architecture, block=block, zero_init_residual=zero_init_residual)


def on_meta(architecture: Architecture) -> ResNet:
    """The network on the meta device: names and shapes without storage."""
    with torch.device("meta"):
        return ResNet(architecture)
