"""Residual networks as the papers draw them, decided by one `Architecture`.

The papers are cited as He 2015 (arXiv:1512.03385), He 2016 (arXiv:1603.05027) and
Zagoruyko 2016 (arXiv:1605.07146).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Block = Literal["basic", "bottleneck"]
Stem = Literal["imagenet", "small"]
Shortcut = Literal["A", "B", "C", "conv"]
ShortcutPadding = Literal["both", "end"]
Stride = Literal["3x3", "1x1"]

EXPANSION = {"basic": 1, "bottleneck": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Everything that decides what a ResNet computes, as data.

    `block`, `blocks`, `planes`: the block's kind, and per stage the number of blocks and the
        channels of a block's inner convolutions. The stem is `planes[0]` wide. Every stage but
        the first halves the resolution in its first block.
    `stem`: "imagenet" is a 7x7 convolution of stride 2 and a 3x3 max-pool (He 2015, table 1);
        "small" a 3x3 convolution alone (He 2015, section 4.2).
    `preact`: normalise and activate before each convolution (He 2016, figure 1b).
    `width`: multiplies the inner channels; a basic block's output widens with it, a
        bottleneck's does not (Zagoruyko 2016, section 2.3).
    `shortcut`: "A" pads new channels with zeros, "B" projects where the shape changes, "C"
        projects everywhere (He 2015, section 3.3); "conv" is B with a 3x3 kernel.
    `shortcut_padding`: option A's zeros on "both" sides of the channels, or at their "end".
    `stride_at`: where a bottleneck strides: its "3x3" convolution (known as v1.5), or its first
        "1x1" (v1, He 2015).
    `dropout`: probability between a basic block's convolutions (Zagoruyko 2016, section 2.4).
    `num_classes`: outputs of the linear head; 0 builds a backbone without one.
    `in_channels`: channels of the input images.

    Raises:
        ValueError: a value is impossible; the message names the field and what it allows.
    """

    block: Block
    blocks: tuple[int, ...]
    planes: tuple[int, ...]
    stem: Stem
    num_classes: int
    preact: bool = False
    width: float = 1
    shortcut: Shortcut = "B"
    shortcut_padding: ShortcutPadding = "both"
    stride_at: Stride = "3x3"
    dropout: float = 0.0
    in_channels: int = 3

    def __post_init__(self) -> None:
        # JSON and YAML give lists; a frozen, hashable value wants tuples.
        for name in ("blocks", "planes"):
            value = getattr(self, name)
            sizes = tuple(value) if isinstance(value, list | tuple) else ()
            if not sizes or not all(type(size) is int and size > 0 for size in sizes):
                raise ValueError(f"{name} must be a list of positive integers, not {value!r}")
            object.__setattr__(self, name, sizes)
        if len(self.blocks) != len(self.planes):
            raise ValueError(
                f"blocks and planes must be equally long, not {len(self.blocks)} and "
                f"{len(self.planes)}"
            )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                allowed = ", ".join(map(str, choices))
                raise ValueError(f"{name} must be one of {allowed}, not {getattr(self, name)!r}")
        for name, least in (("num_classes", 0), ("in_channels", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
        for name in ("width", "dropout"):
            if type(getattr(self, name)) not in (int, float):
                raise ValueError(f"{name} must be a number, not {getattr(self, name)!r}")
        if self.width <= 0 or any(planes * self.width % 1 for planes in self.planes):
            raise ValueError(f"width must give whole channels, not {self.width!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout!r}")
        if self.dropout and self.block == "bottleneck":
            raise ValueError("dropout must be 0 for bottleneck blocks: no paper defines it there")

    @property
    def out_channels(self) -> int:
        """Channels of the features before the head."""
        width = self.width if self.block == "basic" else 1
        return round(self.planes[-1] * width) * EXPANSION[self.block]

    @property
    def depth(self) -> int:
        """Weighted layers as He 2015 counts them: shortcuts are not counted."""
        return 2 + sum(self.blocks) * (2 if self.block == "basic" else 3)


CHOICES: dict[str, tuple[object, ...]] = {
    "block": get_args(Block),
    "stem": get_args(Stem),
    "preact": (False, True),
    "shortcut": get_args(Shortcut),
    "shortcut_padding": get_args(ShortcutPadding),
    "stride_at": get_args(Stride),
}


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A bias-free convolution, padded so that stride 1 keeps the resolution."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)


class NormReLU(nn.BatchNorm2d):
    """Batch normalisation, then ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))


class PaddedShortcut(nn.Module):
    """Option A (He 2015, section 3.3): subsample, and fill new channels with zeros."""

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
    """Options B, C and "conv": a strided convolution, normalised in post-activation blocks."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, norm: bool
    ) -> None:
        super().__init__()
        self.conv = conv(in_channels, out_channels, kernel, stride)
        self.bn = nn.BatchNorm2d(out_channels) if norm else nn.Identity()

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
    if option == "A":
        padding = architecture.shortcut_padding
        return PaddedShortcut(out_channels - in_channels, stride, padding)
    kernel = 3 if option == "conv" else 1
    return ConvShortcut(in_channels, out_channels, kernel, stride, norm=not architecture.preact)


class ResidualBlock(Protocol):
    """What `ResNet` asks of a block, its own or yours: a module that says how wide it comes out.

    `residual_end` is the last module with a weight on the residual branch: zeroing it makes
    the block an identity. It is only read for `zero_init_residual`.
    """

    out_channels: int

    @property
    def residual_end(self) -> nn.Module: ...

    def __call__(self, x: Tensor, /) -> Tensor: ...


BlockFactory = Callable[[int, int, int, Architecture], ResidualBlock]
"""`(in_channels, planes, stride, architecture)` to a block that is an `nn.Module`."""


class BasicBlock(nn.Module):
    """He 2015, figure 5 left: two 3x3 convolutions and a shortcut."""

    def __init__(
        self, in_channels: int, planes: int, stride: int, architecture: Architecture
    ) -> None:
        super().__init__()
        self.out_channels = width = round(planes * architecture.width)
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(architecture.dropout)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = make_shortcut(in_channels, width, stride, architecture)

    @property
    def residual_end(self) -> nn.Module:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(self.dropout(y)))
        return F.relu(y + cast("Tensor", self.shortcut(x)))


