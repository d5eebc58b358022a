"""Memory that a training step frees and the next one takes again."""

from __future__ import annotations

import ctypes
import os
import sys

# glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed() -> None:
    """Has this process keep what it frees, in large pages, instead of giving it back to the system.

    glibc returns each block of over 32 MiB when it is freed, and Linux fills it with zeros, page
    by page, when it is taken again: for a small network a third of a training step on a CPU
    (`python -m benchmarks.training.compare`). Does nothing where there is no glibc.
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
