"""The same network by torch.compile, which the engine is to be faster than."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.gpu_check.engines import blueprint_for
from benchmarks.gpu_check.stage import Figures, NotPossible, Options
from service.engines.eager import DTYPES

WARM_UP = 3
RUNS = 5  # between two looks at the clock


def compile(options: Options) -> Iterator[Figures]:  # noqa: A001 - the stage's name
    """Images a second of `mode="max-autotune"`, channels-last, in the engine's precision.

    Its input is on the device already and in its precision: unlike the engine, it is not charged
    for copying, normalising and ranking.
    """
    if not options.on_cpu and find_spec("triton") is None:
        raise NotPossible("triton is not installed")
    blueprint = blueprint_for(options)
    dtype = DTYPES[blueprint.precision]
    height, width, channels = blueprint.bundle.input.shape
    network: Any = blueprint.bundle.network().to(options.device, dtype)
    network = network.to(memory_format=torch.channels_last)
    images = torch.rand(options.batch, channels, height, width).to(options.device, dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    compiled: Any = torch.compile(network, mode="max-autotune", dynamic=False)
    with torch.inference_mode():
        began = time.perf_counter()
        for _ in range(WARM_UP):
            compiled(images)
            _wait(options)
        yield {"size": options.batch, "compile_s": round(time.perf_counter() - began, 1)}
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < options.seconds or not done:
            for _ in range(RUNS):
                compiled(images)
            _wait(options)
            done += RUNS
        rate = done * options.batch / (time.perf_counter() - began)
    yield {"size": options.batch, "images_s": round(rate, 1)}


def _wait(options: Options) -> None:
    if not options.on_cpu:
        torch.cuda.synchronize(options.device)
