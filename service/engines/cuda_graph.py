"""CUDA graphs: captured one at a time in a process, without disturbing what serves beside it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.backends import cudnn

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
        with _no_measuring():
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                run()
            finally:
                try:
                    graph.capture_end()
                except Exception as error:
                    # What voided the capture says more than that it is void.
                    why = faults.in_one_line(error.__context__ or error)
                    raise CaptureFailed(f"a CUDA graph could not be captured: {why}") from error
        return graph


@contextmanager
def _no_measuring() -> Iterator[None]:
    """A convolution whose algorithm lacks memory looks for another one. If it measured them, it
    would wait for the device, and no capture survives that."""
    before, cudnn.benchmark = cudnn.benchmark, False
    try:
        yield
    finally:
        cudnn.benchmark = before


def keep_memory_of_measuring() -> None:
    """torch gives memory back whenever it has measured the algorithms of a convolution, which fails
    while another thread captures; from now on it does not, in the whole process."""
    switch = getattr(torch._C, "_cudnn_set_conv_benchmark_empty_cache", None)
    if switch is not None:  # torch for CPUs has none.
        switch(False)


def give_memory_back() -> None:
    """Frees the device memory that torch caches.

    Raises:
        RuntimeError: the device or torch's allocator is broken.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with ONE_AT_A_TIME:
            _give_back()


def free_unused() -> None:
    """Frees what engines hold that nobody uses any more, as the traceback of an error may.

    Raises:
        RuntimeError: as `give_memory_back` does.
    """
    gc.collect()
    give_memory_back()


def _give_back() -> None:
    try:
        torch.cuda.empty_cache()
    except Exception as error:
        why = faults.in_one_line(error)
        raise RuntimeError(f"the device's memory cannot be freed: {why}") from error
