"""The fake CUDA device of `tests/support/fake_cuda.py`: it finds what a real one would punish."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models import bundling
from models.preprocess import CIFAR
from service.engines import cuda_graph, faults
from service.engines.start import start_engine
from tests.support.cuda.failures import (
    CAPTURE_INVALIDATED,
    CAPTURE_ISOLATION,
    CAPTURE_WRONG_THREAD,
    ILLEGAL_ACCESS,
    INVALID_DEVICE,
    NO_DEVICE,
    UNSUPPORTED_IN_CAPTURE,
)
from tests.support.cuda.runtime import FakeCuda
from tests.support.engine_checks import TINY, expected, images, planned
from tests.support.fake_cuda import fake_cuda
from tests.support.rooms import ROOT

DEVICE = "cuda:0"
# Much of it has no types.
cuda: Any = torch.cuda
cudnn: Any = torch.backends.cudnn


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    with fake_cuda() as made:
        yield made


def on_device(*values: float) -> Tensor:
    """Without a kernel that later work would have to wait for."""
    made = torch.tensor(values, dtype=torch.float32).to(DEVICE)
    cuda.synchronize()
    return made


def in_thread(work: Callable[[], object]) -> list[BaseException]:
    """Runs `work` in a thread of its own; what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised


def code_of(raised: pytest.ExceptionInfo[BaseException] | BaseException) -> Any:
    error = raised.value if isinstance(raised, pytest.ExceptionInfo) else raised
    return getattr(error, "error_code", None)


def captured(
    work: Callable[[], object], mode: str = "thread_local", pool: Any = None
) -> cuda.CUDAGraph:
    """`work` as a graph, captured as the engine does."""
    graph = cuda.CUDAGraph()
    with cuda.stream(cuda.Stream()):
        graph.capture_begin(pool=pool, capture_error_mode=mode)
        try:
            work()
        finally:
            graph.capture_end()
    return graph


# Tensors and devices


def test_tensors_say_where_they_are_and_compute_as_on_the_cpu(fake: FakeCuda) -> None:
    there = torch.arange(3.0, device=DEVICE)
    assert there.device == torch.device(DEVICE)
    assert there.is_cuda
    assert (there + 1).is_cuda
    assert there[:2].is_cuda
    assert there.new_empty(2).is_cuda
    assert torch.zeros_like(there).is_cuda
    assert torch.tensor([1.0], device="cuda").is_cuda
    assert torch.as_tensor(np.ones(2), device=DEVICE).is_cuda
    assert torch.nn.Linear(2, 2).to(DEVICE).weight.is_cuda
    assert torch.nn.Linear(2, 2, device=DEVICE).bias.is_cuda
    back = (there + 1).cpu()
    assert not back.is_cuda
    assert back.tolist() == [1, 2, 3]
    assert there.tolist() == [0, 1, 2]
    assert float(there[2]) == 2
    assert not fake.races


def test_a_copy_on_the_device_is_no_view_of_the_host(fake: FakeCuda) -> None:
    here = torch.zeros(3)
    there = here.to(DEVICE)
    here += 1
    assert there.tolist() == [0, 0, 0]
    array = np.zeros(3)
    there = torch.as_tensor(array, device=DEVICE)
    array += 1
    assert there.tolist() == [0, 0, 0]


def test_what_torch_refuses_is_refused(fake: FakeCuda) -> None:
    there = on_device(1, 2)
    with pytest.raises(TypeError, match=r"can't convert cuda:0 device type tensor to numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cpu"):
        there + torch.ones(2)
    assert (there + torch.tensor(1)).tolist() == [2, 3]  # A number may come from the host.
    with pytest.raises(RuntimeError, match="invalid device ordinal") as raised:
        torch.empty(1, device="cuda:1")
    assert code_of(raised) == INVALID_DEVICE


def test_two_devices_keep_apart() -> None:
    with fake_cuda(count=2) as fake:
        assert cuda.device_count() == 2
        first, second = torch.ones(2, device=DEVICE), torch.zeros(2, device="cuda:1")
        with pytest.raises(RuntimeError, match="found at least two devices, cuda:1 and cuda:0"):
            first + second
        second.copy_(first)
        assert second.tolist() == [1, 1]
        assert second.device == torch.device("cuda:1")
        with cuda.stream(cuda.Stream("cuda:1")):
            assert cuda.current_device() == 1
            assert cuda.current_stream(0) == cuda.default_stream(0)
        assert cuda.current_device() == 0
        assert not fake.races
        fake.lose(1)
        assert first.tolist() == [1, 1]
        with pytest.raises(RuntimeError, match="illegal memory access"):
            second.tolist()


