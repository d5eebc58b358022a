"""The processor as Linux describes it, without torch.

RESNET_SERVE_CPU_FLAGS replaces the flags of /proc/cpuinfo by others, separated by spaces, in this
process and its children, so that this machine makes the choices of another. Libraries ignore it:
oneDNN, in torch and in OpenVINO, has ONEDNN_MAX_CPU_ISA for that.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

VARIABLE = "RESNET_SERVE_CPU_FLAGS"
# AVX512-BF16, AMX, Arm's BF16: any of them multiplies bf16 in hardware.
BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def flags() -> tuple[str, ...]:
    """The processor's features by Linux's names, sorted; () where they are unknown."""
    replacement = os.environ.get(VARIABLE)
    names = described("flags") or described("Features") if replacement is None else replacement
    return tuple(sorted(names.split()))


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware."""
    return not BF16.isdisjoint(flags())


def model() -> str:
    """The product name: "Intel(R) Xeon(R) ..."."""
    return described("model name") or platform.processor() or platform.machine()


@cache
def described(key: str) -> str:
    """A field of the first CPU in Linux's list, or "" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in fields if name.strip() == key), "")