class Bottleneck(nn.Module):
    """He 2015, figure 5 right: 1x1, 3x3 and 1x1 convolutions and a shortcut."""

    def __init__(
        self, in_channels: int, planes: int, stride: int, architecture: Architecture
    ) -> None:
        super().__init__()
        width = round(planes * architecture.width)
        self.out_channels = planes * EXPANSION["bottleneck"]
        first, second = (stride, 1) if architecture.stride_at == "1x1" else (1, stride)
        self.conv1 = conv(in_channels, width, 1, first)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, second)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, self.out_channels, 1)
        self.bn3 = nn.BatchNorm2d(self.out_channels)
        self.shortcut = make_shortcut(in_channels, self.out_channels, stride, architecture)

    @property
    def residual_end(self) -> nn.Module:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + cast("Tensor", self.shortcut(x)))


class PreActBasicBlock(nn.Module):
    """He 2016, figure 1b: the block's input is normalised and activated first.

    A shortcut with a convolution sees the activated input, any other the raw one.
    """

    def __init__(
        self, in_channels: int, planes: int, stride: int, architecture: Architecture
    ) -> None:
        super().__init__()
        self.out_channels = width = round(planes * architecture.width)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(architecture.dropout)
        self.conv2 = conv(width, width, 3)
        self.shortcut = make_shortcut(in_channels, width, stride, architecture)

    @property
    def residual_end(self) -> nn.Module:
        return self.conv2

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        y = F.relu(self.bn2(self.conv1(activated)))
        y = self.conv2(self.dropout(y))
        return cast("Tensor", y + self.shortcut(shortcut_input(self.shortcut, x, activated)))


