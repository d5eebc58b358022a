"""Which of the CPU's memory plays the device's, and how much of it there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from tests.support.cuda.failures import out_of_memory
from tests.support.cuda.judge import Judge

PINNED = "pinned"
HOST_PLACE = "cpu"
# Every float made of such bytes is NaN, every signed integer -1, every uint8 255.
GARBAGE = 255


def index_of(place: str) -> int:
    """The number in "cuda:N"."""
    return int(place.partition(":")[2])


class Geometry(NamedTuple):
    """How a tensor lies in its memory."""

    dtype: torch.dtype
    offset: int
    size: torch.Size
    stride: tuple[int, ...]

    @staticmethod
    def of(tensor: Tensor) -> Geometry:
        return Geometry(tensor.dtype, int(tensor.storage_offset()), tensor.size(), tensor.stride())

    def over(self, storage: torch.UntypedStorage) -> Tensor:
        """The tensor that lies so in `storage`."""
        return torch.empty(0, dtype=self.dtype).set_(storage, self.offset, self.size, self.stride)


@dataclass(eq=False)
class Pool:
    """Memory that captures share: `reserved` bytes as long as `graphs` of them live."""

    id: tuple[int, int]
    memory: int  # The judge's number for all of it.
    reserved: int = 0
    graphs: int = 0


@dataclass(eq=False)
class Memory:
    """One allocation.

    `place`: "cuda:N" or "pinned"; `size` in bytes; `stream`: the judge's number of the one that it
    was allocated on; `pool`: of a capture, else None; `lent`: `record_stream` was called.
    """

    id: int
    place: str
    size: int
    stream: int
    pool: Pool | None
    weak: StorageWeakRef
    lent: bool = False
    shared: bool = False

    def storage(self) -> torch.UntypedStorage | None:
        """None once it is freed."""
        return torch.UntypedStorage._new_with_weak_ptr(self.weak.cdata)

    @property
    def freed(self) -> bool:
        return bool(self.weak.expired())  # type: ignore[no-untyped-call]


@dataclass
class _Device:
    limit: int
    # Bytes outside pools; those of freed memory are subtracted when somebody looks.
    bytes: int = 0
    peak: int = 0
    pools: dict[tuple[int, int], Pool] = field(default_factory=dict)


class Allocator:
    """Knows every allocation of every device and all pinned memory, while it lives."""

    def __init__(self, judge: Judge, count: int, total: int) -> None:
        self.total = total
        self._judge = judge
        self._devices = [_Device(total) for _ in range(count)]
        self._known: dict[int, Memory] = {}
        self._shared: list[Memory] = []
        self._lock = judge.lock
        self._sweep_at = 256

    def find(self, tensor: Tensor) -> Memory | None:
        """None: it is on the host, and not pinned."""
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # A tensor without a storage.
            return None
        return self._known.get(storage._cdata)

    def allocate(self, tensor: Tensor, place: str, stream: int, pool: Pool | None) -> Memory:
        """Makes the storage of `tensor`, new, a piece of memory at `place`.

        Raises:
            OutOfMemoryError: the device has a limit, and it would be passed.
        """
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        with self._lock:
            self._check_reuse()
            if place != PINNED and pool is None:
                self._reserve(index_of(place), size)
            weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            memory = Memory(self._judge.new_id(), place, size, stream, pool, weak)
            self._known[storage._cdata] = memory
            if len(self._known) > self._sweep_at:
                self.sweep()
                self._sweep_at = 256 + 2 * len(self._known)
            return memory

    def _reserve(self, index: int, size: int) -> None:
        device = self._devices[index]
        if self._used(device) + size > device.limit:
            self.sweep()
            if self._used(device) + size > device.limit:
                raise out_of_memory(index, size, device.limit)
        device.bytes += size
        device.peak = max(device.peak, self._used(device))

    def reserve_in_pool(self, index: int, pool: Pool, needed: int) -> None:
        """A capture needs so many bytes of `pool` at once.

        Raises:
            OutOfMemoryError: the pool would have to grow past the device's limit.
        """
        with self._lock:
            growth = needed - pool.reserved
            if growth <= 0:
                return
            device = self._devices[index]
            if self._used(device) + growth > device.limit:
                self.sweep()
                if self._used(device) + growth > device.limit:
                    raise out_of_memory(index, growth, device.limit)
            pool.reserved = needed
            device.peak = max(device.peak, self._used(device))

    @staticmethod
    def _used(device: _Device) -> int:
        return device.bytes + sum(pool.reserved for pool in list(device.pools.values()))

    def sweep(self) -> None:
        """Forgets what is freed."""
        with self._lock:
            for key, memory in [(k, m) for k, m in self._known.items() if m.freed]:
                del self._known[key]
                if memory.place != PINNED and memory.pool is None:
                    self._devices[index_of(memory.place)].bytes -= memory.size
                if memory not in self._shared:
                    self._judge.forget(memory.id)

    def share(self, memory: Memory, stream: int) -> None:
        """`stream` uses it; the allocator, once it is freed, asks only its own stream."""
        if stream != memory.stream and not memory.shared and memory.pool is None:
            memory.shared = True
            with self._lock:
                self._shared.append(memory)

    def _check_reuse(self) -> None:
        """Freed memory is used again on its own stream, though others may still be at it."""
        if not self._judge.enabled:
            return
        freed = [memory for memory in self._shared if memory.freed]
        if freed:
            self._shared = [memory for memory in self._shared if memory not in freed]
        for memory in freed:
            if not memory.lent and memory.place != PINNED:
                self._judge.access(memory.stream, set(), {memory.id}, "reuse of freed memory")
            self._judge.forget(memory.id)

    def pool(self, index: int, asked: tuple[int, int] | None) -> Pool:
        """The pool of that name, which is made if need be; a new one for None."""
        with self._lock:
            pools = self._devices[index].pools
            name = asked or (self._judge.new_id(), 0)
            if name not in pools:
                pools[name] = Pool(name, self._judge.new_id())
            return pools[name]

    def release(self, index: int, pool: Pool) -> None:
        """A graph in the pool is no more."""
        with self._lock:
            pool.graphs -= 1
            if pool.graphs == 0:
                self._devices[index].pools.pop(pool.id, None)

    def set_limit(self, index: int, limit: int | None) -> None:
        """Bytes that may be allocated; None: all there are."""
        self._devices[index].limit = self.total if limit is None else limit

    def limit(self, index: int) -> int:
        return self._devices[index].limit

    def used(self, index: int) -> int:
        """Bytes allocated now, whole pools included."""
        self.sweep()
        return self._used(self._devices[index])

    def peak(self, index: int) -> int:
        return self._devices[index].peak

    def reset_peak(self, index: int) -> None:
        self._devices[index].peak = self.used(index)

    def __iter__(self) -> Iterator[Memory]:
        """What is allocated now."""
        self.sweep()
        return iter(list(self._known.values()))


def scribble(storage: torch.UntypedStorage) -> None:
    """Leaves in it what memory has before anybody writes to it."""
    torch.empty(0, dtype=torch.uint8).set_(storage).fill_(GARBAGE)
