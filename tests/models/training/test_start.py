"""The weights that training starts from."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from models import bundling
from models.preprocess import CHANNELS, Channels
from models.resnet import ResNet
from models.training.start import for_channels, load_start
from tests.support import tiny


def seen(grey: Tensor, channels: Channels) -> Tensor:
    """A grey image [N, 1, H, W] in other channels; its transparency is anything."""
    colours = grey.expand(-1, CHANNELS[channels], -1, -1).clone()
    if channels == "rgba":
        colours[:, 3] = 7.0
    return colours


@pytest.mark.parametrize("after", ["grey", "rgb", "bgr", "rgba"])
@pytest.mark.parametrize("before", ["grey", "rgb", "bgr"])
def test_filters_for_other_channels_answer_to_grey_as_before(
    before: Channels, after: Channels
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, CHANNELS[before], 3, 3, generator=generator)
    grey = torch.randn(2, 1, 6, 6, generator=generator)
    made = for_channels(weight, before, after)
    expected = torch.conv2d(seen(grey, before), weight)
    torch.testing.assert_close(torch.conv2d(seen(grey, after), made), expected)


def test_red_and_blue_change_places() -> None:
    weight = torch.arange(3.0).reshape(1, 3, 1, 1)
    assert for_channels(weight, "rgb", "bgr").flatten().tolist() == [2, 1, 0]


def test_other_classes_leave_the_head_as_it_is() -> None:
    start = tiny.made_bundle()
    network = ResNet(replace(start.architecture, num_classes=3))
    before = cast("nn.Linear", network.head).weight.clone()
    load_start(network, start, ("a", "b", "c"), start.input.channels)
    assert cast("nn.Linear", network.head).weight.equal(before)
    assert network.stem.conv.weight.equal(start.tensors["stem.conv.weight"])


def test_a_network_that_normalises_its_own_channels_keeps_them() -> None:
    network = tiny.network(input_norm=True)
    start = bundling.from_network(network, **tiny.described())
    other = ResNet(replace(start.architecture, in_channels=1))
    with pytest.raises(ValueError, match="leave out --channels"):
        load_start(other, start, start.labels, "grey")
