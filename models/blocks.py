"""The residual blocks of the papers, which are cited as in `models.architecture`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from models.architecture import EXPANSION, Architecture, Block
from models.layers import ConvShortcut, conv, make_shortcut
from models.pooling import antialiased

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


class _Block(nn.Module):
    """A block of the papers; `end` names its `residual_end`."""

    end: ClassVar[str]
    # TorchScript would compile it, and has no type for a module.
    __jit_unused_properties__ = ("residual_end",)

    @property
    def residual_end(self) -> nn.Module:
        return self.get_submodule(self.end)


class BasicBlock(_Block):
    """He 2015, figure 5 left: two 3x3 convolutions and a shortcut."""

    end = "bn2"

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

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(self.antialias(self.dropout(y))))
        return F.relu(y + self.shortcut(x))


class Bottleneck(_Block):
    """He 2015, figure 5 right: 1x1, 3x3 and 1x1 convolutions and a shortcut."""

    end = "bn3"

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

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.antialias(y)))
        return F.relu(y + self.shortcut(x))


class PreActBasicBlock(_Block):
    """He 2016, figure 1b: the block first normalises and activates its input.

    `sees_activated` decides whether the shortcut sees the raw or the activated input.
    """

    end = "conv2"

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

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        y = F.relu(self.bn2(self.conv1(activated)))
        y = self.conv2(self.dropout(y))
        total: Tensor = y + self.shortcut(activated if self.shortcut_activated else x)
        return total


class PreActBottleneck(_Block):
    """The bottleneck of He 2016, section 4, with the shortcut of `PreActBasicBlock`."""

    end = "conv3"

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

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        y = F.relu(self.bn2(self.conv1(activated)))
        y = self.conv3(F.relu(self.bn3(self.conv2(y))))
        total: Tensor = y + self.shortcut(activated if self.shortcut_activated else x)
        return total


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