def test_torch_is_as_before_when_it_ends() -> None:
    names = ("Stream", "Event", "CUDAGraph", "device_count", "synchronize", "graph", "stream")
    before = {name: getattr(torch.cuda, name) for name in names}
    start, has_cudnn = threading.Thread.start, cudnn.is_available()
    with fake_cuda():
        assert cuda.is_available()
        assert cudnn.is_available()
    assert {name: getattr(torch.cuda, name) for name in names} == before
    assert threading.Thread.start is start
    assert not cuda.is_available()
    assert cudnn.is_available() == has_cudnn
    assert not torch.ones(1).is_cuda


# Order


def test_a_missing_wait_is_a_race(fake: FakeCuda) -> None:
    there = on_device(1, 2, 3)
    first, second = cuda.Stream(), cuda.Stream()
    with cuda.stream(first):
        there.mul_(2)
    with cuda.stream(second):
        there.add_(1)
    (race,) = fake.races
    assert race.operation == "aten::add_"
    assert race.earlier_operation == "aten::mul_"
    assert race.place.startswith("test_fake_cuda.py:")
    assert "stream 2 of cuda:0" in str(race)


@pytest.mark.parametrize("how", ["event", "stream", "host", "device"])
def test_waiting_orders(fake: FakeCuda, how: str) -> None:
    there = on_device(1, 2, 3)
    first, second = cuda.Stream(), cuda.Stream()
    with cuda.stream(first):
        there.mul_(2)
    if how == "event":
        second.wait_event(first.record_event())
    elif how == "stream":
        second.wait_stream(first)
    elif how == "host":
        first.synchronize()
    else:
        cuda.synchronize()
    with cuda.stream(second):
        there.add_(1)
    assert there.device.type == "cuda"
    assert not fake.races


def test_an_event_orders_only_what_it_recorded(fake: FakeCuda) -> None:
    there = on_device(1, 2, 3)
    first, second = cuda.Stream(), cuda.Stream()
    event = first.record_event()
    with cuda.stream(first):
        there.mul_(2)
    second.wait_event(event)
    with cuda.stream(second):
        there.add_(1)
    assert len(fake.races) == 1


def test_the_default_stream_is_one_among_others(fake: FakeCuda) -> None:
    there = torch.zeros(3, device=DEVICE)
    with cuda.stream(cuda.Stream()):
        there.add_(1)
    assert [race.earlier_operation for race in fake.races] == ["aten::zeros"]


@pytest.mark.parametrize("waits", [True, False])
def test_the_host_reads_pinned_memory_after_the_event(fake: FakeCuda, waits: bool) -> None:
    there, here = on_device(1, 2, 3), torch.empty(3, pin_memory=True)
    assert here.is_pinned()
    view = here.numpy()
    stream, event = cuda.Stream(), cuda.Event(blocking=True)
    with cuda.stream(stream):
        here.copy_(there, non_blocking=True)
        event.record()
    if waits:
        event.synchronize()
    assert not fake.races
    assert view[:2].copy().tolist() == [1, 2]
    assert bool(fake.races) is not waits
    assert fake.waited == ([event] if waits else [])
    assert all(event.blocking for event in fake.waited)


@pytest.mark.parametrize(
    "write",
    [
        lambda array: np.stack([np.ones(3)], out=array),
        lambda array: np.copyto(array, 1),
        lambda array: array.fill(1),
        lambda array: array.__setitem__(slice(None), 1),
        lambda array: np.add(array, 1, out=array),
    ],
)
def test_the_host_writes_to_pinned_memory_after_the_copy(
    fake: FakeCuda, write: Callable[[Any], object]
) -> None:
    here, there = torch.zeros(1, 3, pin_memory=True), torch.empty(1, 3, device=DEVICE)
    array = here.numpy()
    write(array)
    there.copy_(here, non_blocking=True)
    assert not fake.races
    write(array)
    assert [race.stream for race in fake.races] == ["the host"]
    assert there.tolist() == [[1, 1, 1]]


