"""Whether accesses to memory are ordered, as torch's own CUDA sanitizer judges it."""

from __future__ import annotations

import itertools
import threading
import traceback
from collections.abc import Set
from dataclasses import dataclass

from torch.cuda._sanitizer import Access, EventHandler, UnsynchronizedAccessError

# The host is a stream among the others: all threads together, as their own order is not known.
HOST = -1
# More reads than this of memory that nobody writes are reduced to the last one of each stream.
MANY_READS = 8
OURS = ("/service/", "/models/", "/tests/")
NOT_OURS = ("/tests/support/cuda/", "/tests/support/fake_cuda.py", "/site-packages/")


@dataclass(frozen=True)
class Race:
    """Two accesses to the same memory whose order nothing ensures."""

    operation: str
    stream: str
    place: str
    earlier_operation: str
    earlier_stream: str
    earlier_place: str

    def __str__(self) -> str:
        return (
            f"{self.operation} on {self.stream} ({self.place}) is not ordered after "
            f"{self.earlier_operation} on {self.earlier_stream} ({self.earlier_place})"
        )


class Judge:
    """Streams, events and accesses, by number; `races` are what was found, each once.

    Not `enabled`: finds nothing, and costs nothing. `lock` is the only one that the fake has:
    memory and events may end, and take it, wherever Python collects garbage.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.races: list[Race] = []
        self._ids = itertools.count(1)
        self._names = {HOST: "the host"}
        self.lock = threading.RLock()
        self._handler = EventHandler()
        self._handler._handle_stream_creation(HOST)
        self._launched = self.new_event()

    def new_id(self) -> int:
        """A number that no stream, event or memory has had."""
        return next(self._ids)

    def new_stream(self, name: str) -> int:
        with self.lock:
            stream = self.new_id()
            self._names[stream] = name
            self._handler._handle_stream_creation(stream)
            return stream

    def new_event(self) -> int:
        with self.lock:
            event = self.new_id()
            self._handler._handle_event_creation(event)
            return event

    def forget_event(self, event: int) -> None:
        with self.lock:
            self._handler._handle_event_deletion(event)

    def record(self, event: int, stream: int) -> None:
        if self.enabled:
            with self.lock:
                self._after_the_host(stream)
                self._handler._handle_event_record(event, stream)

    def wait(self, event: int, stream: int) -> None:
        """All that `stream` (or the host) does from now on comes after what `event` recorded."""
        if self.enabled:
            with self.lock:
                self._handler._handle_event_wait(event, stream)

    def join(self, stream: int) -> None:
        """The host waits for all that was launched on `stream`."""
        self.order(stream, HOST)

    def order(self, first: int, then: int) -> None:
        """All that `then` does from now on comes after all that `first` has done."""
        if self.enabled:
            with self.lock:
                self._handler._handle_event_record(self._launched, first)
                self._handler._handle_event_wait(self._launched, then)

    def _after_the_host(self, stream: int) -> None:
        # What is launched comes after all that the host has done and waited for.
        if stream != HOST:
            self.order(HOST, stream)

    def access(self, stream: int, reads: Set[int], writes: Set[int], operation: str) -> None:
        """A kernel, a copy, or the host itself reads and writes these memories."""
        if not self.enabled:
            return
        with self.lock:
            self._after_the_host(stream)
            touched = reads | writes
            errors = self._handler._handle_kernel_launch(
                stream,
                set(reads - writes),
                set(writes),
                set(),
                operation,
                {memory: [] for memory in touched},
            )
            found = dict.fromkeys(self._race(error) for error in errors)
            self.races += [race for race in found if race not in self.races]
            for memory in reads - writes:
                self._forget_early_reads(memory)

    def _forget_early_reads(self, memory: int) -> None:
        """On one stream a later read comes after the earlier ones."""
        reads = self._handler.tensors_accessed.get_reads(memory)
        if len(reads) > MANY_READS:
            reads[:] = {read.stream: read for read in reads}.values()

    def _race(self, error: object) -> Race:
        assert isinstance(error, UnsynchronizedAccessError)
        now, before = error.current_access, error.previous_access
        return Race(
            now.operator,
            self._names[now.stream],
            _place(now),
            before.operator,
            self._names[before.stream],
            _place(before),
        )

    def forget(self, memory: int) -> None:
        """The memory is no more."""
        with self.lock:
            if memory in self._handler.tensors_accessed.accesses:
                self._handler._handle_memory_deallocation(memory)


def _place(access: Access) -> str:
    """Where in our own code the access was made: `cuda.py:67`."""
    frames: list[traceback.FrameSummary] = list(access.stack_trace)
    for frame in reversed(frames):
        name = frame.filename
        if any(ours in name for ours in OURS) and not any(other in name for other in NOT_OURS):
            return f"{name.rpartition('/')[2]}:{frame.lineno}"
    return "elsewhere"
