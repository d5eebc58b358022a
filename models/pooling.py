"""The pooling layers of ResNets, and padding that depends on the input's size."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from models.architecture import Antialias, Architecture


def pad_same(x: Tensor, extent: int, stride: int, value: float = 0.0) -> Tensor:
    """Images [N, C, H, W] padded for a window like TensorFlow's SAME: more at the end.

    `extent`: the side of the window, at least `stride`. The result has ceil(H / stride) windows
    down and ceil(W / stride) across. There is no condition on the sizes, so that `torch.fx` and
    others can trace it.
    """
    height = extent - 1 - (x.shape[2] - 1) % stride
    width = extent - 1 - (x.shape[3] - 1) % stride
    pads = (width // 2, width - width // 2, height // 2, height - height // 2)
    return F.pad(x, pads, value=value)


class SamePad(nn.Module):
    """`pad_same` with minus infinity, for a maximum."""

    def __init__(self, extent: int, stride: int) -> None:
        super().__init__()
        self.extent, self.stride = extent, stride

    def forward(self, x: Tensor) -> Tensor:
        return pad_same(x, self.extent, self.stride, -math.inf)


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
    """The stem's pooling: a 3x3 maximum of stride 2, unless the architecture says otherwise."""
    if not architecture.has_pool:
        return nn.Identity()
    if architecture.antialias == "average":
        return antialiased("average")
    if architecture.antialias == "blur":
        return nn.Sequential(nn.MaxPool2d(3, 1, 1), antialiased("blur"))
    if architecture.pool_padding == "same":
        return nn.Sequential(SamePad(3, 2), nn.MaxPool2d(3, 2))
    if architecture.pool_padding == "zero":
        return nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, 2))
    ceil = architecture.pool_padding == "ceil"
    return nn.MaxPool2d(3, 2, padding=0 if ceil else 1, ceil_mode=ceil)
