"""The layers before the first stage."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.architecture import Architecture
from models.layers import conv
from models.pooling import stem_pool


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
        self.activates = not (architecture.preact and architecture.preact_stem == "bare")
        self.norm = nn.BatchNorm2d(channels, architecture.eps) if self.activates else nn.Identity()
        self.pool = stem_pool(architecture)

    def before_pool(self, x: Tensor) -> Tensor:
        """Float [N, C, H, W] before the pooling, if there is any."""
        y: Tensor = self.norm(self.conv(x))
        return F.relu(y) if self.activates else y

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pool(self.before_pool(x))
        return y
