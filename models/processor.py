"""The processor as Linux describes it. Needs no torch.

RESNET_SERVE_CPU_FLAGS: flags with spaces between, which stand in for those of /proc/cpuinfo, in
this process and in all that it starts. So one machine can choose what another would; it changes
no choice of the libraries' own: oneDNN, in torch and in OpenVINO, has ONEDNN_MAX_CPU_ISA for that.
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
    """What the processor can do, by Linux's names, in order; () where nothing says so."""
    said = os.environ.get(VARIABLE)
    found = said if said is not None else described("flags") or described("Features")
    return tuple(sorted(found.split()))


def has_bf16() -> bool:
    """Whether it multiplies bf16 in hardware."""
    return not BF16.isdisjoint(flags())


def model() -> str:
    """What a person calls it: "Intel(R) Xeon(R) ..."."""
    return described("model name") or platform.processor() or platform.machine()


@cache
def described(key: str) -> str:
    """A field of the first CPU in Linux's list, or "" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    found = (line.partition(":") for line in lines)
    return next((value.strip() for field, _, value in found if field.strip() == key), "")
