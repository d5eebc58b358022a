"""Residual networks as in the papers; an `Architecture` determines every layer.

The papers are cited as in `models.architecture`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import variants
from models.architecture import (
    EXPANSION,
    Architecture,
    Block,
    Padding,
    ShortcutPadding,
)
from models.pooling import antialiased, pad_same, stem_pool


class SameConv2d(nn.Conv2d):
    """A strided convolution with padding that depends on the input's size."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(pad_same(input, self.kernel_size[0], self.stride[0]))


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    *,
    bias: bool = False,
    padding: Padding = "symmetric",
    dilation: int = 1,
) -> nn.Conv2d:
    """A convolution with padding that keeps the resolution at stride 1."""
    if padding == "same" and stride > 1 and kernel > 1:
        return SameConv2d(in_channels, out_channels, kernel, stride, bias=bias)
    pad = dilation * (kernel // 2)
    return nn.Conv2d(in_channels, out_channels, kernel, stride, pad, dilation, bias=bias)


class NormReLU(nn.BatchNorm2d):
    """Batch normalisation, then ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))


class PaddedShortcut(nn.Module):
    """Option A (He 2015, section 3.3): subsample, and pad new channels with zeros."""

    def __init__(self, new_channels: int, stride: int, padding: ShortcutPadding) -> None:
        super().__init__()
        if new_channels < 0:
            raise ValueError(f"shortcut A can add channels, not drop {-new_channels}")
        before = new_channels // 2 if padding == "both" else 0
        self.padding = (0, 0, 0, 0, before, new_channels - before)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class ConvShortcut(nn.Module):
    """Options B, C and "conv": a strided convolution; post-activation blocks usually normalise
    it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        architecture: Architecture,
    ) -> None:
        super().__init__()
        self.conv = conv(
            in_channels,
            out_channels,
            kernel,
            stride,
            bias="shortcut" in architecture.biases,
            padding=architecture.padding,
        )
        norm = architecture.shortcut_norm and not architecture.preact
        self.bn = nn.BatchNorm2d(out_channels, architecture.eps) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.bn(self.conv(x)))


def make_shortcut(
    in_channels: int, out_channels: int, stride: int, architecture: Architecture
) -> nn.Module:
    """The shortcut of one block, by `architecture.shortcut`."""
    same_shape = in_channels == out_channels and stride == 1
    option = architecture.shortcut
    if same_shape and option != "C":
        return nn.Identity()
    # A stage that strides at its end has already widened: there is nothing to project.
    ends = architecture.stride_block == "last" and in_channels == out_channels
    if option == "A" or (ends and option != "C"):
        padding = architecture.shortcut_padding
        return PaddedShortcut(out_channels - in_channels, stride, padding)
    kernel = 3 if option == "conv" else 1
    return ConvShortcut(in_channels, out_channels, kernel, stride, architecture)


Dilations = tuple[int, int]


def _convolutions(
    architecture: Architecture, kernels: tuple[int, ...], dilations: Dilations
) -> list[Callable[..., nn.Conv2d]]:
    """Constructors for a block's convolutions; `dilations` are those of its 3x3 kernels."""
    wide = iter(dilations)
    return [
        partial(
            conv,
            kernel=kernel,
            bias=f"conv{number}" in architecture.biases,
            padding=architecture.padding,
            dilation=next(wide) if kernel == 3 else 1,
        )
        for number, kernel in enumerate(kernels, 1)
    ]


def _split_stride(stride: int, architecture: Architecture) -> tuple[int, nn.Module]:
    """The stride of a block's 3x3 convolution, and what subsamples behind its ReLU."""
    if architecture.antialias == "none" or stride == 1:
        return stride, nn.Identity()
    return 1, antialiased(architecture.antialias)


class ResidualBlock(Protocol):
    """What `ResNet` needs from a block, built-in or custom: a module with `out_channels`.

    `residual_end` is the last module with a weight on the residual branch: zeroing that weight
    makes the block an identity. Only `zero_init_residual` reads it.
    """

    out_channels: int

    @property
    def residual_end(self) -> nn.Module: ...

    def __call__(self, x: Tensor, /) -> Tensor: ...


BlockFactory = Callable[..., ResidualBlock]
"""From `(in_channels, planes, stride, architecture)` to a block, which is an `nn.Module`. Where
stages dilate, there is a fifth argument: the dilations of a block's two 3x3 convolutions."""

