"""The state of the fake devices: calls, kernels, captures underway, and what is to fail."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tests.support.cuda.failures import (
    BROKEN_ALLOCATOR,
    ILLEGAL_ACCESS,
    INVALID_DEVICE,
    UNSUPPORTED_IN_CAPTURE,
    cuda_error,
)
from tests.support.cuda.judge import Judge, Race
from tests.support.cuda.memory import Allocator

if TYPE_CHECKING:
    from tests.support.cuda.graphs import Capture
    from tests.support.cuda.streams import Event, Stream


@dataclass(frozen=True)
class Card:
    """What the devices are: `memory` in bytes; `fused`: cuDNN has convolutions with ReLU."""

    count: int = 1
    name: str = "Fake GPU"
    capability: tuple[int, int] = (8, 0)
    memory: int = 16 * 2**30
    fused: bool = True


class _Thread(threading.local):
    """What CUDA and torch keep for each thread."""

    device = 0
    # Where the tensors go that the function underway creates; None: where its arguments are.
    target: str | None = None

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}


class FakeCuda:
    """What a test asks for, and tells.

    `races`: accesses that nothing orders; `kernels`: names of operations, "aten::conv2d", and how
    often each ran, replays included; `calls`: of CUDA's runtime, "cudaMalloc"; `waited`: events
    that the host has waited for.
    """

    def __init__(self, card: Card, *, judge: bool) -> None:
        self.card = card
        self.judge = Judge(judge)
        self.allocator = Allocator(self.judge, card.count, card.memory)
        self.kernels: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.waited: list[Event] = []
        # Replaced and never changed: threads look through it all the time.
        self.captures: tuple[Capture, ...] = ()
        self.broken = False  # The allocator, by a capture that failed.
        self.thread = _Thread()
        self.lock = self.judge.lock
        self.is_lost: Callable[[int], bool] = self._is_lost
        self._lost: dict[int, int] = {}
        self._failures: list[tuple[BaseException, str | None]] = []
        self._defaults: list[Stream] = []

    @property
    def races(self) -> list[Race]:
        return self.judge.races

    @property
    def allocations(self) -> int:
        """How often memory was allocated, on a device or pinned, outside captures."""
        return self.calls["cudaMalloc"] + self.calls["cudaHostAlloc"]

    def memory(self, limit: int | None, device: int = 0) -> None:
        """Lets a device have so many bytes; None: as many as the card."""
        self.allocator.set_limit(device, limit)

    def lose(self, device: int = 0, code: int = ILLEGAL_ACCESS) -> None:
        """Every call on the device fails from now on, with a code of `failures`."""
        self._lost[device] = code

    def _is_lost(self, device: int) -> bool:
        return device in self._lost

    def fail_next(self, error: BaseException, where: str | None = None) -> None:
        """Has the next kernel or call of that name raise `error`; None: the next kernel or replay.

        `where`: as in `kernels` or `calls`.
        """
        self._failures.append((error, where))

    def api(self, name: str, device: int, *, unsafe: bool = False) -> None:
        """The host calls CUDA's runtime; `unsafe`: captures do not permit it.

        Raises:
            AcceleratorError: the device is lost, or a capture forbids the call and is void now.
        """
        with self.lock:
            self.calls[name] += 1
        self._may_fail(name, device, launches=name == "cudaGraphLaunch")
        if unsafe:
            self.forbid(lambda capture: capture.forbids())

    def forbid(self, applies: Callable[[Capture], bool]) -> None:
        """Voids the captures underway to which what the host does is forbidden.

        Raises:
            AcceleratorError: there is such a capture.
        """
        with self.lock:
            hurt = [capture for capture in self.captures if applies(capture)]
            for capture in hurt:
                capture.void = True
        if hurt:
            raise cuda_error(UNSUPPORTED_IN_CAPTURE)

    def launch(self, kernel: str, device: int, *, captured: bool = False) -> None:
        """A kernel starts, or is only `captured`.

        Raises:
            AcceleratorError: the device is lost.
        """
        self._may_fail(kernel, device, launches=True)
        if not captured:
            with self.lock:
                self.kernels[kernel] += 1

    def _may_fail(self, name: str, device: int, *, launches: bool) -> None:
        if self.is_lost(device):
            raise cuda_error(self._lost.get(device, ILLEGAL_ACCESS))
        with self.lock:
            due = (
                failure
                for failure in self._failures
                if name == failure[1] or (failure[1] is None and launches)
            )
            if (failure := next(due, None)) is None:
                return
            self._failures.remove(failure)
        try:
            raise failure[0]
        finally:
            del failure, due  # Or the error's traceback would lead back to it.

    def synchronise_device(self, device: int) -> None:
        """The host waits for all of a device; none of its streams may be capturing, in any mode."""
        self.api("cudaDeviceSynchronize", device, unsafe=True)
        self.forbid(lambda capture: capture.stream.device.index == device)
        for stream in list(self.streams[device]):
            self.judge.join(stream)

    def empty_cache(self) -> None:
        """Gives memory back.

        Raises:
            RuntimeError: a capture is underway or has failed: torch's allocator asserts.
        """
        if self.captures or self.broken:
            self.forbid(lambda capture: capture.forbids())
            raise RuntimeError(BROKEN_ALLOCATOR)
        self.api("cudaFree", self.thread.device)
        self.allocator.sweep()

    def begin(self, make: Callable[[int], Stream]) -> None:
        """Gives every device its default stream."""
        self.streams: list[list[int]] = [[] for _ in range(self.card.count)]
        self._defaults = [make(index) for index in range(self.card.count)]

    def index(self, device: object = None) -> int:
        """The number of a device that is named as torch lets one; None: the current one.

        Raises:
            AcceleratorError: there is no such device.
        """
        if device is None:
            return self.thread.device
        found = device if isinstance(device, int) else torch.device(str(device)).index
        if found is None or found < 0:
            return self.thread.device
        if found >= self.card.count:
            raise cuda_error(INVALID_DEVICE)
        return found

    def default_stream(self, device: object = None) -> Stream:
        return self._defaults[self.index(device)]

    def current_stream(self, device: object = None) -> Stream:
        """Of this thread."""
        index = self.index(device)
        return self.thread.streams.get(index, self._defaults[index])

    @contextmanager
    def on_stream(self, stream: Stream | None) -> Iterator[None]:
        """What this thread launches goes there, and its device is the current one."""
        if stream is None:
            yield
            return
        index, thread = stream.device.index, self.thread
        before, device = thread.streams.get(index), thread.device
        thread.streams[index], thread.device = stream, index
        try:
            yield
        finally:
            thread.device = device
            thread.streams[index] = before or self._defaults[index]

    @contextmanager
    def on_device(self, device: object) -> Iterator[None]:
        before, self.thread.device = self.thread.device, self.index(device)
        try:
            yield
        finally:
            self.thread.device = before

    @contextmanager
    def placing(self, place: str) -> Iterator[None]:
        """New tensors go to "cpu", "pinned" or "cuda:N"."""
        before, self.thread.target = self.thread.target, place
        try:
            yield
        finally:
            self.thread.target = before

    def capture_of(self, stream: Stream) -> Capture | None:
        """The capture underway that records what is launched on `stream`."""
        return next((each for each in self.captures if stream.id in each.streams), None)


_active: list[FakeCuda] = []


def active() -> FakeCuda:
    """The fake of the `with fake_cuda()` around this.

    Raises:
        RuntimeError: there is none.
    """
    if not _active:
        raise RuntimeError("no fake CUDA device is active")
    return _active[-1]


@contextmanager
def activated(fake: FakeCuda) -> Iterator[None]:
    """`active()` is `fake`, of which there is one at a time."""
    assert not _active, "one fake at a time"
    _active.append(fake)
    try:
        yield
    finally:
        _active.remove(fake)
