"""Sees every function of torch and every kernel, and lets them mean the device.

The function mode gives the devices that are asked for to the thread, and the CPU to torch; the
dispatch mode sees what runs, and knows by its memory where.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.cuda import fused
from tests.support.cuda.failures import UNSUPPORTED_IN_CAPTURE, cuda_error
from tests.support.cuda.graphs import Capture, Kernel, Place, leaves, mapped, plainly
from tests.support.cuda.judge import HOST
from tests.support.cuda.memory import (
    HOST_PLACE,
    PINNED,
    Memory,
    index_of,
    scribble,
)
from tests.support.cuda.pinned import PinnedArray
from tests.support.cuda.runtime import FakeCuda
from tests.support.cuda.streams import Stream

# Allocate, and compute nothing.
ALLOCATING = {
    "aten::empty", "aten::empty_like", "aten::empty_permuted", "aten::empty_strided",
    "aten::new_empty", "aten::new_empty_strided",
}  # fmt: skip
# Shapes and types of tensors, not their elements.
LOOKING = {"aten::_has_compatible_shallow_copy_type", "aten::is_same_size", "aten::set_"}
# Their result is on the host, which waits for it.
FETCHING = {"aten::item", "aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero"}
# May be from the host to a device or back.
COPYING = {"aten::copy_", "aten::_to_copy", "aten::to", "aten::clone"}
# Take tensors of the host beside those of a device.
MIXING = {"aten::copy_", "aten::_to_copy", "aten::to", "aten::index", "aten::index_put_"}


class Call:
    """An operation and its arguments; `tensors` with their memory, and whether it is written to."""

    def __init__(
        self, fake: FakeCuda, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.name: str = func._schema.name
        self.tensors: list[tuple[Tensor, Memory | None, bool]] = []
        self.non_blocking = False
        for argument, value in self._arguments():
            if argument.name == "non_blocking":
                self.non_blocking = bool(value)
            alias = argument.alias_info
            write = alias is not None and alias.is_write
            for tensor in leaves(value):
                if isinstance(tensor, Tensor):
                    self.tensors.append((tensor, fake.allocator.find(tensor), write))

    def _arguments(self) -> Iterator[tuple[Any, Any]]:
        arguments = self.func._schema.arguments
        yield from zip(arguments, self.args, strict=False)
        if self.kwargs:
            for argument in arguments[len(self.args) :]:
                if argument.name in self.kwargs:
                    yield argument, self.kwargs[argument.name]

    def memories(self, *, written: bool) -> list[Memory]:
        return [memory for _, memory, write in self.tensors if memory and write == written]

    def from_host(self) -> bool:
        """Whether an argument is on the host, not pinned, and no mere number."""
        return any(memory is None and tensor.ndim > 0 for tensor, memory, _ in self.tensors)


class Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches what runs in one thread."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # Telling it to takes a second, and nothing here is compiled.

    def __init__(self, fake: FakeCuda) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fake = fake

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        call = Call(self._fake, func, args, kwargs or {})
        with torch._C.DisableTorchFunction():
            return self._execute(call)

    def _execute(self, call: Call) -> Any:
        target = self._fake.thread.target
        here = all(memory is None for _, memory, _ in call.tensors)
        if (here and target in (None, HOST_PLACE)) or call.name in LOOKING:
            return call.func(*call.args, **call.kwargs)
        home = self._home(call, target)
        return self._on_host(call, target) if home is None else self._on_device(call, home)

    def _home(self, call: Call, target: str | None) -> int | None:
        """The device whose stream does it; None: the host."""
        places = [memory.place for _, memory, _ in call.tensors if memory]
        devices = {place for place in places if place != PINNED}
        if len(devices) > 1 and call.name not in MIXING:
            raise _mixed(devices)
        if devices and call.from_host() and call.name not in MIXING:
            raise _mixed(devices | {HOST_PLACE})
        if devices:
            # From one device to another it is the source's.
            sources = [each.place for each in call.memories(written=False) if each.place != PINNED]
            return index_of(sources[0] if sources else min(devices))
        if target is not None and target.startswith("cuda"):
            return index_of(target)
        return None

    def _on_host(self, call: Call, target: str | None) -> Any:
        """Pinned memory is allocated or used."""
        fake = self._fake
        results = call.func(*call.args, **call.kwargs)
        reads = {memory.id for memory in call.memories(written=False)}
        writes = {memory.id for memory in call.memories(written=True)}
        fresh = self._fresh(call, results)
        if target == PINNED:
            for tensor in fresh:
                fake.api("cudaHostAlloc", fake.thread.device, unsafe=True)
                memory = fake.allocator.allocate(tensor, PINNED, HOST, None)
                if call.name in ALLOCATING:
                    scribble(tensor.untyped_storage())
                else:
                    writes.add(memory.id)
        if fresh or writes:
            fake.judge.access(HOST, reads - writes, writes, call.name)
        return results

    @staticmethod
    def _fresh(call: Call, results: Any) -> list[Tensor]:
        """The results that are no views of the arguments."""
        given = {tensor.untyped_storage()._cdata for tensor, _, _ in call.tensors}
        tensors = [leaf for leaf in leaves(results) if isinstance(leaf, Tensor)]
        return [each for each in tensors if each.untyped_storage()._cdata not in given]

    def _on_device(self, call: Call, home: int) -> Any:
        fake = self._fake
        stream = fake.current_stream(home)
        capture = fake.capture_of(stream)
        if call.name in FETCHING:
            return self._fetch(call, stream)
        written = call.memories(written=True)
        if capture is not None:
            capture.save(written)
        run = self._kernel(call)
        results = run(*call.args, **call.kwargs)
        fresh = self._fresh(call, results)
        if not fresh and not written:
            return results  # A view.
        place = fake.thread.target or f"cuda:{home}"
        new = [self._allocate(tensor, place, stream, capture) for tensor in fresh]
        if call.name in ALLOCATING:
            run = partial(_garbage, call.func)
            for tensor in fresh:
                scribble(tensor.untyped_storage())
        else:
            fake.launch(call.name, home, captured=capture is not None)
        if capture is not None:
            self._record(capture, call, run, results, [each for each in new if each])
        elif call.name not in ALLOCATING:
            self._judge(call, stream, [each for each in new if each])
        self._wait(call, stream, capture)
        return results

    def _kernel(self, call: Call) -> Callable[..., Any]:
        replaced = fused.KERNELS.get(call.name)
        if replaced is None:
            run: Callable[..., Any] = call.func
            return run
        if not self._fake.card.fused:
            raise NotImplementedError(
                f"Could not run '{call.name}' with arguments from the 'CUDA' backend."
            )
        return replaced

    def _allocate(
        self, tensor: Tensor, place: str, stream: Stream, capture: Capture | None
    ) -> Memory | None:
        fake = self._fake
        if place == HOST_PLACE:
            return None
        if place == PINNED:
            fake.api("cudaHostAlloc", stream.device.index, unsafe=True)
            return fake.allocator.allocate(tensor, PINNED, HOST, None)
        if capture is None:
            fake.api("cudaMalloc", index_of(place), unsafe=True)
            return fake.allocator.allocate(tensor, place, stream.id, None)
        memory = fake.allocator.allocate(tensor, place, stream.id, capture.pool)
        capture.allocated(memory)
        return memory

    def _record(
        self,
        capture: Capture,
        call: Call,
        run: Callable[..., Any],
        results: Any,
        new: Sequence[Memory],
    ) -> None:
        ours = {memory.id for memory in new}
        places = [capture.place(leaf) for leaf in leaves(results)]
        outputs = [
            place if isinstance(place, Place) and place.memory.id in ours else None
            for place in places
        ]
        args, kwargs = mapped(capture.place, call.args), mapped(capture.place, call.kwargs)
        kernel = Kernel(call.name, run, args, kwargs, outputs)
        reads = {memory.id for memory in call.memories(written=False)}
        writes = {memory.id for memory in itertools.chain(call.memories(written=True), new)}
        capture.record(kernel, reads, writes)

    def _judge(self, call: Call, stream: Stream, new: Sequence[Memory]) -> None:
        fake = self._fake
        reading, writing = call.memories(written=False), [*call.memories(written=True), *new]
        for memory in itertools.chain(reading, writing):
            fake.allocator.share(memory, stream.id)
        others = {
            fake.current_stream(index_of(memory.place)).id
            for memory in itertools.chain(reading, writing)
            if memory.place not in (PINNED, str(stream.device))
        }
        for other in others:  # Another device's: torch orders the copy on both sides.
            fake.judge.order(other, stream.id)
        reads = {memory.id for memory in reading} - {memory.id for memory in writing}
        fake.judge.access(stream.id, reads, {memory.id for memory in writing}, call.name)
        for other in others:
            fake.judge.order(stream.id, other)

    def _wait(self, call: Call, stream: Stream, capture: Capture | None) -> None:
        """A copy between host and device may wait, as the host's memory and the call say."""
        if call.name not in COPYING:
            return
        target = self._fake.thread.target
        to_host = target == HOST_PLACE or any(
            memory is None for _, memory, write in call.tensors if write
        )
        pageable = to_host or call.from_host()
        pinned = target == PINNED or any(
            memory.place == PINNED for _, memory, _ in call.tensors if memory
        )
        if not pageable and not pinned:
            return
        self._fake.calls["cudaMemcpyAsync"] += 1
        if capture is not None and pageable:
            capture.void = True
            raise cuda_error(UNSUPPORTED_IN_CAPTURE)
        if to_host or not call.non_blocking:
            stream.synchronize()

    def _fetch(self, call: Call, stream: Stream) -> Any:
        self._fake.launch(call.name, stream.device.index)
        self._judge(call, stream, [])
        stream.synchronize()
        return call.func(*call.args, **call.kwargs)