READS: list[Callable[[Any], Any]] = [
    lambda array: array.copy(),
    lambda array: array[1],
    lambda array: array[[0, 2]],
    lambda array: array[1:] + 1,
    lambda array: array.sum(),
    lambda array: array.astype(np.float64),
    list,
    lambda array: np.concatenate([array, [1]]),
    np.argsort,
    lambda array: np.ones(3).__iadd__(array),
]


@pytest.mark.parametrize("read", READS)
def test_what_is_computed_from_pinned_memory_is_read_once(
    fake: FakeCuda, read: Callable[[Any], Any]
) -> None:
    there, here = on_device(1, 2, 3), torch.empty(3, pin_memory=True)
    array = here.numpy()
    stream = cuda.Stream()
    with cuda.stream(stream):
        here.copy_(there, non_blocking=True)
    found = read(array)
    assert [(race.operation, race.stream) for race in fake.races] == [("NumPy", "the host")]
    stream.synchronize()
    assert np.array_equal(found, read(np.array([1, 2, 3], dtype=np.float32)))
    with cuda.stream(stream):
        here.copy_(there, non_blocking=True)
    fake.races.clear()
    assert float(np.sum(found)) > 0  # Its memory is its own.
    assert not fake.races


def test_a_copy_that_blocks_needs_no_event(fake: FakeCuda) -> None:
    there = on_device(1, 2, 3)
    with cuda.stream(cuda.Stream()):
        here = torch.empty(3, pin_memory=True).copy_(there)
    assert here.numpy().tolist() == [1, 2, 3]
    assert not fake.races


def test_memory_that_another_stream_uses_is_not_freed_before_it_ends(fake: FakeCuda) -> None:
    stream = cuda.Stream()

    def use(*, tell: bool) -> None:
        there = on_device(1, 2)
        with cuda.stream(stream):
            _ = there + 1
        if tell:
            there.record_stream(stream)
        del there
        on_device(3)

    use(tell=True)
    assert not fake.races
    use(tell=False)
    assert [race.operation for race in fake.races] == ["reuse of freed memory"]


# Captures


def test_a_graph_computes_on_its_static_memory(fake: FakeCuda) -> None:
    given, result = on_device(1, 2, 3), on_device(0, 0, 0)

    def work() -> None:
        torch.add(given * 2, 1, out=result)

    graph = captured(work)
    assert result.tolist() == [0, 0, 0]  # A capture computes nothing.
    graph.replay()
    assert result.tolist() == [3, 5, 7]
    given.copy_(torch.tensor([10.0, 20.0, 30.0]))
    graph.replay()
    assert result.tolist() == [21, 41, 61]
    assert fake.kernels["aten::mul"] == 2
    assert fake.calls["cudaGraphLaunch"] == 2


def test_a_graph_writes_to_what_the_capture_returned(fake: FakeCuda) -> None:
    given, kept = on_device(1, 2, 3), []
    graph = captured(lambda: kept.append((given * 2)[1:]))
    assert all(np.isnan(kept[0].tolist()))
    graph.replay()
    assert kept[0].tolist() == [4, 6]
    given.copy_(torch.tensor([10.0, 20.0, 30.0]))
    graph.replay()
    assert kept[0].tolist() == [40, 60]


def test_a_graph_on_memory_that_is_not_static_answers_wrongly(fake: FakeCuda) -> None:
    given = on_device(1, 2)
    result = on_device(0, 0)
    graph = captured(lambda: result.copy_(given))
    given = on_device(3, 4)  # Elsewhere; the graph's memory is free.
    with pytest.raises(RuntimeError, match="illegal memory access") as raised:
        graph.replay()
    assert code_of(raised) == ILLEGAL_ACCESS
    assert result.tolist() != given.tolist()


def test_memory_of_a_graph_keeps_nothing_between_replays(fake: FakeCuda) -> None:
    given, result = on_device(1, 2), on_device(0, 0)

    def work() -> None:
        once = torch.empty_like(given)
        once[:1].copy_(given[:1])
        result.copy_(once)

    graph = captured(work)
    for _ in range(2):
        graph.replay()
        assert result[0].item() == 1
        assert np.isnan(result[1].item())


