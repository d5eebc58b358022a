"""A network for CUDA in few kernels: normalisation folded, cuDNN's fused convolutions.

cuDNN computes a convolution, its bias, the addition of the shortcut and ReLU in one kernel, which
writes the result once instead of four times. In 16 bits a ResNet on a large GPU is limited by these
writes. Nothing is compiled: no Triton, no C++ compiler, nothing executable on disk.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends import cudnn

from models.folding import Step, fold
from models.operations import record
from service.engines import faults
from service.engines.blueprint import Blueprint
from service.engines.cuda import CudaEngine
from service.engines.eager import DTYPES

log = logging.getLogger(__name__)
# cuDNN's fused kernels for matrix units take multiples of eight channels. For a stem, which has
# at most four, the fused kernel was 17 times slower (pytorch#68506).
CHANNELS = 8


def fused(blueprint: Blueprint) -> CudaEngine:
    """The network folded, in 16 bits with fused convolutions, one CUDA graph for each batch size.

    Raises:
        NotImplementedError: an operation of the network, or of this torch, is missing.
        RuntimeError: the device cannot hold it.
    """
    bundle = blueprint.bundle
    if bundle.head:
        raise NotImplementedError(f"the head {bundle.head} cannot be captured in a CUDA graph")
    height, width, channels = bundle.input.shape
    steps = fold(record(bundle.network(), (channels, height, width)))
    dtype = DTYPES[blueprint.precision]
    if dtype != torch.float32 and not cudnn.is_available():  # type: ignore[no-untyped-call]
        raise NotImplementedError("this PyTorch has no cuDNN")
    cudnn.benchmark = True  # Its heuristics miss the fastest kernels.
    build = partial(FoldedNetwork, steps, blueprint.device, dtype)
    return CudaEngine("fused", blueprint, build, dtype, graphs=True)


@dataclass(slots=True)
class _Placed(Step):
    """A step with its weights on the device; `fuses`: its kernel also adds and activates."""

    fuses: bool = False


class FoldedNetwork:
    """The maps [N, F, h, w] of images [N, C, H, W], both of `dtype` in channels-last memory.

    In float32 the convolutions are torch's own, and in 16 bits those that cuDNN does not fuse.
    """

    def __init__(self, steps: Sequence[Step], device: str, dtype: torch.dtype) -> None:
        self._steps = [_placed(step, device, dtype) for step in steps]
        self._complained = False
        last = {place: index for index, step in enumerate(steps) for place in step.inputs}
        # By step: the results that no later step needs.
        self._done = [[p for p in last if last[p] == index] for index in range(len(steps))]

    def __call__(self, images: Tensor) -> Tensor:
        results: dict[int, Tensor] = {}
        for index, (step, done) in enumerate(zip(self._steps, self._done, strict=True)):
            operands = [results[place] for place in step.inputs]
            results[index] = self._compute(step, operands) if operands else images
            operands.clear()
            for place in done:  # Its memory is the next step's.
                del results[place]
        return results[len(self._steps) - 1]

    def _compute(self, step: _Placed, operands: Sequence[Tensor]) -> Tensor:
        if step.fuses:
            try:
                return _fused(step, *operands)
            # What cuDNN fuses depends on the device, its version and the shapes, and it tells only
            # when it is asked: in the plain runs before a capture.
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError) or faults.poisons(error):
                    raise
                self._do_not_fuse(step, error)
        return cast("Tensor", COMPUTE[step.kind](step, *operands))

    def _do_not_fuse(self, step: _Placed, error: RuntimeError) -> None:
        step.fuses = False
        if not self._complained:
            self._complained = True
            why = faults.in_one_line(error)
            log.warning("cuDNN does not fuse every convolution, which takes more time: %s", why)


def _placed(step: Step, device: str, dtype: torch.dtype) -> _Placed:
    """The step with its weights on the device, laid out and rounded on the CPU."""
    weight, bias = step.weight, step.bias
    fuses = step.kind == "convolution" and step.relu and _can_fuse(weight, dtype)
    if step.kind == "convolution":
        assert weight is not None
        weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        if fuses and bias is None:
            bias = torch.zeros(len(weight))
        bias = None if bias is None else bias.to(dtype)
    elif step.kind == "affine":  # Small, and more exact in float32.
        assert weight is not None
        assert bias is not None
        weight, bias = weight[:, None, None], bias[:, None, None]
    weight, bias = (None if part is None else part.to(device) for part in (weight, bias))
    return _Placed(step.kind, step.inputs, weight, bias, step.relu, step.options, fuses)


def _can_fuse(weight: Tensor | None, dtype: torch.dtype) -> bool:
    assert weight is not None
    return dtype != torch.float32 and all(extent % CHANNELS == 0 for extent in weight.shape[:2])


def _window(step: Step) -> tuple[Any, Any, Any]:
    options = step.options
    return options["strides"], options["pads"], options["dilations"]


def _convolution(step: Step, x: Tensor, *shortcut: Tensor) -> Tensor:
    assert step.weight is not None
    y = F.conv2d(x, step.weight, step.bias, *_window(step))
    for other in shortcut:
        y = y.add_(other)
    return y.relu_() if step.relu else y


def _fused(step: Step, x: Tensor, *shortcut: Tensor) -> Tensor:
    """A convolution with all that follows it, in one kernel."""
    weight, window = step.weight, _window(step)
    assert weight is not None
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


def _average_pool(step: Step, x: Tensor) -> Tensor:
    return F.avg_pool2d(x, step.options["kernel"], step.options["strides"])


def _pad(step: Step, x: Tensor) -> Tensor:
    sides = zip(step.options["before"], step.options["after"], strict=True)
    pads = [extent for pair in reversed(list(sides)) for extent in pair]
    if step.options["mode"] == "constant":
        return F.pad(x, pads, value=step.options["value"])
    # torch reflects no more axes than these, and perhaps into another layout.
    assert not any(pads[4:])
    reflected = F.pad(x, pads[:4], mode=step.options["mode"])
    return reflected.contiguous(memory_format=torch.channels_last)


def _slice(step: Step, x: Tensor) -> Tensor:
    steps = step.options["steps"]
    return x[tuple(slice(None, None, steps.get(axis)) for axis in range(x.ndim))]


COMPUTE: dict[str, Any] = {
    "convolution": _convolution,
    "affine": _affine,
    "relu": lambda _, x: x.relu(),
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "pad": _pad,
    "add": _add,
    "slice": _slice,
}