class PreActBottleneck(nn.Module):
    """The bottleneck of He 2016, section 4; its shortcut as in `PreActBasicBlock`."""

    def __init__(
        self, in_channels: int, planes: int, stride: int, architecture: Architecture
    ) -> None:
        super().__init__()
        width = round(planes * architecture.width)
        self.out_channels = planes * EXPANSION["bottleneck"]
        first, second = (stride, 1) if architecture.stride_at == "1x1" else (1, stride)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, width, 1, first)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, second)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, self.out_channels, 1)
        self.shortcut = make_shortcut(in_channels, self.out_channels, stride, architecture)

    @property
    def residual_end(self) -> nn.Module:
        return self.conv3

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        y = F.relu(self.bn2(self.conv1(activated)))
        y = self.conv3(F.relu(self.bn3(self.conv2(y))))
        return cast("Tensor", y + self.shortcut(shortcut_input(self.shortcut, x, activated)))


def shortcut_input(shortcut: nn.Module, x: Tensor, activated: Tensor) -> Tensor:
    """What a pre-activation shortcut sees, as the authors' own code for 164 and 1001 layers."""
    return activated if isinstance(shortcut, ConvShortcut) else x


BLOCKS: dict[tuple[Block, bool], BlockFactory] = {
    ("basic", False): BasicBlock,
    ("bottleneck", False): Bottleneck,
    ("basic", True): PreActBasicBlock,
    ("bottleneck", True): PreActBottleneck,
}


class ImageStem(nn.Module):
    """The first layers; a pre-activation network normalises only after them."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        channels, small = architecture.planes[0], architecture.stem == "small"
        self.conv = conv(architecture.in_channels, channels, 3 if small else 7, 1 if small else 2)
        self.norm = nn.Identity() if architecture.preact else NormReLU(channels)
        self.pool = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.pool(self.norm(self.conv(x))))


class ResNet(nn.Module):
    """The network an `Architecture` describes, freshly initialised (He initialisation, fan-out).

    `block` replaces the architecture's own blocks by yours; such a network trains and runs, but
    a bundle cannot describe it. `zero_init_residual` starts every residual branch at zero.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        block: BlockFactory | None = None,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.custom = block is not None
        make_block = block or BLOCKS[architecture.block, architecture.preact]
        channels = architecture.planes[0]
        self.stem = ImageStem(architecture)
        self.stages = nn.ModuleList()
        for stage, (count, planes) in enumerate(
            zip(architecture.blocks, architecture.planes, strict=True)
        ):
            stack = nn.Sequential()
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                made = make_block(channels, planes, stride, architecture)
                channels = made.out_channels
                stack.append(cast("nn.Module", made))
            self.stages.append(stack)
        self.norm = NormReLU(channels) if architecture.preact else nn.Identity()
        self.out_channels = channels
        classes = architecture.num_classes
        self.head: nn.Module = nn.Linear(channels, classes) if classes else nn.Identity()
        initialise(self, zero_init_residual=zero_init_residual)

    def features(self, x: Tensor) -> Tensor:
        """Float [N, `out_channels`] before the head, from float images [N, C, H, W]."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return cast("Tensor", self.norm(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.head(self.features(x)))

    def set_head(self, head: nn.Module) -> None:
        """Replaces the head; it receives features [N, `out_channels`] and keeps its own init."""
        self.head = head


def initialise(network: ResNet, *, zero_init_residual: bool = False) -> None:
    """Fills convolutions with He-normal values by fan-out; norms start as the identity."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if zero_init_residual:
        for stage in network.stages:
            for block in cast("nn.Sequential", stage):
                nn.init.zeros_(cast("Any", block).residual_end.weight)


def on_meta(architecture: Architecture) -> ResNet:
    """The network without storage: names and shapes only, however large it is."""
    with torch.device("meta"):
        return ResNet(architecture)
