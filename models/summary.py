"""What a network costs: parameters, layers and multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def count_parameters(network: nn.Module) -> int:
    """Learnable scalars."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def count_layers(network: nn.Module) -> int:
    """Conv2d and Linear modules, those of shortcuts and of the head included."""
    return sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules())


def count_macs(network: nn.Module, size: int, channels: int = 3) -> int:
    """Multiply-accumulates of the convolutions and linear layers for one image.

    `size` is the image's height and width in pixels. Nothing is computed and nothing allocated:
    an empty batch runs through weights that are one zero, expanded. The network may be on any
    device, meta included, and is left as it was.
    """
    zero = torch.zeros(())
    state = {name: zero.expand(value.shape) for name, value in network.state_dict().items()}
    training = {module: module.training for module in network.modules()}
    network.eval()
    counter = _MacCounter()
    try:
        with torch.no_grad(), counter:
            torch.func.functional_call(network, state, (torch.empty(0, channels, size, size),))
    finally:
        for module, was_training in training.items():
            module.training = was_training
    return counter.macs


class _MacCounter(TorchFunctionMode):
    """Counts convolutions and linear layers, and gives empty batches of their outputs' shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.conv2d:
            image, weight, _, stride, padding, dilation, *_ = args
            if isinstance(padding, str):
                return self._counted(func(*args), weight)
            out_channels, *kernel = weight.shape[:1] + weight.shape[2:]
            sizes = [
                (side + 2 * pad - dilate * (extent - 1) - 1) // step + 1
                for side, extent, step, pad, dilate in zip(
                    image.shape[2:], kernel, stride, padding, dilation, strict=True
                )
            ]
            return self._counted(image.new_empty(0, out_channels, *sizes), weight)
        if func is F.linear:
            image, weight, *_ = args
            return self._counted(image.new_empty(*image.shape[:-1], weight.shape[0]), weight)
        return func(*args, **(kwargs or {}))

    def _counted(self, output: Tensor, weight: Tensor) -> Tensor:
        self.macs += math.prod(output.shape[1:]) * math.prod(weight.shape[1:])
        return output
