"""Reuse of the memory that training steps free."""

from __future__ import annotations

import ctypes
import os
import sys

# glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed() -> None:
    """Makes this process keep freed memory, in large pages, instead of returning it to the system.

    glibc returns each freed block of over 32 MiB, and Linux zeroes it page by page when it is
    allocated again: a third of a training step of a small network on a CPU
    (`python -m benchmarks.training.compare`). Without glibc, does nothing.
    """
    os.putenv("THP_MEM_ALLOC_ENABLE", "1")  # Read by torch when it first allocates.
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # Another C library.
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    mallopt(M_TOP_PAD, 64 << 20)
