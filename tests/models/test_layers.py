"""Convolutions with padding as TensorFlow pads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.layers import SameConv2d, conv
from models.pooling import pad_same


@pytest.mark.parametrize("side", [1, 2, 5, 8])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_covers_a_dilated_kernel(side: int, dilation: int) -> None:
    made = conv(2, 3, 3, 2, padding="same", dilation=dilation).double()
    assert isinstance(made, SameConv2d)
    x = torch.randn(1, 2, side, 9, dtype=torch.float64)
    # Zeros between the weights are what dilation is.
    extent = 2 * dilation + 1
    kernel = torch.zeros(3, 2, extent, extent, dtype=torch.float64)
    kernel[:, :, ::dilation, ::dilation] = made.weight.detach()
    expected = F.conv2d(pad_same(x, extent, 2), kernel, stride=2)
    assert expected.shape[2:] == (-(-side // 2), 5)
    torch.testing.assert_close(made(x), expected)
