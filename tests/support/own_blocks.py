"""Blocks and heads as a user writes them, in a module of the user's."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from models.architecture import Architecture
from models.blocks import BasicBlock


class Plain(nn.Module):
    """A residual block of operations that every engine knows."""

    def __init__(
        self, in_channels: int, planes: int, stride: int, architecture: Architecture
    ) -> None:
        super().__init__()
        self.out_channels = planes
        self.conv = nn.Conv2d(in_channels, planes, 3, stride, 1, bias=False)
        self.residual_end = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.project = (
            nn.Identity()
            if stride == 1 and in_channels == planes
            else nn.Conv2d(in_channels, planes, 1, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.residual_end(self.conv(x))
        y += self.project(x)
        return cast("Tensor", self.relu(y))


class Squeezed(BasicBlock):
    """Squeeze and excitation (Hu 2018, arXiv:1709.01507), which only torch's engines compute."""

    def __init__(
        self, in_channels: int, planes: int, stride: int, architecture: Architecture
    ) -> None:
        super().__init__(in_channels, planes, stride, architecture)
        self.gate = nn.Linear(planes, planes)
        # Not in the state dict: whoever makes this block must have it.
        self.register_buffer("shift", torch.full((), 0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        gate = torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]
        return y * gate + cast("Tensor", self.shift)


class WeightNormed(BasicBlock):
    """Its first convolution's weight is computed from others."""

    def __init__(
        self, in_channels: int, planes: int, stride: int, architecture: Architecture
    ) -> None:
        super().__init__(in_channels, planes, stride, architecture)
        parametrizations.weight_norm(self.conv1)


class InPlace(BasicBlock):
    """Changes what it has returned before: an engine that overlooks that computes another sum."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        z = self.conv2(y)
        kept = z
        torch.nn.functional.relu(z, inplace=True)
        return cast("Tensor", kept + y)


class Cosine(nn.Module):
    """A head whose logits are scaled cosines."""

    def __init__(self, channels: int, num_classes: int, scale: float = 10.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, channels))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        unit = nn.functional.normalize
        return self.scale * nn.functional.linear(unit(x), unit(self.weight))