def test_new_memory_holds_garbage(fake: FakeCuda) -> None:
    assert np.isnan(torch.empty(2, device=DEVICE).tolist()).all()
    assert torch.empty(2, dtype=torch.int32, device=DEVICE).tolist() == [-1, -1]


def test_two_graphs_of_one_pool_do_not_run_side_by_side(fake: FakeCuda) -> None:
    given, results = on_device(1, 2), [on_device(0, 0), on_device(0, 0)]
    first = captured(lambda: results[0].copy_(given * 2))
    second = captured(lambda: results[1].copy_(given * 3), pool=first.pool())
    streams = cuda.Stream(), cuda.Stream()
    for graph, stream in zip((first, second), streams, strict=True):
        with cuda.stream(stream):
            graph.replay()
    assert len(fake.races) == 1
    streams[1].synchronize()
    assert [result.tolist() for result in results] == [[2, 4], [3, 6]]


def test_a_graph_forks_and_joins(fake: FakeCuda) -> None:
    given, result = on_device(1, 2), on_device(0, 0)
    side = cuda.Stream()

    def work() -> None:
        stream = cuda.current_stream()
        side.wait_stream(stream)
        with cuda.stream(side):
            doubled = given * 2
        stream.wait_stream(side)
        result.copy_(doubled)

    captured(work).replay()
    assert result.tolist() == [2, 4]


FORBIDDEN: dict[str, Callable[[], object]] = {
    "malloc": lambda: torch.empty(3, device=DEVICE),
    "pinned": lambda: torch.empty(3, pin_memory=True),
    "stream": lambda: cuda.default_stream().synchronize(),
    "event": lambda: cuda.default_stream().record_event().synchronize(),
    "query": lambda: cuda.default_stream().record_event().query(),
    "empty": lambda: cuda.empty_cache(),  # noqa: PLW0108 - the fake's
}


@pytest.mark.parametrize("what", FORBIDDEN)
@pytest.mark.parametrize(
    ("mode", "thread", "forbidden"),
    [
        ("global", "other", True),
        ("thread_local", "other", False),
        ("relaxed", "other", False),
        ("global", "own", True),
        ("thread_local", "own", True),
        ("relaxed", "own", False),
    ],
)
def test_what_a_capture_forbids(
    fake: FakeCuda, what: str, mode: str, thread: str, forbidden: bool
) -> None:
    result, raised = on_device(0, 0), []

    def work() -> None:
        result.add_(1)
        # On another stream than the one that captures, whose memory is the graph's.
        with cuda.stream(cuda.default_stream()):
            call = FORBIDDEN[what]
            if thread == "other":
                raised.extend(in_thread(call))
            else:
                try:
                    call()
                except RuntimeError as error:
                    raised.append(error)
        if not forbidden:
            result.add_(1)

    if not forbidden:
        captured(work, mode).replay()
        # torch's allocator asserts that nothing is being captured, but that voids nothing.
        assert [type(error) for error in raised] == ([RuntimeError] if what == "empty" else [])
        assert result.tolist() == [2, 2]
        cuda.empty_cache()
        return
    with pytest.raises(RuntimeError, match="previous error during capture") as failed:
        captured(work, mode)
    assert code_of(failed) == CAPTURE_INVALIDATED
    assert [code_of(error) for error in raised] == [UNSUPPORTED_IN_CAPTURE]
    assert isinstance(raised[0], torch.AcceleratorError)


@pytest.mark.parametrize(
    "call",
    [lambda there: there.tolist(), lambda there: there.cpu(), lambda there: there[0].item()],
)
def test_a_capture_forbids_to_look_at_elements(
    fake: FakeCuda, call: Callable[[Tensor], object]
) -> None:
    there = on_device(1, 2)
    with pytest.raises(RuntimeError, match="previous error during capture"):
        captured(lambda: call(there), "relaxed")


def test_a_device_is_not_waited_for_while_it_captures(fake: FakeCuda) -> None:
    raised = []
    with pytest.raises(RuntimeError, match="previous error"):
        captured(lambda: raised.extend(in_thread(cuda.synchronize)))
    assert [code_of(error) for error in raised] == [UNSUPPORTED_IN_CAPTURE]


