"""A network for CUDA in few kernels: normalisation folded, cuDNN's fused convolutions.

cuDNN computes a convolution, its bias, the addition of the shortcut and ReLU in one kernel, which
writes the result once instead of four times. In 16 bits a ResNet on a large GPU is limited by these
writes. Nothing is compiled: no Triton, no C++ compiler, nothing executable on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends import cudnn

from models.folding import Step, fold
from models.operations import record
from service.engines.blueprint import Blueprint
from service.engines.cuda import CudaEngine
from service.engines.eager import DTYPES

# A stem has three channels, for which cuDNN's fused kernel was 17 times slower (pytorch#68506); its
# kernels for matrix units take multiples of eight.
FEWEST_CHANNELS = 8


def fused(blueprint: Blueprint) -> CudaEngine:
    """The network folded, in 16 bits with fused convolutions, one CUDA graph for each batch size.

    Raises:
        NotImplementedError: an operation of the network, or of this torch, is missing.
        RuntimeError: the device cannot hold it.
    """
    bundle = blueprint.bundle
    side, channels = bundle.input.size, bundle.architecture.in_channels
    steps = fold(record(bundle.network(), (channels, side, side)))
    dtype = DTYPES[blueprint.precision]
    if dtype != torch.float32 and not cudnn.is_available():  # type: ignore[no-untyped-call]
        raise NotImplementedError("this PyTorch has no cuDNN")
    cudnn.benchmark = True  # Its heuristics miss the fastest kernels.
    build = partial(FoldedNetwork, steps, blueprint.device, dtype)
    return CudaEngine("fused", blueprint, build, dtype, graphs=True)


class FoldedNetwork:
    """The maps [N, C, h, w] of images [N, 3, H, W], both of `dtype` in channels-last memory.

    In float32 the convolutions are torch's own.
    """

    def __init__(self, steps: Sequence[Step], device: str, dtype: torch.dtype) -> None:
        self._steps = [_placed(step, device, dtype) for step in steps]
        last = {place: index for index, step in enumerate(steps) for place in step.inputs}
        # By step: the results that no later step needs.
        self._done = [[p for p in last if last[p] == index] for index in range(len(steps))]

    def __call__(self, images: Tensor) -> Tensor:
        results: dict[int, Tensor] = {}
        for index, (step, done) in enumerate(zip(self._steps, self._done, strict=True)):
            operands = [results[place] for place in step.inputs]
            results[index] = COMPUTE[step.kind](step, *operands) if operands else images
            operands.clear()
            for place in done:  # Its memory is the next step's.
                del results[place]
        return results[len(self._steps) - 1]


def _placed(step: Step, device: str, dtype: torch.dtype) -> Step:
    """The step with its weights on the device, laid out and rounded on the CPU."""
    weight, bias = step.weight, step.bias
    if step.kind == "convolution":
        assert weight is not None
        weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        if _fuses(step, dtype) and bias is None:
            bias = torch.zeros(len(weight))
        bias = None if bias is None else bias.to(dtype)
    elif step.kind == "affine":  # Small, and more exact in float32.
        assert weight is not None
        assert bias is not None
        weight, bias = weight[:, None, None], bias[:, None, None]
    weight, bias = (None if part is None else part.to(device) for part in (weight, bias))
    return Step(step.kind, step.inputs, weight, bias, step.relu, step.options)


def _fuses(step: Step, dtype: torch.dtype) -> bool:
    """Whether a convolution's end, if it has one, is computed by its kernel."""
    assert step.weight is not None
    return step.relu and dtype != torch.float32 and step.weight.shape[1] >= FEWEST_CHANNELS


def _convolution(step: Step, x: Tensor, *shortcut: Tensor) -> Tensor:
    weight, options = step.weight, step.options
    assert weight is not None
    window = (options["strides"], options["pads"], options["dilations"])
    if not _fuses(step, x.dtype):
        y = F.conv2d(x, weight, step.bias, *window)
        for other in shortcut:
            y = y.add_(other)
        return y.relu_() if step.relu else y
    if not shortcut:
        return torch.cudnn_convolution_relu(x, weight, step.bias, *window, 1)
    (other,) = shortcut
    return torch.cudnn_convolution_add_relu(x, weight, other, 1.0, step.bias, *window, 1)


def _affine(step: Step, x: Tensor) -> Tensor:
    # In one kernel: computed in float32, rounded once.
    shift: Any = step.bias
    y = torch.addcmul(shift, x, cast("Tensor", step.weight), out=torch.empty_like(x))
    return y.relu_() if step.relu else y


def _add(step: Step, x: Tensor, y: Tensor) -> Tensor:
    total = x + y
    return total.relu_() if step.relu else total


def _max_pool(step: Step, x: Tensor) -> Tensor:
    options = step.options
    window = (options["strides"], options["pads"], options["dilations"], options["ceil"])
    return F.max_pool2d(x, options["kernel"], *window)


def _pad(step: Step, x: Tensor) -> Tensor:
    sides = zip(step.options["before"], step.options["after"], strict=True)
    pads = [extent for pair in reversed(list(sides)) for extent in pair]
    return F.pad(x, pads, value=step.options["value"])


def _slice(step: Step, x: Tensor) -> Tensor:
    steps = step.options["steps"]
    return x[tuple(slice(None, None, steps.get(axis)) for axis in range(x.ndim))]


COMPUTE: dict[str, Any] = {
    "convolution": _convolution,
    "affine": _affine,
    "relu": lambda _, x: x.relu(),
    "max_pool": _max_pool,
    "pad": _pad,
    "add": _add,
    "slice": _slice,
}
