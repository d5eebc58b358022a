"""What an engine's failure means: whether a smaller batch would fit, or a retry can help."""

from __future__ import annotations

from collections.abc import Iterator

import torch

# `cudaErrorMemoryAllocation`, of the numbers and texts of CUDA's driver_types.h.
NO_MEMORY_CODE = 2
# Of torch on the CPU, of CUDA and its libraries, and of OpenVINO, in lower case.
NO_MEMORY = (
    "out of memory",
    "alloc_failed",
    "allocation_failed",
    "bad_alloc",
    "can't allocate memory",
    "cannot allocate memory",
    "could not allocate memory",
    "failed to allocate",
    # cuDNN's algorithms for a convolution all failed; torch hides that they had no memory.
    "unable to find an engine to execute this computation",
    # A compiled package does not say why it failed; it was computed before, so memory is likely.
    "run_func_",
)
# CUDA errors after which every call fails until the process is restarted: those of which CUDA's
# documentation says so, those of a device or driver that is lost or too old, and those of a failed
# capture, which leaves torch's allocator unable to free memory or to capture anything else.
POISON = {
    3: "initialization error",
    4: "driver shutting down",
    35: "cuda driver version is insufficient",
    46: "busy or unavailable",
    100: "no cuda-capable device is detected",
    214: "uncorrectable ecc error encountered",
    220: "uncorrectable nvlink error",
    226: "invalid access of peer gpu memory over nvlink or a hardware error",
    700: "an illegal memory access was encountered",
    702: "the launch timed out and was terminated",
    709: "context is destroyed",
    710: "device-side assert triggered",
    714: "hardware stack error",
    715: "an illegal instruction was encountered",
    716: "misaligned address",
    717: "operation not supported on global/shared address space",
    718: "invalid program counter",
    719: "unspecified launch failure",
    721: "tensor memory not completely freed",
    802: "system not yet initialized",
    803: "system has unsupported display driver / cuda driver combination",
    804: "forward compatibility was attempted on non supported hw",
    810: "the mps client has been terminated by the server",
    900: "operation not permitted when stream is capturing",
    901: "operation failed due to a previous error during capture",
    902: "operation would result in a merge of separate capture sequences",
    903: "capture was not ended in the same stream as it began",
    904: "capturing stream has unjoined work",
    905: "dependency created on uncaptured work in another stream",
    906: "operation would make the legacy stream depend on a capturing blocking stream",
    907: "operation not permitted on an event last recorded in a capturing stream",
    908: "attempt to terminate a thread-local capture sequence from another thread",
    911: "an async error has occured in external entity outside of cuda",
    999: "unknown error",
}
# Errors of CUDA's libraries, and of torch's allocator, that have no such number.
POISON_TEXTS = (
    "cublas_status_execution_failed",
    "cudnn_status_execution_failed",
    "captures_underway.empty() internal assert",
)

# What dlopen says of a sound library in a folder from which nothing may be executed.
NOT_EXECUTABLE = "failed to map segment from shared object"


class CaptureFailed(RuntimeError):
    """A capture could not be ended: torch's allocator still believes in it, and no other capture or
    freeing of memory can succeed in this process."""


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    memory = _cuda_code(error) == NO_MEMORY_CODE or any(phrase in text for phrase in NO_MEMORY)
    return isinstance(error, RuntimeError) and memory and not poisons(error)


def poisons(error: BaseException) -> bool:
    """Whether `error`, or an error that led to it, says that this process needs a restart to use
    the device again."""
    return any(map(_poisons, _with_causes(error)))


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _poisons(error: BaseException) -> bool:
    if isinstance(error, CaptureFailed):
        return True
    if (code := _cuda_code(error)) is not None:
        return code in POISON
    text = str(error).lower()
    in_text = "cuda" in text and any(phrase in text for phrase in POISON.values())
    return in_text or any(phrase in text for phrase in POISON_TEXTS)


def _cuda_code(error: BaseException) -> int | None:
    """The number of a CUDA error, a `cudaError_t`; None if torch does not give it."""
    kind = getattr(torch, "AcceleratorError", None)  # Older versions have none.
    is_cuda = kind is not None and isinstance(error, kind)
    return getattr(error, "error_code", None) if is_cuda else None


def not_executable(error: BaseException) -> bool:
    """Whether `error` says that a library may not be executed where it is."""
    return NOT_EXECUTABLE in str(error)


def in_one_line(error: BaseException) -> str:
    """The first line of `error`, without the advice to programmers in the lines that follow."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
