"""What an engine's failure means: whether a smaller batch would fit, or a retry can help."""

from __future__ import annotations

import torch

# Of torch on the CPU, of CUDA and its libraries, and of OpenVINO, in lower case.
NO_MEMORY = (
    "out of memory",
    "alloc_failed",
    "bad_alloc",
    "can't allocate memory",
    "cannot allocate memory",
    "could not allocate memory",
    "failed to allocate",
)
# CUDA errors after which every call fails until the process is restarted: those of which the
# runtime's manual says so, and those of a lost device.
POISON = (
    "all cuda-capable devices are busy or unavailable",
    "an illegal instruction was encountered",
    "an illegal memory access was encountered",
    "context is destroyed",
    "device-side assert triggered",
    "driver shutting down",
    "hardware stack error",
    "invalid program counter",
    "misaligned address",
    "no cuda-capable device is detected",
    "operation not supported on global/shared address space",
    "the launch timed out and was terminated",
    "uncorrectable ecc error encountered",
    "uncorrectable nvlink error",
    "unknown error",
    "unspecified launch failure",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in NO_MEMORY)


def poisons(error: BaseException) -> bool:
    """Whether no later CUDA call can succeed in this process."""
    text = str(error).lower()
    return "cuda" in text and any(phrase in text for phrase in POISON)


def in_one_line(error: BaseException) -> str:
    """The first line of `error`, without the advice to programmers in the lines that follow."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def give_memory_back() -> None:
    """Frees the device memory that torch caches."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
