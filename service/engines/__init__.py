"""Engines: one network on one device, from pixels to probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Bundle
from service.engines.eager import EagerEngine
from service.errors import ConfigError
from service.settings import ModelSettings


class Engine(Protocol):
    """What a worker thread drives; only that one thread calls it.

    `name`: the kind of engine; `device`: where it runs; `precision`: fp32, bf16 or fp16.
    """

    name: str
    device: str
    precision: str

    def warm_up(self) -> None:
        """Runs every batch size once for real, so that the first request pays for nothing."""

    def infer(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Probabilities [N, K], from N images uint8 [H, W, 3]."""


def choose(bundle: Bundle, settings: ModelSettings, device: str) -> Engine:
    """The engine that `settings` ask for on one of `devices(settings)`, not yet warm.

    Raises:
        RuntimeError: the device cannot hold it.
    """
    return EagerEngine(bundle, device, precision(settings, device), settings.max_batch)


def devices(settings: ModelSettings) -> list[str]:
    """Where the model runs, one engine for each.

    Raises:
        ConfigError: a device is not there, or cannot compute in the precision.
    """
    wanted = settings.device if isinstance(settings.device, list) else [settings.device]
    available = torch.cuda.device_count()
    found = []
    for device in wanted:
        if device == "auto":
            device = "cuda:0" if available else "cpu"  # noqa: PLW2901
        elif device == "cuda":
            device = "cuda:0"  # noqa: PLW2901
        if device.startswith("cuda") and int(device.partition(":")[2]) >= available:
            raise ConfigError(
                f"device: {device} is not here, torch sees {available} CUDA devices; "
                "use auto or cpu"
            )
        if device == "cpu" and settings.precision == "fp16":
            raise ConfigError("precision: fp16 needs a CUDA device; use auto, bf16 or fp32")
        found.append(device)
    return found


def precision(settings: ModelSettings, device: str) -> str:
    """The precision in force on `device`: what is asked for, or the fastest in hardware."""
    if settings.precision != "auto":
        return settings.precision
    if device == "cpu":
        return "bf16" if cpu_has_bf16() else "fp32"
    # Compute capability 8.0 (Ampere) is the first with bf16 in its matrix units.
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AVX512-BF16, AMX or Arm's BF16)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags.split())


def set_cpu_threads(count: int) -> None:
    """Sets how many threads an operator on the CPU uses, for the whole process."""
    torch.set_num_threads(count)
