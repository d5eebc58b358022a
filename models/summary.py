"""The cost of a network: parameters, layers and multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.architecture import Architecture
from models.modes import evaluating
from models.preprocess import Sides, checked_sides
from models.resnet import ResNet, on_meta

UNLIKE = 3  # The first block of a stage, one between, and the last.


@dataclass(frozen=True, slots=True)
class Cost:
    """Learnable scalars, Conv2d and Linear modules, and multiply-accumulates for one image."""

    parameters: int
    layers: int
    macs: int


def cost(architecture: Architecture, size: Sides) -> Cost:
    """The cost of a network for an image of this size in pixels: one side, or height and width.

    The blocks between the first and the last of a stage are equal, so one is counted for all of
    them: a network of a thousand layers need not be built.
    """
    few = tuple(min(count, UNLIKE) for count in architecture.blocks)
    total, between = _measured(replace(architecture, blocks=few), size)
    parameters, layers, macs = total.parameters, total.layers, total.macs
    for count, block in zip(architecture.blocks, between, strict=True):
        more = max(0, count - UNLIKE)
        parameters += more * block.parameters
        layers += more * block.layers
        macs += more * block.macs
    return Cost(parameters, layers, macs)


@cache
def _measured(architecture: Architecture, size: Sides) -> tuple[Cost, tuple[Cost, ...]]:
    """The cost of a network, and for each stage that of a block between the first and last."""
    network = on_meta(architecture)

    def measure() -> Cost:
        macs = count_macs(network, size, architecture.in_channels)
        return Cost(count_parameters(network), count_layers(network), macs)

    between: list[Cost] = []
    total = before = measure()
    for stage in network.stages:
        blocks = cast("nn.Sequential", stage)
        if len(blocks) < UNLIKE:
            between.append(Cost(0, 0, 0))
            continue
        del blocks[1]
        after = measure()
        between.append(
            Cost(
                before.parameters - after.parameters,
                before.layers - after.layers,
                before.macs - after.macs,
            )
        )
        before = after
    return total, tuple(between)


def count_parameters(network: nn.Module) -> int:
    """The number of learnable scalars."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def count_layers(network: nn.Module) -> int:
    """The number of Conv2d and Linear modules, including those in shortcuts and the head."""
    return sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules())


def count_macs(network: nn.Module, size: Sides, channels: int = 3) -> int:
    """Multiply-accumulates of the convolutions and linear layers for one image.

    `size` is the image's side in pixels, or its height and width. Nothing is computed or
    allocated: an empty batch runs through weights that are an expanded zero. The network may be
    on any device, including meta, and does not change.

    Raises:
        ValueError: `size` is something else.
    """
    sides = _pair(checked_sides("size", size))
    zero = torch.zeros(())
    state = {name: zero.expand(value.shape) for name, value in network.state_dict().items()}
    counter = _MacCounter()
    with torch.no_grad(), evaluating(network), counter:
        try:
            _run(network, state, torch.empty(0, channels, *sides))
        except RuntimeError:  # A block of one's own may not compute on nothing.
            counter.macs = 0
            _run(network, state, torch.zeros(1, channels, *sides))
    return counter.macs


def _run(network: nn.Module, state: dict[str, Tensor], images: Tensor) -> None:
    torch.func.functional_call(network, state, (images,))


def map_sides(network: ResNet, size: Sides) -> tuple[int, int]:
    """Height and width of the last feature maps for images of this size in pixels, without
    computing them. (The meta device could tell too, but takes a second to import.)"""
    sides: list[tuple[int, int]] = []
    watch = network.norm.register_forward_hook(
        lambda _, __, maps: sides.append((maps.shape[-2], maps.shape[-1]))
    )
    try:
        count_macs(network, size, network.architecture.in_channels)
    finally:
        watch.remove()
    return sides[-1]


class _MacCounter(TorchFunctionMode):
    """Counts convolutions and linear layers, and returns uncomputed outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:
            return self._convolved(func, *args, **kwargs)
        if func is F.linear:
            return self._projected(*args, **kwargs)
        return func(*args, **kwargs)

    def _convolved(
        self,
        func: Callable[..., Any],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | tuple[int, ...] = 1,
        padding: int | str | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
    ) -> Tensor:
        if isinstance(padding, str):  # torch knows the sizes
            output = func(input, weight, bias, stride, padding, dilation, groups)
            return self._counted(output, weight)
        steps, pads, dilations = map(_pair, (stride, padding, dilation))
        sizes = [
            (side + 2 * pad - dilate * (extent - 1) - 1) // step + 1
            for side, extent, step, pad, dilate in zip(
                input.shape[2:], weight.shape[2:], steps, pads, dilations, strict=True
            )
        ]
        return self._counted(input.new_empty(len(input), weight.shape[0], *sizes), weight)

    def _projected(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._counted(input.new_empty(*input.shape[:-1], weight.shape[0]), weight)

    def _counted(self, output: Tensor, weight: Tensor) -> Tensor:
        self.macs += math.prod(output.shape[1:]) * math.prod(weight.shape[1:])
        return output


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