def test_after_a_failed_capture_nothing_is_given_back_and_nothing_captured(
    fake: FakeCuda,
) -> None:
    with pytest.raises(RuntimeError, match="previous error"):
        captured(lambda: in_thread(FORBIDDEN["malloc"]), "global")
    there = on_device(1, 2)
    with pytest.raises(RuntimeError, match="INTERNAL ASSERT FAILED"):
        cuda_graph.give_memory_back()
    with pytest.raises(RuntimeError, match="INTERNAL ASSERT FAILED"):
        captured(lambda: there.add_(1))
    assert (there + 1).tolist() == [2, 3]  # Serving as before goes on.


def test_work_of_outside_is_not_waited_for_in_a_capture(fake: FakeCuda) -> None:
    event, there = cuda.default_stream().record_event(), on_device(1)

    def work() -> None:
        there.add_(1)
        cuda.current_stream().wait_event(event)

    graph, stream = cuda.CUDAGraph(), cuda.Stream()
    with cuda.stream(stream):
        graph.capture_begin()
        with pytest.raises(RuntimeError, match="uncaptured work") as raised:
            work()
        assert code_of(raised) == CAPTURE_ISOLATION
        with pytest.raises(RuntimeError, match="previous error"):
            graph.capture_end()


def test_what_torch_refuses_of_graphs_is_refused(fake: FakeCuda) -> None:
    there, graph = on_device(1), cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="non-default stream"):
        graph.capture_begin()
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        graph.replay()
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        graph.pool()
    graph = captured(lambda: there.add_(1))
    with (
        cuda.stream(cuda.Stream()),
        pytest.raises(RuntimeError, match="already owns a captured graph"),
    ):
        graph.capture_begin()


def test_a_capture_ends_in_its_thread_and_has_its_pool_to_itself(fake: FakeCuda) -> None:
    stream, event, graph = cuda.Stream(), cuda.Event(), cuda.CUDAGraph()

    def end() -> None:
        with cuda.stream(stream):
            graph.capture_end()

    with cuda.stream(stream):
        with pytest.raises(RuntimeError, match="Unknown capture error mode"):
            graph.capture_begin(capture_error_mode="local")
        pool = cuda.graph_pool_handle()
        graph.capture_begin(pool=pool, capture_error_mode="relaxed")
        with (
            cuda.stream(cuda.Stream()),
            pytest.raises(RuntimeError, match="already recording to mempool_id"),
        ):
            cuda.CUDAGraph().capture_begin(pool=pool)
        assert in_thread(end) == []  # Relaxed, it may.
        graph = cuda.CUDAGraph()
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        event.record()
        with pytest.raises(RuntimeError, match="event last recorded in a capturing stream"):
            event.query()
    (error,) = in_thread(end)
    assert code_of(error) == CAPTURE_WRONG_THREAD


# Memory


def test_memory_is_limited_counted_and_given_back(fake: FakeCuda) -> None:
    fake.memory(1000)
    assert cuda.mem_get_info() == (1000, 1000)
    there = torch.empty(200, device=DEVICE)
    assert cuda.memory_allocated() == 800
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        torch.empty(100, device=DEVICE)
    del there
    torch.empty(250, device=DEVICE)
    assert cuda.memory_allocated() == 0
    assert cuda.max_memory_reserved() == 1000
    cuda.set_per_process_memory_fraction(0.5)
    assert cuda.mem_get_info()[1] == 8 * 2**30
    assert fake.allocations == 3


def test_out_of_memory_in_a_capture_breaks_nothing(fake: FakeCuda) -> None:
    there = on_device(*range(100))
    fake.memory(1000)
    graph = cuda.CUDAGraph()
    with cuda.stream(cuda.Stream()):
        graph.capture_begin(capture_error_mode="thread_local")
        with pytest.raises(torch.OutOfMemoryError):
            torch.cat([there, there])
        graph.capture_end()
    cuda.empty_cache()
    fake.memory(None)
    captured(lambda: there.copy_(torch.cat([there, there])[100:] + 1)).replay()
    assert there[:2].tolist() == [1, 2]


