"""Structures that tensors do not reveal, computed once more from their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architecture import Architecture
from models.blocks import Bottleneck
from models.operations import record
from models.pooling import Blur
from models.resnet import ResNet
from tests.support import tiny


def blurred(x: Tensor) -> Tensor:
    """Zhang 2019: a fixed binomial filter in each channel, at every second pixel."""
    row = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype)
    kernel = torch.outer(row, row).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, stride=2, groups=x.shape[1])


@pytest.mark.parametrize("sides", [(8, 8), (9, 6), (7, 3), (2, 2)])
def test_blurring_is_a_binomial_filter_at_every_second_pixel(sides: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *sides, dtype=torch.float64)
    torch.testing.assert_close(Blur()(x), blurred(x))


@pytest.mark.parametrize(
    ("changes", "side"),
    [
        ({"stem": "small"}, 16),
        ({"stem": "small", "pool": "max"}, 8),
        ({"stem": "small", "stem_stride": 2}, 8),
        ({"stem": "small", "stem_stride": 2, "pool": "max"}, 4),
        ({"stem": "imagenet"}, 4),
        ({"stem": "imagenet", "pool": "none"}, 8),
        ({"stem": "imagenet", "stem_stride": 1}, 8),
        ({"stem": "imagenet", "antialias": "average"}, 4),
        ({"stem": "imagenet", "antialias": "blur"}, 4),
        ({"stem": "small", "antialias": "blur"}, 16),
    ],
    ids=str,
)
def test_the_stem_strides_and_pools_as_it_says(changes: dict[str, Any], side: int) -> None:
    made = tiny.network(**changes)
    assert made.stem(torch.randn(1, 3, 16, 16)).shape[2:] == (side, side)


def test_a_stem_may_be_wider_or_narrower_than_the_first_stage() -> None:
    made = tiny.network(block="bottleneck", stem_channels=6)
    assert made.stem.conv.out_channels == 6
    assert made(torch.randn(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("kind", ["average", "blur"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_antialiasing_subsamples_behind_the_strided_convolutions_relu(
    kind: Any, block: Any
) -> None:
    """By timm's ResNet: the shortcut still strides, and the stem's pool is antialiased too."""
    made = tiny.network(block=block, stem="imagenet", antialias=kind).double()
    subsample = blurred if kind == "blur" else (lambda x: F.avg_pool2d(x, 2))
    x = torch.randn(2, 3, 48, 32, dtype=torch.float64)
    stem: Any = made.stem
    y = F.relu(stem.norm(stem.conv(x)))
    y = subsample(F.max_pool2d(y, 3, 1, 1)) if kind == "blur" else subsample(y)
    for stage, strided in zip(made.stages, (False, True), strict=True):
        each: Any = stage[0]  # type: ignore[index]
        shortcut = each.shortcut(y)
        z = y
        if block == "bottleneck":
            z = F.relu(each.bn1(each.conv1(z)))
            first, norm, second, last = each.conv2, each.bn2, each.conv3, each.bn3
        else:
            first, norm, second, last = each.conv1, each.bn1, each.conv2, each.bn2
        assert first.stride == (1, 1)
        z = F.relu(norm(first(z)))
        z = subsample(z) if strided else z
        y = F.relu(last(second(z)) + shortcut)
    torch.testing.assert_close(made.maps(x), y)


def dilations(network: ResNet) -> list[tuple[int, int, int]]:
    """Stride, padding and dilation of the 3x3 convolutions behind the stem."""
    found = []
    for stage in network.stages:
        for module in stage.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                assert isinstance(module.padding, tuple)
                found.append((module.stride[0], module.padding[0], module.dilation[0]))
    return found


def test_dilated_stages_keep_the_resolution_and_dilate_from_their_second_block() -> None:
    """As torchvision's `replace_stride_with_dilation=[False, True, True]`: the first block of a
    stage still sees its input with the dilation of the stage before."""
    made = ResNet(
        Architecture(
            block="bottleneck",
            blocks=(1, 2, 2, 2),
            planes=(4, 8, 8, 8),
            stem="imagenet",
            num_classes=3,
            dilation=(2, 3),
        )
    )
    plain, double = (1, 1, 1), (1, 2, 2)
    assert dilations(made) == [
        plain,
        *((2, 1, 1), plain),
        *(plain, double),
        *(double, (1, 4, 4)),
    ]
    assert made.maps(torch.randn(1, 3, 64, 64)).shape[2:] == (8, 8)
    assert all(
        module.shortcut.conv.stride == (1, 1)
        for stage in (2, 3)
        for module in made.stages[stage].modules()
        if isinstance(module, Bottleneck) and hasattr(module.shortcut, "conv")
    )


def test_a_head_of_several_layers_has_relus_between() -> None:
    made = tiny.network(head=(6, 5))
    features = torch.randn(4, made.out_channels)
    w = made.head.state_dict()
    y = F.relu(F.linear(features, w["0.weight"], w["0.bias"]))
    y = F.relu(F.linear(y, w["2.weight"], w["2.bias"]))
    torch.testing.assert_close(made.head(features), F.linear(y, w["4.weight"], w["4.bias"]))


@pytest.mark.parametrize(
    "changes",
    [
        {"pool": "max"},
        {"stem": "imagenet", "antialias": "blur"},
        {"stem": "imagenet", "antialias": "average"},
        {"dilation": (1,)},
        {"head": (6,)},
        {"stem_channels": 6, "block": "bottleneck"},
    ],
    ids=str,
)
def test_the_recorded_operations_have_the_shapes_of_what_is_computed(
    changes: dict[str, Any],
) -> None:
    made = tiny.network(**changes)
    operations = record(made, (3, 32, 16))
    assert operations[-1].shape == (-1, 10)
    (mean,) = [each for each in operations if each.kind == "mean"]
    maps = made.maps(torch.randn(1, 3, 32, 16))
    assert operations[mean.inputs[0]].shape == (-1, *maps.shape[1:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": "average"}, "pool must be one of usual, max, none, not 'average'"),
        ({"stem_stride": 3}, "stem_stride must be one of 0, 1, 2, not 3"),
        ({"dilation": (0,)}, r"dilation must be stages that stride, from 1 to 1, not \(0,\)"),
        ({"dilation": 2}, "dilation must be stages that stride, from 1 to 1, not 2"),
        ({"dilation": (1,), "stride_block": "last"}, "dilation must be empty where stages stride"),
        ({"antialias": "blur", "preact": True}, "preact must be False where antialias is not none"),
        ({"antialias": "blur", "dilation": (1,)}, r"dilation must be \(\) where antialias is not"),
        ({"head": (0,)}, r"head must be a list of positive integers, not \(0,\)"),
        ({"head": (4,), "num_classes": 0}, "head must be empty in a backbone"),
        ({"head": (10**9,)}, "head must be at most 1,000,000"),
    ],
    ids=str,
)
def test_structures_that_cannot_be_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.architecture(**changes)
