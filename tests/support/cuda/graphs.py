"""`torch.cuda.CUDAGraph`: kernels that are recorded once, and run again on the same memory.

A capture records kernels, not what they compute: memory that the graph shares with the outside is
as before when it ends. A replay runs the kernels on that memory; all other memory it has for this
time only, with nothing in it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.support.cuda.failures import (
    BROKEN_ALLOCATOR,
    CAPTURE_INVALIDATED,
    CAPTURE_WRONG_THREAD,
    ILLEGAL_ACCESS,
    UNSUPPORTED_IN_CAPTURE,
    cuda_error,
)
from tests.support.cuda.memory import Geometry, Memory, Pool, index_of, scribble
from tests.support.cuda.runtime import FakeCuda, active
from tests.support.cuda.streams import Stream

MODES = ("global", "thread_local", "relaxed")


@dataclass(frozen=True)
class Place:
    """Where a kernel finds a tensor."""

    memory: Memory
    geometry: Geometry


@dataclass(frozen=True)
class Kernel:
    """`outputs`: of each new tensor among the leaves of the result its place, else None."""

    name: str
    run: Callable[..., Any]
    args: Any
    kwargs: Any
    outputs: Sequence[Place | None]


def leaves(value: object) -> Iterator[Any]:
    """What arguments or results are made of; None is one, too."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from leaves(each)
    elif isinstance(value, dict):
        yield from leaves(list(value.values()))
    else:
        yield value


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The same arguments or results made of other leaves."""
    if isinstance(value, list | tuple):
        return [mapped(function, each) for each in value]
    if isinstance(value, dict):
        return {key: mapped(function, each) for key, each in value.items()}
    return function(value)


@contextmanager
def plainly() -> Iterator[None]:
    """What runs in here is seen by nobody, and may write to any tensor."""
    with (
        torch._C._DisableTorchDispatch(),
        torch._C.DisableTorchFunction(),
        torch.inference_mode(),
    ):
        yield


@dataclass(eq=False)
class Capture:
    """What is being recorded; `void`: something forbidden has been done."""

    fake: FakeCuda
    mode: str
    stream: Stream
    pool: Pool
    streams: set[int]
    owner: int = field(default_factory=threading.get_ident)
    void: bool = False
    kernels: list[Kernel] = field(default_factory=list)
    own: dict[int, Memory] = field(default_factory=dict)
    reads: set[int] = field(default_factory=set)
    writes: set[int] = field(default_factory=set)
    _saved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = field(
        default_factory=dict
    )

    def forbids(self) -> bool:
        """Whether this thread may not make calls that captures do not permit."""
        here = threading.get_ident() == self.owner
        return self.mode == "global" or (self.mode == "thread_local" and here)

    def save(self, memories: Sequence[Memory]) -> None:
        """Remembers what is in memory of the outside, before it is written to."""
        for memory in memories:
            if memory.id not in self.own and memory.id not in self._saved:
                storage = memory.storage()
                assert storage is not None
                before: torch.UntypedStorage = storage.clone()  # type: ignore[no-untyped-call]
                self._saved[memory.id] = (storage, before)

    def allocated(self, memory: Memory) -> None:
        """The pool holds `memory` now.

        Raises:
            OutOfMemoryError: it cannot, beside what lives in it.
        """
        living = [each for each in self.own.values() if not each.freed]
        needed = memory.size + sum(each.size for each in living)
        self.fake.allocator.reserve_in_pool(index_of(memory.place), self.pool, needed)
        self.own[memory.id] = memory

    def record(self, kernel: Kernel, reads: set[int], writes: set[int]) -> None:
        """A kernel that uses these memories was launched.

        Raises:
            AcceleratorError: the capture is void.
        """
        if self.void:
            raise cuda_error(CAPTURE_INVALIDATED)
        self.kernels.append(kernel)
        self.reads |= reads
        self.writes |= writes

    def place(self, value: object) -> object:
        """A tensor on the device or pinned as the place it is at, anything else as it is."""
        if isinstance(value, Tensor):
            memory = self.fake.allocator.find(value)
            if memory is not None:
                return Place(memory, Geometry.of(value))
        return value

    def undo(self) -> None:
        """Nothing has been computed."""
        with plainly():
            for storage, before in self._saved.values():
                storage.copy_(before)
            for memory in self.own.values():
                if (kept := memory.storage()) is not None:
                    scribble(kept)


class CUDAGraph:
    """See `torch.cuda.CUDAGraph`."""

    def __init__(self, keep_graph: bool = False) -> None:
        self._done = False
        self._fake = active()
        self._capture: Capture | None = None
        # Memory of the graph that somebody outside holds: every replay writes to it.
        self._kept: dict[int, torch.UntypedStorage] = {}
        self._last: dict[int, int] = {}

    def capture_begin(
        self,
        pool: tuple[int, int] | None = None,
        capture_error_mode: str = "global",
        check_input_liveness: bool = False,
    ) -> None:
        fake = self._fake
        if self._done:
            raise RuntimeError(
                "This CUDAGraph instance already owns a captured graph. "
                "To capture a new graph, create a new instance."
            )
        if capture_error_mode not in MODES:
            raise RuntimeError(
                "Unknown capture error mode. Expected `global`, `thread_local`, or `relaxed`, "
                f"got {capture_error_mode}"
            )
        stream = fake.current_stream()
        index = stream.device.index
        if stream == fake.default_stream(index):
            raise RuntimeError(
                "CUDA graphs must be captured on a non-default stream. (However, after capture, "
                "it's ok to replay them on the default stream.)"
            )
        if fake.broken:
            raise RuntimeError(BROKEN_ALLOCATOR)
        found = fake.allocator.pool(index, pool)
        if any(capture.pool is found for capture in fake.captures):
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        fake.api("cudaStreamBeginCapture", index)
        if fake.capture_of(stream) is not None:
            raise cuda_error(UNSUPPORTED_IN_CAPTURE)
        found.graphs += 1
        self._capture = Capture(fake, capture_error_mode, stream, found, {stream.id})
        with fake.lock:
            fake.captures = (*fake.captures, self._capture)

    def capture_end(self) -> None:
        fake, capture = self._fake, self._capture
        if capture is None or capture not in fake.captures:
            raise RuntimeError("capture_end() called before capture_begin().")
        if fake.current_stream() != capture.stream:
            raise RuntimeError("Capture must end on the same stream it began on.")
        with fake.lock:
            fake.captures = tuple(each for each in fake.captures if each is not capture)
        capture.undo()
        here = threading.get_ident() == capture.owner
        if capture.void or not (here or capture.mode == "relaxed"):
            # torch leaves before it tells its allocator that the capture has ended.
            fake.broken = True
            raise cuda_error(CAPTURE_INVALIDATED if here else CAPTURE_WRONG_THREAD)
        self._finish(capture)

    def _finish(self, capture: Capture) -> None:
        for memory in capture.own.values():
            if (kept := memory.storage()) is not None:
                self._kept[memory.id] = kept
        for number, kernel in enumerate(capture.kernels):
            for leaf in leaves((kernel.args, kernel.kwargs, kernel.outputs)):
                if isinstance(leaf, Place):
                    self._last[leaf.memory.id] = number
        self._done = True

    def replay(self) -> None:
        fake, capture = self._fake, self._capture
        if not self._done or capture is None:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        index = capture.stream.device.index
        stream = fake.current_stream(index)
        fake.api("cudaGraphLaunch", index)
        if fake.capture_of(stream) is not None:
            raise NotImplementedError("the fake has no graphs within graphs")
        own = set(capture.own)
        # The pool is memory as well: of two graphs in it only one may run.
        writes = (capture.writes - own) | set(self._kept) | {capture.pool.memory}
        fake.judge.access(stream.id, capture.reads - own, writes, "the replay of a graph")
        with plainly():
            self._run(capture, index)

    def _run(self, capture: Capture, index: int) -> None:
        own: dict[int, torch.UntypedStorage] = {}

        def found(leaf: object) -> object:
            if not isinstance(leaf, Place):
                return leaf
            storage = own.get(leaf.memory.id)
            storage = leaf.memory.storage() if storage is None else storage
            if storage is None:  # Freed since the capture: somebody else's, or nobody's.
                raise cuda_error(ILLEGAL_ACCESS)
            return leaf.geometry.over(storage)

        for number, kernel in enumerate(capture.kernels):
            self._fake.launch(kernel.name, index)
            args, kwargs = mapped(found, kernel.args), mapped(found, kernel.kwargs)
            results = leaves(kernel.run(*args, **kwargs))
            for result, place in zip(results, kernel.outputs, strict=True):
                if place is None:
                    continue
                kept = self._kept.get(place.memory.id)
                if kept is not None:
                    place.geometry.over(kept).copy_(result)
                own[place.memory.id] = result.untyped_storage() if kept is None else kept
            for memory in [each for each in own if self._last[each] == number]:
                del own[memory]

    def pool(self) -> tuple[int, int]:
        if not self._done or self._capture is None:
            raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
        return self._capture.pool.id

    def reset(self) -> None:
        if self._done and self._capture is not None:
            self._fake.allocator.release(self._capture.stream.device.index, self._capture.pool)
        self._capture, self._done, self._kept, self._last = None, False, {}, {}

    def __del__(self) -> None:
        self.reset()


class Graph:
    """See `torch.cuda.graph`."""

    def __init__(
        self,
        cuda_graph: CUDAGraph,
        pool: tuple[int, int] | None = None,
        stream: Stream | None = None,
        capture_error_mode: str = "global",
    ) -> None:
        self._graph, self._pool, self._mode = cuda_graph, pool, capture_error_mode
        self._stream = stream or Stream()
        self._context = ExitStack()

    def __enter__(self) -> None:
        fake = active()
        fake.synchronise_device(self._stream.device.index)
        fake.empty_cache()
        on_stream: AbstractContextManager[None] = fake.on_stream(self._stream)
        self._context.enter_context(on_stream)
        self._graph.capture_begin(self._pool, self._mode)

    def __exit__(self, *error: object) -> None:
        self._graph.capture_end()
        # As torch's, it stays on the stream if the capture has failed.
        self._context.close()


def graph_pool_handle() -> tuple[int, int]:
    """A pool that no graph is in yet."""
    return (0, active().judge.new_id())