def test_a_pool_is_as_large_as_its_largest_graph_and_freed_with_the_last(fake: FakeCuda) -> None:
    there = on_device(*range(100))
    before = cuda.memory_allocated()
    first = captured(lambda: there.copy_(there + 1))
    assert cuda.memory_allocated() == before + 400
    second = captured(lambda: there[:50].copy_(there[:50] + 1), pool=first.pool())
    assert cuda.memory_allocated() == before + 400
    first.reset()
    assert cuda.memory_allocated() == before + 400
    del second
    assert cuda.memory_allocated() == before


def test_replays_allocate_nothing(fake: FakeCuda) -> None:
    there = on_device(1, 2)
    graph = captured(lambda: there.copy_(there * 2 + 1))
    before = fake.allocations
    graph.replay()
    assert fake.allocations == before
    _ = there * 2
    assert fake.allocations == before + 1


# cuDNN


def layers(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, weight, bias and summand of a convolution 3x3 with stride 2, on the device."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 8, 8, 8), (16, 8, 3, 3), (2, 16, 4, 4)
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    given, weight, z = (each.to(DEVICE, dtype, memory_format=torch.channels_last) for each in made)
    return given, weight, torch.randn(16, generator=generator).to(DEVICE, dtype), z


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fused_convolutions_are_convolution_sum_and_relu(
    fake: FakeCuda, dtype: torch.dtype
) -> None:
    given, weight, bias, z = layers(dtype)
    exact = F.conv2d(given.float(), weight.float(), bias.float(), 2, 1)
    steps = ((2, 2), (1, 1), (1, 1), 1)
    plain = torch.cudnn_convolution_relu(given, weight, bias, *steps)
    added = torch.cudnn_convolution_add_relu(given, weight, z, 0.5, bias, *steps)
    unbiased = torch.cudnn_convolution_add_relu(given, weight, z, None, None, *steps)
    close = partial(torch.testing.assert_close, rtol=torch.finfo(dtype).eps, atol=1e-5)
    close(plain.float(), exact.relu())
    close(added.float(), (exact + 0.5 * z.float()).relu())
    exact = F.conv2d(given.float(), weight.float(), None, 2, 1)
    close(unbiased.float(), (exact + z.float()).relu())
    for each in (plain, added):
        assert each.dtype == dtype
        assert each.is_cuda
        assert each.is_contiguous(memory_format=torch.channels_last)
    assert fake.kernels["aten::cudnn_convolution_relu"] == 1
    assert fake.kernels["aten::cudnn_convolution_add_relu"] == 2


def test_a_fused_convolution_reads_all_its_arguments(fake: FakeCuda) -> None:
    given, weight, bias, z = layers(torch.float32)
    cuda.synchronize()
    stream = cuda.Stream()
    for each in (given, weight, bias, z):
        with cuda.stream(stream):
            torch.cudnn_convolution_add_relu(given, weight, z, 1.0, bias, (2, 2), (1, 1), (1, 1), 1)
        each.add_(1)  # On the default stream.
        assert len(fake.races) == 1
        fake.races.clear()
        cuda.synchronize()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda given, weight, z: (given.contiguous(), weight, z), "not channels-last"),
        (lambda given, weight, z: (given, weight.contiguous(), z), "not channels-last"),
        (lambda given, weight, z: (given, weight, z.half()), "dtypes"),
        (lambda given, weight, z: (given, weight, z[:1]), "z is"),
        (lambda given, weight, z: (given, weight[:15], z), "channels are not"),
        (lambda given, weight, z: (given.double(), weight.double(), z.double()), "dtypes"),
    ],
)
def test_what_cudnn_does_not_support_is_refused(
    fake: FakeCuda, change: Callable[..., Any], why: str
) -> None:
    given, weight, bias, z = layers(torch.float32)
    given, weight, z = change(given, weight, z)
    with pytest.raises(RuntimeError, match=f"CUDNN_STATUS_NOT_SUPPORTED: {why}"):
        torch.cudnn_convolution_add_relu(
            given, weight, z, 1.0, bias.to(given.dtype), (2, 2), (1, 1), (1, 1), 1
        )


def test_a_card_without_fused_convolutions() -> None:
    with fake_cuda(fused=False):
        given, weight, bias, _ = layers(torch.float32)
        with pytest.raises(NotImplementedError, match="cudnn_convolution_relu"):
            torch.cudnn_convolution_relu(given, weight, bias, (2, 2), (1, 1), (1, 1), 1)


# Failures


