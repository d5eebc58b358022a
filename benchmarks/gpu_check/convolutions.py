"""cuDNN's convolution with bias and ReLU in one kernel, against a convolution and a ReLU, for each
distinct convolution of the network: where fusing pays, and where it does not (pytorch#68506)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_check.engines import blueprint_for
from benchmarks.gpu_check.stage import Figures, Options
from models.operations import record
from service.engines import faults
from service.engines.eager import DTYPES

SLOWER = 1.1
RUNS = 20


class Convolution(NamedTuple):
    """`shape` [C, H, W] of the input, and `kernel` [O, C, h, w]."""

    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def __str__(self) -> str:
        height, width = self.kernel[2:]
        return (
            f"{self.kernel[1]}->{self.kernel[0]} {height}x{width}/{self.stride[0]} "
            f"of {self.shape[1]}x{self.shape[2]}"
        )


def convolutions(options: Options) -> Iterator[Figures]:
    """Milliseconds of each at batches of `options.batch`, and which are slower when fused."""
    blueprint = blueprint_for(options)
    dtype = DTYPES[blueprint.precision]
    torch.backends.cudnn.benchmark = True
    slower = []
    network, shape = blueprint.bundle.network(), blueprint.bundle.input.shape
    for each, count in distinct(network, shape).items():
        found = timed(each, options.batch, options.device, dtype)
        if "fused_ms" in found and found["fused_ms"] > SLOWER * found["plain_ms"]:
            slower.append(str(each))
        yield {"convolution": str(each), "count": count, **found}
    yield {"slower_when_fused": slower}


def distinct(network: torch.nn.Module, shape: tuple[int, int, int]) -> dict[Convolution, int]:
    """The convolutions of a network for images [H, W, C], and how often it has each."""
    found: dict[Convolution, int] = {}
    height, width, channels = shape
    operations = record(network, (channels, height, width))
    for operation in operations:
        if operation.kind == "convolution":
            options = operation.options
            each = Convolution(
                operations[operation.inputs[0]].shape[1:],
                tuple(operation.tensors[0].shape),
                options["strides"],
                options["pads"],
                options["dilations"],
            )
            found[each] = found.get(each, 0) + 1
    return found


def timed(each: Convolution, batch: int, device: str, dtype: torch.dtype) -> Figures:
    """Milliseconds fused and plain, and their largest difference relative to the largest value,
    None: the fused one is not finite; or why cuDNN does not fuse it."""

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    x = made(batch, *each.shape).contiguous(memory_format=torch.channels_last)
    # So that what comes out is about as large as what goes in.
    fan_in = each.kernel[1] * each.kernel[2] * each.kernel[3]
    weight = (made(*each.kernel) / fan_in**0.5).contiguous(memory_format=torch.channels_last)
    bias = made(each.kernel[0])
    window = (each.stride, each.padding, each.dilation, 1)

    def plain() -> Tensor:
        return F.conv2d(x, weight, bias, *window).relu_()

    fused = partial(torch.cudnn_convolution_relu, x, weight, bias, *window)
    with torch.inference_mode():
        wanted = plain()
        # The result gets memory full of NaN. torch passes it as a summand too, with the factor 0.
        nothing = torch.full_like(wanted, torch.nan)
        del nothing
        try:
            found = fused().float()
        except RuntimeError as error:
            refused = faults.in_one_line(error)
            return {"plain_ms": _milliseconds(plain, device), "not_fused": refused}
        finite = bool(found.isfinite().all())
        difference = float((found - wanted.float()).abs().max() / wanted.float().abs().max())
        del wanted, found
        return {
            "fused_ms": _milliseconds(fused, device),
            "plain_ms": _milliseconds(plain, device),
            "difference": round(difference, 5) if finite else None,
        }


def _milliseconds(work: Callable[[], Tensor], device: str) -> float:
    work()
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(RUNS):
        work()
    torch.cuda.synchronize(device)
    return round((time.perf_counter() - began) / RUNS * 1000, 4)
