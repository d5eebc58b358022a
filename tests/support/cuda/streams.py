"""`torch.cuda.Stream` and `torch.cuda.Event`, as far as order goes: all work is done at once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from tests.support.cuda.failures import CAPTURE_ISOLATION, CAPTURED_EVENT, cuda_error
from tests.support.cuda.judge import HOST
from tests.support.cuda.runtime import active

if TYPE_CHECKING:
    from tests.support.cuda.graphs import Capture


class Stream:
    """See `torch.cuda.Stream`."""

    def __init__(self, device: object = None, priority: int = 0) -> None:
        self._fake = active()
        index = self._fake.index(device)
        self._fake.api("cudaStreamCreate", index)
        self.device = torch.device("cuda", index)
        self.priority = priority
        made = self._fake.streams[index]
        name = f"stream {len(made)}" if made else "the default stream"
        self.id = self._fake.judge.new_stream(f"{name} of {self.device}")
        made.append(self.id)

    @property
    def cuda_stream(self) -> int:
        return self.id

    @property
    def stream_id(self) -> int:
        return self.id

    def wait_event(self, event: Event) -> None:
        event.wait(self)

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())

    def record_event(self, event: Event | None = None) -> Event:
        recorded = Event() if event is None else event
        recorded.record(self)
        return recorded

    def synchronize(self) -> None:
        self._asked("cudaStreamSynchronize")

    def query(self) -> bool:
        self._asked("cudaStreamQuery")
        return True

    def _asked(self, call: str) -> None:
        self._fake.api(call, self.device.index, unsafe=True)
        self._fake.forbid(lambda capture: self.id in capture.streams)
        self._fake.judge.join(self.id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


class Event:
    """See `torch.cuda.Event`; `blocking`: whoever waits for it leaves the CPU to others."""

    def __init__(
        self,
        enable_timing: bool = False,
        blocking: bool = False,
        interprocess: bool = False,
        external: bool = False,
    ) -> None:
        self._fake = active()
        self.blocking = blocking
        self.timing = enable_timing
        self.device: torch.device | None = None
        self.id = self._fake.judge.new_event()
        self._capture: Capture | None = None
        self._seconds = 0.0

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or self._fake.current_stream()
        if self.device not in (None, stream.device):
            raise RuntimeError(
                f"Event device {self.device} does not match recording stream's device "
                f"{stream.device}."
            )
        self.device = stream.device
        self._fake.api("cudaEventRecord", stream.device.index)
        self._capture = self._fake.capture_of(stream)
        if self._capture is None:
            self._fake.judge.record(self.id, stream.id)
        self._seconds = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        stream = stream or self._fake.current_stream()
        self._fake.api("cudaStreamWaitEvent", stream.device.index)
        if self.device is None:  # Never recorded: there is nothing to wait for.
            return
        capture = self._fake.capture_of(stream)
        if self._capture is not None and (capture is None or capture is self._capture):
            self._capture.streams.add(stream.id)  # It records this stream as well.
        elif capture is not None:
            capture.void = True
            raise cuda_error(CAPTURE_ISOLATION)
        else:
            self._fake.judge.wait(self.id, stream.id)

    def synchronize(self) -> None:
        self._asked("cudaEventSynchronize")
        if self not in self._fake.waited:
            self._fake.waited.append(self)

    def query(self) -> bool:
        self._asked("cudaEventQuery")
        return True

    def _asked(self, call: str) -> None:
        index = self._fake.thread.device if self.device is None else self.device.index
        if self._capture is not None and self._capture in self._fake.captures:
            self._capture.void = True
            raise cuda_error(CAPTURED_EVENT)
        self._fake.api(call, index, unsafe=True)
        self._fake.judge.wait(self.id, HOST)

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds."""
        if not (self.timing and end_event.timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        return 1000 * (end_event._seconds - self._seconds)

    def __del__(self) -> None:
        self._fake.judge.forget_event(self.id)