HeadFactory = Callable[[int, int], nn.Module]
"""From `(channels, num_classes)` to a module that takes features [N, channels] to logits
[N, num_classes]."""


class BasicBlock(nn.Module):
    """He 2015, figure 5 left: two 3x3 convolutions and a shortcut."""

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int,
        architecture: Architecture,
        dilations: Dilations = (1, 1),
    ) -> None:
        super().__init__()
        self.out_channels = width = round(planes * architecture.width)
        first, second = _convolutions(architecture, (3, 3), dilations)
        strided, self.antialias = _split_stride(stride, architecture)
        self.conv1 = first(in_channels, width, stride=strided)
        self.bn1 = nn.BatchNorm2d(width, architecture.eps)
        self.dropout = nn.Dropout(architecture.dropout)
        self.conv2 = second(width, width)
        self.bn2 = nn.BatchNorm2d(width, architecture.eps)
        self.shortcut = make_shortcut(in_channels, width, stride, architecture)

    @property
    def residual_end(self) -> nn.Module:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(self.antialias(self.dropout(y))))
        return F.relu(y + cast("Tensor", self.shortcut(x)))


class Bottleneck(nn.Module):
    """He 2015, figure 5 right: 1x1, 3x3 and 1x1 convolutions and a shortcut."""

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int,
        architecture: Architecture,
        dilations: Dilations = (1, 1),
    ) -> None:
        super().__init__()
        width = round(planes * architecture.width)
        self.out_channels = planes * EXPANSION["bottleneck"]
        strided, self.antialias = _split_stride(stride, architecture)
        strides = (strided, 1) if architecture.stride_at == "1x1" else (1, strided)
        first, second, third = _convolutions(architecture, (1, 3, 1), dilations)
        self.conv1 = first(in_channels, width, stride=strides[0])
        self.bn1 = nn.BatchNorm2d(width, architecture.eps)
        self.conv2 = second(width, width, stride=strides[1])
        self.bn2 = nn.BatchNorm2d(width, architecture.eps)
        self.conv3 = third(width, self.out_channels)
        self.bn3 = nn.BatchNorm2d(self.out_channels, architecture.eps)
        self.shortcut = make_shortcut(in_channels, self.out_channels, stride, architecture)

    @property
    def residual_end(self) -> nn.Module:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.antialias(y)))
        return F.relu(y + cast("Tensor", self.shortcut(x)))


class PreActBasicBlock(nn.Module):
    """He 2016, figure 1b: the block first normalises and activates its input.

    `sees_activated` decides whether the shortcut sees the raw or the activated input.
    """

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int,
        architecture: Architecture,
        dilations: Dilations = (1, 1),
    ) -> None:
        super().__init__()
        self.out_channels = width = round(planes * architecture.width)
        first, second = _convolutions(architecture, (3, 3), dilations)
        self.bn1: nn.Module = nn.BatchNorm2d(in_channels, architecture.eps)
        self.conv1 = first(in_channels, width, stride=stride)
        self.bn2 = nn.BatchNorm2d(width, architecture.eps)
        self.dropout = nn.Dropout(architecture.dropout)
        self.conv2 = second(width, width)
        self.shortcut = make_shortcut(in_channels, width, stride, architecture)
        self.shortcut_activated = sees_activated(self.shortcut, architecture)

    @property
    def residual_end(self) -> nn.Module:
        return self.conv2

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        y = F.relu(self.bn2(self.conv1(activated)))
        y = self.conv2(self.dropout(y))
        return cast("Tensor", y + self.shortcut(activated if self.shortcut_activated else x))


class PreActBottleneck(nn.Module):
    """The bottleneck of He 2016, section 4, with the shortcut of `PreActBasicBlock`."""

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int,
        architecture: Architecture,
        dilations: Dilations = (1, 1),
    ) -> None:
        super().__init__()
        width = round(planes * architecture.width)
        self.out_channels = planes * EXPANSION["bottleneck"]
        strides = (stride, 1) if architecture.stride_at == "1x1" else (1, stride)
        first, second, third = _convolutions(architecture, (1, 3, 1), dilations)
        self.bn1: nn.Module = nn.BatchNorm2d(in_channels, architecture.eps)
        self.conv1 = first(in_channels, width, stride=strides[0])
        self.bn2 = nn.BatchNorm2d(width, architecture.eps)
        self.conv2 = second(width, width, stride=strides[1])
        self.bn3 = nn.BatchNorm2d(width, architecture.eps)
        self.conv3 = third(width, self.out_channels)
        self.shortcut = make_shortcut(in_channels, self.out_channels, stride, architecture)
        self.shortcut_activated = sees_activated(self.shortcut, architecture)

    @property
    def residual_end(self) -> nn.Module:
        return self.conv3

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        y = F.relu(self.bn2(self.conv1(activated)))
        y = self.conv3(F.relu(self.bn3(self.conv2(y))))
        return cast("Tensor", y + self.shortcut(activated if self.shortcut_activated else x))