def test_a_lost_device_fails_every_call(fake: FakeCuda) -> None:
    there, event = on_device(1, 2), cuda.Event()
    graph = captured(lambda: there.add_(1))
    event.record()
    fake.lose(code=NO_DEVICE)
    calls: list[Callable[[], object]] = [
        lambda: there + 1, lambda: torch.empty(1, device=DEVICE), there.cpu, graph.replay,
        event.record, event.synchronize, cuda.synchronize, cuda.empty_cache,
        cuda.mem_get_info,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(RuntimeError, match="no CUDA-capable device is detected") as raised:
            call()
        assert faults.poisons(raised.value)


def test_the_next_kernel_fails_or_the_next_of_a_name(fake: FakeCuda) -> None:
    there = on_device(1, 2)
    fake.fail_next(ValueError("any"))
    with pytest.raises(ValueError, match="any"):
        there.add_(1)
    fake.fail_next(ValueError("named"), "aten::mul_")
    there.add_(1)
    with pytest.raises(ValueError, match="named"):
        there.mul_(2)
    fake.fail_next(ValueError("call"), "cudaStreamSynchronize")
    there.add_(1)
    with pytest.raises(ValueError, match="call"):
        cuda.current_stream().synchronize()
    there.add_(1)


# Threads and engines


def test_every_thread_that_starts_uses_the_devices(fake: FakeCuda) -> None:
    there, found = on_device(1, 2), []

    def work() -> None:
        found.append(cuda.current_stream() == cuda.default_stream())
        with cuda.stream(cuda.Stream()):
            found.append((there + 1).is_cuda)

    with cuda.stream(cuda.Stream()):
        assert in_thread(work) == []
        found.append(cuda.current_stream() == cuda.default_stream())
    assert found == [True, True, False]


def copy_more(result: Tensor, given: Tensor) -> None:
    result.copy_(given + 1)


def test_a_capture_beside_a_thread_that_serves(fake: FakeCuda) -> None:
    """As two models on one device: one starts, one serves."""
    given = on_device(1, 2)
    served: list[list[float]] = []
    stop = threading.Event()

    def serve() -> None:
        with cuda.stream(cuda.Stream()):
            while not stop.is_set() or not served:
                served.append((given * 2).cpu().tolist())

    thread = threading.Thread(target=serve)
    thread.start()
    results = [on_device(0, 0) for _ in range(20)]
    graphs = [captured(partial(copy_more, result, given)) for result in results]
    stop.set()
    thread.join()
    for graph in graphs:
        graph.replay()
    assert {tuple(each) for each in served} == {(2, 4)}
    assert all(result.tolist() == [2, 3] for result in results)


@pytest.mark.parametrize("judge", [True, False])
@pytest.mark.parametrize("kind", ["eager", "fused"])
def test_engines_start_and_agree_with_the_cpu_in_each_lane(kind: str, judge: bool) -> None:
    made = bundling.untrained(TINY, "tiny", CIFAR)
    with fake_cuda(judge=judge) as fake:
        warm = start_engine(kind, planned(made, device=DEVICE), None)
        # A machine that is busy measures large batches to be too slow.
        batches = images(1), images(warm.buckets.largest)
        before = fake.allocations
        flying = [warm.launch(batch) for batch in batches]
        for batch, result in zip(batches, flying, strict=True):
            found = result().by_class()
            np.testing.assert_allclose(found, expected(made, batch), atol=1e-6)
        if kind == "fused":
            assert fake.allocations == before
            assert not fake.races
    assert warm.engine.device == DEVICE


def test_a_process_has_the_devices_as_soon_as_it_has_torch(tmp_path: Path) -> None:
    code = """
import sys
assert "torch" not in sys.modules
import torch
print(torch.cuda.device_count(), torch.ones(1, device="cuda:1").device)
try:
    torch.ones(1, device="cuda:0")
except torch.AcceleratorError as error:
    print(str(error).splitlines()[0])
"""
    (tmp_path / "lost").write_text("0")
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {
            "FAKE_GPUS": "2",
            "FAKE_GPUS_LOST": str(tmp_path / "lost"),
            "PYTHONPATH": str(ROOT / "tests" / "fake_gpu"),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout.splitlines() == [
        "2 cuda:1",
        "CUDA error: an illegal memory access was encountered",
    ], process.stderr
