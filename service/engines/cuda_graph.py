"""CUDA graphs: captured one at a time in a process, without disturbing what serves beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from service.engines import faults
from service.engines.faults import CaptureFailed

# The allocator counts the captures under way for the whole process: while there is one, it must not
# be asked to give memory back.
ONE_AT_A_TIME = threading.Lock()
# Plain runs before a capture: they choose algorithms and allocate what libraries keep, and neither
# can be captured.
PLAIN_RUNS = 2


def capture(run: Callable[[], None], stream: torch.cuda.Stream, pool: Any) -> torch.cuda.CUDAGraph:
    """What `run` launches on `stream`, as a graph that works in the memory of `pool`.

    Only this thread is restricted meanwhile. Other threads may allocate and wait, for this device
    and others.

    Raises:
        CaptureFailed: see there. Else whatever `run` raises, as when memory runs out; then nothing
            is lost.
    """
    with ONE_AT_A_TIME, torch.inference_mode(), torch.cuda.stream(stream):
        try:
            for _ in range(PLAIN_RUNS):
                run()
        finally:  # Whatever was launched reads memory that may be filled next.
            stream.synchronize()
        _give_back()  # The plain runs' memory would lie idle beside the pool's.
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            run()
        finally:
            try:
                graph.capture_end()
            except Exception as error:
                raise CaptureFailed(f"a CUDA graph could not be captured: {error}") from error
        return graph


def give_memory_back() -> None:
    """Frees the device memory that torch caches.

    Raises:
        RuntimeError: the device or torch's allocator is broken.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with ONE_AT_A_TIME:
            _give_back()


def _give_back() -> None:
    try:
        torch.cuda.empty_cache()
    except Exception as error:
        why = faults.in_one_line(error)
        raise RuntimeError(f"the device's memory cannot be freed: {why}") from error
