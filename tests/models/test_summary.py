"""Counts against a real forward whose outputs are measured."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.resnet import build, on_meta
from models.summary import (
    Cost,
    cost,
    count_layers,
    count_macs,
    count_parameters,
    map_sides,
)
from tests.support import tiny


def measured_macs(network: nn.Module, images: Tensor) -> int:
    """Every output value of a convolution or linear layer costs one filter."""
    total = 0

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        total += output[0].numel() * math.prod(module.weight.shape[1:])

    hooks = [
        module.register_forward_hook(count)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    network.eval()(images)
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("shortcut", ["A", "B", "C", "conv"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize(("stem", "size"), [("small", 8), ("small", 13), ("imagenet", 33)])
def test_macs_are_those_of_a_real_forward(block: Any, shortcut: Any, stem: Any, size: int) -> None:
    network = tiny.network(
        block=block, shortcut=shortcut, stem=stem, blocks=(2, 1, 1), planes=(4, 8, 16)
    )
    expected = measured_macs(network, torch.randn(1, 3, size, size))
    assert count_macs(network, size) == expected
    assert count_macs(on_meta(network.architecture), size) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"blocks": (3, 5, 1, 2)},
        {"shortcut": "C"},
        {"shortcut": "A", "block": "bottleneck"},
        {"preact": True, "preact_stem": "activated_once"},
        {"preact": True, "block": "bottleneck", "stride_block": "last"},
        {"preact": True, "preact_shortcut": "entry", "stride_stages": "all"},
        {"biases": ("conv1", "shortcut"), "stem": "imagenet", "padding": "same"},
    ],
    ids=str,
)
def test_the_cost_of_repeated_blocks_is_that_of_the_whole_network(changes: Any) -> None:
    network = tiny.network(**{"blocks": (6, 1, 2, 4), "planes": (4, 8, 16, 32), **changes})
    whole = Cost(count_parameters(network), count_layers(network), count_macs(network, 37))
    assert cost(network.architecture, 37) == whole


def test_macs_know_groups_dilation_and_any_padding() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=(0, 2), groups=2),
        nn.Conv2d(8, 8, (3, 5), dilation=2, padding="same", groups=4),
        nn.Conv2d(8, 6, 3, dilation=(1, 2), padding="valid", bias=False),
        nn.Flatten(),
        nn.LazyLinear(5),
    )
    images = torch.randn(1, 4, 15, 15)
    expected = measured_macs(network, images)
    assert count_macs(network, 15, channels=4) == expected


def test_counting_leaves_the_network_as_it_was() -> None:
    network = tiny.network().train()
    network.stages[0].eval()
    network.requires_grad_(requires_grad=False).head.requires_grad_()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flags = [module.training for module in network.modules()]
    gradients = [p.requires_grad for p in network.parameters()]
    count_macs(network, 32)
    assert [module.training for module in network.modules()] == flags
    assert [p.requires_grad for p in network.parameters()] == gradients
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_counting_fails_as_the_forward_does_and_still_leaves_the_network_as_it_was() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Unflatten(1, (2, 2))).train()
    with pytest.raises(RuntimeError):
        count_macs(network, 3)
    assert network.training


def test_parameters_are_the_learnable_scalars() -> None:
    network = tiny.network()
    assert count_parameters(network) == sum(p.numel() for p in network.parameters())
    network.stem.requires_grad_(requires_grad=False)
    frozen = sum(p.numel() for p in network.stem.parameters())
    assert count_parameters(network) == sum(p.numel() for p in network.parameters()) - frozen


def test_layers_are_the_convolutions_and_linear_modules() -> None:
    assert count_layers(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Linear(1, 1))) == 2
    assert count_layers(build("resnet20", num_classes=0)) == 21


class Functional(nn.Module):
    """A block that convolves without a module, as a user may write it."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3, 3, 3))
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight, **self.options)


@pytest.mark.parametrize(
    ("options", "side"),
    [({}, 6), ({"stride": 2, "padding": 1}, 4), ({"padding": "same"}, 8), ({"dilation": 2}, 4)],
    ids=str,
)
def test_macs_of_functional_convolutions_are_counted_too(
    options: dict[str, Any], side: int
) -> None:
    assert count_macs(Functional(**options), 8) == side * side * 4 * 27


class Named(nn.Module):
    """A head that gives its arguments by name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 3 * 64))
        self.kernel = nn.Parameter(torch.ones(3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.conv2d(x, weight=self.kernel)
        return nn.functional.linear(x.flatten(1), weight=self.weight)


def test_macs_of_arguments_by_name_are_counted_too() -> None:
    assert count_macs(Named(), 8) == 64 * 3 * 3 + 5 * 3 * 64


def test_macs_of_a_linear_layer_are_those_of_every_row() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2), nn.Linear(64, 5))
    assert count_macs(network, 8) == 64 * 4 * 3 + 4 * 64 * 5


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("preact", [False, True])
@pytest.mark.parametrize(
    ("stem", "size", "side"), [("small", 8, 4), ("small", 13, 7), ("imagenet", 33, 5)]
)
def test_the_side_of_the_last_maps_is_that_of_a_real_forward(
    stem: Any, size: int, side: int, preact: bool, channels: int
) -> None:
    """The second stage halves it, and so does the stem of ImageNet, twice."""
    network = tiny.network(stem=stem, preact=preact, in_channels=channels)
    assert network.maps(torch.randn(1, channels, size, size)).shape[-2:] == (side, side)
    assert map_sides(network, size) == (side, side)
    assert map_sides(on_meta(network.architecture), size) == (side, side)
    assert not network.norm._forward_hooks


@pytest.mark.parametrize("size", [0, -3, 32.0, "32", (3, 32, 32), (1, 3, 32, 32), True])
def test_an_impossible_size_is_refused_and_leaves_the_network_as_it_was(size: Any) -> None:
    network = tiny.network()
    with pytest.raises(ValueError, match=r"\Asize must be a positive integer, or height and width"):
        map_sides(network, size)
    assert not network.norm._forward_hooks
