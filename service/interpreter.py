"""CPython's settings for a process in which an event loop and engine threads take turns."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys

# An engine that comes back from native code waits this long, in seconds, for a busy loop to give
# the interpreter up: 5 ms a batch by CPython's own setting. How much that costs depends on the
# load; benchmarks/results/switch_interval.json has a run in which drift hid most of it.
SWITCH_SECONDS = 100e-6


def tune() -> None:
    """Called by each process that serves, before it serves."""
    sys.setswitchinterval(SWITCH_SECONDS)
    settle()


def settle() -> None:
    """Exempts all that exists from garbage collection; called when something large has loaded.

    A full collection visits every object of PyTorch, and stops all threads for 150 ms. What loading
    took and freed goes back to the system: hundreds of megabytes, which malloc would keep.
    """
    gc.freeze()
    with contextlib.suppress(AttributeError, OSError):  # Another C library than GNU's.
        ctypes.CDLL(None).malloc_trim(0)
