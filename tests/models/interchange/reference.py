"""CIFAR networks as three public repositories write them, in a few lines each.

Only names, padding and the order of operations matter; widths and depths are tiny.
"""

from __future__ import annotations

from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

Style = Literal["akamaster", "chenyaofo", "kuangliu"]


class LambdaLayer(nn.Module):
    """akamaster's option A: new channels on both sides."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.planes = planes

    def forward(self, x: Tensor) -> Tensor:
        quarter = self.planes // 4
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter), "constant", 0)


class Residual(nn.Module):
    """Adds the shortcut under the name that each repository gives it."""

    def add_shortcut(self, in_planes: int, planes: int, stride: int, style: Style) -> None:
        changes = stride != 1 or in_planes != planes
        layers = [nn.Conv2d(in_planes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)]
        self.downsample: nn.Module | None = None
        self.shortcut: nn.Module
        if style == "chenyaofo":
            self.downsample = nn.Sequential(*layers) if changes else None
        elif style == "kuangliu":
            self.shortcut = nn.Sequential(*layers) if changes else nn.Sequential()
        else:
            self.shortcut = LambdaLayer(planes) if changes else nn.Sequential()

    def skip(self, x: Tensor) -> Tensor:
        if hasattr(self, "shortcut"):
            return cast("Tensor", self.shortcut(x))
        return x if self.downsample is None else cast("Tensor", self.downsample(x))


class BasicBlock(Residual):
    expansion = 1

    def __init__(self, in_planes: int, planes: int, stride: int, style: Style) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.add_shortcut(in_planes, planes, stride, style)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.skip(x))


class Bottleneck(Residual):
    expansion = 4

    def __init__(self, in_planes: int, planes: int, stride: int, style: Style) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.add_shortcut(in_planes, 4 * planes, stride, style)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.skip(x))


class Network(nn.Module):
    """`width` wide in the stem; each of `blocks` is a stage, twice as wide as the one before."""

    def __init__(
        self,
        style: Style,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, ...],
        width: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = len(blocks)
        channels = width
        for stage, count in enumerate(blocks):
            planes, layers = width * 2**stage, []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(block(channels, planes, stride, style))
                channels = planes * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.classifier = "fc" if style == "chenyaofo" else "linear"
        self.add_module(self.classifier, nn.Linear(channels, classes))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            out = self.get_submodule(f"layer{stage + 1}")(out)
        logits: Tensor = self.get_submodule(self.classifier)(out.mean((2, 3)))
        return logits
