"""Devices: their names, and their fastest precision."""

from __future__ import annotations

import os
import platform

import torch

from models import processor


def native_precision(device: str) -> str:
    """The fastest of "fp32", "bf16" and "fp16" that `device` multiplies in hardware."""
    if torch.device(device).type == "cpu":
        return "bf16" if processor.has_bf16() else "fp32"
    # The first matrix units, of compute capability 7.0 (Volta), have fp16; those since 8.0 (Ampere)
    # have bf16 as well, in which no network overflows.
    capability = torch.cuda.get_device_capability(device)
    return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"


def describe(device: str) -> str:
    """All that determines whether code compiled for one device runs as well on another."""
    if torch.device(device).type == "cpu":
        return f"{platform.machine()} {' '.join(processor.flags())}"
    gpu = torch.cuda.get_device_properties(device)
    return f"{gpu.name} {gpu.major}.{gpu.minor} CUDA {torch.version.cuda}"


def name(device: str) -> str:
    """The product name of `device`: "2 x Intel(R) Xeon(R) ..." or "NVIDIA H100 ..."."""
    if torch.device(device).type == "cpu":
        return f"{os.cpu_count()} x {processor.model()}"
    return torch.cuda.get_device_name(device)
