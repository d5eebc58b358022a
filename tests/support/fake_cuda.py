"""CUDA devices made of the CPU, which judge the order in which they are used.

    with fake_cuda(count=2) as fake:
        ...                       # torch.device("cuda:1") is a device now
        assert not fake.races

All of `torch.cuda` that the project uses works, in this thread and in those that start meanwhile.
Work is done at once and in the order of the calls; what is judged is whether streams, events and
waiting also ensure it (`tests/support/cuda/judge.py`), and whether captures do what CUDA permits.
It cannot judge kernels, layouts, memory sizes or speed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from tests.support.cuda.graphs import CUDAGraph, Graph, graph_pool_handle
from tests.support.cuda.operations import watched
from tests.support.cuda.runtime import Card, FakeCuda, activated
from tests.support.cuda.streams import Event, Stream

CUDNN = 91300
CUDA = "13.0"


@contextmanager
def fake_cuda(
    count: int = 1,
    *,
    capability: tuple[int, int] = (8, 0),
    name: str = "Fake GPU",
    memory: int = 16 * 2**30,
    fused: bool = True,
    judge: bool = True,
) -> Iterator[FakeCuda]:
    """torch has `count` CUDA devices with so many bytes of `memory`.

    `fused`: cuDNN has `torch.cudnn_convolution_relu` and its kin; `judge`: look for races.
    """
    fake = FakeCuda(Card(count, name, capability, memory, fused), judge=judge)
    with activated(fake), ExitStack() as stack:
        # As they are by default; whatever engines set ends with the fake.
        stack.enter_context(torch.backends.cudnn.flags(enabled=True))
        fake.begin(Stream)
        for patch in _patches(fake):
            stack.enter_context(patch.applied())
        stack.enter_context(watched(fake))
        yield fake


_MISSING = object()


class Patch(NamedTuple):
    """An attribute, and what it is meanwhile."""

    owner: Any
    name: str
    value: object

    @contextmanager
    def applied(self) -> Iterator[None]:
        before = vars(self.owner).get(self.name, _MISSING)
        setattr(self.owner, self.name, self.value)
        try:
            yield
        finally:
            if before is _MISSING:
                delattr(self.owner, self.name)
            else:
                setattr(self.owner, self.name, before)


def _patches(fake: FakeCuda) -> list[Patch]:
    replaced = {
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": CUDAGraph,
        "graph": Graph,
        "graph_pool_handle": graph_pool_handle,
        "stream": fake.on_stream,
        "device": fake.on_device,
        "set_stream": lambda stream: fake.on_stream(stream).__enter__(),
        "current_stream": fake.current_stream,
        "default_stream": fake.default_stream,
        "current_device": fake.index,
        "set_device": lambda device: setattr(fake.thread, "device", fake.index(device)),
        "synchronize": lambda device=None: fake.synchronise_device(fake.index(device)),
        "is_current_stream_capturing": lambda: fake.capture_of(fake.current_stream()) is not None,
        "device_count": lambda: fake.card.count,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_capability": lambda device=None: fake.card.capability,
        "get_device_name": lambda device=None: fake.card.name,
        "get_device_properties": lambda device=None: _properties(fake),
        **_memory_functions(fake),
    }
    return [
        *(Patch(torch.cuda, name, value) for name, value in replaced.items()),
        Patch(torch.Tensor, "record_stream", _record_stream(fake)),
        Patch(torch, "autocast", _autocast(torch.autocast)),
        Patch(torch.version, "cuda", CUDA),
        Patch(torch._C, "_has_cudnn", True),
        Patch(torch.backends.cudnn, "is_available", lambda: True),
        Patch(torch.backends.cudnn, "version", lambda: CUDNN),
        Patch(threading.Thread, "start", _starting(fake, threading.Thread.start)),
    ]


def _memory_functions(fake: FakeCuda) -> dict[str, Callable[..., object]]:
    allocator, index = fake.allocator, fake.index

    def free(device: object = None) -> tuple[int, int]:
        fake.api("cudaMemGetInfo", index(device))
        limit = allocator.limit(index(device))
        return limit - allocator.used(index(device)), limit

    def fraction(share: float, device: object = None) -> None:
        allocator.set_limit(index(device), int(share * allocator.total))

    return {
        "mem_get_info": free,
        "empty_cache": fake.empty_cache,
        "set_per_process_memory_fraction": fraction,
        "memory_allocated": lambda device=None: allocator.used(index(device)),
        "memory_reserved": lambda device=None: allocator.used(index(device)),
        "max_memory_allocated": lambda device=None: allocator.peak(index(device)),
        "max_memory_reserved": lambda device=None: allocator.peak(index(device)),
        "reset_peak_memory_stats": lambda device=None: allocator.reset_peak(index(device)),
    }


def _properties(fake: FakeCuda) -> SimpleNamespace:
    major, minor = fake.card.capability
    return SimpleNamespace(
        name=fake.card.name,
        major=major,
        minor=minor,
        total_memory=fake.card.memory,
        multi_processor_count=108,
    )


def _record_stream(fake: FakeCuda) -> Callable[[torch.Tensor, Stream], None]:
    def record_stream(tensor: torch.Tensor, stream: Stream) -> None:
        memory = fake.allocator.find(tensor)
        if memory is not None:
            memory.lent = True

    return record_stream


def _autocast(real: Callable[..., Any]) -> Callable[..., Any]:
    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return real("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    return autocast


def _starting(fake: FakeCuda, start: Callable[[threading.Thread], None]) -> Callable[..., None]:
    """torch's modes are a thread's own: every thread that starts has its own."""

    def start_watched(thread: threading.Thread) -> None:
        run = thread.run

        def run_watched() -> None:
            del thread.run  # Or it would hold the thread, and the thread it.
            with watched(fake):
                run()

        thread.run = run_watched  # type: ignore[method-assign]
        start(thread)

    return start_watched