def _garbage(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    made = func(*args, **kwargs)
    scribble(made.untyped_storage())
    return made


def _mixed(places: set[str]) -> RuntimeError:
    first, second = sorted(places)[:2]
    return RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, "
        f"{second} and {first}!"
    )


class Functions(TorchFunctionMode):
    """Redirects devices, and answers for the tensors that play theirs, in one thread."""

    def __init__(self, fake: FakeCuda) -> None:
        super().__init__()
        self._fake = fake
        self._special: dict[Any, Callable[..., Any]] = {
            Tensor.to: self._to,
            Tensor.cuda: lambda tensor, device=None, non_blocking=False, **kwargs: self._move(
                tensor, self._cuda(device), None, non_blocking=non_blocking, **kwargs
            ),
            Tensor.cpu: lambda tensor, **kwargs: self._move(tensor, HOST_PLACE, None, **kwargs),
            Tensor.pin_memory: lambda tensor, *_: self._move(tensor, PINNED, None),
            Tensor.numpy: self._numpy,
            Tensor.tolist: lambda tensor: self._on_host(tensor).tolist(),
            Tensor.is_pinned: lambda tensor, *_, **__: self._place(tensor) == PINNED,
            Tensor.device.__get__: self._device,
            Tensor.is_cuda.__get__: lambda tensor, *_: self._is_cuda(tensor),  # type: ignore[attr-defined]
            Tensor.is_cpu.__get__: lambda tensor, *_: not self._is_cuda(tensor),  # type: ignore[attr-defined]
            Tensor.get_device: lambda tensor: self._device(tensor).index,
            torch._C._nn._parse_to: torch._C._nn._parse_to,
            torch.device: torch.device,
        }

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        special = self._special.get(func)
        if special is not None:
            return special(*args, **(kwargs or {}))
        place, args, kwargs = self._asked(args, dict(kwargs or {}))
        if place is None:
            return func(*args, **kwargs)
        with self._fake.placing(place):
            results = func(*args, **kwargs)
            unknown = isinstance(results, Tensor) and self._fake.allocator.find(results) is None
            # Made of data of the host, as by `torch.tensor`.
            return results.clone() if unknown and place != HOST_PLACE else results

    def _asked(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[str | None, Sequence[Any], dict[str, Any]]:
        """Where the result is to go; the arguments without devices."""
        place = None
        if kwargs.get("device") is not None:
            place = self._place_of(kwargs["device"])
            kwargs["device"] = HOST_PLACE
        if kwargs.pop("pin_memory", False):
            place = PINNED
        plain = list(args)
        for number, value in enumerate(plain):
            text = str(value) if isinstance(value, str | torch.device) else ""
            if text.startswith("cuda"):
                place, plain[number] = self._place_of(value), HOST_PLACE
        return place, plain, kwargs

    def _place_of(self, device: object) -> str:
        if isinstance(device, int):
            return self._cuda(device)
        kind = torch.device(str(device)).type
        return self._cuda(device) if kind == "cuda" else kind

    def _cuda(self, device: object) -> str:
        return f"cuda:{self._fake.index(device)}"

    def _place(self, tensor: Tensor) -> str:
        memory = self._fake.allocator.find(tensor)
        return tensor.device.type if memory is None else memory.place

    def _is_cuda(self, tensor: Tensor) -> bool:
        return self._place(tensor).startswith("cuda")

    def _device(self, tensor: Tensor, *_: object) -> torch.device:
        return torch.device(self._place(tensor)) if self._is_cuda(tensor) else tensor.device

    def _to(self, tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        other = args[0] if args else kwargs.get("other")
        if isinstance(other, Tensor):
            place = self._place(other)
            device, dtype, rest = None, other.dtype, [*args[1:], False]
            non_blocking, layout = bool(kwargs.get("non_blocking", rest[0])), None
        else:
            device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
            place = self._place(tensor) if device is None else self._place_of(device)
        return self._move(
            tensor, place, dtype, non_blocking=non_blocking, copy=copy, memory_format=layout
        )

    def _move(
        self,
        tensor: Tensor,
        place: str,
        dtype: torch.dtype | None,
        *,
        non_blocking: bool = False,
        copy: bool = False,
        memory_format: torch.memory_format | None = None,
    ) -> Tensor:
        now = self._place(tensor)
        if place == HOST_PLACE and now == PINNED:
            place = PINNED  # It is the host's.
        if now == place:
            wanted = memory_format or torch.preserve_format
            return tensor.to(dtype or tensor.dtype, copy=copy, memory_format=wanted)
        if place == HOST_PLACE and non_blocking:
            place = PINNED  # As torch does.
        with self._fake.placing(place):
            return tensor.to(
                HOST_PLACE,
                dtype=dtype or tensor.dtype,
                non_blocking=non_blocking,
                copy=True,
                memory_format=memory_format or torch.preserve_format,
            )

    def _on_host(self, tensor: Tensor) -> Tensor:
        """The same elements, where the host may look at them."""
        return self._move(tensor, HOST_PLACE, None) if self._is_cuda(tensor) else tensor

    def _numpy(self, tensor: Tensor, *, force: bool = False) -> Any:
        if self._is_cuda(tensor):
            if not force:
                raise TypeError(
                    f"can't convert {self._device(tensor)} device type tensor to numpy. Use "
                    "Tensor.cpu() to copy the tensor to host memory first."
                )
            tensor = self._on_host(tensor)
        memory = self._fake.allocator.find(tensor)
        with plainly():
            array = tensor.detach().numpy(force=force)
        if memory is None:
            return array
        # Where the array goes NumPy does not always tell: whoever asks for it, reads.
        self._fake.judge.access(HOST, {memory.id}, set(), "aten::numpy")
        return PinnedArray.over(array, self._fake, memory.id)


@contextmanager
def watched(fake: FakeCuda) -> Iterator[None]:
    """This thread uses the fake devices; each thread has modes of its own."""
    modes: tuple[AbstractContextManager[Any], ...] = (Functions(fake), Dispatch(fake))
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield
