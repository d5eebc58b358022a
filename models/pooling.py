"""The pooling layers of ResNets, and padding that depends on the input's size."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from models.architecture import Antialias, Architecture, PoolPadding


def pad_same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Images [N, C, H, W] padded for a window like TensorFlow's SAME: more at the end.

    The result has ceil(H / stride) windows down and ceil(W / stride) across.
    """
    height, width = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:])
    pads = (width // 2, width - width // 2, height // 2, height - height // 2)
    return F.pad(x, pads, value=value) if any(pads) else x


class StemPool(nn.MaxPool2d):
    """The 3x3 max-pool of stride 2; see `Architecture.pool_padding`."""

    def __init__(self, padding: PoolPadding) -> None:
        super().__init__(3, 2, padding=int(padding == "symmetric"), ceil_mode=padding == "ceil")
        self.pads = padding

    def forward(self, input: Tensor) -> Tensor:
        padded = input
        if self.pads == "same":
            padded = pad_same(input, 3, 2, value=float("-inf"))
        elif self.pads == "zero":
            padded = F.pad(input, (1, 1, 1, 1))
        return cast("Tensor", super().forward(padded))


class Blur(nn.Module):
    """Weighs 3x3 pixels by 1-2-1 both ways and subsamples by 2 (Zhang 2019, arXiv:1904.11486).

    The weights are those of two averages of 2x2 pixels in turn.
    """

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.avg_pool2d(F.avg_pool2d(padded, 2, 1), 2, 2)


def antialiased(kind: Antialias) -> nn.Module:
    """Subsamples by 2; see `Architecture.antialias`."""
    return Blur() if kind == "blur" else nn.AvgPool2d(2, 2)


def stem_pool(architecture: Architecture) -> nn.Module:
    """The stem's pooling."""
    if not architecture.has_pool:
        return nn.Identity()
    if architecture.antialias == "average":
        return antialiased("average")
    if architecture.antialias == "blur":
        return nn.Sequential(nn.MaxPool2d(3, 1, 1), antialiased("blur"))
    return StemPool(architecture.pool_padding)
