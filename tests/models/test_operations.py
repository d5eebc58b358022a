"""What is recorded, computed again operation by operation, is what the forward computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.operations import Operation, record
from tests.support import rounding, tiny


def computed(operations: list[Operation], images: Tensor) -> Tensor:
    """The last result; each is as large as its operation says."""
    results = [images]
    for operation in operations[1:]:
        operands = [results[place] for place in operation.inputs]
        results.append(COMPUTE[operation.kind](operation, *operands))
        assert (-1, *results[-1].shape[1:]) == operation.shape, operation
    return results[-1]


def convolved(it: Operation, x: Tensor) -> Tensor:
    weight, bias = (*it.tensors, None)[:2]
    assert weight is not None
    said = it.options
    return torch.conv2d(x, weight, bias, said["strides"], said["pads"], said["dilations"])


def pooled(it: Operation, x: Tensor) -> Tensor:
    said = it.options
    window = (said["kernel"], said["strides"], said["pads"], said["dilations"])
    return F.max_pool2d(x, *window, ceil_mode=said["ceil"])


def normalised(it: Operation, x: Tensor) -> Tensor:
    mean, variance, weight, bias = it.tensors
    return F.batch_norm(x, mean, variance, weight, bias, eps=it.options["eps"])


def padded(it: Operation, x: Tensor) -> Tensor:
    sides = zip(it.options["before"], it.options["after"], strict=True)
    pads = [side for both in reversed(list(sides)) for side in both]
    return F.pad(x, pads, value=it.options["value"])


def stepped(it: Operation, x: Tensor) -> Tensor:
    return x[tuple(slice(None, None, it.options["steps"].get(axis, 1)) for axis in range(4))]


COMPUTE: dict[str, Callable[..., Tensor]] = {
    "convolution": convolved,
    "linear": lambda it, x: F.linear(x, *it.tensors),
    "batch_norm": normalised,
    "relu": lambda _, x: x.clamp(min=0),
    "max_pool": pooled,
    "pad": padded,
    "add": lambda _, x, y: x + y,
    "slice": stepped,
    "mean": lambda _, x: x.mean((2, 3)),
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shortcut": "A", "shortcut_padding": "end", "dropout": 0.5},
        {"block": "bottleneck", "shortcut": "C", "stride_at": "1x1", "stem": "imagenet"},
        {"preact": True, "shortcut": "conv", "input_norm": True},
        {"stem": "imagenet", "padding": "same", "stem_padding": "same", "pool_padding": "same"},
        {"stem": "imagenet", "pool_padding": "zero", "biases": ("stem", "conv1", "conv2")},
        {"stem": "imagenet", "pool_padding": "ceil", "eps": 0.01},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [32, 45])
def test_the_record_is_the_forward(changes: dict[str, Any], size: int) -> None:
    network = tiny.network(**changes)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    operations = record(network, (3, size, size))
    with torch.no_grad():
        rounding.assert_near(computed(operations, images), network(images), network)
    recorded = {id(tensor) for operation in operations for tensor in operation.tensors}
    assert recorded <= {id(value) for value in network.state_dict(keep_vars=True).values()}


def test_dilated_windows_have_their_own_size() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(0, 2), dilation=2),
        nn.MaxPool2d((2, 3), dilation=(2, 1), ceil_mode=True),
    )
    images = torch.randn(1, 3, 21, 20)
    rounding.assert_near(computed(record(network, (3, 21, 20)), images), network(images), network)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (nn.Conv2d(3, 3, 3, groups=3), "plain convolutions"),
        (nn.Conv2d(3, 3, 3, padding="same"), "plain convolutions"),
        (nn.BatchNorm2d(3), "evaluation mode"),
        (nn.Dropout(), "evaluation mode"),
        (nn.ReplicationPad2d(1), "padding with constants"),
        (nn.Sigmoid(), "sigmoid"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_no_export_knows_is_said(network: nn.Module, words: str) -> None:
    with pytest.raises(NotImplementedError, match=words):
        record(network, (3, 8, 8))
