"""The errors that CUDA and torch raise, word for word as far as anybody reads them."""

from __future__ import annotations

import torch

# Codes of cudaError_t.
INVALID_DEVICE = 101
NO_DEVICE = 100
ILLEGAL_ACCESS = 700
UNSUPPORTED_IN_CAPTURE = 900
CAPTURE_INVALIDATED = 901
CAPTURE_ISOLATION = 905
CAPTURED_EVENT = 907
CAPTURE_WRONG_THREAD = 908

TEXTS = {
    NO_DEVICE: "no CUDA-capable device is detected",
    INVALID_DEVICE: "invalid device ordinal",
    ILLEGAL_ACCESS: "an illegal memory access was encountered",
    UNSUPPORTED_IN_CAPTURE: "operation not permitted when stream is capturing",
    CAPTURE_INVALIDATED: "operation failed due to a previous error during capture",
    CAPTURE_ISOLATION: "dependency created on uncaptured work in another stream",
    CAPTURED_EVENT: "operation not permitted on an event last recorded in a capturing stream",
    CAPTURE_WRONG_THREAD: (
        "attempt to terminate a thread-local capture sequence from another thread"
    ),
}
ADVICE = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the "
    "stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)
BROKEN_ALLOCATOR = (
    'captures_underway.empty() INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":3085, '
    "please report a bug to PyTorch."
)


def cuda_error(code: int) -> torch.AcceleratorError:
    """What torch raises when a CUDA call returns `code`, a key of `TEXTS`."""
    error = torch.AcceleratorError(f"CUDA error: {TEXTS[code]}{ADVICE}")
    error.error_code = code  # type: ignore[attr-defined]
    return error


def out_of_memory(device: int, size: int, limit: int) -> torch.OutOfMemoryError:
    """What torch raises when `size` bytes do not fit into the `limit` of a device."""
    return torch.OutOfMemoryError(
        f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB. GPU {device} has a total "
        f"capacity of {limit / 2**20:.2f} MiB."
    )
