"""CPython's settings for a process in which an event loop and engine threads take turns."""

from __future__ import annotations

import gc
import sys

# An engine that comes back from native code waits this long, in seconds, for the loop to give
# the interpreter up; by CPython's own setting it would idle for 5 ms after each batch.
# benchmarks/results/switch_interval.json has what other values gave.
SWITCH_SECONDS = 100e-6


def tune() -> None:
    """Called by each process that serves, before it serves."""
    sys.setswitchinterval(SWITCH_SECONDS)
    settle()


def settle() -> None:
    """Exempts all that exists from garbage collection; called when something large has loaded.

    A full collection visits every object of PyTorch, and stops all threads for 150 ms.
    """
    gc.freeze()
