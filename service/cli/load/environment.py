"""What results depend on besides the code: the machine and the versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from models import processor

# The flags that decide which kernels a network uses.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "bf16")
PACKAGES = ("resnet-serve", "torch", "openvino", "uvicorn")


def machine() -> dict[str, Any]:
    """The processor, the CPUs that this process may use, the relevant flags, GPUs, the system."""
    flags = processor.flags()
    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    described = {
        "processor": processor.model(),
        "cpus": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in FLAGS if flag in flags],
        "gpus": [_fields(gpu.read_text("utf-8")).get("Model", "") for gpu in gpus],
        "system": platform.platform(),
    }
    return {name: value for name, value in described.items() if value or name == "flags"}


def versions() -> dict[str, str]:
    """The versions of Python and of the installed PACKAGES."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def _fields(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