def sees_activated(shortcut: nn.Module, architecture: Architecture) -> bool:
    """Whether a pre-activation shortcut sees the activated input. The default follows the
    authors' code for 164 and 1001 layers."""
    rule = architecture.preact_shortcut
    if rule in ("projected", "entry"):
        return isinstance(shortcut, ConvShortcut)
    return rule == "activated"


BLOCKS: dict[tuple[Block, bool], BlockFactory] = {
    ("basic", False): BasicBlock,
    ("bottleneck", False): Bottleneck,
    ("basic", True): PreActBasicBlock,
    ("bottleneck", True): PreActBottleneck,
}


class ImageStem(nn.Module):
    """The first layers; most pre-activation networks do not normalise here."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        channels, small = architecture.stem_width, architecture.stem == "small"
        self.conv = conv(
            architecture.in_channels,
            channels,
            3 if small else 7,
            architecture.stride_of_stem,
            bias="stem" in architecture.biases,
            padding=architecture.stem_padding,
        )
        bare = architecture.preact and architecture.preact_stem == "bare"
        self.norm = nn.Identity() if bare else NormReLU(channels, architecture.eps)
        self.pool = stem_pool(architecture)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.pool(self.norm(self.conv(x))))


class ResNet(nn.Module):
    """The network of an `Architecture`, freshly initialised (He initialisation, fan-out).

    `block` and `head` replace the built-in ones; a bundle can hold such a network if Python can
    import them by name, see `models.own_code`. `zero_init_residual` starts every residual branch
    at zero.
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
        dilated = 1
        for stage, (count, planes) in enumerate(
            zip(architecture.blocks, architecture.planes, strict=True)
        ):
            stack = nn.Sequential()
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
        if architecture.preact and architecture.preact_stem == "activated_once" and not block:
            # The input is already activated; activating it again changes nothing.
            cast("Any", self.stages[0])[0].bn1 = nn.Identity()
        ends = architecture.preact and architecture.final_norm
        self.norm = NormReLU(channels, architecture.eps) if ends else nn.Identity()
        self.out_channels = channels
        self.head = (
            head(channels, architecture.num_classes) if head else make_head(channels, architecture)
        )
        initialise(self, zero_init_residual=zero_init_residual)

    def maps(self, x: Tensor) -> Tensor:
        """Float [N, `out_channels`, H, W] before pooling, from float images [N, C, H, W]."""
        x = self.stem(self.input_norm(x))
        for stage in self.stages:
            x = stage(x)
        return cast("Tensor", self.norm(x))

    def features(self, x: Tensor) -> Tensor:
        """Float [N, `out_channels`] before the head, from float images [N, C, H, W]."""
        return self.maps(x).mean((2, 3))

    if TYPE_CHECKING:  # To torch's Module, the result of a call is anything.

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.head(self.features(x)))

    def set_head(self, head: nn.Module) -> None:
        """Replaces the head by one that takes features [N, `out_channels`]; not initialised."""
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
    block: BlockFactory | None = None,
    zero_init_residual: bool = False,
    **overrides: Any,
) -> ResNet:
    """A freshly initialised network: `build("resnet20", num_classes=100, shortcut="A")`.

    `overrides` are fields of `Architecture`; for `block` and `zero_init_residual` see `ResNet`.

    Raises:
        ValueError: the name or an override is unknown, or its value is invalid.
    """
    architecture = variants.override(variants.variant(name).architecture, **overrides)
    return ResNet(architecture, block=block, zero_init_residual=zero_init_residual)


def on_meta(architecture: Architecture) -> ResNet:
    """The network on the meta device: names and shapes without storage."""
    with torch.device("meta"):
        return ResNet(architecture)
