"""Plain PyTorch: autocast, channels-last."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.engines.blueprint import Blueprint
from service.engines.cuda import CudaEngine
from service.engines.host import HostEngine
from service.engines.tuning import Forward, Way, tune

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def eager(blueprint: Blueprint) -> HostEngine | CudaEngine:
    """The network as it is.

    Raises:
        RuntimeError: the device cannot hold it.
    """
    if blueprint.device != "cpu":
        network = partial(_on_cuda, blueprint)
        return CudaEngine("eager", blueprint, network, torch.float32, graphs=False)
    classify = InPrecision(blueprint)

    def build(way: Way) -> Forward:
        return on_arrays(classify, way.threads)

    tuning = tune(build, blueprint, "eager", streams=False)
    return HostEngine("eager", blueprint, build(tuning.whole), tuning)


class InPrecision(nn.Module):
    """Probabilities float32 [N, K] of pixels [N, H, W, C], and the maps [N, F, h, w] that they
    are made of; all on the CPU."""

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        classifier: Any = blueprint.bundle.classifier()
        self.classifier = classifier.to(memory_format=torch.channels_last)
        self.dtype = DTYPES[blueprint.precision]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            return cast("tuple[Tensor, Tensor]", self.classifier.with_maps(images))


def _on_cuda(blueprint: Blueprint) -> Callable[[Tensor], Tensor]:
    """A function from normalised images float32 [N, C, H, W] to maps [N, F, h, w]."""
    module: Any = blueprint.bundle.network().to(blueprint.device)
    network, dtype = module.to(memory_format=torch.channels_last), DTYPES[blueprint.precision]

    def maps(images: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            return cast("Tensor", network.maps(images))

    return maps


def on_arrays(classify: Callable[[Tensor], tuple[Tensor, Tensor]], threads: int) -> Forward:
    """A classifier on the CPU as a function of arrays, computed by `threads` of torch's threads."""

    def forward(
        batch: NDArray[np.float32],
    ) -> tuple[NDArray[np.float32], Callable[[], NDArray[np.float32]]]:
        # Each thread that calls torch has its own setting.
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with torch.inference_mode():
            probabilities, maps = classify(torch.from_numpy(batch))
        return probabilities.numpy(), lambda: maps.float().numpy()

    return forward
