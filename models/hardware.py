"""What a device is, and what it computes fastest in."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

import torch


def native_precision(device: str) -> str:
    """The fastest of "fp32", "bf16" and "fp16" that `device` multiplies in hardware."""
    if torch.device(device).type == "cpu":
        return "bf16" if cpu_has_bf16() else "fp32"
    # Compute capability 8.0 (Ampere) is the first with bf16 in its matrix units.
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AVX512-BF16, AMX or Arm's BF16)."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(_cpu_flags())


def describe(device: str) -> str:
    """What decides whether code compiled for one device runs as well on another."""
    if torch.device(device).type == "cpu":
        return f"{platform.machine()} {' '.join(_cpu_flags())}"
    found = torch.cuda.get_device_properties(device)
    return f"{found.name} {found.major}.{found.minor} CUDA {torch.version.cuda}"


def name(device: str) -> str:
    """What a person calls `device`: "2 x Intel(R) Xeon(R) ..." or "NVIDIA H100 ..."."""
    if torch.device(device).type == "cpu":
        model = _cpu_info("model name") or platform.processor() or platform.machine()
        return f"{os.cpu_count()} x {model}"
    return torch.cuda.get_device_name(device)


def _cpu_flags() -> tuple[str, ...]:
    flags = _cpu_info("flags") or _cpu_info("Features") or platform.processor()
    return tuple(sorted(flags.split()))


@cache
def _cpu_info(key: str) -> str:
    """A field of the first CPU in Linux's list, or "" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    found = (line.partition(":") for line in lines)
    return next((value.strip() for field, _, value in found if field.strip() == key), "")
