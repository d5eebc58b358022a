"""The convolutions and shortcuts of residual networks.

The papers are cited as in `models.architecture`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.architecture import Architecture, Padding, ShortcutPadding
from models.pooling import pad_same


class SameConv2d(nn.Conv2d):
    """A strided convolution with padding that depends on the input's size."""

    def forward(self, input: Tensor) -> Tensor:
        extent = self.dilation[0] * (self.kernel_size[0] - 1) + 1
        padded = pad_same(input, extent, self.stride[0])
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation)


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
        return SameConv2d(in_channels, out_channels, kernel, stride, dilation=dilation, bias=bias)
    pad = dilation * (kernel // 2)
    return nn.Conv2d(in_channels, out_channels, kernel, stride, pad, dilation, bias=bias)


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
        y: Tensor = self.bn(self.conv(x))
        return y


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
